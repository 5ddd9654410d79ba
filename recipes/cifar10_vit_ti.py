"""ViT-Ti with patches of 4 pixels on CIFAR-10, exact at the first timestep.

Command:   polarspike train cifar10_vit_ti
           (rehearsed on random images: polarspike train cifar10_vit_ti --rehearse)
Changes:   flip and shift; RandAugment 27, erasing 0.25, MixUp 0.8, CutMix 1.0 (torchvision v2), label smoothing 0.1
Weights:   of timm, where you have them, for other classes and at 224 pixels: the head is fresh, the positions are resampled
           (CIFAR's 32 pixels are 2x2 patches of 16), and the float network is trained from there:
           polarspike train --data cifar-10 --model timm:vit_tiny_patch16_224 --weights FILE --fresh-head True
           --batch-size 512 --workers 8 --ann.epochs 20 --ann.optimizer adamw --ann.learning-rate 1e-4
           --ann.weight-decay 0.05 --ann.precision bf16 --quant.negative 7 --quant.positive 8 --qann.epochs 10
           --qann.optimizer adamw --qann.learning-rate 2e-5 --qann.weight-decay 0.05 --qann.distillation 0.9
           --qann.temperature 2 --qann.timesteps 1 2 4 8 --qann.precision bf16
           (rehearsed on random images with random weights; what it comes to is unknown)
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
