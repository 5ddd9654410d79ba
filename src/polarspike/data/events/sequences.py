"""Recordings as sequences of frames: T timesteps in place of T bins side by side as channels."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from polarspike.data.dataset import ImageDataset
from polarspike.data.normalization import Normalization
from polarspike.errors import DataError


@dataclass(frozen=True, eq=False)
class SequenceDataset(ImageDataset):
    """Sequences of ``bins`` frames; its batches are (B, T, C, H, W) float32 and labels.

    Its parts hold the frames of a sample side by side, frame by frame, (N, T * C, H, W). So every random change, and every
    mixture of two samples, is the same for all frames of a sample, and leaves their order.

    Args:
        normalization: of a frame, C numbers.
        bins: T.

    Raises:
        DataError: as of images, or the channels are not those of T frames.
    """

    bins: int = field(kw_only=True)

    def __post_init__(self) -> None:
        channels = self.train.images.shape[1]
        if self.bins < 1 or channels % self.bins:
            raise DataError(f"{self.name}: expected {self.bins} frames side by side, got {channels} channels")
        super().__post_init__()

    @property
    def in_channels(self) -> int:
        """C of a frame."""
        return self.train.images.shape[1] // self.bins

    def training(
        self,
        batch_size: int,
        *,
        augmented: bool = True,
        workers: int = 0,
        device: torch.device | str | None = None,
    ) -> Any:
        """As of images: shuffled batches of the training part, of sequences (B, T, C, H, W)."""
        merged = self._merged().training(batch_size, augmented=augmented, workers=workers, device=device)
        return Sequences(merged, self.bins)

    def evaluation(
        self,
        batch_size: int,
        part: str = "test",
        *,
        images: int | None = None,
        seed: int | None = None,
        normalization: Normalization | None = None,
    ) -> Any:
        """As of images: batches of a part as it is, of sequences (B, T, C, H, W).

        Args:
            batch_size: sequences per batch.
            part: see there.
            images: only so many sequences.
            seed: see there.
            normalization: another one of a frame.
        """
        given = None if normalization is None else repeated(normalization, self.bins)
        merged = self._merged().evaluation(batch_size, part, images=images, seed=seed, normalization=given)
        return Sequences(merged, self.bins)

    def _merged(self) -> ImageDataset:
        """The same with the frames side by side as channels."""
        held = {item.name: getattr(self, item.name) for item in dataclasses.fields(ImageDataset)}
        return ImageDataset(**held | {"normalization": repeated(self.normalization, self.bins)})


class Sequences:
    """Batches of merged channels (B, T * C, H, W) as frames again, (B, T, C, H, W)."""

    def __init__(self, loader: Any, bins: int) -> None:
        self.loader, self.bins = loader, bins

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return map(self._frames, self.loader)

    def every(self, first: int, step: int) -> Iterator[tuple[Tensor, Tensor]]:
        """As of the loader: some of its batches."""
        return map(self._frames, self.loader.every(first, step))

    def portions(self) -> Iterator[tuple[tuple[Tensor, Tensor], int]]:
        """As of the loader: this process's rows of every batch, and the size of the whole one."""
        return ((self._frames(batch), whole) for batch, whole in self.loader.portions())

    def _frames(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        merged, labels = batch
        return merged.view(len(merged), self.bins, -1, *merged.shape[2:]), labels


def repeated(normalization: Normalization, bins: int) -> Normalization:
    """The scaling of so many frames side by side, from that of one."""
    return Normalization(normalization.mean * bins, normalization.std * bins)
