"""ViT-Ti with patches of 4 pixels on CIFAR-10, exact at the first timestep.

Command:   polarspike train cifar10_vit_ti
           (rehearsed on random images: polarspike train cifar10_vit_ti --rehearse)
Changes:   flip and shift; RandAugment 27, erasing 0.25, MixUp 0.8, CutMix 1.0 (torchvision v2), label smoothing 0.1
Hardware:  one GPU
Cost:      300 + 60 epochs, and 60 of the control; its time is not measured
Expected:  unknown: it has not been run on its data
Published: by others, not reproduced here:
           PMSM v1, a larger ViT-S: 98.5 % at T = 1
           Self-dropping neuron (direct): 92.20 % at T = 1

The values are ``RECIPES["cifar10_vit_ti"]`` in ``polarspike/experiments/recipes.py``: an installed command line has them.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["cifar10_vit_ti"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
