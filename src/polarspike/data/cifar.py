"""``cifar-10`` and ``cifar-100``: 60,000 colour images of 32x32 pixels, from the files of either distribution.

Binary: each record is its label bytes (CIFAR-10: one; CIFAR-100: coarse, fine), then 3072 pixel bytes, channel by channel.
Python: a pickled dictionary with ``data`` (N, 3072) and ``labels`` or ``fine_labels``; it is read by an unpickler that knows
nothing but arrays and plain containers, so that no code of a file runs.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.local import Layout, locate
from polarspike.data.normalization import Normalization
from polarspike.data.reading import bytes_of
from polarspike.data.registry import Shape, Source, register
from polarspike.data.splits import Split
from polarspike.errors import DataError

_PIXELS = 3 * 32 * 32
CLASSES_10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# What a pickle of these files names, in the protocols of Python 2 and 3 and by NumPy 1 and 2.
_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


@dataclass(frozen=True)
class _Version:
    """One of the two data sets: its files, records per file, label bytes and the place of the label among them."""

    name: str
    binary: Layout
    python: Layout
    train_records: int
    test_records: int
    label_bytes: int
    key: bytes
    how: str


_CIFAR_10 = _Version(
    name="cifar-10",
    binary=Layout("cifar-10-batches-bin", (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin")),
    python=Layout("cifar-10-batches-py", (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")),
    train_records=10_000,
    test_records=10_000,
    label_bytes=1,
    key=b"labels",
    how="Unpack cifar-10-binary.tar.gz or cifar-10-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html there",
)
_CIFAR_100 = _Version(
    name="cifar-100",
    binary=Layout("cifar-100-binary", ("train.bin", "test.bin", "fine_label_names.txt")),
    python=Layout("cifar-100-python", ("train", "test", "meta")),
    train_records=50_000,
    test_records=10_000,
    label_bytes=2,
    key=b"fine_labels",
    how="Unpack cifar-100-binary.tar.gz or cifar-100-python.tar.gz of https://www.cs.toronto.edu/~kriz/cifar.html there",
)
_ORIGIN = "A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009"
_LICENCE = "none stated by its authors"


@register("cifar-10", Shape(3, 32, 32, 10))
def cifar_10(source: Source) -> ImageDataset:
    """50,000 training and 10,000 test images of 10 classes, in the order of the files.

    Raises:
        DataError: files are missing, truncated, or hold something else.
    """
    layout, folder = _located(_CIFAR_10, source)
    *train, test = (_read(_CIFAR_10, layout, folder / file) for file in getattr(_CIFAR_10, layout).files)
    return _dataset(_CIFAR_10, train, test, CLASSES_10)


@register("cifar-100", Shape(3, 32, 32, 100))
def cifar_100(source: Source) -> ImageDataset:
    """50,000 training and 10,000 test images of 100 classes (the fine ones), in the order of the files.

    Raises:
        DataError: files are missing, truncated, or hold something else.
    """
    layout, folder = _located(_CIFAR_100, source)
    train_file, test_file, names_file = getattr(_CIFAR_100, layout).files
    train = _read(_CIFAR_100, layout, folder / train_file)
    return _dataset(
        _CIFAR_100, [train], _read(_CIFAR_100, layout, folder / test_file), _names(folder / names_file, layout)
    )


def _located(version: _Version, source: Source) -> tuple[str, Path]:
    return locate(version.name, source, {"binary": version.binary, "python": version.python}, version.how)


def _dataset(version: _Version, train: Sequence[Split], test: Split, classes: tuple[str, ...]) -> ImageDataset:
    whole = Split(torch.cat([part.images for part in train]), torch.cat([part.labels for part in train]))
    return ImageDataset(
        name=version.name,
        train=whole,
        test=test,
        classes=classes,
        origin=_ORIGIN,
        licence=_LICENCE,
        normalization=Normalization.of(whole.images),
        augmentation=Augmentation(flip=True, shift=4),
    )


def _read(version: _Version, layout: str, path: Path) -> Split:
    wanted = version.test_records if path.stem.startswith("test") else version.train_records
    images, labels = _binary(version, path) if layout == "binary" else _python(version, path)
    if len(images) != wanted:
        raise DataError(f"{path}: expected {wanted} images, got {len(images)}; the file is not whole, fetch it again")
    return Split(images, labels)


def _binary(version: _Version, path: Path) -> tuple[Tensor, Tensor]:
    record = version.label_bytes + _PIXELS
    content = bytes_of(path)
    if len(content) % record or not content:
        raise DataError(
            f"{path}: expected records of {record} bytes, got {len(content)} bytes, which are no whole number of them; "
            "fetch it again"
        )
    table = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, record)
    images = table[:, version.label_bytes :].reshape(-1, 3, 32, 32).clone()
    return images, table[:, version.label_bytes - 1].long()


def _python(version: _Version, path: Path) -> tuple[Tensor, Tensor]:
    content = unpickled(bytes_of(path), path)
    pixels, labels = (content.get(b"data"), content.get(version.key)) if isinstance(content, dict) else (None, None)
    whole = (
        isinstance(pixels, np.ndarray)
        and isinstance(labels, list)
        and all(type(label) is int for label in labels)  # a tensor would cut a fraction off
        and (pixels.dtype, pixels.shape) == (np.uint8, (len(labels), _PIXELS))
    )
    if not whole:
        raise DataError(
            f"{path}: expected a dictionary with data (N, {_PIXELS}) uint8 and {version.key.decode()}, one for each image, "
            "got something else"
        )
    return torch.from_numpy(np.array(pixels)).view(-1, 3, 32, 32), torch.tensor(labels, dtype=torch.int64)


def _names(path: Path, layout: str) -> tuple[str, ...]:
    if layout == "binary":
        names = [line.strip() for line in bytes_of(path).decode("utf-8", "replace").splitlines() if line.strip()]
    else:
        content = unpickled(bytes_of(path), path)
        found = content.get(b"fine_label_names", []) if isinstance(content, dict) else []
        names = [name.decode() if isinstance(name, bytes) else str(name) for name in found]
    if len(names) != 100:
        raise DataError(f"{path}: expected the names of 100 classes, got {len(names)}")
    return tuple(names)


class _Unpickler(pickle.Unpickler):
    """Arrays, bytes and plain containers, and nothing that could run."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _KNOWN:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which a file of images has no use for")
        return super().find_class(module, name)


def unpickled(content: bytes, path: Path) -> Any:
    """What a pickle holds, with the strings of Python 2 as bytes.

    Raises:
        DataError: it is damaged, or names anything but arrays.
    """
    try:
        return _Unpickler(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle may raise anything
        raise DataError(f"{path}: expected a pickled dictionary of arrays, got: {error}; fetch it again") from error
