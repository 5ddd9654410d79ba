"""The simulated events that the study of readings is about, as six frames of 17x17 counts, kept under ``runs/studies``.

fashion  events-fashion-mnist: the first 20,000 training images, all 10,000 test images; 10 classes
order    the same frames of the first 6,000 training images and of all test images; of every second image in the order of
         its three saccades, else with the saccades reversed (frames 5 6 3 4 1 2): the classes differ in nothing else, not
         even by the edges of the bins, as in the data set saccade-order

python benchmarks/studies/_events.py train|test      makes the frames of a part beforehand
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from polarspike import data
from polarspike.data import Augmentation
from polarspike.data.events.cache import cached
from polarspike.data.events.dataset import EventDataset
from polarspike.data.events.frames import FrameSpec, to_frames
from polarspike.data.events.simulation import CameraSpec, simulate
from polarspike.data.splits import Split

FRAMES = FrameSpec(bins=6, height=17, width=17)
CLASSES = {"fashion": 10, "order": 2}
TRAINING_IMAGES = {"fashion": 20_000, "order": 6_000}
_FOLDER = Path(__file__).parents[2] / "runs" / "studies" / "events"
_REVERSED = [4, 5, 2, 3, 0, 1]


@functools.cache
def dataset(task: str) -> EventDataset:
    """Both parts of a task; training images are shifted by up to a pixel."""
    classes = tuple(map(str, range(CLASSES[task])))
    train, test = (_part(task, name) for name in ("train", "test"))
    return EventDataset(
        task, train, test, FRAMES, classes, "simulated, see above", "that of Fashion-MNIST", Augmentation(shift=1), True
    )


def _part(task: str, name: str) -> Split:
    """Frames (N, 12, 17, 17), the six bins side by side, and labels."""
    found = _fashion(name)
    if task == "fashion":
        return found
    count = TRAINING_IMAGES[task] if name == "train" else len(found)
    frames = found.images[:count].view(count, FRAMES.bins, 2, FRAMES.height, FRAMES.width).clone()
    frames[1::2] = frames[1::2][:, _REVERSED]
    return Split(frames.flatten(1, 2), torch.arange(count) % 2)


def _fashion(name: str) -> Split:
    images = data.load("fashion-mnist").part(name)
    assert isinstance(images, Split)  # Fashion-MNIST is in memory
    count = TRAINING_IMAGES["fashion"] if name == "train" else len(images)
    camera = CameraSpec()

    def make() -> Iterator[tuple[int, Any, int]]:
        for index in range(count):
            seen = simulate(images.images[index, 0].numpy(), camera, seed=2 * index + (name == "test"))
            yield index, to_frames(seen, FRAMES), int(images.labels[index])

    settings = {"part": name, "count": count, "frames": FRAMES.to_dict(), "camera": camera.to_dict()}
    return cached(_FOLDER, settings, count, FRAMES.shape((34, 34)), make, what=f"events of {name}")


if __name__ == "__main__":
    torch.set_num_threads(1)
    print(len(_fashion(sys.argv[1])))
