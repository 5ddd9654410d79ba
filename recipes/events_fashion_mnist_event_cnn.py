"""An event CNN on simulated events of Fashion-MNIST, ten bins as channels, exact at the first timestep.

Command:   polarspike train events_fashion_mnist_event_cnn
           (rehearsed on random images: polarspike train events_fashion_mnist_event_cnn --rehearse)
Hardware:  one CPU core
Cost:      half an hour for the frames of 70,000 images, then 15 + 5 epochs, and 5 of the control; its time is not measured
Expected:  unknown: it has not been run on its data
Published: unknown

The values are ``RECIPES["events_fashion_mnist_event_cnn"]`` in ``polarspike/experiments/recipes.py``, for an installed
command line.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["events_fashion_mnist_event_cnn"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
