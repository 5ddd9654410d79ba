"""ResNet-20 on Fashion-MNIST; values, cost and expected result: ``FASHION_MNIST`` in ``polarspike/recipes.py``.

polarspike train --data fashion-mnist
python recipes/fashion_mnist.py [options]              the same with any option of ``polarspike train``
polarspike train --recipe recipes/fashion_mnist.py     the same
"""

import sys

from polarspike.cli import main
from polarspike.recipes import FASHION_MNIST as RECIPE

__all__ = ["RECIPE"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
