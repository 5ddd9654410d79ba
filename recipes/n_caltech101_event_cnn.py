"""An event CNN on N-Caltech101, ten bins as channels, exact at the first timestep.

Command:   polarspike train n_caltech101_event_cnn
           (rehearsed on random images: polarspike train n_caltech101_event_cnn --rehearse)
Hardware:  one GPU
Cost:      100 + 30 epochs, and 30 of the control; its time is not measured
Expected:  unknown: it has not been run on its data
Published: unknown

The values are ``RECIPES["n_caltech101_event_cnn"]`` in ``polarspike/experiments/recipes.py``: an installed command line
has them.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["n_caltech101_event_cnn"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
