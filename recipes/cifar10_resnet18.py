"""ResNet-18 on CIFAR-10, exact at the first timestep.

Command:   polarspike train cifar10_resnet18
           (rehearsed on random images: polarspike train cifar10_resnet18 --rehearse)
Hardware:  one GPU
Cost:      200 + 50 epochs, and 50 of the control; its time is not measured
Expected:  unknown: it has not been run on its data
Published: by others, not reproduced here:
           Error compensation: 94.75 % at T = 2
           Self-dropping neuron (direct): 92.20 % at T = 1

The values are ``RECIPES["cifar10_resnet18"]`` in ``polarspike/experiments/recipes.py``: an installed command line has them.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["cifar10_resnet18"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
