"""The scaling of byte images: its formula, its statistics, its errors, and its way through JSON."""

from __future__ import annotations

import json

import pytest
import torch

from polarspike.data import Normalization
from polarspike.errors import DataError, InputError, SpecError


def test_statistics_follow_the_formula() -> None:
    images = torch.randint(256, (7, 3, 5, 4), dtype=torch.uint8)
    found = Normalization.of(images)
    scaled = images.double() / 255
    assert found.mean == pytest.approx(scaled.mean(dim=(0, 2, 3)).tolist(), rel=1e-12)
    assert found.std == pytest.approx(scaled.std(dim=(0, 2, 3), correction=0).tolist(), rel=1e-12)


def test_statistics_do_not_depend_on_the_order() -> None:
    images = torch.randint(256, (50, 1, 6, 6), dtype=torch.uint8)
    assert Normalization.of(images) == Normalization.of(images[torch.randperm(50)])


def test_a_hand_computed_example() -> None:
    # Bytes 0, 0, 0, 255: mean 1/4, variance 1/4 - 1/16 = 3/16.
    found = Normalization.of(torch.tensor([0, 0, 0, 255], dtype=torch.uint8).view(1, 1, 2, 2))
    assert found.mean == (0.25,) and found.std == pytest.approx((0.1875**0.5,))


def test_normalized_images_have_mean_zero_and_deviation_one_per_channel() -> None:
    images = torch.randint(256, (40, 2, 8, 8), dtype=torch.uint8)
    images[:, 1] //= 4
    scaled = Normalization.of(images)(images)
    assert scaled.dtype == torch.float32 and scaled.shape == images.shape
    assert scaled.mean(dim=(0, 2, 3)).abs().max() < 1e-5
    assert (scaled.std(dim=(0, 2, 3), correction=0) - 1).abs().max() < 1e-5


def test_each_pixel_follows_the_formula_and_the_input_stays() -> None:
    images = torch.tensor([0, 51, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    scaled = Normalization((0.2,), (0.5,))(images)
    assert scaled.flatten().tolist() == pytest.approx([-0.4, 0.0, 1.6])
    assert images.flatten().tolist() == [0, 51, 255]


def test_a_constant_channel_is_refused() -> None:
    images = torch.randint(256, (4, 2, 3, 3), dtype=torch.uint8)
    images[:, 1] = 9
    with pytest.raises(DataError, match="expected varying pixels, got one value throughout channel 1"):
        Normalization.of(images)


@pytest.mark.parametrize(
    "images", [torch.rand(2, 1, 3, 3), torch.zeros(1, 3, 3, dtype=torch.uint8), torch.zeros(2, 3, 3, 3).byte()]
)
def test_other_images_are_refused(images: torch.Tensor) -> None:
    with pytest.raises(InputError, match=r"expected uint8 images \(N, 1, H, W\), got torch\."):
        Normalization((0.5,), (0.5,))(images)


@pytest.mark.parametrize(
    ("mean", "std", "text"),
    [
        ((), (), "Normalization.mean: expected a finite number per channel"),
        ((float("nan"),), (1.0,), "Normalization.mean: expected a finite number per channel"),
        ((0.0,), (0.0,), "Normalization.std: expected 1 finite positive numbers"),
        ((0.0,), (float("nan"),), "Normalization.std: expected 1 finite positive numbers"),
        ((0.0,), (float("inf"),), "Normalization.std: expected 1 finite positive numbers"),
        ((0.0, 0.0), (1.0,), "Normalization.std: expected 2 finite positive numbers"),
    ],
)
def test_numbers_that_cannot_scale_are_refused(mean: tuple[float, ...], std: tuple[float, ...], text: str) -> None:
    with pytest.raises(SpecError) as caught:
        Normalization(mean, std)
    assert str(caught.value).startswith(text)


def test_it_survives_json() -> None:
    normalization = Normalization((0.1, 0.2), (0.3, 1 / 3))
    assert Normalization.from_dict(json.loads(json.dumps(normalization.to_dict()))) == normalization
