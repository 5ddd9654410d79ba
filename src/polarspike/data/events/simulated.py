"""``events-fashion-mnist``: Fashion-MNIST as a simulated event camera sees it, in three saccades; and which way they went.

Every sample comes from one image and a seed of its own, so that a part is the same whatever else is made. The second task,
``saccade-direction``, shows the same path forward or backward: the mean of all frames is nearly the same for both, so that
little but the order of time tells them apart.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.events.dataset import EventSource, Recording, Recordings, register_events
from polarspike.data.events.simulation import CameraSpec, simulate
from polarspike.data.events.streams import EventStream
from polarspike.data.fashion_mnist import fashion_mnist
from polarspike.data.registry import Source

_ORIGIN = "Fashion-MNIST (arXiv 1708.07747) through a simulated event camera (three saccades); not a recording"
_SENSOR = (CameraSpec().size, CameraSpec().size)
_LICENCE = "MIT (Expat), copyright 2017 Zalando SE"


@functools.lru_cache(maxsize=1)
def _images(root: Path | None) -> ImageDataset:
    return fashion_mnist(Source(root))


def _sample(images: ImageDataset, recording: Recording, camera: CameraSpec) -> EventStream:
    part, index = ("train", recording.start) if recording.end == 0 else ("test", recording.start)
    assert index is not None
    split = getattr(images, part)
    return simulate(split.images[index, 0].numpy(), camera, seed=2 * index + (part == "test"))


def _settings(images: ImageDataset, camera: CameraSpec) -> dict[str, Any]:
    return {"camera": camera.to_dict(), "images": [len(images.train), len(images.test)], "version": 1}


def _events_fashion_mnist(source: Source) -> Recordings:
    images, camera = _images(source.root), CameraSpec()
    train, test = (
        [Recording(Path(), int(label), index, number) for index, label in enumerate(split.labels.tolist())]
        for number, split in enumerate((images.train, images.test))
    )
    size = (camera.size, camera.size)
    return Recordings(
        train, test, size, images.classes, lambda r: _sample(images, r, camera), _settings(images, camera)
    )


def _saccade_direction(source: Source) -> Recordings:
    images = _images(source.root)
    cameras = (CameraSpec(), CameraSpec(backward=True))
    # An image is seen one way alone, so that no other way of it is in the training part.
    train, test = (
        [Recording(Path(), index % 2, index, number) for index in range(len(split))]
        for number, split in enumerate((images.train, images.test))
    )
    size = (cameras[0].size, cameras[0].size)
    return Recordings(
        train,
        test,
        size,
        ("forward", "backward"),
        lambda r: _sample(images, r, cameras[r.label]),
        _settings(images, cameras[0]),
    )


_COMMON = (_ORIGIN, _LICENCE)
register_events(
    EventSource(
        "events-fashion-mnist", _SENSOR, 10, *_COMMON, Augmentation(shift=2), _events_fashion_mnist, simulated=True
    )
)
register_events(
    EventSource("saccade-direction", _SENSOR, 2, *_COMMON, Augmentation(), _saccade_direction, simulated=True)
)
