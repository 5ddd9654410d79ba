"""What a network expects of its images: their shape, the cut, and the scaling."""

from __future__ import annotations

from dataclasses import dataclass

from polarspike.common.checks import is_integer
from polarspike.data import Normalization
from polarspike.errors import SpecError

IMAGENET = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Preprocessing:
    """How image files become inputs: scaled so that the shorter side is ``side / crop``, cut in the middle, normalized.

    Args:
        shape: (C, H, W), or None if it is not known.
        normalization: per-channel scaling, or None if it is not known.
        crop: share of the scaled image that the cut keeps, in (0, 1].
    """

    shape: tuple[int, int, int] | None = None
    normalization: Normalization | None = None
    crop: float = 1.0

    def __post_init__(self) -> None:
        if self.shape is not None and (len(self.shape) != 3 or not all(is_integer(size, 1) for size in self.shape)):
            raise SpecError(f"shape: expected three positive integers C,H,W such as 3,224,224, got {list(self.shape)}")
        if not 0 < self.crop <= 1:
            raise SpecError(f"crop: expected a number above 0 and at most 1, got {self.crop}")


def parse_shape(text: str) -> tuple[int, int, int]:
    """``"3,224,224"`` -> (3, 224, 224).

    Raises:
        SpecError: anything else.

    >>> parse_shape("1,28,28")
    (1, 28, 28)
    """
    try:
        channels, height, width = (int(part) for part in text.replace("x", ",").split(","))
    except ValueError as error:
        raise SpecError(f"shape: expected C,H,W such as 3,224,224, got {text!r}") from error
    return channels, height, width


def parse_normalization(text: str) -> Normalization:
    """``imagenet``, ``none`` (pixels in 0..1) or ``MEAN;STD``, each one number or one per channel.

    Raises:
        SpecError: anything else.

    >>> parse_normalization("0.5;0.25")
    Normalization(mean=(0.5,), std=(0.25,))
    """
    if text == "imagenet":
        return IMAGENET
    if text == "none":
        return Normalization((0.0,), (1.0,))
    try:
        mean, std = (tuple(float(part) for part in half.split(",")) for half in text.split(";"))
    except ValueError as error:
        raise SpecError(
            "normalize: expected imagenet, none (pixels in 0..1) or MEAN;STD such as "
            f"'0.485,0.456,0.406;0.229,0.224,0.225', got {text!r}"
        ) from error
    return Normalization(mean, std)


def for_channels(normalization: Normalization, channels: int) -> Normalization:
    """The same with one number per channel, where it has one number for all.

    Raises:
        SpecError: it has another number of channels.
    """
    count = len(normalization.mean)
    if count not in (1, channels):
        raise SpecError(
            f"normalize: expected {channels} channels like the images, got {count}; give another --normalize"
        )
    return (
        normalization
        if count == channels
        else Normalization(normalization.mean * channels, normalization.std * channels)
    )
