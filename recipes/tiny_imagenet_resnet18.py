"""ResNet-18 on Tiny-ImageNet-200, exact at the first timestep.

Command:   polarspike train tiny_imagenet_resnet18
           (rehearsed on random images: polarspike train tiny_imagenet_resnet18 --rehearse)
Hardware:  one GPU
Cost:      100 + 30 epochs, and 30 of the control; its time is not measured
Expected:  unknown: it has not been run on its data
Published: unknown

The values are ``RECIPES["tiny_imagenet_resnet18"]`` in ``polarspike/experiments/recipes.py``: an installed command line
has them.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["tiny_imagenet_resnet18"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
