"""Labelled images, and their division into parts that is the same for everybody for ever."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor

from polarspike.common.checks import is_integer
from polarspike.errors import DataError, SpecError


@dataclass(frozen=True, eq=False)
class Split:
    """One part of a data set.

    Args:
        images: (N, C, H, W) uint8.
        labels: (N,) int64.

    Raises:
        DataError: types, shapes or counts are others, or there is no image.
    """

    images: Tensor
    labels: Tensor

    def __post_init__(self) -> None:
        if self.images.dtype != torch.uint8 or self.images.dim() != 4 or self.images.numel() == 0:
            raise DataError(
                "Split.images: expected a uint8 tensor (N, C, H, W) with at least one image, "
                f"got {self.images.dtype} {tuple(self.images.shape)}"
            )
        if self.labels.dtype != torch.int64 or tuple(self.labels.shape) != (len(self.images),):
            raise DataError(
                f"Split.labels: expected an int64 tensor ({len(self.images)},), one label for each image, "
                f"got {self.labels.dtype} {tuple(self.labels.shape)}"
            )

    def __len__(self) -> int:
        return len(self.images)

    def subset(self, indices: Tensor) -> Split:
        """A copy of the samples at ``indices`` (M,) int64, in that order."""
        return Split(self.images[indices], self.labels[indices])


def selected(samples: int, count: int, seed: int | None) -> Tensor:
    """Indices of ``count`` of so many samples: the first ones, or a random choice by ``seed``.

    Where there are fewer, they are of all.

    Raises:
        SpecError: ``count`` is not an integer of at least 1.
    """
    if not is_integer(count, 1):
        raise SpecError(f"images: expected an integer of at least 1, or None for all, got {count!r}")
    if seed is None:
        return torch.arange(samples)[:count]
    return torch.randperm(samples, generator=torch.Generator().manual_seed(seed))[:count]


def stratified(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Divide samples at random so that the second part holds ``fraction`` of every class.

    Class c with n_c samples gives floor(fraction n_c + 1/2) of them. Each sample in turn draws two numbers, a rank and
    a place, from ``random.Random(seed).random()``, the one sequence that Python promises to keep for ever. The lowest
    ranks of each class form the second part. Either part is then put in the order of the places, so that its
    beginning is a fair sample even where the source is sorted by class.

    Args:
        labels: (N,) int64.
        fraction: share of the second part, between 0 and 1.
        seed: an integer.

    Returns:
        Indices of the first and of the second part, int64.

    Raises:
        DataError: the fraction is not between 0 and 1, or a class would be missing from a part.
    """
    if not 0 < fraction < 1:  # also refuses NaN
        raise DataError(f"split: expected a fraction between 0 and 1, both excluded, got {fraction!r}")
    classes, counts = torch.unique(labels, return_counts=True)
    left: dict[int, int] = {}  # how many the second part still takes of each class
    for label, count in zip(classes.tolist(), counts.tolist(), strict=True):
        left[label] = math.floor(fraction * count + 0.5)
        if not 0 < left[label] < count:
            raise DataError(
                f"split: a fraction of {fraction} takes {left[label]} of the {count} samples of class {label}, so that "
                "one part has none; give another fraction or more data"
            )
    draw = random.Random(seed).random
    samples = [(draw(), draw(), index, label) for index, label in enumerate(labels.tolist())]
    first: list[tuple[float, int]] = []
    second: list[tuple[float, int]] = []
    for _, place, index, label in sorted(samples):  # by rank
        (second if left[label] > 0 else first).append((place, index))
        left[label] -= 1
    return _by_place(first), _by_place(second)


def _by_place(part: list[tuple[float, int]]) -> Tensor:
    return torch.tensor([index for _, index in sorted(part)])
