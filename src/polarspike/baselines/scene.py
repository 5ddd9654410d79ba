"""What methods are compared on: images, or sequences of noisy frames of them.

A frame is the image plus normal noise of its own, of one standard deviation of the pixels, so that several frames tell more
than one. Methods that integrate are trained on the mean of 1 to ``frames`` of them; direct training sees the frames.
"""

from __future__ import annotations

from collections.abc import Iterator, Sized
from typing import Any

import torch
from torch import Tensor, nn

from polarspike import data, models
from polarspike.common.modules import move_for_training
from polarspike.data import ImageDataset
from polarspike.data.splits import Split

_BATCH = 128
_VALIDATION = 1 / 12  # of the training images, where settings are chosen


class Scene:
    """A dataset and how it is read.

    Args:
        dataset: images.
        frames: the longest sequence; 0 for images.
        validated: a validation part is cut from the training images.
        limit: the most images of each part, for rehearsals; None for all.
    """

    def __init__(self, dataset: ImageDataset, frames: int, validated: bool, limit: int | None) -> None:
        self.dataset = dataset.split_validation(_VALIDATION) if validated else dataset
        self.frames = frames
        self.limit = limit

    def images(self) -> dict[str, int]:
        """How many images there are, by part."""
        return {name: len(self._first(part)) for name, part in self.dataset.parts().items()}

    def model(self, name: str, seed: int, **options: Any) -> nn.Module:
        """A fresh float network with weights of this seed."""
        if models.describe(name).needs_image_size:
            options["image_size"] = self.dataset.image_size
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            made = models.create(
                name, num_classes=self.dataset.num_classes, in_channels=self.dataset.in_channels, **options
            )
        return move_for_training(made, "cpu")

    def training(self, sequences: int = 0) -> Any:
        """Shuffled, augmented batches: of images or means of frames, or of ``sequences`` frames each."""
        loader = data.batches(
            self._first(self.dataset.train),
            _BATCH,
            normalization=self.dataset.normalization,
            shuffle=True,
            augment=self.dataset.augmentation,
            drop_last=True,
        )
        return _Noisy(loader, self.frames, sequences, None) if self.frames else loader

    def calibration(self, images: int = 2000) -> list[Any]:
        """Training images as they are, or means of frames."""
        part = self._first(self.dataset.train)
        loader = self._plain(part.subset(torch.arange(min(images, len(part)))))
        return list(_Noisy(loader, self.frames, 0, 1) if self.frames else loader)

    def validation(self) -> Any:
        """The validation part, read like :meth:`test`."""
        assert self.dataset.validation is not None
        return self._read(self.dataset.validation)

    def test(self) -> Any:
        """Images, or sequences of ``frames`` frames, (batch, frames, ...)."""
        return self._read(self.dataset.test)

    def _read(self, part: Split) -> Any:
        loader = self._plain(self._first(part))
        return _Noisy(loader, self.frames, self.frames, 2) if self.frames else loader

    def _plain(self, part: Split) -> Any:
        return data.batches(part, 250, normalization=self.dataset.normalization)

    def _first(self, part: Split) -> Split:
        return part if self.limit is None else part.subset(torch.arange(min(self.limit, len(part))))


class _Noisy:
    """Batches of images as noisy frames: (batch, sequences, ...), or the mean of 1 to ``frames`` of them.

    With a seed every iteration is the same; else torch's global generator is asked, which training seeds.
    """

    def __init__(self, loader: Any, frames: int, sequences: int, seed: int | None) -> None:
        self.loader, self.frames, self.sequences, self.seed = loader, frames, sequences, seed

    def __len__(self) -> int:
        assert isinstance(self.loader, Sized)
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = None if self.seed is None else torch.Generator().manual_seed(self.seed)
        for images, labels in self.loader:
            if self.sequences:
                noise = torch.randn((len(images), self.sequences, *images.shape[1:]), generator=generator)
                yield images.unsqueeze(1) + noise, labels
            else:
                count = torch.randint(1, self.frames + 1, (len(images), 1, 1, 1), generator=generator)
                yield images + torch.randn(images.shape, generator=generator) / count.sqrt(), labels
