"""A data set that is too large for memory: its pictures are decoded, cut and changed while batches are made."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from polarspike.data.augment import Augmentation, Rows
from polarspike.data.loaders import Batch, Finish, Key, Unfinished, changed, over
from polarspike.data.normalization import Normalization
from polarspike.data.parts import Parted
from polarspike.data.pictures import Pictures
from polarspike.data.splits import selected
from polarspike.errors import DataError

_TRAIN_AREA = (0.08, 1.0)
_TRAIN_SHAPE = (3 / 4, 4 / 3)


@dataclass(frozen=True, eq=False)
class StreamedDataset(Parted[Pictures]):
    """Labelled pictures on disk, with what :class:`~polarspike.data.ImageDataset` knows of its images.

    For training a random part of 8 to 100 % of the area is cut out and scaled to ``size``; for evaluation the shorter side
    is scaled to ``resize`` and the middle is cut out.

    Args:
        name: what :func:`polarspike.data.load` was asked for.
        train, test: the pictures.
        classes: names of the classes; label i is ``classes[i]``.
        origin, licence: where the pictures come from, and on what terms.
        normalization: of their pixels.
        augmentation: beside the random cut.
        size: side of an image in pixels.
        resize: of the shorter side before the middle is cut out.
        validation: cut from the training part by :meth:`split_validation`, else None.

    Raises:
        DataError: a part is empty, or a label has no class.
    """

    name: str
    train: Pictures
    test: Pictures
    classes: tuple[str, ...]
    origin: str
    licence: str
    normalization: Normalization
    augmentation: Augmentation
    size: int = 224
    resize: int = 256
    validation: Pictures | None = None

    def __post_init__(self) -> None:
        for part, pictures in self.parts().items():
            if not len(pictures):
                raise DataError(f"{self.name}: expected pictures in the {part} part, found none")
            low, high = int(pictures.labels.min()), int(pictures.labels.max())
            if low < 0 or high >= len(self.classes):
                raise DataError(
                    f"{self.name}: expected labels 0..{len(self.classes) - 1}, got {low}..{high} in the {part} part"
                )

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.classes)

    @property
    def in_channels(self) -> int:
        """C of the images: colours."""
        return 3

    @property
    def image_size(self) -> tuple[int, int]:
        """(H, W) of the images in pixels."""
        return self.size, self.size

    def training(
        self,
        batch_size: int,
        *,
        augmented: bool = True,
        workers: int = 0,
        device: torch.device | str | None = None,
    ) -> DataLoader[Batch]:
        """Shuffled batches of the training part with random cuts and the usual changes; a smaller last one is left out.

        With a device, cuts are moved there as bytes, and changed there (:func:`polarspike.data.batches`).
        """
        order, augment = torch.arange(len(self.train)), self.augmentation if augmented else None
        finish = None
        if device is not None:
            finish = Finish(torch.device(device), augment, self.normalization, self.num_classes)
        made = _Batches(self, self.train, order, self.normalization, augmented=augmented, finish=finish)
        return over(
            made, len(self.train), batch_size, shuffle=True, drop_last=True, draws=True, workers=workers, finish=finish
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
        """Batches of a part, cut from the middle; arguments as for :class:`~polarspike.data.ImageDataset`."""
        pictures = self.part(part)
        order = torch.arange(len(pictures)) if images is None else selected(len(pictures), images, seed)
        made = _Batches(self, pictures, order, normalization or self.normalization, augmented=None)
        return over(made, len(order), batch_size, shuffle=False, drop_last=False, draws=False, workers=workers)


class _Batches(Dataset[Batch]):
    """Indexed by a whole batch; ``augmented`` is None for evaluation."""

    def __init__(
        self,
        dataset: StreamedDataset,
        pictures: Pictures,
        order: Tensor,
        normalization: Normalization,
        *,
        augmented: bool | None,
        finish: Finish | None = None,
    ) -> None:
        self.dataset, self.pictures, self.order = dataset, pictures, order
        self.normalization, self.augmented, self.finish = normalization, augmented, finish

    def __getitem__(self, key: Key) -> Any:
        chosen = self.order[key.indices]
        generator = torch.Generator().manual_seed(key.seed)
        images = torch.stack([self._image(int(index), generator) for index in chosen])
        labels = self.pictures.labels[chosen]
        augment = self.dataset.augmentation if self.augmented else None
        if self.finish is not None:
            return Unfinished.of(images, labels, augment, generator, Rows.every(len(images)))
        return changed(images, labels, augment, self.normalization, self.dataset.num_classes, generator)

    def _image(self, index: int, generator: torch.Generator) -> Tensor:
        """Bytes (3, size, size)."""
        picture = self.pictures.picture(index)
        size = self.dataset.size
        width, height = picture.size
        if self.augmented is not None:
            left, top, wide, high = random_part(width, height, generator)
            return _scaled(picture, (left, top, left + wide, top + high), size, size)
        scale = self.dataset.resize / min(width, height)
        part = size / scale  # the middle, in pixels of the picture
        left, top = (width - part) / 2, (height - part) / 2
        return _scaled(picture, (left, top, left + part, top + part), size, size)


def random_part(width: int, height: int, generator: torch.Generator) -> tuple[float, float, float, float]:
    """(left, top, width, height) of a random part: 8 to 100 % of the area, sides 3:4 to 4:3.

    Where none of ten fits, the largest part of such sides in the middle: the whole of a picture that has them itself.

    Source: Szegedy et al. 2015, arXiv 1409.4842, as torchvision's RandomResizedCrop draws it.
    """
    for _ in range(10):
        share, ratio, x, y = torch.rand(4, generator=generator).tolist()
        area = width * height * (_TRAIN_AREA[0] + share * (_TRAIN_AREA[1] - _TRAIN_AREA[0]))
        shape = float(np.exp(np.log(_TRAIN_SHAPE[0]) + ratio * (np.log(_TRAIN_SHAPE[1]) - np.log(_TRAIN_SHAPE[0]))))
        wide, high = (area * shape) ** 0.5, (area / shape) ** 0.5
        if wide <= width and high <= height:
            return x * (width - wide), y * (height - high), wide, high
    shape = min(max(width / height, _TRAIN_SHAPE[0]), _TRAIN_SHAPE[1])
    wide, high = min(width, height * shape), min(height, width / shape)
    return (width - wide) / 2, (height - high) / 2, wide, high


def _scaled(picture: Any, box: tuple[float, float, float, float], width: int, height: int) -> Tensor:
    from PIL import Image  # which has decoded the picture

    # A box may lie outside by rounding, where the picture is smaller than what is cut out.
    left, top, right, bottom = box
    inside = (max(0.0, left), max(0.0, top), min(float(picture.width), right), min(float(picture.height), bottom))
    made = picture.resize((width, height), Image.Resampling.BILINEAR, box=inside)
    return torch.from_numpy(np.array(made)).permute(2, 0, 1)
