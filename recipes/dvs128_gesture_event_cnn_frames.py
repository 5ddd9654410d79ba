"""An event CNN on DVS128 Gesture, ten bins as ten timesteps: every frame a first timestep, answers averaged over time.

Command:   polarspike train dvs128_gesture_event_cnn_frames
           (rehearsed on random frames: polarspike train dvs128_gesture_event_cnn_frames --rehearse)
Hardware:  one GPU
Cost:      150 + 30 epochs, and 30 of the control, ten frames a sample; its time is not measured
Expected:  unknown: it has not been run on its data
Published: by others, not reproduced here:
           RTFormer (direct): 98.61 %
           QB-LIF (direct): 98.28 %

The values are ``RECIPES["dvs128_gesture_event_cnn_frames"]`` in ``polarspike/experiments/recipes.py``, for an installed
command line.
"""

import sys

from polarspike.cli import main
from polarspike.experiments.recipes import RECIPES

RECIPE = RECIPES["dvs128_gesture_event_cnn_frames"]

if __name__ == "__main__":
    raise SystemExit(main(["train", "--recipe", __file__, *sys.argv[1:]]))
