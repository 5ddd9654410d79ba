"""``photo-patches``: from which of ten colour photos is this patch of 32x32 pixels? A colour task on real pixels, made here.

The photos ship with scikit-image (eight) and scikit-learn (two). Training patches lie in the left 60 % of a photo, test
patches in the right 35 %: no pixel is in both. Patches of one photo resemble each other, and colour alone goes far (nearest
mean and deviation of colour: about 70 %), so accuracy here compares with nothing but accuracy here. It is not CIFAR, and
not a stand-in for it.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from polarspike.data.augment import Augmentation
from polarspike.data.dataset import ImageDataset
from polarspike.data.normalization import Normalization
from polarspike.data.registry import Shape, Source, register
from polarspike.data.splits import Split
from polarspike.errors import DataError, MissingExtraError

SIDE, TRAIN_PATCHES, TEST_PATCHES = 32, 600, 150  # of each photo
_LEFT, _RIGHT = 0.60, 0.65
_SEED = 0
#: package -> folder below it -> photos; the order is that of the labels.
PHOTOS = {
    "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "hubble_deep_field.jpg", "retina.jpg",
                         "ihc.png", "motorcycle_left.png")),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}  # fmt: skip


@register("photo-patches", Shape(3, 32, 32, 10))
def photo_patches(source: Source) -> ImageDataset:
    """6,000 training and 1,500 test patches of 10 photos; the same everywhere, as long as the photos are.

    With a root, all ten files are taken from there.

    Raises:
        DataError: a photo is missing, damaged, or too small.
        MissingExtraError: scikit-image, scikit-learn or Pillow is not installed.
    """
    generator = torch.Generator().manual_seed(_SEED)
    train, test, names = [], [], []
    for path in _paths(source):
        photo = _photo(path)
        width = photo.shape[2]
        train.append(_patches(photo[..., : int(_LEFT * width)], TRAIN_PATCHES, path, generator))
        test.append(_patches(photo[..., int(_RIGHT * width) :], TEST_PATCHES, path, generator))
        names.append(path.stem)
    parts = [_part(patches, generator) for patches in (train, test)]
    return ImageDataset(
        name="photo-patches",
        train=parts[0],
        test=parts[1],
        classes=tuple(names),
        origin="patches of photos in scikit-image and scikit-learn, cut by polarspike",
        licence="scikit-image and scikit-learn: BSD-3-Clause; each photo on the terms stated there",
        normalization=Normalization.of(parts[0].images),
        augmentation=Augmentation(flip=True, shift=4),
    )


def _paths(source: Source) -> list[Path]:
    found = []
    for package, (folder, files) in PHOTOS.items():
        place = source.root
        if place is None:
            spec = importlib.util.find_spec(package)  # finds the package without importing it
            if spec is None or spec.origin is None:
                raise MissingExtraError({"skimage": "scikit-image", "sklearn": "scikit-learn"}[package], "photos")
            place = Path(spec.origin).parent / folder
        found += [place / file for file in files]
    if missing := [path for path in found if not path.is_file()]:
        raise DataError(
            f"photo-patches: expected the photo {missing[0]}, which is not there ({len(missing)} of {len(found)} are "
            "missing); install scikit-image and scikit-learn, or put the ten files into one folder and give that as root"
        )
    return found


def _photo(path: Path) -> Tensor:
    """Bytes (3, H, W) of a file."""
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "vision") from error
    try:
        with Image.open(path) as file:
            pixels = np.array(file.convert("RGB"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: expected a picture, got: {error}") from error
    return torch.from_numpy(pixels).permute(2, 0, 1)


def _patches(photo: Tensor, count: int, path: Path, generator: torch.Generator) -> Tensor:
    """Bytes (count, 3, 32, 32), each at its own uniform place."""
    _, height, width = photo.shape
    if height < SIDE or width < SIDE:
        raise DataError(f"{path}: expected a photo whose parts hold a patch of {SIDE} pixels, got {height}x{width}")
    rows = torch.randint(height - SIDE + 1, (count,), generator=generator)
    columns = torch.randint(width - SIDE + 1, (count,), generator=generator)
    windows = photo.unfold(1, SIDE, 1).unfold(2, SIDE, 1)  # (3, H - 31, W - 31, 32, 32), a view
    return windows[:, rows, columns].permute(1, 0, 2, 3).contiguous()


def _part(patches: list[Tensor], generator: torch.Generator) -> Split:
    labels = torch.arange(len(patches)).repeat_interleave(len(patches[0]))
    order = torch.randperm(len(labels), generator=generator)
    return Split(torch.cat(patches)[order], labels[order])
