"""Four recorded data sets, from the files that their authors distribute.

    n-mnist          Train/<digit>/*.bin, Test/<digit>/*.bin                                      34x34, 60,000 + 10,000
    n-caltech101     Caltech101/<class>/*.bin                                                     180x240, 8,709
    cifar10-dvs      <class>/*.aedat (as published) or *.aedat4                                    128x128, 10,000
    dvs128-gesture   *.aedat with *_labels.csv, trials_to_train.txt and trials_to_test.txt         128x128, 11 gestures
                     or ibmGestureTrain/<user>/<label>.npy and ibmGestureTest/...

Where the authors cut no test part (n-caltech101, cifar10-dvs), a tenth of every class is taken by a fixed seed.
"""

from __future__ import annotations

import csv
import functools
from collections.abc import Callable
from pathlib import Path

import torch

from polarspike.data.augment import Augmentation
from polarspike.data.cifar import CLASSES_10
from polarspike.data.events.dataset import (
    EventSource,
    Recording,
    Recordings,
    fair_order,
    register_events,
)
from polarspike.data.events.formats import read_aedat, read_bin, read_npy
from polarspike.data.events.streams import EventStream
from polarspike.data.local import cache, nested
from polarspike.data.reading import lines_of, visible
from polarspike.data.registry import FOLDER_VARIABLE, Source
from polarspike.data.splits import stratified
from polarspike.errors import DataError

_TEST_FRACTION, _SEED = 0.1, 0
_DIGITS = tuple("0123456789")
_GESTURES = ("hand clapping", "right hand wave", "left hand wave", "right arm clockwise", "right arm counter clockwise",
             "left arm clockwise", "left arm counter clockwise", "arm roll", "air drums", "air guitar",
             "other gestures")  # fmt: skip
_SIZE = (128, 128)
_HOW = {
    "n-mnist": "Unpack Train.zip and Test.zip of https://www.garrickorchard.com/datasets/n-mnist there",
    "n-caltech101": "Unpack Caltech101.zip of https://www.garrickorchard.com/datasets/n-caltech101 there",
    "cifar10-dvs": "Unpack the ten archives of https://figshare.com/articles/dataset/CIFAR10-DVS_New/4724671 there",
    "dvs128-gesture": "Unpack DvsGesture.tar.gz of https://research.ibm.com/interactive/dvsgesture there (or "
    "ibmGestureTrain and ibmGestureTest, as tonic has them)",
}
#: Folders that the archives, or tonic, make around the files.
_INNER = {
    "n-mnist": ("NMNIST",),
    "n-caltech101": ("NCALTECH101",),
    "cifar10-dvs": ("CIFAR10DVS",),
    "dvs128-gesture": ("DvsGesture", "DVSGesture"),
}
#: How many recordings each part must have: fewer are an unfinished unpacking.
COUNTS = {
    "n-mnist": (60_000, 10_000),
    "n-caltech101": (8_709,),
    "cifar10-dvs": (10_000,),
    "dvs128-gesture": (1_176, 288),  # stretches that the label files name
    "dvs128-gesture, packed": (1_077, 264),  # tonic's archives hold fewer
}
#: How many classes, where nothing but folders names them: 100 of objects and one of background.
CLASSES = {"n-caltech101": 101}


def _n_mnist(source: Source) -> Recordings:
    folder = _first(source, "n-mnist", ("Train", "Test"))
    train, test = (_by_class(folder / part, _DIGITS, "*.bin") for part in ("Train", "Test"))
    _require_parts("n-mnist", folder, train, test)
    return Recordings(fair_order(train), fair_order(test), (34, 34), _DIGITS, lambda r: read_bin(r.path, (34, 34)))


def _n_caltech101(source: Source) -> Recordings:
    folder = _first(source, "n-caltech101", ("Caltech101",)) / "Caltech101"
    classes = tuple(p.name for p in visible(folder.iterdir()) if p.is_dir() and not p.name.startswith("__"))
    if len(classes) != (expected := CLASSES["n-caltech101"]):
        raise DataError(
            f"n-caltech101: expected folders of {expected} classes in {folder}, got {len(classes)}; "
            "unpack the archive again"
        )
    found = _by_class(folder, classes, "*.bin")
    return _cut("n-caltech101", folder, found, (180, 240), classes, lambda r: read_bin(r.path, (180, 240)))


def _cifar10_dvs(source: Source) -> Recordings:
    folder = _first(source, "cifar10-dvs", CLASSES_10)
    pattern = "*.aedat" if next(folder.glob("airplane/*.aedat"), None) else "*.aedat4"
    found = _by_class(folder, CLASSES_10, pattern)
    return _cut("cifar10-dvs", folder, found, _SIZE, CLASSES_10, lambda r: read_aedat(r.path, _SIZE))


def _dvs128_gesture(source: Source) -> Recordings:
    packed = ("ibmGestureTrain", "ibmGestureTest")
    for folder in _places(source, "dvs128-gesture"):
        if all((folder / part).is_dir() for part in packed):
            train, test = (_packed_gestures(folder / part) for part in packed)
            _require_parts("dvs128-gesture, packed", folder, train, test)
            return Recordings(train, test, _SIZE, _GESTURES, lambda r: read_npy(r.path, _SIZE))
    folder = _first(source, "dvs128-gesture", ("trials_to_train.txt", "trials_to_test.txt"))
    trained, tested = (_trials(folder / f"trials_to_{part}.txt") for part in ("train", "test"))
    if both := sorted(set(trained) & set(tested)):
        raise DataError(
            f"dvs128-gesture: expected {both[0]} in the list of one part, got it in both; unpack the archive again"
        )
    train, test = (fair_order([one for path in paths for one in _gestures(path)]) for paths in (trained, tested))
    _require_parts("dvs128-gesture", folder, train, test)
    return Recordings(train, test, _SIZE, _GESTURES, _stretches())


def _stretches() -> Callable[[Recording], EventStream]:
    """A reader of samples that keeps the last file whole, for as long as it is there itself."""
    whole = functools.lru_cache(maxsize=1)(lambda path: read_aedat(path, _SIZE))

    def read(recording: Recording) -> EventStream:
        assert recording.start is not None and recording.end is not None
        return whole(recording.path).between(recording.start, recording.end)

    return read


def _trials(listed: Path) -> list[Path]:
    """The recordings that a list names."""
    paths = [listed.parent / line for line in _lines(listed)]
    if not paths:
        raise DataError(f"{listed}: expected the names of recordings, found none; unpack the archive again")
    for index, path in enumerate(paths):
        if not path.is_file():
            raise DataError(f"dvs128-gesture: expected {path}, which {listed.name} names; unpack the archive again")
        if path in paths[:index]:
            raise DataError(f"{listed}: expected every recording once, got {path.name} twice; unpack the archive again")
    return paths


def _gestures(path: Path) -> list[Recording]:
    """The stretches that the label file of a recording names; it counts gestures from 1."""
    labels = path.with_name(f"{path.stem}_labels.csv")
    header, *rows = list(csv.reader(_lines(labels))) or [[""]]
    if header[0] != "class" or not rows:
        raise DataError(
            f"{labels}: expected the line class,startTime_usec,endTime_usec and one for each gesture, got "
            f"{','.join(header)!r} and {len(rows)} more; unpack the archive again"
        )
    found = []
    for row in rows:
        try:
            label, start, end = (int(value) for value in row[:3])
        except ValueError as error:
            raise DataError(f"{labels}: expected lines of class, start, end, got {','.join(row)!r}") from error
        if not 1 <= label <= len(_GESTURES):
            raise DataError(f"{labels}: expected classes in 1..{len(_GESTURES)}, got {label}")
        if start >= end:
            raise DataError(f"{labels}: expected a start before the end, got {','.join(row)!r}")
        found.append(Recording(path, label - 1, start, end))
    return found


def _packed_gestures(folder: Path) -> list[Recording]:
    found = []
    for path in visible(folder.glob("*/*.npy")):
        if not path.stem.isdigit() or int(path.stem) >= len(_GESTURES):
            raise DataError(f"{path}: expected a name of 0 to {len(_GESTURES) - 1}, the label")
        found.append(Recording(path, int(path.stem)))
    if not found:
        raise DataError(f"dvs128-gesture: expected {folder}/<user>/<label>.npy, found none; unpack the archive again")
    return fair_order(found)


def _lines(path: Path) -> list[str]:
    return [line.strip() for line in lines_of(path) if line.strip()]


def _by_class(folder: Path, classes: tuple[str, ...], pattern: str) -> list[Recording]:
    found = [
        Recording(path, label) for label, name in enumerate(classes) for path in visible((folder / name).glob(pattern))
    ]
    if missing := set(range(len(classes))) - {recording.label for recording in found}:
        place = folder / classes[min(missing)]
        raise DataError(f"{place}: expected recordings of this class ({pattern}), found none; unpack the archive again")
    return found


def _cut(
    name: str,
    folder: Path,
    found: list[Recording],
    size: tuple[int, int],
    classes: tuple[str, ...],
    read: Callable[[Recording], EventStream],
) -> Recordings:
    """A tenth of every class as the test part."""
    _require(name, folder, found, COUNTS[name][0])
    kept, moved = stratified(torch.tensor([recording.label for recording in found]), _TEST_FRACTION, _SEED)
    return Recordings([found[i] for i in kept.tolist()], [found[i] for i in moved.tolist()], size, classes, read)


def _require_parts(name: str, folder: Path, *parts: list[Recording]) -> None:
    for found, expected in zip(parts, COUNTS[name], strict=True):
        _require(name, folder, found, expected)


def _require(name: str, folder: Path, found: list[Recording], expected: int) -> None:
    if len(found) != expected:
        raise DataError(
            f"{name}: expected {expected} recordings in {folder}, got {len(found)}; the archive is not wholly unpacked, "
            "unpack it again"
        )


def _places(source: Source, name: str) -> list[Path]:
    return nested(source.folders(name, cache(name)), *_INNER[name])


def _first(source: Source, name: str, parts: tuple[str, ...]) -> Path:
    """The first place that holds these folders or files.

    Raises:
        DataError: none does.
    """
    for place in _places(source, name):
        if all((place / part).exists() for part in parts):
            return place
    wanted = ", ".join(parts[:3]) + (", ..." if len(parts) > 3 else "")
    places = ", ".join(map(str, source.folders(name, cache(name))))
    raise DataError(
        f"{name}: expected {wanted} in one of: {places}. {_HOW[name]}, or name the folder by root or as "
        f"${FOLDER_VARIABLE}/{name}"
    )


_SACCADES = (
    "G. Orchard, A. Jayawant, G. Cohen and N. Thakor, Converting Static Image Datasets to Spiking Neuromorphic Datasets "
    "Using Saccades, 2015"
)
_TERMS = "as stated where it is published"
for _source in (
    EventSource("n-mnist", (34, 34), 10, _SACCADES, _TERMS, Augmentation(shift=2), _n_mnist),
    EventSource("n-caltech101", (180, 240), 101, _SACCADES, _TERMS, Augmentation(flip=True, shift=4), _n_caltech101),
    EventSource(
        "cifar10-dvs",
        _SIZE,
        10,
        "H. Li, H. Liu, X. Ji, G. Li and L. Shi, CIFAR10-DVS: An Event-Stream Dataset for Object Classification, 2017",
        _TERMS,
        Augmentation(flip=True, shift=4),
        _cifar10_dvs,
    ),
    EventSource(
        "dvs128-gesture",
        _SIZE,
        11,
        "A. Amir et al., A Low Power, Fully Event-Based Gesture Recognition System, CVPR 2017",
        _TERMS,
        Augmentation(shift=4),
        _dvs128_gesture,
    ),
):
    register_events(_source)
