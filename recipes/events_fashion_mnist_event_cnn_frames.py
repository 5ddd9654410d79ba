"""An event CNN on simulated events of Fashion-MNIST, six bins as six timesteps, each frame exact at its first timestep.

Command:   polarspike train events_fashion_mnist_event_cnn_frames
           (rehearsed on random frames: polarspike train events_fashion_mnist_event_cnn_frames --rehearse)
Hardware:  one CPU core
Cost:      half an hour for the frames of 70,000 images, then 15 + 5 epochs, and 5 of the control, six frames a sample; its
           time is not measured
Expected:  unknown: it has not been run on its data (docs/results.md has this reading of smaller frames)
Published: unknown

The values are ``RECIPES["events_fashion_mnist_event_cnn_frames"]`` in ``polarspike/experiments/recipes.py``, for an
installed command line.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["events_fashion_mnist_event_cnn_frames"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
