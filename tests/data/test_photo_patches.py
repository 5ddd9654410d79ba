"""Patches of photos: parts that share no pixel, and the same patches every time."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch

from polarspike import data
from polarspike.data.photo_patches import PHOTOS
from polarspike.errors import DataError

pil = pytest.importorskip("PIL.Image")


def photos(folder: Path, size: tuple[int, int] = (60, 200)) -> Path:
    """Ten pictures whose red is the column, whose green is the row, and whose blue is their number."""
    for index, file in enumerate(file for _, files in PHOTOS.values() for file in files):
        column, row = np.meshgrid(np.arange(size[1]), np.arange(size[0]))
        picture = np.stack([column, row, np.full(size, 20 * index)], axis=-1).astype(np.uint8)
        pil.fromarray(picture).save(folder / file, quality=95)
    return folder


def test_parts_share_no_pixel_and_come_again(tmp_path: Path) -> None:
    one, two = data.load("photo-patches", photos(tmp_path)), data.load("photo-patches", tmp_path)
    assert (one.train.images.shape, one.test.images.shape) == ((6000, 3, 32, 32), (1500, 3, 32, 32))
    assert torch.equal(one.train.images, two.train.images) and torch.equal(one.test.labels, two.test.labels)
    assert torch.bincount(one.train.labels).tolist() == [600] * 10
    lossless = one.train.labels.apply_(lambda label: label) == 0  # astronaut.png
    assert int(one.train.images[lossless, 0].max()) < 0.6 * 200
    assert int(one.test.images[one.test.labels == 0, 0].min()) >= 0.65 * 200
    assert one.classes[0] == "astronaut" and one.num_classes == 10


def test_missing_damaged_and_small_photos_are_named(tmp_path: Path) -> None:
    photos(tmp_path)
    (tmp_path / "coffee.png").unlink()
    with pytest.raises(DataError, match=r"coffee\.png, which is not there \(1 of 10 are missing\)"):
        data.load("photo-patches", tmp_path)
    (tmp_path / "coffee.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"coffee\.png: expected a picture"):
        data.load("photo-patches", tmp_path)
    photos(tmp_path, (60, 80))
    with pytest.raises(DataError, match="parts hold a patch of 32 pixels, got 60x28"):
        data.load("photo-patches", tmp_path)


@pytest.mark.skipif(importlib.util.find_spec("skimage") is None, reason="scikit-image is not installed")
def test_the_real_photos_are_there() -> None:
    found = data.load("photo-patches")
    assert found.classes[1] == "chelsea" and len(found.test) == 1500
