"""ResNet-9 of 20 channels on Fashion-MNIST, exact at the first timestep.

Command:   polarspike train --data fashion-mnist
           (or: python recipes/fashion_mnist.py [any option of `polarspike train`])
Hardware:  one CPU core
Cost:      24 + 3 epochs for the network's weights, and 3 of the control: two hours of one core that others shared
Expected:  ANN 94.7 %; SNN 94.6 % at T = 1 (94.51, 94.65, 94.58 with seeds 0, 1, 2) and 94.6 % at T = 2, 4, 8
           (0 codes differ at T = 1; 2026-11-29, torch 2.14.1, by benchmarks/studies/first_timestep.py, which trains the
           same; all 10,000 test images, last epoch)
Published: by others, not reproduced here:
           Self-dropping neuron (direct): 93.72 % at T = 1

The values are ``FASHION_MNIST`` in ``polarspike/experiments/recipes.py``, so that an installed command line has them, too.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import FASHION_MNIST as RECIPE

__all__ = ["RECIPE"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
