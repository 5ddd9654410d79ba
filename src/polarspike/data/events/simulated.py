"""``events-fashion-mnist``: Fashion-MNIST as a simulated event camera sees it in three saccades; and the saccades' order.

Every sample comes from one image and a seed of its own, so that a part is the same whatever else is made. The second task,
``saccade-order``, shows the three saccades in their order or in the reversed one, each of them as it was: both classes hold
the same events but for their times, so that the mean of all frames says nothing, and a frame by itself hardly anything.
(A path walked *backward* would be no such task: a pixel remembers where it came from, and a network on the mean frame tells
the two apart in 83 of 100 cases.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.events.dataset import EventSource, Recording, Recordings, register_events
from polarspike.data.events.simulation import CameraSpec, simulate
from polarspike.data.events.streams import EventStream
from polarspike.data.fashion_mnist import fashion_mnist
from polarspike.data.registry import Source
from polarspike.data.splits import Split

_ORIGIN = "Fashion-MNIST (arXiv 1708.07747) through a simulated event camera (three saccades); not a recording"
_SENSOR = (CameraSpec().size, CameraSpec().size)
_LICENCE = "MIT (Expat), copyright 2017 Zalando SE"
_Read = Callable[[EventStream, Recording, CameraSpec], EventStream]


def _images(source: Source) -> ImageDataset:
    return fashion_mnist(Source(source.root, source.download))


def _sample(images: ImageDataset, recording: Recording, camera: CameraSpec) -> EventStream:
    part, index = ("train", recording.start) if recording.end == 0 else ("test", recording.start)
    assert index is not None
    split = getattr(images, part)
    return simulate(split.images[index, 0].numpy(), camera, seed=2 * index + (part == "test"))


def _settings(images: ImageDataset, camera: CameraSpec) -> dict[str, Any]:
    digests = [hashlib.sha256(part.images.numpy().tobytes()).hexdigest() for part in (images.train, images.test)]
    return {"camera": camera.to_dict(), "images": digests, "version": 1}


def _recordings(
    images: ImageDataset, classes: tuple[str, ...], labels: Callable[[Split], list[int]], read: _Read
) -> Recordings:
    """Every image once, as ``read`` lets the camera see it."""
    camera = CameraSpec()
    train, test = (
        [Recording(Path(), label, index, number) for index, label in enumerate(labels(split))]
        for number, split in enumerate((images.train, images.test))
    )
    size, settings = (camera.size, camera.size), _settings(images, camera)
    return Recordings(train, test, size, classes, lambda r: read(_sample(images, r, camera), r, camera), settings)


def _events_fashion_mnist(source: Source) -> Recordings:
    images = _images(source)
    return _recordings(images, images.classes, lambda split: split.labels.tolist(), lambda events, *_: events)


def reordered(events: EventStream, saccade_us: int) -> EventStream:
    """The three saccades of a recording in the reversed order."""
    number = np.minimum(events.t // saccade_us, 2)
    return EventStream.of(events.x, events.y, events.t + (2 - 2 * number) * saccade_us, events.p, events.size)


def _saccade_order(source: Source) -> Recordings:
    def read(events: EventStream, recording: Recording, camera: CameraSpec) -> EventStream:
        return reordered(events, camera.saccade_us) if recording.label else events

    # An image is seen one way alone, so that no other way of it is in the training part.
    classes = ("in order", "reversed")
    return _recordings(_images(source), classes, lambda split: [i % 2 for i in range(len(split))], read)


_COMMON = (_ORIGIN, _LICENCE)
register_events(
    EventSource(
        "events-fashion-mnist", _SENSOR, 10, *_COMMON, Augmentation(shift=2), _events_fashion_mnist, simulated=True
    )
)
register_events(EventSource("saccade-order", _SENSOR, 2, *_COMMON, Augmentation(), _saccade_order, simulated=True))
