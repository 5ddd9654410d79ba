"""A small CNN on photo-patches, exact at the first timestep.

Command:   polarspike train photo_patches_cnn
           (rehearsed on random images: polarspike train photo_patches_cnn --rehearse)
Hardware:  one CPU core
Cost:      20 + 10 epochs of 6,000 patches, and 10 of the control: four minutes and a half of one core
Expected:  ANN 89.3, 89.2, 85.4 %; SNN 88.4, 89.9, 86.0 % at T = 1 and 89.1, 90.5, 85.9 % at T = 8 (seeds 0, 1, 2,
           2026-11-29, torch 2.14.1, one thread; all 1,500 test patches, last epoch); 0 codes differ at T = 1
Published: unknown

The values are ``RECIPES["photo_patches_cnn"]`` in ``polarspike/experiments/recipes.py``: an installed command line has them.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["photo_patches_cnn"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
