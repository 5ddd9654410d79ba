"""A small CNN on photo-patches, exact at the first timestep.

Command:   polarspike train photo_patches_cnn
           (rehearsed on random images: polarspike train photo_patches_cnn --rehearse)
Hardware:  one CPU core
Cost:      a few minutes; its time is not measured
Expected:  unknown: it has not been run on its data
Published: unknown

The values are ``RECIPES["photo_patches_cnn"]`` in ``polarspike/recipes.py``: an installed command line has them.
"""

import sys

from polarspike.cli import main
from polarspike.recipes import RECIPES

RECIPE = RECIPES["photo_patches_cnn"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
