"""Batches: what is in them, in which order, and what the order depends on."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor

from polarspike import data
from polarspike.data import Augmentation, Normalization, Split, batches
from polarspike.data import augment as augmenting
from polarspike.data.loaders import Batch
from polarspike.errors import DataError, MissingExtraError, SpecError
from polarspike.parallel import distributed

PLAIN = Normalization((0.0,), (1.0,))


def numbered(count: int) -> Split:
    """Image i holds the byte i throughout and has the label i."""
    pixels = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1, 1).expand(-1, 1, 3, 3).contiguous()
    return Split(pixels, torch.arange(count))


def noisy(count: int) -> Split:
    return Split(torch.randint(256, (count, 1, 6, 6), dtype=torch.uint8), torch.arange(count))


def labels(loader: torch.utils.data.DataLoader[Batch]) -> list[int]:
    return [label for _, batch in loader for label in batch.tolist()]


def everything(loader: torch.utils.data.DataLoader[Batch]) -> Tensor:
    return torch.cat([images for images, _ in loader])


def test_batches_come_in_order_normalized_and_complete() -> None:
    loader = batches(numbered(10), 4, normalization=Normalization((0.5,), (0.25,)))
    parts = list(loader)
    assert len(loader) == len(parts) == 3
    assert [tuple(images.shape) for images, _ in parts] == [(4, 1, 3, 3), (4, 1, 3, 3), (2, 1, 3, 3)]
    assert all(isinstance(part, tuple) for part in parts)
    assert labels(loader) == list(range(10))
    for images, numbers in parts:
        assert images.dtype == torch.float32 and numbers.dtype == torch.int64
        expected = (numbers.float() / 255 - 0.5) / 0.25
        assert torch.allclose(images, expected.view(-1, 1, 1, 1).expand_as(images))


@pytest.mark.parametrize(("samples", "size", "expected"), [(10, 4, [4, 4]), (8, 4, [4, 4]), (4, 4, [4])])
def test_drop_last_leaves_whole_batches(samples: int, size: int, expected: list[int]) -> None:
    loader = batches(numbered(samples), size, normalization=PLAIN, shuffle=True, drop_last=True)
    assert len(loader) == len(expected)
    assert [len(numbers) for _, numbers in loader] == expected


def test_shuffling_keeps_image_and_label_together_and_misses_none() -> None:
    loader = batches(numbered(50), 8, normalization=PLAIN, shuffle=True)
    for images, numbers in loader:
        assert torch.equal((images[:, 0, 0, 0] * 255).round().long(), numbers)
    assert sorted(labels(loader)) == list(range(50))


def test_every_iteration_has_another_order() -> None:
    loader = batches(numbered(50), 8, normalization=PLAIN, shuffle=True)
    orders = [labels(loader) for _ in range(3)]
    assert len({tuple(order) for order in orders}) == 3


def test_the_global_seed_decides_order_and_augmentation() -> None:
    loader = batches(noisy(40), 8, normalization=PLAIN, shuffle=True, augment=Augmentation(True, 2, 2))
    torch.manual_seed(3)
    first, second = everything(loader), everything(loader)
    assert not torch.equal(first, second)
    torch.manual_seed(3)
    assert torch.equal(everything(loader), first)
    torch.manual_seed(4)
    assert not torch.equal(everything(loader), first)


def test_draws_between_the_batches_change_nothing() -> None:
    loader = batches(noisy(40), 8, normalization=PLAIN, shuffle=True, augment=Augmentation(True, 2, 2))
    torch.manual_seed(3)
    undisturbed = everything(loader)
    torch.manual_seed(3)
    parts = []
    iterator = iter(loader)
    torch.rand(5)  # after the start, before the first batch
    for images, _ in iterator:
        parts.append(images)
        torch.rand(7)  # as dropout does
    assert torch.equal(torch.cat(parts), undisturbed)


def test_a_batch_depends_on_its_own_key_alone() -> None:
    # So worker processes, which make the batches in any order, change nothing.
    loader = batches(noisy(40), 8, normalization=PLAIN, shuffle=True, augment=Augmentation(True, 2, 2), seed=1)
    keys = list(loader.sampler)
    backwards = [loader.dataset[key][0] for key in reversed(keys)]
    assert torch.equal(torch.cat(backwards[::-1]), everything(loader))
    assert len({key.seed for key in keys}) == len(keys)  # and no two batches change alike


@pytest.mark.parametrize("augment", [None, Augmentation()])
def test_a_loader_with_nothing_random_draws_nothing(augment: Augmentation | None) -> None:
    loader = batches(numbered(10), 4, normalization=PLAIN, augment=augment)
    state = torch.get_rng_state()
    assert labels(loader) == list(range(10))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_seed_of_its_own_makes_every_iteration_the_same_and_leaves_the_global_one() -> None:
    split, change = noisy(40), Augmentation(True, 2)

    def loader(seed: int) -> torch.utils.data.DataLoader[Batch]:
        return batches(split, 8, normalization=PLAIN, shuffle=True, augment=change, seed=seed)

    state = torch.get_rng_state()
    first = everything(loader(5))
    assert torch.equal(everything(loader(5)), first)
    assert not torch.equal(everything(loader(6)), first)
    again = loader(5)
    assert torch.equal(everything(again), everything(again))
    assert torch.equal(torch.get_rng_state(), state)


def test_augmentation_without_shuffling_keeps_order_and_labels() -> None:
    split = noisy(20)
    loader = batches(split, 8, normalization=PLAIN, augment=Augmentation(flip=True))
    originals = PLAIN(split.images)
    assert labels(loader) == list(range(20))
    changed = everything(loader)
    same = (changed == originals).flatten(1).all(1)
    mirrored = (changed == originals.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all() and mirrored.any() and same.any()


def test_the_split_is_never_changed() -> None:
    split = noisy(20)
    before = split.images.clone()
    everything(batches(split, 6, normalization=PLAIN, shuffle=True, augment=Augmentation(True, 2, 3)))
    everything(batches(split, 6, normalization=PLAIN))
    assert torch.equal(split.images, before)


@pytest.mark.parametrize("size", [0, -3, 2.0, True, float("nan"), "8"])
def test_a_wrong_batch_size_is_refused(size: object) -> None:
    with pytest.raises(SpecError) as caught:
        batches(numbered(10), size, normalization=PLAIN)  # type: ignore[arg-type]
    assert str(caught.value) == f"batches: expected batch_size to be an integer of at least 1, got {size!r}"


@pytest.mark.parametrize("seed", [-1, 1.5, 2**63])
def test_a_wrong_seed_is_refused(seed: object) -> None:
    with pytest.raises(SpecError, match=r"expected seed to be an integer in 0\.\.2\^63-1 or None, got"):
        batches(numbered(10), 2, normalization=PLAIN, seed=seed)  # type: ignore[arg-type]


def test_no_batch_left_and_other_channels_are_refused() -> None:
    with pytest.raises(DataError, match="drop_last leaves no batch of 16 from 10 samples; give a smaller batch_size"):
        batches(numbered(10), 16, normalization=PLAIN, drop_last=True)
    with pytest.raises(DataError, match="expected a normalization of 1 channels like the images, got one of 3"):
        batches(numbered(10), 2, normalization=Normalization((0.0,) * 3, (1.0,) * 3))


def test_mixtures_come_as_shares_and_need_the_number_of_classes() -> None:
    pytest.importorskip("torchvision")
    digits = data.load("digits")
    mixed = dataclasses.replace(digits, augmentation=data.Augmentation(mixup=0.2))
    torch.manual_seed(0)
    images, shares = next(iter(mixed.training(32)))
    assert images.shape == (32, 1, 8, 8) and shares.shape == (32, 10) and torch.allclose(shares.sum(1), torch.ones(32))
    with pytest.raises(SpecError, match="need the number of classes"):
        data.batches(digits.train, 8, normalization=digits.normalization, augment=data.Augmentation(cutmix=1.0))


def test_workers_make_the_same_batches() -> None:
    digits = data.load("digits")
    found = []
    for workers in (0, 1):
        torch.manual_seed(5)
        found.append([images for images, _ in digits.training(500, workers=workers)])
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))


def test_a_workers_error_is_the_one_that_it_met(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing() -> None:
        raise MissingExtraError("torchvision", "vision")

    monkeypatch.setattr(augmenting, "_torchvision", missing)  # it is branched off with this
    loader = batches(noisy(8), 4, normalization=PLAIN, augment=Augmentation(erasing=0.5), workers=1)
    with pytest.raises(MissingExtraError, match=r"^the optional package 'torchvision' .*polarspike\[vision\]'$"):
        list(loader)


@pytest.mark.parametrize("device", [None, "cpu"])
@pytest.mark.parametrize(
    "change",
    [
        None,
        Augmentation(True, 2, 2),
        Augmentation(True, 2, erasing=0.5),
        Augmentation(flip=True, mixup=0.8, cutmix=1.0),
        Augmentation(flip=True, erasing=0.5, cutmix=1.0),
    ],
    ids=str,
)
@pytest.mark.parametrize(("workers", "world"), [(0, 2), (0, 3), (1, 3)])
def test_processes_have_the_rows_of_the_batches_that_one_has(
    monkeypatch: pytest.MonkeyPatch, workers: int, world: int, change: Augmentation | None, device: str | None
) -> None:
    if change is not None and (change.mixes or change.one_by_one):
        pytest.importorskip("torchvision")
    loader = batches(
        noisy(9), 4, normalization=PLAIN, shuffle=True, augment=change, classes=9, workers=workers, device=device
    )
    torch.manual_seed(3)
    wholes = list(loader)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    parts = []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(3)
        parts.append(list(distributed.own_portions(loader)))
    for number, (images, targets) in enumerate(wholes):
        for rank in range(world):
            (own, own_targets), whole = parts[rank][number]
            rows = slice(rank, None, world) if rank < len(targets) else slice(0, 1)  # one stands in where none is left
            assert whole == len(targets) and torch.equal(own, images[rows]) and torch.equal(own_targets, targets[rows])


@pytest.mark.parametrize(("change", "changed"), [(Augmentation(flip=True), 2), (Augmentation(flip=True, mixup=1.0), 4)])
def test_a_process_changes_no_images_of_others_in_vain(
    monkeypatch: pytest.MonkeyPatch, change: Augmentation, changed: int
) -> None:
    if change.mixes:
        pytest.importorskip("torchvision")
    seen: list[int] = []
    flip = augmenting.random_flip
    monkeypatch.setattr(
        augmenting, "random_flip", lambda images, *others: (seen.append(len(images)), flip(images, *others))[1]
    )
    monkeypatch.setattr(distributed, "world_size", lambda: 4)
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    list(distributed.own_portions(batches(noisy(16), 8, normalization=PLAIN, augment=change, classes=16)))
    assert seen == [changed, changed]


def test_every_process_has_as_many_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    for samples in range(1, 12):
        for count in (1, 2, 4):
            pieces = []
            for rank in range(2):
                monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
                share = distributed.Share.of(samples)
                pieces.append(share.pieces(count))
                stands = range(max(share.own, 1))
                assert all(len(stands[rows]) == max(weight, 1) for rows, weight in pieces[-1])
            assert len(pieces[0]) == len(pieces[1]) <= count
            assert sum(weight for one in pieces for _, weight in one) == samples


def test_evaluation_takes_the_first_or_chosen_images() -> None:
    digits = data.load("digits")
    first = torch.cat([images for images, _ in digits.evaluation(10, images=25)])
    assert len(first) == 25 and digits.count("test") == 359
    assert torch.equal(first, next(iter(digits.evaluation(25)))[0])
    one, two = (torch.cat([labels for _, labels in digits.evaluation(10, "train", images=40, seed=s)]) for s in (0, 1))
    assert len(one) == 40 and not torch.equal(one, two)


@pytest.mark.parametrize(
    "augment",
    [
        Augmentation(True, 2, 3),
        Augmentation(flip=True, mixup=0.8, cutmix=1.0),
        Augmentation(flip=True, randaugment=9, erasing=0.5, mixup=0.8),
        None,
    ],
    ids=str,
)
def test_batches_that_are_finished_on_a_device_are_the_same(augment: Augmentation | None) -> None:
    if augment is not None and (augment.mixes or augment.one_by_one):
        pytest.importorskip("torchvision")
    digits = data.load("digits")
    few = digits.train.subset(torch.arange(50))
    found = []
    for device, workers in ((None, 0), ("cpu", 0), ("cpu", 1)):
        torch.manual_seed(3)
        loader = batches(
            few, 12, normalization=digits.normalization, shuffle=True, augment=augment, classes=10,
            device=device, workers=workers,
        )  # fmt: skip
        found.append([*loader, *loader.every(1, 2)])  # type: ignore[attr-defined]
    for other in found[1:]:
        assert len(other) == len(found[0]) > 4
        for (x, y), (a, b) in zip(found[0], other, strict=True):
            assert torch.equal(x, a) and torch.equal(y, b)
    # The numbers are drawn on the CPU, wherever the images are.
    if augment is not None and not augment.one_by_one:
        meta = augment(torch.zeros(4, 1, 8, 8, dtype=torch.uint8, device="meta"), torch.Generator().manual_seed(0))
        assert meta.device.type == "meta"
