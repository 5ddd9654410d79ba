"""Decode a picture file to bytes of grey or of colour, in the same way wherever pictures come from; without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from polarspike.errors import DataError, MissingExtraError

if TYPE_CHECKING:
    from PIL.Image import Image

#: How the names of pictures end, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png")


def decoded(file: Path | IO[bytes], channels: int, place: str, *, upright: bool = False) -> Image:
    """A picture with one byte for each channel.

    Grey pixels of 16 bits are rounded to 8; of colours of 16 bits Pillow keeps the high byte. Colours become grey by their
    luminance, grey becomes three equal colours.
    Transparency is dropped, and the colours under it stay.

    Args:
        file: of the picture.
        channels: 1 for grey, 3 for colour.
        place: where it comes from, for messages.
        upright: turned as its EXIF orientation says, as cameras write it and viewers show it; data sets are read without.

    Raises:
        DataError: no picture, a damaged one, or one of too many or too deep pixels.
        MissingExtraError: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError as error:
        raise MissingExtraError("pillow", "vision") from error
    try:
        with Image.open(file) as opened:
            image: Image.Image = ImageOps.exif_transpose(opened) if upright else opened
            if image.mode[0] in "IF":
                image = _of_bytes(image)
            elif image.mode == "P" and "transparency" in image.info:
                image = image.convert("RGBA")  # straight to RGB, Pillow warns that transparency is lost
            return image.convert("L" if channels == 1 else "RGB")
    except Exception as error:  # whatever a damaged file makes Pillow raise: they have no common base
        raise DataError(f"{place}: expected a picture, got: {str(error) or type(error).__name__}") from error


def pictures_in(folder: Path) -> list[Path]:
    """The picture files of a folder and of all folders in it, sorted; hidden ones are no pictures of the user's.

    Raises:
        DataError: a folder cannot be read, or was taken away meanwhile: its pictures would be missing without a word.
    """

    def refuse(error: OSError) -> None:
        raise DataError(
            f"{error.filename}: expected a folder of pictures that can be read, got: {error.strerror}; check its "
            "permissions, and that nothing changes it meanwhile"
        ) from error

    found: list[Path] = []
    for place, folders, files in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(place, name) for name in files if not name.startswith("."))
        found += [path for path in paths if path.suffix.lower() in SUFFIXES and path.is_file()]
    return sorted(found)


def _of_bytes(image: Any) -> Any:
    """A grey picture of 16 bits a pixel at 8: byte b stands for 257 b. Pillow's own conversion would cut at 255."""
    from PIL import Image  # which has decoded the picture

    pixels = np.asarray(image)
    if pixels.dtype.kind == "f" or pixels.min() < 0 or pixels.max() > 0xFFFF:
        raise ValueError(f"pixels of more than 16 bits (mode {image.mode})")
    return Image.fromarray(((pixels.astype(np.int64) + 128) // 257).astype(np.uint8))
