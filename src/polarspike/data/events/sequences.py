"""Recordings as sequences of frames: T timesteps in place of T bins side by side as channels."""

from __future__ import annotations

from dataclasses import dataclass, field

from polarspike.data.dataset import ImageDataset
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

    @property
    def frames(self) -> int:
        """T."""
        return self.bins
