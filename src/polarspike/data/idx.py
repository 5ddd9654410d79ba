"""The IDX file format of the MNIST family: unsigned bytes behind a big-endian header, plain or in gzip.

Header: the magic number 0x00000800 + number of dimensions (0x803 images, 0x801 labels), then each dimension as an
unsigned 32-bit integer; then the values, the last dimension fastest. Source: the description on the MNIST page.
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from polarspike.common.files import replacing
from polarspike.errors import DataError

_UNSIGNED_BYTES = 0x800
_GZIP_START = b"\x1f\x8b"


def read_idx(path: str | os.PathLike[str], dims: int) -> Tensor:
    """The values of one IDX file.

    Args:
        path: a plain or a gzip file; its content decides which, not its name.
        dims: how many dimensions it must have: 3 for grey images (N, H, W), 1 for labels (N,).

    Returns:
        A uint8 tensor of the shape that the header states.

    Raises:
        DataError: the file cannot be read, is damaged, has another magic number, or fewer or more bytes than stated.
    """
    path = Path(path)
    try:
        with path.open("rb") as raw:
            packed = raw.read(2) == _GZIP_START
            raw.seek(0)
            if not packed:
                return _parse(raw, path, dims)
            with gzip.GzipFile(fileobj=raw) as unpacked:
                return _parse(unpacked, path, dims)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(f"{path}: expected a whole gzip file, got a damaged one ({error}); fetch it again") from error
    except OSError as error:
        raise DataError(f"{path}: expected a readable IDX file, got: {error.strerror or error}") from error


def read_labelled_images(images: str | os.PathLike[str], labels: str | os.PathLike[str]) -> tuple[Tensor, Tensor]:
    """Images (N, 1, H, W) uint8 and labels (N,) int64 of two IDX files that belong together.

    Raises:
        DataError: as :func:`read_idx`, or the two files hold different numbers of samples.
    """
    pixels, classes = read_idx(images, dims=3), read_idx(labels, dims=1)
    if len(pixels) != len(classes):
        raise DataError(
            f"{labels}: expected {len(pixels)} labels, one for each image of {images}, got {len(classes)}; "
            "the two files are of different data sets or parts"
        )
    return pixels.unsqueeze(1), classes.long()


def write_idx(path: str | os.PathLike[str], values: Tensor) -> None:
    """Write a uint8 tensor as an IDX file, in gzip where the name ends in ``.gz``; same values, same bytes.

    Raises:
        DataError: the tensor is not uint8, or has no dimension.
    """
    path = Path(path)
    if values.dtype != torch.uint8 or values.dim() == 0:
        raise DataError(f"{path}: expected a uint8 tensor with dimensions, got {values.dtype} {tuple(values.shape)}")
    header = struct.pack(f">{1 + values.dim()}I", _UNSIGNED_BYTES + values.dim(), *values.shape)
    content = header + bytes(values.cpu().contiguous().flatten().tolist())
    if path.suffix == ".gz":
        content = gzip.compress(content, mtime=0)  # no time stamp: the bytes depend on the values alone
    with replacing(path) as partial:
        partial.write_bytes(content)


def _parse(file: IO[bytes] | gzip.GzipFile, path: Path, dims: int) -> Tensor:
    length = 4 * (1 + dims)
    header = file.read(length)
    # The magic number first: a file that is something else entirely should be called that, not truncated.
    magic = int.from_bytes(header[:4], "big")
    if len(header) >= 4 and magic != _UNSIGNED_BYTES + dims:
        raise DataError(
            f"{path}: expected an IDX file of unsigned bytes with {dims} dimensions, magic "
            f"0x{_UNSIGNED_BYTES + dims:x}, got magic 0x{magic:x}"
        )
    if len(header) < length:
        raise DataError(f"{path}: expected an IDX header of {length} bytes, got {len(header)}; the file is truncated")
    shape = struct.unpack(f">{dims}I", header[4:])
    if 0 in shape:
        raise DataError(f"{path}: expected at least one value, got the dimensions {shape}")
    count = math.prod(shape)
    values = bytearray(file.read())  # all of it: a damaged header may state more than any memory holds
    if len(values) < count:
        raise DataError(f"{path}: expected {count} bytes for {shape}, got {len(values)}; the file is truncated")
    if len(values) > count:
        raise DataError(f"{path}: expected the file to end after {count} bytes for {shape}, got more; it is not whole")
    return torch.frombuffer(values, dtype=torch.uint8).reshape(shape)
