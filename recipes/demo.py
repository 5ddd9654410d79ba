"""Real digits (MNIST-5k) in a few minutes; values, cost and expected result: ``DEMO`` in ``polarspike/recipes.py``.

polarspike demo                               what ``make demo`` runs
python recipes/demo.py [options]              the same with any option of ``polarspike train``
polarspike train --recipe recipes/demo.py     the same
"""

import sys

from polarspike.cli import main
from polarspike.recipes import DEMO as RECIPE

__all__ = ["RECIPE"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
