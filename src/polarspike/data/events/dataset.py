"""An event data set as frames, and the registry of those that can be read.

What a sequence means to a network (docs/theory.md): T bins side by side as channels are one timestep
(:meth:`EventDataset.channels`); T frames are T timesteps (:meth:`EventDataset.in_time`), integrated, read one by one, or
trained through time.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.events.cache import cached, stamp
from polarspike.data.events.frames import FrameSpec, to_frames
from polarspike.data.events.sequences import SequenceDataset
from polarspike.data.events.streams import EventStream
from polarspike.data.loaders import batches
from polarspike.data.local import cache
from polarspike.data.normalization import Normalization
from polarspike.data.parts import Parted
from polarspike.data.registry import Shape, Source, register
from polarspike.data.splits import Split
from polarspike.errors import DataError, closest

Part = Literal["train", "validation", "test"]


@dataclass(frozen=True)
class Recording:
    """One sample: a file, or a stretch of one.

    Args:
        path: of the file; ``Path()`` for what comes from none.
        label: from 0.
        start, end: microseconds, where the file holds several samples.
    """

    path: Path
    label: int
    start: int | None = None
    end: int | None = None


@dataclass(frozen=True)
class Recordings:
    """Where the samples of a data set are, and how one is read.

    Args:
        train, test: the samples in a fixed order.
        size: (H, W) of the sensor.
        classes: names of the labels.
        read: a recording's events.
        settings: what the events depend on beside the files, plain data.
    """

    train: list[Recording]
    test: list[Recording]
    size: tuple[int, int]
    classes: tuple[str, ...]
    read: Callable[[Recording], EventStream]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EventSource:
    """One data set of the registry.

    Args:
        name: what :func:`load_events` takes.
        size: (H, W) of the sensor.
        classes: how many.
        origin, licence: where the recordings come from, and on what terms.
        augmentation: the usual random changes.
        find: its recordings below a root, or in the usual places.
        simulated: made by a simulation, and always labelled so.
    """

    name: str
    size: tuple[int, int]
    classes: int
    origin: str
    licence: str
    augmentation: Augmentation
    find: Callable[[Source], Recordings]
    simulated: bool = False


_sources: dict[str, EventSource] = {}


def register_events(source: EventSource) -> None:
    """Add a data set to the registry, and to that of images: the bins of ``FrameSpec()`` side by side as channels."""
    _sources[source.name] = source

    height, width = source.size
    what = "simulated events" if source.simulated else "event recordings"
    summary = f"{what}, {FrameSpec().bins} bins of both signs as channels"

    @register(source.name, Shape(2 * FrameSpec().bins, height, width, source.classes), summary, events=True)
    def as_images(place: Source) -> ImageDataset:
        found = load_events(source.name, place.root, place.frames, download=place.download)
        return found.in_time() if place.sequences else found.channels()


def names() -> list[str]:
    """Names of all event data sets, sorted."""
    return sorted(_sources)


@dataclass(frozen=True, eq=False)
class EventDataset(Parted[Split]):
    """Frames of counts with their labels.

    Args:
        name: of the data set.
        train, test: bytes (N, T * 2, H, W), bin by bin, darker before brighter; mapped from disk.
        spec: how the recordings became frames.
        classes, origin, licence, augmentation, simulated: as for the source.
        validation: cut from the training part by :meth:`split_validation`, else None.
        scaling: the normalization, where it is known already.
    """

    name: str
    train: Split
    test: Split
    spec: FrameSpec
    classes: tuple[str, ...]
    origin: str
    licence: str
    augmentation: Augmentation
    simulated: bool
    validation: Split | None = None
    scaling: Normalization | None = None

    def split_validation(self, fraction: float, seed: int = 0) -> EventDataset:
        """The same data set with ``fraction`` of every class of the training part moved to a validation part.

        Both are copies in memory; the normalization stays that of the training part as loaded.

        Raises:
            DataError: there already is a validation part, or the fraction leaves a class out of a part.
        """
        return dataclasses.replace(super().split_validation(fraction, seed), scaling=self.normalization)

    @functools.cached_property  # it reads all training frames
    def normalization(self) -> Normalization:
        """Of the training counts of either sign, the same for every bin: for merged channels, 2 T numbers."""
        if self.scaling is not None:
            return self.scaling
        count, channels, height, width = self.train.images.shape
        frames = self.train.images.view(count * channels // 2, 2, height, width)
        return Normalization.of(frames).repeated(self.spec.bins)

    def channels(self) -> ImageDataset:
        """The bins side by side as channels, (N, T * 2, H, W): one timestep."""
        return ImageDataset(**self._held())

    def in_time(self) -> SequenceDataset:
        """The bins one after the other as frames, (T, 2, H, W): T timesteps; the normalization is that of a frame."""
        return SequenceDataset(**self._held() | {"normalization": self._of_a_frame}, bins=self.spec.bins)

    @property
    def _of_a_frame(self) -> Normalization:
        return Normalization(self.normalization.mean[:2], self.normalization.std[:2])

    def _held(self) -> dict[str, Any]:
        """What the data set has in common with one of images."""
        return {item.name: getattr(self, item.name) for item in dataclasses.fields(ImageDataset)}

    def sequences(self, part: Part, batch_size: int, *, shuffle: bool = False, augmented: bool = False) -> Any:
        """Batches of (frames (B, T, 2, H, W) float32, labels); every change is the same for all frames of a sample.

        Raises:
            DataError: there is no such part.
            SpecError: ``batch_size`` is not an integer of at least 1.
        """
        return batches(
            self.part(part),
            batch_size,
            normalization=self._of_a_frame,
            shuffle=shuffle,
            augment=self.augmentation if augmented else None,
            drop_last=augmented,
            classes=len(self.classes),
            frames=self.spec.bins,
        )


def load_events(
    name: str,
    root: str | os.PathLike[str] | None = None,
    spec: FrameSpec | None = None,
    *,
    cache_folder: str | os.PathLike[str] | None = None,
    download: bool = False,
) -> EventDataset:
    """The frames of an event data set, from its cache or made now.

    Args:
        name: one of :func:`names`.
        root: the folder of its files; without it ``$POLARSPIKE_DATA/<name>``, then the user's cache.
        spec: how recordings become frames; ``FrameSpec()`` if not given.
        cache_folder: where frames are kept; the user's cache if not given.
        download: allow fetching the images of a simulated data set; no recordings are ever fetched.

    Raises:
        DataError: the name is unknown, files are missing or damaged, a recording holds no event, or the cache cannot be
            written.
    """
    source = find_source(name)
    if root is not None and not Path(root).is_dir():
        raise DataError(f"{name}: expected root to be a folder, got {str(root)!r}, which is none")
    spec = spec or FrameSpec()
    found = source.find(Source(None if root is None else Path(root), download))
    folder = Path(cache_folder) if cache_folder is not None else cache("frames")
    train, test = (_part(source, found, part, spec, folder) for part in ("train", "test"))
    return EventDataset(
        name, train, test, spec, found.classes, source.origin, source.licence, source.augmentation, source.simulated
    )


def find_source(name: str) -> EventSource:
    """The entry of this name.

    Raises:
        DataError: there is none; the message lists them.
    """
    if name not in _sources:
        raise DataError(f"unknown event data set {name!r}; known: {', '.join(names())}{closest(name, _sources)}")
    return _sources[name]


def _part(source: EventSource, found: Recordings, part: str, spec: FrameSpec, folder: Path) -> Split:
    recordings: list[Recording] = getattr(found, part)
    files = [path for path in dict.fromkeys(recording.path for recording in recordings) if path != Path()]
    settings = {
        "data": source.name,
        "part": part,
        "spec": spec.to_dict(),
        "files": stamp(files),
        "samples": [[r.label, r.start, r.end] for r in recordings],
        "made": found.settings,
    }

    # Stretches of one file one after the other: whoever reads it keeps it whole for the next.
    places = {path: place for place, path in enumerate(files)}
    order = sorted(range(len(recordings)), key=lambda index: places.get(recordings[index].path, 0))

    def make() -> Iterator[tuple[int, Any, int]]:
        for index in order:
            recording = recordings[index]
            events = found.read(recording)
            if not len(events) and recording.path != Path():
                raise DataError(_nothing(recording))
            yield index, to_frames(events, spec), recording.label

    what = f"{source.name} {part}"
    return cached(folder / source.name, settings, len(recordings), spec.shape(found.size), make, what=what)


def _nothing(recording: Recording) -> str:
    stretch = "" if recording.start is None else f" from {recording.start} to {recording.end} us"
    return (
        f"{recording.path}: expected events of class {recording.label}{stretch}, found none; the file is truncated, or "
        "its labels belong to another: unpack the archive again"
    )


def fair_order(recordings: list[Recording]) -> list[Recording]:
    """A fixed random order, so that the beginning of a part is a fair sample of it."""
    order = torch.randperm(len(recordings), generator=torch.Generator().manual_seed(0))
    return [recordings[index] for index in order.tolist()]
