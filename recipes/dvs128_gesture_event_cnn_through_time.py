"""An event CNN on DVS128 Gesture, ten bins as ten timesteps, converted and then trained through time: it learns their order.

Command:   polarspike train dvs128_gesture_event_cnn_through_time
           (rehearsed on random frames: polarspike train dvs128_gesture_event_cnn_through_time --rehearse)
Hardware:  one GPU
Cost:      150 + 30 epochs, 30 through time, and 30 + 30 of the control, ten frames a sample; its time is not measured
Expected:  unknown: it has not been run on its data
Published: by others, not reproduced here:
           RTFormer (direct): 98.61 %
           QB-LIF (direct): 98.28 %

The values are ``RECIPES["dvs128_gesture_event_cnn_through_time"]`` in ``polarspike/experiments/recipes.py``, for an
installed command line.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["dvs128_gesture_event_cnn_through_time"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
