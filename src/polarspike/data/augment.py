"""Random changes of a batch of byte images that keep their labels, on any device: what is drawn is drawn on the CPU.

So the same seed gives the same bytes everywhere; also to a process that changes a few images of a batch alone
(:class:`Rows`), because numbers are drawn for all of them.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from polarspike.common.checks import is_integer, is_not_negative, is_within
from polarspike.errors import InputError, MissingExtraError
from polarspike.specs import Spec


class Rows(NamedTuple):
    """Which images of a batch are at hand.

    Args:
        positions: of each, (N,) int64.
        batch: how many images the batch has.
        paired: in front of each image that is wanted stands the one that a mixture takes in.
    """

    positions: Tensor
    batch: int
    paired: bool = False

    @classmethod
    def every(cls, count: int) -> Rows:
        """All images of a batch of so many."""
        return cls(torch.arange(count), count)

    def of(self, drawn: Tensor) -> Tensor:
        """What was drawn for these images, of what was drawn for all, (batch, ...)."""
        return drawn[self.positions]

    def seeds(self, generator: torch.Generator) -> Tensor:
        """A seed for each of these images."""
        return self.of(torch.randint(1 << 62, (self.batch,), generator=generator))


@dataclass(frozen=True)
class Augmentation(Spec):
    """Which random changes each image of a batch gets, drawn anew for every image, in the order of these fields.

    Args:
        flip: mirror left and right with probability 1/2.
        shift: move by up to this many pixels, uniform in both directions; what enters is black (byte 0). A shift by a
            fraction of the size is what others call a random crop with padding.
        cutout: side in pixels of a black square whose middle is uniform over the image, clipped at the border; 0 for
            none. Source: DeVries and Taylor 2017, arXiv 1708.04552 (they fill with the mean).
        drop: of frames of event counts: every event goes with a probability that each image draws for itself, uniform up to
            this one; 0 for none. Source: EventDrop, Gu et al. 2021, arXiv 2106.05836 (random dropping; ``cutout`` is their
            dropping by area).
        randaugment: magnitude in 0..30 of two random operations of torchvision's RandAugment; 0 for none.
        erasing: probability of torchvision's RandomErasing (a black rectangle of 2 to 33 % of the area).
        mixup: alpha of torchvision's MixUp, which mixes images and labels of a batch; 0 for none.
        cutmix: alpha of torchvision's CutMix; with both, a coin decides for each batch.

    Raises:
        SpecError: a value is of the wrong type or out of range.

    >>> Augmentation(flip=True, shift=2).is_identity
    False
    """

    flip: bool = False
    shift: int = 0
    cutout: int = 0
    drop: float = 0.0
    randaugment: int = 0
    erasing: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        self._require("flip", isinstance(self.flip, bool), "True or False")
        for name in ("shift", "cutout", "randaugment"):
            self._require(name, is_integer(getattr(self, name), 0), "an integer of at least 0")
        self._require("randaugment", self.randaugment <= 30, "an integer in 0..30")
        for name in ("drop", "erasing"):
            self._require(name, is_within(getattr(self, name), 0.0, 1.0), "a probability")
        for name in ("mixup", "cutmix"):
            self._require(name, is_not_negative(getattr(self, name)), "a finite number of at least 0")

    @property
    def is_identity(self) -> bool:
        """Whether no image can change."""
        return self == Augmentation()

    def over(self, usual: Augmentation) -> Augmentation:
        """These changes, and the usual ones where these ask for none.

        >>> Augmentation(shift=4, erasing=0.25).over(Augmentation(flip=True, shift=2))
        Augmentation(flip=True, shift=4, cutout=0, drop=0.0, randaugment=0, erasing=0.25, mixup=0.0, cutmix=0.0)
        """
        asked = {one.name: value for one in dataclasses.fields(self) if (value := getattr(self, one.name))}
        return dataclasses.replace(usual, **asked)

    def require(self, channels: int, height: int, width: int) -> None:
        """Refuse what cannot be done with images of this shape, or on this machine, before any is changed.

        Raises:
            InputError: the images are not larger than the shift, or have neither 1 nor 3 channels where RandAugment is asked
                for.
            MissingExtraError: an operation of torchvision is asked for, and it is not installed.
        """
        if self.shift >= min(height, width):
            raise InputError(
                f"Augmentation.shift: expected fewer pixels than the image has, got {self.shift} for {height}x{width}; "
                "give a smaller shift"
            )
        if self.randaugment and channels not in (1, 3):
            raise InputError(
                f"Augmentation.randaugment: expected images of 1 or 3 channels, got {channels}; it knows grey and colour "
                "only, give randaugment=0"
            )
        if self.randaugment or self.erasing or self.mixes:
            _torchvision()

    @property
    def one_by_one(self) -> bool:
        """Whether images are changed one after the other, which is work for the processes that make batches."""
        return self.drop > 0 or self.randaugment > 0 or self.erasing > 0

    @property
    def mixes(self) -> bool:
        """Whether images and labels of a batch are mixed."""
        return self.mixup > 0 or self.cutmix > 0

    def __call__(self, images: Tensor, generator: torch.Generator, rows: Rows | None = None) -> Tensor:
        """Changed copies of images (N, C, H, W), of the same shape and type; the input is left as it is.

        Args:
            images: a batch, or some of its images.
            generator: what all changes of the batch are drawn from.
            rows: which images of the batch these are, where they are not all.

        Raises:
            InputError: the images are not (N, C, H, W), or not larger than the shift, or have neither 1 nor 3 channels
                where RandAugment is asked for.
            MissingExtraError: an operation of torchvision is asked for, and it is not installed.
        """
        if images.dim() != 4:
            raise InputError(f"Augmentation: expected images (N, C, H, W), got the shape {tuple(images.shape)}")
        self.require(*images.shape[1:])
        rows = rows or Rows.every(len(images))
        if self.flip:
            images = random_flip(images, generator, rows)
        if self.shift:
            images = random_shift(images, self.shift, generator, rows)
        if self.cutout:
            images = random_cutout(images, self.cutout, generator, rows)
        if self.drop:
            images = random_drop(images, self.drop, generator, rows)
        if self.randaugment or self.erasing:
            images = self._by_torchvision(images, generator, rows)
        return images

    def mixed(self, images: Tensor, labels: Tensor, classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Normalized images (N, C, H, W) and labels (N,) as mixtures: images, and shares (N, classes) of the classes.

        Raises:
            InputError: a label is none of so many classes.
            MissingExtraError: torchvision is not installed.
        """
        low, high = int(labels.min()), int(labels.max())
        if low < 0 or high >= classes:
            raise InputError(
                f"Augmentation.mixed: expected labels 0..{classes - 1}, got {low}..{high}; give more classes"
            )
        transforms = _torchvision()
        with _seeded(generator):
            kinds = [(transforms.MixUp, self.mixup), (transforms.CutMix, self.cutmix)]
            wanted = [kind(alpha=alpha, num_classes=classes) for kind, alpha in kinds if alpha]
            chosen = wanted[int(torch.randint(len(wanted), ()))]
            result: tuple[Tensor, Tensor] = chosen(images, labels)
        return result

    def _by_torchvision(self, images: Tensor, generator: torch.Generator, rows: Rows) -> Tensor:
        transforms = _torchvision()
        steps = []
        if self.randaugment:
            steps.append(transforms.RandAugment(num_ops=2, magnitude=self.randaugment))
        if self.erasing:
            steps.append(transforms.RandomErasing(p=self.erasing, value=0))
        seeds = rows.seeds(generator)
        changed = []
        with torch.random.fork_rng(devices=[]):
            for image, seed in zip(images, seeds, strict=True):  # each its own operations
                torch.default_generator.manual_seed(int(seed))
                for step in steps:
                    image = step(image)
                changed.append(image)
        return torch.stack(changed)


def _torchvision() -> Any:
    try:
        from torchvision.transforms import v2
    except ImportError as error:
        raise MissingExtraError("torchvision", "vision") from error
    return v2


@contextlib.contextmanager
def _seeded(generator: torch.Generator) -> Iterator[None]:
    """Within this context torch's global generator follows from the given one; torchvision asks no other."""
    seed = int(torch.randint(1 << 62, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # the CPU's alone: a GPU's belongs to the network
        yield


def random_flip(images: Tensor, generator: torch.Generator, rows: Rows) -> Tensor:
    """Each image (N, C, H, W) mirrored left and right with probability 1/2."""
    chosen = rows.of(torch.randint(2, (rows.batch, 1, 1, 1), generator=generator, dtype=torch.bool))
    return torch.where(chosen.to(images.device), images.flip(-1), images)


def random_shift(images: Tensor, pixels: int, generator: torch.Generator, rows: Rows) -> Tensor:
    """Each image (N, C, H, W) moved by its own uniform (dy, dx) in {-pixels..pixels}^2; zeros enter."""
    count, _, height, width = images.shape
    padded = functional.pad(images, (pixels,) * 4)  # (N, C, H+2p, W+2p)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, 2p+1, 2p+1, H, W), a view
    drawn = torch.randint(2 * pixels + 1, (2, rows.batch), generator=generator)
    corner = rows.of(drawn.T).T.to(images.device)
    return windows[torch.arange(count, device=images.device), :, corner[0], corner[1]]  # (N, C, H, W)


def random_cutout(images: Tensor, side: int, generator: torch.Generator, rows: Rows) -> Tensor:
    """Each image (N, C, H, W) with a square of zeros around its own uniform pixel, clipped at the border."""
    _, _, height, width = images.shape
    down, right = (torch.randint(length, (rows.batch, 1), generator=generator) for length in (height, width))
    square = (
        _covered(height, side, rows.of(down))[:, None, :, None] & _covered(width, side, rows.of(right))[:, None, None]
    )
    return images.masked_fill(square.to(images.device), 0)  # where (N, 1, H, W) is


def random_drop(images: Tensor, most: float, generator: torch.Generator, rows: Rows) -> Tensor:
    """Counts of events (N, C, H, W) without those that went, each by itself with a probability of its image's own.

    A whole number n becomes a binomial one of n: the same as dropping events before they are counted, below the 255 at
    which bytes stop.
    """
    seeds = rows.seeds(generator)
    kept = images.clone()
    for counts, seed in zip(kept, seeds, strict=True):
        own = torch.Generator().manual_seed(int(seed))
        stays = 1.0 - most * torch.rand((), generator=own)
        there = counts.nonzero(as_tuple=True)  # most pixels of a frame have seen nothing
        seen = counts[there].float().cpu()
        counts[there] = torch.binomial(seen, stays.expand_as(seen), generator=own).to(counts)
    return kept


def _covered(length: int, side: int, middle: Tensor) -> Tensor:
    offset = torch.arange(length) - (middle - side // 2)  # (N, length)
    return (offset >= 0) & (offset < side)
