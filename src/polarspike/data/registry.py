"""The registry of data sets, and where their files are looked for."""

from __future__ import annotations

import dataclasses
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from polarspike.data.dataset import ImageDataset
from polarspike.data.streamed import StreamedDataset
from polarspike.errors import DataError, SpecError, closest

if TYPE_CHECKING:  # it comes with the readers of event data, which register themselves here
    from polarspike.data.events.frames import FrameSpec

FOLDER_VARIABLE = "POLARSPIKE_DATA"


@dataclass(frozen=True)
class Source:
    """Where a reader may take a data set's files from.

    Args:
        root: the folder that the user named; then no other is looked at.
        download: whether files that are not found may be fetched from the network.
        frames: how the recordings of an event data set become frames; None for the usual way.
        sequences: the frames of an event data set are timesteps, and not side by side as channels.
    """

    root: Path | None = None
    download: bool = False
    frames: FrameSpec | None = None
    sequences: bool = False

    def folders(self, name: str, *usual: Path) -> list[Path]:
        """Folders to look into, best first: ``root`` alone, else ``$POLARSPIKE_DATA/name``, then the usual ones."""
        if self.root is not None:
            return [self.root]
        shared = os.environ.get(FOLDER_VARIABLE)
        return ([Path(shared) / name] if shared else []) + list(usual)


AnyDataset = ImageDataset | StreamedDataset


@dataclass(frozen=True)
class Shape:
    """What the images of a data set look like, known without its files.

    Args:
        channels: C.
        height: H in pixels.
        width: W in pixels.
        classes: how many.
    """

    channels: int
    height: int
    width: int
    classes: int


Reader = Callable[[Source], AnyDataset]
AnyReader = TypeVar("AnyReader", bound=Reader)


@dataclass(frozen=True)
class DatasetEntry:
    """One data set of the registry.

    Args:
        name: what :func:`load` takes.
        summary: what it holds, in one line.
        shape: of its images.
        read: finds and reads its files.
        events: its images are frames of events, made as :class:`~polarspike.data.events.FrameSpec` says.
    """

    name: str
    summary: str
    shape: Shape
    read: Reader
    events: bool = False


_entries: dict[str, DatasetEntry] = {}


def register(name: str, shape: Shape, summary: str = "", *, events: bool = False) -> Callable[[AnyReader], AnyReader]:
    """Add a reader to the registry.

    Args:
        name: what :func:`load` takes.
        shape: of its images.
        summary: in one line; the first of the reader's docstring if not given.
        events: see :class:`DatasetEntry`.

    Raises:
        DataError: the name is taken, or nothing says what the data set holds.
    """

    def add(reader: AnyReader) -> AnyReader:
        if name in _entries:
            raise DataError(f"the data set name {name!r} is already registered by {_entries[name].read.__module__}")
        line = summary or (inspect.getdoc(reader) or "").partition("\n")[0]
        if not line:
            raise DataError(f"the reader of {name!r} needs a docstring; its first line is the data set's summary")
        _entries[name] = DatasetEntry(name, line, shape, reader, events)
        return reader

    return add


def names() -> list[str]:
    """Names of all data sets, sorted."""
    return sorted(_entries)


def describe(name: str) -> DatasetEntry:
    """The entry of one data set.

    Raises:
        DataError: the name is unknown; the message lists the names and the closest one.
    """
    if entry := _entries.get(name):
        return entry
    raise DataError(f"unknown data set {name!r}; known: {', '.join(names())}{closest(name, _entries)}")


def load(
    name: str,
    root: str | os.PathLike[str] | None = None,
    *,
    download: bool = False,
    frames: FrameSpec | None = None,
    sequences: bool = False,
) -> AnyDataset:
    """A data set; the same name gives the same images in the same order and parts everywhere.

    Args:
        name: one of :func:`names`.
        root: the folder of its files. Without it: ``$POLARSPIKE_DATA/<name>``, then where a package puts them.
        download: allow fetching what is not found; nothing is ever fetched otherwise, and only Fashion-MNIST can be.
        frames: of an event data set: how its recordings become frames.
        sequences: of an event data set: the bins are T timesteps, a :class:`~polarspike.data.events.SequenceDataset` whose
            batches are (B, T, 2, H, W). Else they are side by side as channels, (B, T * 2, H, W).

    Raises:
        SpecError: frames or sequences of a data set that holds no events, or frames larger than its sensor.
        DataError: the name is unknown, or files are missing or damaged; the message says what was expected where and
            how to get it.
        MissingExtraError: the data set comes inside a package that is not installed.
    """
    entry = describe(name)
    if root is not None and not Path(root).is_dir():
        raise DataError(f"{name}: expected root to be a folder, got {str(root)!r}, which is none")
    require_events(entry, frames, sequences)
    return entry.read(Source(None if root is None else Path(root), download, frames, sequences))


def require_events(entry: DatasetEntry, frames: FrameSpec | None, sequences: bool = False) -> None:
    """Refuse frames or sequences of a data set that holds no events.

    Raises:
        SpecError: it holds none.
    """
    if (frames is not None or sequences) and not entry.events:
        asked = "frames" if frames is not None else "sequences"
        raise SpecError(
            f"{asked}: expected an event data set, got {entry.name!r}, whose images need none; leave {asked} out, or take "
            f"one of: {', '.join(name for name in names() if _entries[name].events)}"
        )


def shape_of(name: str, frames: FrameSpec | None = None, *, sequences: bool = False) -> Shape:
    """What the images of a data set look like; of an event data set, as ``frames`` says if it is given.

    With ``sequences``, what one frame looks like.

    Raises:
        SpecError: frames or sequences of a data set that holds no events, or frames larger than its sensor.
        DataError: the name is unknown.
    """
    entry = describe(name)
    require_events(entry, frames, sequences)
    usual = entry.shape
    if frames is None:
        return dataclasses.replace(usual, channels=2) if sequences else usual
    bins, signs, height, width = frames.shape((usual.height, usual.width))
    return Shape(signs if sequences else bins * signs, height, width, usual.classes)
