"""An event CNN on DVS128 Gesture, ten bins as channels, exact at the first timestep.

Command:   polarspike train dvs128_gesture_event_cnn
           (rehearsed on random images: polarspike train dvs128_gesture_event_cnn --rehearse)
Hardware:  one GPU
Cost:      150 + 30 epochs, and 30 of the control; its time is not measured
Expected:  unknown: it has not been run on its data
Published: by others, not reproduced here:
           RTFormer (direct): 98.61 %
           QB-LIF (direct): 98.28 %

The values are ``RECIPES["dvs128_gesture_event_cnn"]`` in ``polarspike/experiments/recipes.py``: an installed command line
has them.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["dvs128_gesture_event_cnn"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
