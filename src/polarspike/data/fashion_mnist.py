"""``fashion-mnist``: 70,000 grey images of 28x28 pixels of articles of clothing, from local IDX files."""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.idx import read_labelled_images
from polarspike.data.local import cache
from polarspike.data.normalization import Normalization
from polarspike.data.registry import FOLDER_VARIABLE, Shape, Source, register
from polarspike.data.splits import Split
from polarspike.errors import DataError, MissingExtraError

NAME = "fashion-mnist"
SMALL = "fashion-mnist-14"
_SMALL_TRAINING_IMAGES = 30_000
DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
DOWNLOADED = Path("FashionMNIST", "raw")  # where torchvision puts the files below the folder it is given
FILES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")

#: SHA-256 of the training labels and the test labels, a byte each.
LABELS = "8ab940a680640f36c0bf1d2549cb2f3b3d4068c12547116cc7b1161b1d26663d"


@register(NAME, Shape(1, 28, 28, 10))
def fashion_mnist(source: Source) -> ImageDataset:
    """60,000 training and 10,000 test images, in the order of the files.

    The four files are looked for in the root alone where one is given, else in ``$POLARSPIKE_DATA/fashion-mnist``, the
    folder of Debian's package, and the user's cache; with or without ``.gz``, also in torchvision's subfolder.

    Raises:
        DataError: files are missing, damaged, do not belong together or are another data set's, or the download failed.
        MissingExtraError: a download was asked for, and torchvision is not installed.
    """
    paths = _find(source)
    if paths is None:
        if not source.download:
            raise DataError(_missing(source))
        _download(source)
        paths = _find(source)
        if paths is None:
            raise DataError(f"torchvision's download did not bring the files of {NAME}. {_missing(source)}")
    train, test = (Split(*read_labelled_images(*pair)) for pair in (paths[:2], paths[2:]))
    _require_its_labels(train, test, paths[0].parent)
    return ImageDataset(
        name=NAME,
        train=train,
        test=test,
        classes=("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag",
                 "Ankle boot"),
        origin="H. Xiao, K. Rasul and R. Vollgraf, Fashion-MNIST: a Novel Image Dataset for Benchmarking Machine "
        "Learning Algorithms, arXiv 1708.07747",
        licence="MIT (Expat), copyright 2017 Zalando SE",
        normalization=Normalization.of(train.images),
        augmentation=Augmentation(flip=True, shift=2),
    )  # fmt: skip


@register(SMALL, Shape(1, 14, 14, 10))
def fashion_mnist_14(source: Source) -> ImageDataset:
    """Fashion-MNIST averaged to 14x14 pixels: its first 30,000 training and all 10,000 test images, for many short runs.

    Means of 2x2 pixels, rounded to bytes; scaled like the full images. The other training images are left out, so that
    settings can be chosen on them. Files and errors are those of ``fashion-mnist``.

    Raises:
        DataError: the files hold fewer training images.
    """
    whole = fashion_mnist(source)
    if len(whole.train) < _SMALL_TRAINING_IMAGES:
        raise DataError(
            f"{SMALL}: expected files of at least {_SMALL_TRAINING_IMAGES} training images, got {len(whole.train)}; "
            "take the original ones"
        )
    few = whole.train.subset(torch.arange(_SMALL_TRAINING_IMAGES))
    return dataclasses.replace(
        whole,
        name=SMALL,
        train=Split(halved(few.images), few.labels),
        test=Split(halved(whole.test.images), whole.test.labels),
        augmentation=Augmentation(flip=True, shift=1),
    )


def halved(images: Tensor) -> Tensor:
    """(N, 1, 28, 28) bytes as (N, 1, 14, 14) of them."""
    return functional.avg_pool2d(images.float(), 2).round_().to(torch.uint8)


def _require_its_labels(train: Split, test: Split, folder: Path) -> None:
    # MNIST and its likes have files of the same names, shapes and counts: nothing else would tell.
    digest = hashlib.sha256(bytes(train.labels.tolist()) + bytes(test.labels.tolist())).hexdigest()
    if digest != LABELS:
        raise DataError(
            f"{NAME}: expected its 60000 training and 10000 test labels in {folder}, got {len(train)} and {len(test)} "
            "others; the files of MNIST and its likes have the same names: name the folder of Fashion-MNIST's"
        )


def _folders(source: Source) -> list[Path]:
    return source.folders(NAME, DEBIAN_FOLDER, cache(NAME))


def _find(source: Source) -> list[Path] | None:
    for folder in [inner for outer in _folders(source) for inner in (outer, outer / DOWNLOADED)]:
        # The packed file first: it carries a checksum.
        found = [next((p for p in (folder / f"{n}.gz", folder / n) if p.is_file()), None) for n in FILES]
        missing = [name for name, path in zip(FILES, found, strict=True) if path is None]
        if not missing:
            return [path for path in found if path is not None]
        # A folder with some of them is a broken copy: to pass on to another folder would hide that.
        if len(missing) < len(FILES) and not source.download:
            raise DataError(f"{NAME}: expected all four files in {folder}, but there is no {' or '.join(missing)}[.gz]")
    return None


def _missing(source: Source) -> str:
    return (
        f"{NAME}: expected the files {', '.join(FILES)} (each plain or as .gz) in one of: "
        f"{', '.join(map(str, _folders(source)))}. Get them with 'apt-get install dataset-fashion-mnist' (Debian, "
        f"Ubuntu), or name their folder by root or as ${FOLDER_VARIABLE}/{NAME}, or pass download=True"
    )


def _download(source: Source) -> None:
    try:
        from torchvision.datasets import FashionMNIST
    except ImportError as error:
        raise MissingExtraError("torchvision", "vision") from error
    named = source.folders(NAME)
    folder = named[0] if named else cache(NAME)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        FashionMNIST(str(folder), download=True)
    except (OSError, RuntimeError) as error:
        raise DataError(f"{NAME}: torchvision could not download it into {folder}: {error}") from error
