"""Calibration images: from a folder of pictures, a file of tensors, or a dataset, as the network wants them."""

from __future__ import annotations

import dataclasses
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from torch.nn import functional

from polarspike import data
from polarspike.data import Normalization
from polarspike.data.pictures import Pictures, Shards
from polarspike.decoding import SUFFIXES, decoded, pictures_in
from polarspike.errors import DataError, PolarspikeWarning, closest
from polarspike.sources.preprocessing import Preprocessing, for_channels

_TENSORS = (".npy", ".safetensors")


def images(
    source: str,
    preprocessing: Preprocessing,
    count: int = 256,
    *,
    floats: Normalization | None = None,
    root: Path | None = None,
) -> tuple[Tensor, Preprocessing]:
    """Inputs (N, C, H, W) float32 and how they were made; the same call gives the same images.

    Args:
        source: a folder with ``.png`` and ``.jpg`` files at any depth; a ``.npy`` or ``.safetensors`` file of one tensor
            (N, C, H, W), bytes or floats; a ``.tar`` shard of pictures with labels (WebDataset); or a dataset of
            :mod:`polarspike.data`, whose training images are taken. Pictures on disk are decoded one by one.
        preprocessing: the wanted shape and scaling; what it leaves open, the source decides where it can.
        count: at most this many, evenly spread over the source, so that one sorted by class is sampled fairly.
        floats: the scaling of a file of floats, which are then in 0..1; None takes them as they are.
        root: the folder of the dataset's files, where it is not the usual one.

    Raises:
        DataError: there is no such source, it holds no image, one cannot be read, or shape or scaling are not known.
        MissingExtraError: a folder of pictures needs Pillow.
    """
    if count < 1:
        raise DataError(f"images: expected a count of at least 1, got {count}")
    path = Path(source)
    if root is not None and path.exists():
        what = "a folder" if path.is_dir() else "a file"
        raise DataError(
            f"{source}: is {what}, and root says where a dataset's files are; leave root (--root) out, or where the dataset "
            "is meant, call from a folder that has nothing of this name"
        )
    if path.is_dir():
        pixels = _pictures(path, preprocessing, count)
    elif path.suffix.lower() in _TENSORS:
        values = _spread(_tensor(path), count)
        if values.is_floating_point():
            return _floats(path, values.float(), preprocessing, floats)
        pixels = _fitted(values, preprocessing.shape, preprocessing.crop)
    elif path.suffix.lower() == ".tar" and path.is_file():
        pixels = _decoded(Shards([path]), preprocessing, count, source)
    elif path.is_file():
        raise DataError(
            f"{source}: expected a folder of pictures, a .tar shard, or a {' or '.join(_TENSORS)} file, got another file"
        )
    else:
        dataset = _dataset(source, root)
        preprocessing = _seen(dataset, preprocessing)
        pixels = _samples(dataset, preprocessing, count)
        if preprocessing.normalization is None and pixels.shape[1] == dataset.in_channels:
            preprocessing = dataclasses.replace(preprocessing, normalization=dataset.normalization)
    normalization = preprocessing.normalization
    if normalization is None:
        raise DataError(
            f"{source}: expected the scaling that the network was trained with, which nothing says: give --normalize "
            "imagenet, none (pixels in 0..1) or 'MEAN;STD'"
        )
    normalization = for_channels(normalization, pixels.shape[1])
    return normalization(pixels), _made(pixels, normalization, preprocessing.crop)


def _made(images: Tensor, normalization: Normalization | None, crop: float) -> Preprocessing:
    _, channels, height, width = images.shape
    return Preprocessing((channels, height, width), normalization, crop)


def _floats(
    path: Path, values: Tensor, preprocessing: Preprocessing, normalization: Normalization | None
) -> tuple[Tensor, Preprocessing]:
    """Floats as they are, or scaled from 0..1."""
    if not bool(values.isfinite().all()):
        raise DataError(f"{path}: holds NaN or Inf; expected finite images")
    if preprocessing.shape not in (None, tuple(values.shape[1:])):
        raise DataError(
            f"{path}: expected images of shape {preprocessing.shape}, got {tuple(values.shape[1:])}; floats are not "
            "resized: write the file in that shape, or give another --shape"
        )
    if normalization is not None:
        if float(values.min()) < 0 or float(values.max()) > 1:
            raise DataError(
                f"{path}: a normalization is for values in 0..1, got {float(values.min()):.3g}..{float(values.max()):.3g}; "
                "if they are normalized already, leave --normalize out"
            )
        normalization = for_channels(normalization, values.shape[1])
        mean, std = (torch.tensor(numbers).view(1, -1, 1, 1) for numbers in (normalization.mean, normalization.std))
        values = (values - mean) / std
    elif preprocessing.normalization is not None and float(values.min()) >= 0:
        warnings.warn(
            f"{path}: floats are taken as they are, as if normalized for this network, but in {float(values.min()):.3g}.."
            f"{float(values.max()):.3g} none is below 0; of values in 0..1 give --normalize, of 0..255 write bytes (uint8)",
            PolarspikeWarning,
            stacklevel=2,
        )
    return values, _made(values, normalization or preprocessing.normalization, preprocessing.crop)


def _pictures(folder: Path, preprocessing: Preprocessing, count: int) -> Tensor:
    """Bytes (N, C, H, W) of pictures in a folder, each scaled and cut."""
    shape = _pictured(preprocessing, str(folder))
    found = pictures_in(folder)
    if not found:
        raise DataError(f"{folder}: expected pictures ({', '.join(SUFFIXES)}) in this folder or below, found none")
    paths = (found[index] for index in _places(len(found), count))
    return _pixels((decoded(path, shape[0], str(path), upright=True) for path in paths), shape, preprocessing.crop)


def _decoded(pictures: Pictures, preprocessing: Preprocessing, count: int, source: str) -> Tensor:
    """Bytes (N, C, H, W) of a data set's pictures, each decoded, scaled and cut like a file of a folder."""
    shape = _pictured(preprocessing, source)
    if not len(pictures):
        raise DataError(f"{source}: expected pictures, found none")
    kept = (pictures.picture(index) for index in _places(len(pictures), count))
    grey = "L" if shape[0] == 1 else "RGB"
    return _pixels((picture.convert(grey) for picture in kept), shape, preprocessing.crop)


def _pixels(pictures: Iterable[Any], shape: tuple[int, int, int], crop: float) -> Tensor:
    """Bytes (N, *shape) of decoded pictures of so many channels, each scaled and cut."""
    images = (torch.from_numpy(np.array(picture)) for picture in pictures)  # (H, W) or (H, W, C)
    return torch.cat(
        [_fitted(raw.view(1, *raw.shape[:2], shape[0]).permute(0, 3, 1, 2), shape, crop) for raw in images]
    )


def _pictured(preprocessing: Preprocessing, source: str) -> tuple[int, int, int]:
    """The shape of the network's input, where pictures can have it."""
    if preprocessing.shape is None:
        raise DataError(
            f"{source}: expected the shape of the network's input, which nothing says: give --shape 3,224,224"
        )
    if preprocessing.shape[0] not in (1, 3):
        raise DataError(
            f"{source}: pictures have 1 or 3 channels, the network's input has {preprocessing.shape[0]}; give a tensor file"
        )
    return preprocessing.shape


def _fitted(pixels: Tensor, shape: tuple[int, int, int] | None, crop: float) -> Tensor:
    """Bytes (N, C, H, W) as (N, *shape): scaled to cover ``side / crop``, cut in the middle; exact fits stay as they are."""
    if shape is None or tuple(pixels.shape[1:]) == shape:
        return pixels
    channels, height, width = shape
    if pixels.shape[1] not in (1, channels):
        raise DataError(f"expected images of {channels} channels, got {pixels.shape[1]}; give another --shape")
    pixels = pixels.expand(-1, channels, -1, -1)  # grey for every color
    if tuple(pixels.shape[2:]) != (height, width):
        ratio = max(height / pixels.shape[2], width / pixels.shape[3]) / crop
        size = [max(side, round(old * ratio)) for side, old in zip((height, width), pixels.shape[2:], strict=True)]
        scaled = functional.interpolate(pixels.float(), size=size, mode="bilinear", antialias=True, align_corners=False)
        pixels = scaled.round().clamp(0, 255).byte()
    top, left = (pixels.shape[2] - height) // 2, (pixels.shape[3] - width) // 2
    return pixels[:, :, top : top + height, left : left + width].contiguous()


def _tensor(path: Path) -> Tensor:
    """The one tensor (N, C, H, W) of a file, bytes or floats."""
    if not path.is_file():
        raise DataError(f"{path}: expected a file of images, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, allow_pickle=False)
            held = {"array": torch.from_numpy(array) if array.dtype.kind in "fu" else array}
        else:
            held = dict(load_file(path))
    except (OSError, ValueError, TypeError, EOFError, SafetensorError) as error:
        raise DataError(f"{path}: not a file of one tensor that can be read without executing it ({error})") from error
    if len(held) != 1:
        raise DataError(f"{path}: expected one tensor of images, got {len(held)}: {', '.join(list(held)[:5])}")
    (value,) = held.values()
    fits = isinstance(value, Tensor) and value.dim() == 4 and value.numel() > 0
    if not fits or not (value.is_floating_point() or value.dtype == torch.uint8):
        raise DataError(
            f"{path}: expected images (N, C, H, W), floats or uint8, got {value.dtype} of shape {tuple(value.shape)}"
        )
    return value


def _seen(dataset: data.AnyDataset, preprocessing: Preprocessing) -> Preprocessing:
    """The same with the shape and the cut of a data set of pictures, where nothing is known of either."""
    if preprocessing.shape is not None or isinstance(dataset, data.ImageDataset):
        return preprocessing
    shape = (dataset.in_channels, *dataset.image_size)
    return dataclasses.replace(preprocessing, shape=shape, crop=min(1.0, dataset.size / dataset.resize))


def _samples(dataset: data.AnyDataset, preprocessing: Preprocessing, count: int) -> Tensor:
    """Bytes (N, C, H, W) of training images."""
    if isinstance(dataset, data.ImageDataset):
        return _fitted(_spread(dataset.train.images, count), preprocessing.shape, preprocessing.crop)
    return _decoded(dataset.train, preprocessing, count, dataset.name)


def _dataset(name: str, root: Path | None) -> data.AnyDataset:
    if name not in data.names():
        known = data.names()
        raise DataError(
            f"images: {name!r} is no folder, no file, and no dataset; datasets: {', '.join(known)}{closest(name, known)}"
        )
    return data.load(name, root)


def _spread(values: Tensor, count: int) -> Tensor:
    return values[_places(len(values), count)]


def _places(total: int, count: int) -> list[int]:
    """At most ``count`` of ``total`` places, evenly spread."""
    return list(range(total)) if count >= total else [index * total // count for index in range(count)]
