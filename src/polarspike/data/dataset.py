"""A labelled image data set in memory, with all that belongs to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.utils.data import DataLoader

from polarspike.data.augment import Augmentation
from polarspike.data.loaders import Batch, batches
from polarspike.data.normalization import Normalization
from polarspike.data.parts import Parted
from polarspike.data.splits import Split, selected
from polarspike.errors import DataError


@dataclass(frozen=True, eq=False)
class ImageDataset(Parted[Split]):
    """Training and test images as bytes, their classes, scaling, origin and licence.

    Args:
        name: what :func:`polarspike.data.load` was asked for.
        train: the training part.
        test: the test part.
        classes: names of the classes; label i is ``classes[i]``.
        origin: where the images come from.
        licence: on what terms.
        normalization: of the training part as loaded; a validation part cut later does not change it.
        augmentation: the usual random changes for training on it.
        validation: cut from the training part by :meth:`split_validation`, else None.

    Raises:
        DataError: the parts or the normalization differ in image shape, or a label has no class.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    origin: str
    licence: str
    normalization: Normalization
    augmentation: Augmentation
    validation: Split | None = None

    def __post_init__(self) -> None:
        for part, split in self.parts().items():
            if split.images.shape[1:] != self.train.images.shape[1:]:
                raise DataError(
                    f"{self.name}: expected images of shape {tuple(self.train.images.shape[1:])} as in the training "
                    f"part, got {tuple(split.images.shape[1:])} in the {part} part"
                )
            low, high = int(split.labels.min()), int(split.labels.max())
            if low < 0 or high >= len(self.classes):
                raise DataError(
                    f"{self.name}: expected labels 0..{len(self.classes) - 1}, got {low}..{high} in the {part} part"
                )
        if len(self.normalization.mean) != self.in_channels:
            raise DataError(
                f"{self.name}: expected a normalization of {self.in_channels} channels, "
                f"got {len(self.normalization.mean)}"
            )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """C of the images (N, C, H, W)."""
        return self.train.images.shape[1]

    @property
    def frames(self) -> int | None:
        """T where samples are sequences of frames; None for images."""
        return None

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images in pixels."""
        return self.train.images.shape[2], self.train.images.shape[3]

    def training(
        self,
        batch_size: int,
        *,
        augmented: bool = True,
        workers: int = 0,
        device: torch.device | str | None = None,
    ) -> DataLoader[Batch]:
        """Shuffled batches of the training part with the usual changes; a smaller last one is left out.

        With a device, batches are moved there as bytes, and changed there (:func:`polarspike.data.batches`).
        """
        return batches(
            self.train,
            batch_size,
            normalization=self.normalization,
            shuffle=True,
            augment=self.augmentation if augmented else None,
            drop_last=True,
            classes=self.num_classes,
            workers=workers,
            device=device,
            frames=self.frames,
        )

    def evaluation(
        self,
        batch_size: int,
        part: str = "test",
        *,
        images: int | None = None,
        seed: int | None = None,
        normalization: Normalization | None = None,
        workers: int = 0,
    ) -> DataLoader[Batch]:
        """Batches of a part as it is.

        Args:
            batch_size: samples per batch.
            part: ``"train"``, ``"validation"`` or ``"test"``.
            images: only so many, 1 or more, or all where there are fewer; None for all.
            seed: which of them, at random; None for the first ones.
            normalization: another one than the data set's.
            workers: of pictures in files; here nothing is decoded, and workers would only copy.

        Raises:
            DataError: there is no such part.
            SpecError: ``images`` or ``batch_size`` is not an integer of at least 1.
        """
        del workers
        split = self.part(part)
        if images is not None:
            split = split.subset(selected(len(split), images, seed))
        return batches(split, batch_size, normalization=normalization or self.normalization, frames=self.frames)
