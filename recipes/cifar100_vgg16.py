"""VGG-16 on CIFAR-100, exact at the first timestep.

Command:   polarspike train cifar100_vgg16
           (rehearsed on random images: polarspike train cifar100_vgg16 --rehearse)
Hardware:  one GPU
Cost:      200 + 50 epochs, and 50 of the control; its time is not measured
Expected:  unknown: it has not been run on its data
Published: by others, not reproduced here:
           SRP (tau=4): 71.52 % at T = 1 (true latency 5)
           COS (rho=4): 74.24 % at T = 1 (true latency 5)
           Self-dropping neuron (direct): 69.45 % at T = 1

The values are ``RECIPES["cifar100_vgg16"]`` in ``polarspike/experiments/recipes.py``: an installed command line has them.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["cifar100_vgg16"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
