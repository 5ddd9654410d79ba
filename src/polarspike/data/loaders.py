"""Batches of normalized images from a part of a data set."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from polarspike.common.checks import is_integer
from polarspike.data.augment import Augmentation, Rows
from polarspike.data.normalization import Normalization
from polarspike.data.splits import Split
from polarspike.errors import DataError, PolarspikeError, SpecError
from polarspike.parallel import distributed

Batch = tuple[Tensor, Tensor]


def batches(
    split: Split,
    batch_size: int,
    *,
    normalization: Normalization,
    shuffle: bool = False,
    augment: Augmentation | None = None,
    seed: int | None = None,
    drop_last: bool = False,
    classes: int | None = None,
    workers: int = 0,
    device: torch.device | str | None = None,
    frames: int | None = None,
) -> DataLoader[Batch]:
    """A loader of ``(images, labels)``: (B, C, H, W) float32, normalized, and (B,) int64; iterate it again and again.

    All that is random in one iteration, order and augmentation of every batch, follows from one number drawn from
    torch's global generator when the iteration starts. So ``torch.manual_seed`` before an epoch fixes the epoch,
    whatever the network draws meanwhile; a loader with nothing random draws nothing. In several processes each
    iteration gives whole batches; ``fit``, ``evaluate`` and ``calibrate`` ask for the share of a process instead.

    Args:
        split: the part to read.
        batch_size: samples per batch, 1 or more; the last batch may be smaller.
        normalization: the data set's scaling.
        shuffle: a new random order in each iteration; else the order of the split.
        augment: random changes of each image, before normalization.
        seed: take this number in place of the drawn one: every iteration is then the same.
        drop_last: leave a smaller last batch out (batch norm cannot train on one sample).
        classes: of the data set; needed where the augmentation mixes labels, which then are (B, classes) shares.
        workers: processes that make batches ahead; the same batches as with none.
        device: bytes are moved there first, and changed, normalized and mixed there; what torchvision does to one image
            after the other (RandAugment, erasing) is done before. The same batches as without, to rounding of the scaling.
        frames: the samples are sequences of T frames, which lie side by side as channels; batches are (B, T, C, H, W), and
            the scaling is that of a frame. Every change is the same for all frames of a sample, and leaves their order.

    Raises:
        SpecError: ``batch_size`` is not an integer of at least 1, the seed is none of at least 0, or classes are missing.
        DataError: ``drop_last`` would leave no batch, or split and normalization differ in channels.
    """
    if not is_integer(batch_size, 1):
        raise SpecError(f"batches: expected batch_size to be an integer of at least 1, got {batch_size!r}")
    if seed is not None and (not is_integer(seed, 0) or seed >= 2**63):
        raise SpecError(f"batches: expected seed to be an integer in 0..2^63-1 or None, got {seed!r}")
    if drop_last and len(split) < batch_size:
        raise DataError(
            f"batches: drop_last leaves no batch of {batch_size} from {len(split)} samples; give a smaller batch_size"
        )
    normalization = normalization if frames is None else normalization.repeated(frames)
    if split.images.shape[1] != len(normalization.mean):
        raise DataError(
            f"batches: expected a normalization of {split.images.shape[1]} channels like the images, "
            f"got one of {len(normalization.mean)}"
        )
    if augment is not None and augment.is_identity:
        augment = None
    if augment is not None and augment.mixes and classes is None:
        raise SpecError("batches: mixup and cutmix need the number of classes; give classes")
    finish = None if device is None else Finish(torch.device(device), augment, normalization, classes or 0)
    made = _WholeBatches(split, normalization, augment, classes or 0, finish)
    draws = shuffle or augment is not None
    return over(
        made,
        len(split),
        batch_size,
        shuffle=shuffle,
        drop_last=drop_last,
        draws=draws,
        seed=seed,
        workers=workers,
        finish=finish,
        frames=frames,
    )


def over(
    made: Dataset[Batch],
    samples: int,
    batch_size: int,
    *,
    shuffle: bool,
    drop_last: bool,
    draws: bool,
    seed: int | None = None,
    workers: int = 0,
    finish: Finish | None = None,
    frames: int | None = None,
) -> DataLoader[Batch]:
    """A loader over a data set that is indexed by whole batches (:class:`Key`).

    Args:
        made: gives the batch of a key.
        samples: how many there are.
        batch_size: as for :func:`batches`, like those that follow.
        shuffle: see there.
        drop_last: see there.
        draws: something is random, so that an iteration draws a seed.
        seed: see there.
        workers: see there.
        finish: makes batches of what ``made`` gives, which then is :class:`Unfinished`.
        frames: as for :func:`batches`.
    """
    sampler = _Keys(samples, batch_size, shuffle, drop_last, seed, draws=draws)
    loader = _Loader(
        _Told(made),
        sampler=sampler,
        batch_size=None,  # the sampler's items are whole batches already
        collate_fn=_unchanged,
        num_workers=workers,
        generator=torch.Generator(),  # else the loader draws from the global generator for workers it does not have
        pin_memory=finish is not None and finish.device.type == "cuda",
    )
    loader.finish, loader.frames = finish, frames
    return loader


class _Loader(DataLoader[Batch]):
    """A loader that draws once for each iteration; with workers, torch asks the sampler for its keys twice."""

    finish: Finish | None = None
    frames: int | None = None

    def __iter__(self) -> Any:
        self._keys.begin()
        found: Any = map(_raised, super().__iter__())
        found = found if self.finish is None else map(self.finish, found)
        return found if self.frames is None else (_parted(batch, self.frames) for batch in found)

    def every(self, first: int, step: int) -> Iterator[Batch]:
        """The batches first, first + step, ... of one iteration; the others are not made."""
        self._keys.wanted = slice(first, None, step)
        try:
            return iter(self)  # which has asked for all keys
        finally:
            self._keys.wanted = slice(None)

    def portions(self) -> Iterator[tuple[Batch, int]]:
        """This process's rows of every batch of one iteration, and how many rows the whole batch has."""
        self._keys.shared = True
        try:
            return zip(iter(self), self._keys.sizes(), strict=True)
        finally:
            self._keys.shared = False

    @property
    def _keys(self) -> _Keys:
        assert isinstance(self.sampler, _Keys)
        return self.sampler


class _Told(Dataset[Any]):
    """Gives an error of ours in place of a batch: torch would put the whole traceback of a worker into its message."""

    def __init__(self, made: Dataset[Batch]) -> None:
        self.made = made

    def __getitem__(self, key: Key) -> Any:
        try:
            return self.made[key]
        except PolarspikeError as error:
            return error


def _raised(batch: Any) -> Any:
    if isinstance(batch, PolarspikeError):
        raise batch
    return batch


class Key(NamedTuple):
    """All that one batch depends on, or a process's rows of it.

    Args:
        indices: of its samples (B,) int64.
        seed: of what is drawn for these alone.
        batch: indices of the whole batch's samples.
        common: the seed of what is drawn for the whole batch.
        rows: which of it these are.
    """

    indices: Tensor
    seed: int
    batch: Tensor
    common: int
    rows: slice


class Unfinished(NamedTuple):
    """A batch as bytes, or a process's part of it, on its way to a device.

    Args:
        images: (B, C, H, W) uint8.
        labels: (B,) int64.
        state: of the generator from which the rest is drawn.
        rows: which images of the batch these are.
        changed: the changes are done, up to the mixing.
    """

    images: Tensor
    labels: Tensor
    state: Tensor
    rows: Rows
    changed: bool

    @classmethod
    def of(
        cls, images: Tensor, labels: Tensor, augment: Augmentation | None, generator: torch.Generator, rows: Rows
    ) -> Unfinished:
        """Bytes and labels, with those changes made that are no work for a device."""
        one_by_one = augment is not None and augment.one_by_one
        if augment is not None and one_by_one:
            images = augment(images, generator, rows)
        return cls(images, labels, generator.get_state(), rows, one_by_one)


@dataclass(frozen=True)
class Finish:
    """Moves a batch to a device, and does there what is left.

    Args:
        device: of the network.
        augment: the changes.
        normalization: the scaling.
        classes: of the data set.
    """

    device: torch.device
    augment: Augmentation | None
    normalization: Normalization
    classes: int

    def __call__(self, batch: Unfinished) -> Batch:
        generator = torch.Generator()
        generator.set_state(batch.state)
        images, labels = (value.to(self.device, non_blocking=True) for value in (batch.images, batch.labels))
        return changed(
            images,
            labels,
            self.augment,
            self.normalization,
            self.classes,
            generator,
            rows=batch.rows,
            augmented=batch.changed,
        )


class _Keys(Sampler[Key]):
    """The keys of one iteration after the other."""

    def __init__(
        self, samples: int, batch_size: int, shuffle: bool, drop_last: bool, seed: int | None, *, draws: bool
    ) -> None:
        self.samples, self.batch_size, self.shuffle, self.drop_last = samples, batch_size, shuffle, drop_last
        self.seed, self.draws = seed, draws
        self.current = 0 if seed is None else seed
        self.wanted = slice(None)  # batches
        self.shared = False  # whether each of several processes gets its own rows alone

    def begin(self) -> None:
        """Draw what the next iteration follows from."""
        if self.seed is None and self.draws:
            self.current = int(torch.empty((), dtype=torch.int64).random_())

    def sizes(self) -> list[int]:
        """How many samples each batch has."""
        return [min(self.batch_size, self.samples - number * self.batch_size) for number in range(len(self))]

    def __len__(self) -> int:
        return self.samples // self.batch_size if self.drop_last else -(-self.samples // self.batch_size)

    def __iter__(self) -> Iterator[Key]:
        generator = torch.Generator().manual_seed(self.current)
        order = torch.randperm(self.samples, generator=generator) if self.shuffle else torch.arange(self.samples)
        seeds = torch.empty(len(self), dtype=torch.int64).random_(generator=generator)
        groups = torch.split(order, self.batch_size)[: len(self)]
        keys = [self._key(group, int(seed)) for group, seed in zip(groups, seeds, strict=True)]
        return iter(keys[self.wanted])

    def _key(self, batch: Tensor, seed: int) -> Key:
        if not self.shared:
            return Key(batch, seed, batch, seed, slice(None))
        rows = distributed.own_rows(len(batch))
        return Key(batch[rows], seed + distributed.rank(), batch, seed, rows)


class _WholeBatches(Dataset[Batch]):
    """Indexed by a whole batch at once: one gather in place of one copy per image."""

    def __init__(
        self,
        split: Split,
        normalization: Normalization,
        augment: Augmentation | None,
        classes: int,
        finish: Finish | None = None,
    ) -> None:
        self.split, self.normalization, self.augment, self.classes = split, normalization, augment, classes
        self.finish = finish

    def __getitem__(self, key: Key) -> Any:
        # What changes is drawn for the whole batch: then it does not depend on how many processes share it.
        rows = _needed(key, self.augment)
        indices = key.batch[rows.positions]
        images, labels = self.split.images[indices], self.split.labels[indices]  # (B, C, H, W) uint8
        # Each batch has its own seed, so no batch depends on which process made the one before.
        generator = torch.Generator().manual_seed(key.common)
        if self.finish is not None:
            return Unfinished.of(images, labels, self.augment, generator, rows)
        return changed(images, labels, self.augment, self.normalization, self.classes, generator, rows=rows)


def _needed(key: Key, augment: Augmentation | None) -> Rows:
    """The rows that a process needs for its own."""
    count = len(key.batch)
    own = torch.arange(count)[key.rows]
    if augment is None or not augment.mixes or len(own) == count:
        return Rows(own, count)
    before = (own - 1) % count  # torchvision mixes each image with the one in front of it
    return Rows(torch.stack([before, own], dim=1).flatten(), count, paired=True)


def changed(
    images: Tensor,
    labels: Tensor,
    augment: Augmentation | None,
    normalization: Normalization,
    classes: int,
    generator: torch.Generator,
    *,
    rows: Rows | None = None,
    augmented: bool = False,
) -> Batch:
    """Bytes (B, C, H, W) and labels as a batch: augmented if at all, normalized, and mixed where the augmentation mixes.

    With ``rows`` these may be some images of it alone (:class:`~polarspike.data.augment.Rows`); of pairs the second comes
    back. With ``augmented`` the first of the three is done already.
    """
    if augment is None or augment.is_identity:
        return normalization(images), labels
    images = normalization(images if augmented else augment(images, generator, rows))
    if not augment.mixes:
        return images, labels
    images, labels = augment.mixed(images, labels, classes, generator)
    return (images[1::2].contiguous(), labels[1::2].contiguous()) if rows and rows.paired else (images, labels)


def _parted(batch: Batch, frames: int) -> Batch:
    """Frames side by side as channels (B, T * C, H, W) as sequences (B, T, C, H, W)."""
    merged, labels = batch
    return merged.view(len(merged), frames, -1, *merged.shape[2:]), labels


def _unchanged(batch: Any) -> Any:
    return batch
