"""Parts of a data set: checks, the stratified division, and the data set around them."""

from __future__ import annotations

import dataclasses
import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polarspike.data import Augmentation, ImageDataset, Normalization, Split
from polarspike.data.splits import selected, stratified
from polarspike.errors import DataError, SpecError


def images(count: int, channels: int = 1, size: int = 4) -> torch.Tensor:
    return torch.randint(256, (count, channels, size, size), dtype=torch.uint8)


def dataset(**changes: object) -> ImageDataset:
    train = Split(images(30), torch.arange(30) % 3)
    values: dict[str, object] = {
        "name": "toy",
        "train": train,
        "test": Split(images(6), torch.arange(6) % 3),
        "classes": ("a", "b", "c"),
        "origin": "nowhere",
        "licence": "none",
        "normalization": Normalization.of(train.images),
        "augmentation": Augmentation(),
    }
    return ImageDataset(**{**values, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("pixels", "labels", "text"),
    [
        (torch.zeros(2, 1, 4, 4), torch.zeros(2).long(), "got torch.float32 (2, 1, 4, 4)"),
        (images(2)[0], torch.zeros(1).long(), "got torch.uint8 (1, 4, 4)"),
        (images(0), torch.zeros(0).long(), "at least one image, got torch.uint8 (0, 1, 4, 4)"),
        (images(2), torch.zeros(2), "an int64 tensor (2,), one label for each image, got torch.float32 (2,)"),
        (images(2), torch.zeros(3).long(), "an int64 tensor (2,), one label for each image, got torch.int64 (3,)"),
    ],
)
def test_a_split_checks_its_tensors(pixels: torch.Tensor, labels: torch.Tensor, text: str) -> None:
    with pytest.raises(DataError) as caught:
        Split(pixels, labels)
    assert text in str(caught.value)


def test_a_subset_keeps_images_and_labels_together() -> None:
    split = Split(images(5), torch.arange(5))
    part = split.subset(torch.tensor([4, 0]))
    assert len(split) == 5 and len(part) == 2
    assert part.labels.tolist() == [4, 0]
    assert torch.equal(part.images[0], split.images[4])


@given(
    counts=st.lists(st.integers(4, 40), min_size=1, max_size=6),
    fraction=st.floats(0.15, 0.85),
    seed=st.integers(0, 2**31),
)
def test_both_parts_are_disjoint_complete_and_hold_the_share_of_every_class(
    counts: list[int], fraction: float, seed: int
) -> None:
    labels = torch.tensor([label for label, count in enumerate(counts) for _ in range(count)])
    first, second = stratified(labels, fraction, seed)
    assert sorted(first.tolist() + second.tolist()) == list(range(len(labels)))
    expected = [math.floor(fraction * count + 0.5) for count in counts]
    assert torch.bincount(labels[second], minlength=len(counts)).tolist() == expected


def test_the_division_follows_the_documented_rule() -> None:
    labels = torch.tensor([0, 1] * 10)
    draws = random.Random(3)
    numbers = [draws.random() for _ in range(40)]
    rank, place = numbers[0::2], numbers[1::2]
    chosen = sorted(range(0, 20, 2), key=rank.__getitem__)[:3] + sorted(range(1, 20, 2), key=rank.__getitem__)[:3]
    first, second = stratified(labels, 0.3, seed=3)
    assert second.tolist() == sorted(chosen, key=place.__getitem__)
    assert first.tolist() == sorted(set(range(20)) - set(chosen), key=place.__getitem__)


def test_the_division_never_changes() -> None:
    # Golden: if this fails, everybody's test sets have changed.
    assert stratified(torch.zeros(10).long(), 0.4, seed=0)[1].tolist() == [1, 2, 4, 6]


def test_a_sorted_source_comes_out_mixed() -> None:
    labels = torch.arange(10).repeat_interleave(500)
    for part in stratified(labels, 0.2, seed=0):
        for window in (part[:500], part[-500:]):
            # 500 draws of 10 equally likely classes: 50 each, standard deviation 6.7.
            counts = torch.bincount(labels[window], minlength=10)
            assert counts.min() >= 25 and counts.max() <= 75


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.1, float("nan"), float("inf")])
def test_a_fraction_outside_is_refused(fraction: float) -> None:
    with pytest.raises(DataError, match="expected a fraction between 0 and 1, both excluded, got"):
        stratified(torch.zeros(10).long(), fraction, seed=0)


@pytest.mark.parametrize(("fraction", "taken"), [(0.1, 0), (0.9, 3)])
def test_a_class_missing_from_a_part_is_refused(fraction: float, taken: int) -> None:
    labels = torch.tensor([0] * 20 + [1] * 3)
    with pytest.raises(DataError, match=f"takes {taken} of the 3 samples of class 1, so that one part has none"):
        stratified(labels, fraction, seed=0)


def test_a_data_set_tells_its_sizes() -> None:
    data = dataset()
    assert (data.num_classes, data.in_channels, data.image_size) == (3, 1, (4, 4))
    assert list(data.parts()) == ["train", "test"]


def test_a_validation_part_is_cut_from_the_training_part() -> None:
    data = dataset()
    cut = data.split_validation(0.2, seed=7)
    assert cut.validation is not None and data.validation is None
    assert (len(cut.train), len(cut.validation), len(cut.test)) == (24, 6, 6)
    assert torch.bincount(cut.validation.labels).tolist() == [2, 2, 2]
    assert cut.test is data.test and cut.normalization == data.normalization
    assert list(cut.parts()) == ["train", "validation", "test"]

    def as_set(split: Split) -> set[bytes]:
        return {bytes(image.flatten().tolist()) for image in split.images}

    assert as_set(cut.train) | as_set(cut.validation) == as_set(data.train)
    assert not as_set(cut.train) & as_set(cut.validation)


def test_the_seed_decides_the_validation_part() -> None:
    data = dataset()

    def pixels(seed: int) -> torch.Tensor:
        validation = data.split_validation(0.2, seed).validation
        assert validation is not None
        return validation.images

    assert torch.equal(pixels(1), pixels(1))
    assert not torch.equal(pixels(1), pixels(2))


def test_a_second_validation_part_is_refused() -> None:
    with pytest.raises(DataError, match="toy: a validation part was already cut"):
        dataset().split_validation(0.2).split_validation(0.2)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"test": Split(images(6, size=5), torch.zeros(6).long())},
            r"expected images of shape \(1, 4, 4\).*\(1, 5, 5\)",
        ),
        ({"classes": ("a", "b")}, r"toy: expected labels 0\.\.1, got 0\.\.2 in the train part"),
        ({"test": Split(images(1), torch.tensor([-1]))}, r"expected labels 0\.\.2, got -1\.\.-1 in the test part"),
        ({"normalization": Normalization((0.0, 0.0), (1.0, 1.0))}, "expected a normalization of 1 channels, got 2"),
    ],
)
def test_parts_that_do_not_fit_are_refused(changes: dict[str, object], text: str) -> None:
    with pytest.raises(DataError, match=text):
        dataset(**changes)


def test_a_data_set_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset().name = "other"  # type: ignore[misc]


@pytest.mark.parametrize("part", ["validation", "foo"])
def test_a_part_that_is_not_there_is_named(part: str) -> None:
    for ask in (lambda: dataset().evaluation(10, part), lambda: dataset().count(part)):
        with pytest.raises(DataError, match=f"expected a part among train, test, got '{part}'"):
            ask()


@pytest.mark.parametrize("count", [0, -1, 2.0, True])
def test_a_number_of_images_is_at_least_1(count: object) -> None:
    with pytest.raises(SpecError, match="images: expected an integer of at least 1, or None for all, got"):
        dataset().evaluation(10, images=count)  # type: ignore[arg-type]
    assert len(selected(4, 99, None)) == len(selected(4, 99, 0)) == 4  # all that there are
