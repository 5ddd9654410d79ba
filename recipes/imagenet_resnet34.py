"""ResNet-34 on ImageNet-1k, exact at the first timestep.

Command:   polarspike train imagenet_resnet34
           (rehearsed on random images: polarspike train imagenet_resnet34 --rehearse)
Hardware:  eight GPUs
Cost:      90 + 20 epochs, and 20 of the control; its time is not measured
Expected:  unknown: it has not been run on its data
Published: by others, not reproduced here:
           COS (rho=8): 69.11 % at T = 1 (true latency 9)
           SRP (tau=8): 57.78 % at T = 1 (true latency 9)
           Group neurons (tau=6): 73.61 % at T = 2
           PASCAL: 74 %
           SDT-V3 10M (direct): 78.5 %
           SDT-V3 173M (direct): 86.2 %

The values are ``RECIPES["imagenet_resnet34"]`` in ``polarspike/experiments/recipes.py``: an installed command line has them.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["imagenet_resnet34"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
