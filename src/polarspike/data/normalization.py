"""The scaling of byte images to the numbers that a network sees."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from polarspike.errors import DataError, InputError
from polarspike.specs import Spec


@dataclass(frozen=True)
class Normalization(Spec):
    """Per-channel mean and standard deviation, in units of a full-scale pixel: y = (x / 255 - mean_c) / std_c.

    Args:
        mean: one number per channel.
        std: one positive number per channel.

    Raises:
        SpecError: the two differ in length, or a number is not finite, or a deviation is not positive.

    >>> Normalization((0.5,), (0.25,))(torch.full((1, 1, 1, 1), 255, dtype=torch.uint8)).item()
    2.0
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("mean", len(self.mean) > 0 and all(map(math.isfinite, self.mean)), "a finite number per channel")
        valid = all(math.isfinite(value) and value > 0 for value in self.std)
        self._require("std", valid and len(self.std) == len(self.mean), f"{len(self.mean)} finite positive numbers")

    def repeated(self, times: int) -> Normalization:
        """That of so many images side by side as channels."""
        return Normalization(self.mean * times, self.std * times)

    def __call__(self, images: Tensor) -> Tensor:
        """Images (N, C, H, W) of bytes as float32, normalized.

        Raises:
            InputError: the images are not bytes, or do not have this many channels.
        """
        if images.dtype != torch.uint8 or images.dim() != 4 or images.shape[1] != len(self.mean):
            raise InputError(
                f"Normalization: expected uint8 images (N, {len(self.mean)}, H, W), "
                f"got {images.dtype} {tuple(images.shape)}"
            )
        mean = torch.tensor(self.mean, device=images.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, device=images.device).view(1, -1, 1, 1)
        return images.float().div_(255).sub_(mean).div_(std)

    @classmethod
    def _revive(cls, name: str, value: Any) -> Any:
        return tuple(value)  # JSON has made a list of it

    @classmethod
    def of(cls, images: Tensor) -> Self:
        """Mean and population standard deviation of each channel over all pixels of images (N, C, H, W) of bytes.

        With x in 0..255 and n = N H W:  mean = sum(x) / (255 n),  std = sqrt(sum(x^2) / n - (sum(x) / n)^2) / 255.
        The sums are integers, so the order of the images does not change a digit.

        Raises:
            DataError: a channel holds one value only, so that it cannot be scaled.
        """
        values = torch.arange(256)
        means, stds = [], []
        for channel in range(images.shape[1]):
            counts = torch.bincount(images[:, channel].flatten(), minlength=256)  # (256,)
            total, first, second = (int((counts * values**power).sum()) for power in range(3))
            # n sum(x^2) - sum(x)^2 in Python's integers, which neither overflow nor cancel.
            spread = total * second - first * first
            if spread == 0:
                raise DataError(f"normalization: expected varying pixels, got one value throughout channel {channel}")
            means.append(first / (255 * total))
            stds.append(math.sqrt(spread) / (255 * total))
        return cls(tuple(means), tuple(stds))
