"""ViT-S on ImageNet-1k, exact at the first timestep.

Command:   polarspike train imagenet_vit_s
           (rehearsed on random images: polarspike train imagenet_vit_s --rehearse)
           several GPUs: accelerate launch --num_processes 8 -m polarspike train imagenet_vit_s
Changes:   random part and flip; RandAugment 27, erasing 0.25, MixUp 0.8, CutMix 1.0 (torchvision v2), label smoothing 0.1
Weights:   of timm, where you have them; the first training is then left out: polarspike train --data imagenet-1k
           --model timm:vit_small_patch16_224 --weights FILE --batch-size 1024 --workers 24 --quant.negative 7
           --quant.positive 8 --qann.epochs 30 --qann.optimizer adamw --qann.learning-rate 2e-4
           --qann.weight-decay 0.05 --qann.distillation 0.9 --qann.temperature 2 --qann.timesteps 1 2 4 8
           --qann.precision bf16
Hardware:  eight GPUs
Cost:      300 + 30 epochs, and 30 of the control; 6.6 hours on paper (benchmarks/estimate.py), not measured
Expected:  unknown: it has not been run on its data
Published: by others, not reproduced here:
           PMSM v1: 81.6 % at T = 1
           SpikeZIP-TF Q32: 0.26 % at T = 32
           SpikeZIP-TF Q32: 81.07 % at T = 64
           SDT-V3 10M (direct): 78.5 %
           SDT-V3 173M (direct): 86.2 %

The values are ``RECIPES["imagenet_vit_s"]`` in ``polarspike/experiments/recipes.py``: an installed command line has them.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["imagenet_vit_s"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
