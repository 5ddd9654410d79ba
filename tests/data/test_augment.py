"""Augmentation: what each change may do to an image, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from polarspike.data import Augmentation
from polarspike.data.augment import Rows, random_cutout, random_drop, random_flip, random_shift
from polarspike.errors import InputError, SpecError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 64, channels: int = 2, height: int = 6, width: int = 5) -> Tensor:
    return torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8)  # never black


def test_flip_mirrors_about_half_of_the_images_and_leaves_the_rest() -> None:
    before = images(400)
    after = random_flip(before, generator(), Rows.every(len(before)))
    same = (after == before).flatten(1).all(1)
    mirrored = (after == before.flip(-1)).flatten(1).all(1)
    assert (same ^ mirrored).all()
    assert 150 < int(mirrored.sum()) < 250  # 400 fair coins: standard deviation 10


def test_shift_moves_each_image_as_a_whole_by_its_own_step_and_fills_with_black() -> None:
    before = images(300)
    after = random_shift(before, 2, generator(), Rows.every(len(before)))
    seen = set()
    for one, moved in zip(before, after, strict=True):
        padded = functional.pad(one, (2, 2, 2, 2))
        found = [(y, x) for y in range(5) for x in range(5) if torch.equal(padded[:, y : y + 6, x : x + 5], moved)]
        assert len(found) == 1
        seen.add(found[0])
    assert len(seen) == 25  # all steps in both directions occur


def test_cutout_blackens_one_square_clipped_at_the_border() -> None:
    before = images(300, height=7, width=9)
    after = random_cutout(before, 3, generator(), Rows.every(len(before)))
    areas = set()
    for one, cut in zip(before, after, strict=True):
        black = cut[0] == 0
        assert torch.equal(cut, one.masked_fill(black, 0))  # same square in every channel, the rest as it was
        rows, columns = black.any(1).nonzero().flatten(), black.any(0).nonzero().flatten()
        assert black[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1].all()
        assert int(black.sum()) == len(rows) * len(columns)
        areas.add((len(rows), len(columns)))
    assert areas == {(h, w) for h in (2, 3) for w in (2, 3)}  # a middle on the border leaves 2 of 3 lines


def test_events_go_one_by_one_with_a_probability_of_their_image() -> None:
    before = torch.full((400, 2, 8, 8), 10, dtype=torch.uint8)
    before[:, :, 0] = 0
    after = random_drop(before, 0.8, generator(), Rows.every(400))
    assert (after <= before).all() and (before == 10).any() and after.dtype == torch.uint8
    gone = 1 - after.float().sum((1, 2, 3)) / (10 * 2 * 7 * 8)  # the share of 1120 events
    # Uniform over 0..0.8: mean 0.4 with a standard error of 0.8 / sqrt(12 * 400) = 0.012.
    assert abs(float(gone.mean()) - 0.4) < 0.05 and float(gone.min()) < 0.02 and float(gone.max()) > 0.78
    # Within an image counts are binomial: their variance is n p (1 - p), here over its 112 pixels.
    ratio = after[:, :, 1:].float().flatten(1).var(1) / (10 * gone * (1 - gone))
    assert abs(float(ratio[gone > 0.1].mean()) - 1) < 0.05


def test_events_that_are_dropped_do_not_depend_on_the_rows_at_hand() -> None:
    before, kept = images(12), torch.tensor([3, 4, 9])
    every = random_drop(before, 0.5, generator(), Rows.every(12))
    assert torch.equal(random_drop(before[kept], 0.5, generator(), Rows(kept, 12)), every[kept])
    assert not torch.equal(every, before) and torch.equal(Augmentation(drop=0.5)(before, generator()), every)


def test_a_square_of_even_side_has_that_side_inside() -> None:
    before = images(200, channels=1, height=20, width=20)
    black = random_cutout(before, 4, generator(), Rows.every(len(before))) == 0
    assert int(black.flatten(1).sum(1).max()) == 16


@pytest.mark.parametrize("change", [Augmentation(True, 2, 3), Augmentation(flip=True), Augmentation(cutout=1)])
def test_the_input_is_left_and_shape_and_type_are_kept(change: Augmentation) -> None:
    before = images()
    copy = before.clone()
    after = change(before, generator())
    assert torch.equal(before, copy)
    assert after.shape == before.shape and after.dtype == before.dtype
    assert not torch.equal(after, before)


def test_no_change_is_the_identity() -> None:
    before = images()
    assert Augmentation().is_identity
    assert torch.equal(Augmentation()(before, generator()), before)
    assert not any(change.is_identity for change in (Augmentation(True), Augmentation(shift=1), Augmentation(cutout=1)))


def test_the_generator_alone_decides() -> None:
    change, before = Augmentation(True, 1, 2), images()
    torch.manual_seed(1)
    state = torch.get_rng_state()
    first = change(before, generator(5))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(2)
    assert torch.equal(change(before, generator(5)), first)
    assert not torch.equal(change(before, generator(6)), first)


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ({"flip": 1}, "Augmentation.flip: expected True or False, got 1"),
        ({"shift": -1}, "Augmentation.shift: expected an integer of at least 0, got -1"),
        ({"shift": 1.5}, "Augmentation.shift: expected an integer of at least 0, got 1.5"),
        ({"cutout": float("nan")}, "Augmentation.cutout: expected an integer of at least 0, got nan"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Augmentation(**values)  # type: ignore[arg-type]
    assert str(caught.value) == text


def test_images_that_cannot_be_changed_are_refused() -> None:
    with pytest.raises(InputError, match="expected fewer pixels than the image has, got 5 for 6x5"):
        Augmentation(shift=5)(images(), generator())
    with pytest.raises(InputError, match=r"expected images \(N, C, H, W\), got the shape \(2, 6, 5\)"):
        Augmentation(flip=True)(images()[0], generator())


def test_randaugment_knows_grey_and_colour_alone() -> None:
    for channels in (2, 20):
        with pytest.raises(InputError, match=f"randaugment: expected images of 1 or 3 channels, got {channels}"):
            Augmentation(randaugment=9)(images(channels=channels), generator())


def test_mixtures_of_labels_without_a_class_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected labels 0\.\.6, got 0\.\.7; give more classes"):
        Augmentation(mixup=1.0).mixed(torch.zeros(8, 1, 10, 10), torch.arange(8), 7, generator())


def test_it_survives_a_dictionary() -> None:
    change = Augmentation(True, 2, 3)
    assert Augmentation.from_dict(change.to_dict()) == change


@pytest.mark.parametrize(
    "change", [Augmentation(True, 2, 3), Augmentation(True, 1, 0, randaugment=9, erasing=0.5)], ids=str
)
def test_some_images_of_a_batch_change_as_they_do_among_all(change: Augmentation) -> None:
    if change.one_by_one:
        pytest.importorskip("torchvision")
    before = images(40, channels=3, height=16, width=16)
    whole = change(before, generator(3))
    some = torch.tensor([39, 4, 5, 17])
    one, two = generator(3), generator(3)
    assert torch.equal(change(before[some], one, Rows(some, 40)), whole[some])
    change(before, two)
    assert torch.equal(one.get_state(), two.get_state())  # what follows is the same, too


# --- by torchvision -----------------------------------------------------------------------------------------------------


def test_randaugment_and_erasing_follow_from_the_generator_alone() -> None:
    pytest.importorskip("torchvision")
    augment = Augmentation(randaugment=9, erasing=0.5)
    before = images(20, channels=3, height=16, width=16)
    torch.manual_seed(0)
    one = augment(before, generator(3))
    state = torch.get_rng_state()
    torch.manual_seed(1)
    two = augment(before, generator(3))
    assert torch.equal(one, two) and not torch.equal(one, augment(before, generator(4)))
    torch.manual_seed(0)
    assert torch.equal(torch.get_rng_state(), state)  # the global generator is as it was
    assert one.shape == before.shape and one.dtype == torch.uint8
    untouched = int((one == before).flatten(1).all(1).sum())
    assert untouched < 10


def test_erasing_blackens_a_rectangle_of_some_images() -> None:
    pytest.importorskip("torchvision")
    after = Augmentation(erasing=0.5)(images(200, channels=1, height=16, width=16), generator())
    black = (after == 0).flatten(1).sum(1)
    assert 60 < int((black > 0).sum()) < 140 and int(black.max()) <= 0.4 * 256


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixtures_have_shares_that_sum_to_one(kind: str) -> None:
    pytest.importorskip("torchvision")
    augment = Augmentation(**{kind: 1.0})  # type: ignore[arg-type]
    assert augment.mixes and not augment.is_identity
    pictures = torch.zeros(8, 1, 10, 10) + torch.arange(8).view(-1, 1, 1, 1).float()
    mixed, shares = augment.mixed(pictures, torch.arange(8), 8, generator(1))
    assert shares.shape == (8, 8) and torch.allclose(shares.sum(1), torch.ones(8))
    again, _ = augment.mixed(pictures, torch.arange(8), 8, generator(1))
    assert torch.equal(mixed, again)
    # Each image is what its shares say: the mean of a mixture is the mixture of the (constant) images.
    assert torch.allclose(mixed.mean((1, 2, 3)), shares @ torch.arange(8).float(), atol=1e-4)


def test_both_mixtures_take_turns() -> None:
    pytest.importorskip("torchvision")
    pictures = torch.rand(6, 1, 10, 10)
    kinds = set()
    for seed in range(12):
        mixed, _ = Augmentation(mixup=1.0, cutmix=1.0).mixed(pictures, torch.arange(6), 6, generator(seed))
        pasted = all(any(torch.equal(mixed[i, 0, 0, 0], other[0, 0, 0]) for other in pictures) for i in range(6))
        kinds.add(pasted)
    assert kinds == {True, False}


@pytest.mark.parametrize(
    "wrong",
    [
        {"randaugment": 31},
        {"erasing": 1.5},
        {"drop": -0.1},
        {"drop": 2},
        {"erasing": "half"},
        {"cutout": True},
        {"mixup": -1.0},
        {"cutmix": float("inf")},
    ],
)
def test_torchvisions_changes_are_checked(wrong: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        Augmentation(**wrong)  # type: ignore[arg-type]
