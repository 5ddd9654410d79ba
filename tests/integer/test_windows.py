"""Convolutions, pooling and padding in NumPy are those of torch, number by number."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from polarspike.integer.windows import convolve, largest, padded, total

#: stride, padding, dilation, groups
CONVOLUTIONS = [
    ([1, 1], [0, 0], [1, 1], 1),
    ([2, 1], [1, 2], [1, 1], 1),
    ([1, 3], [2, 0], [2, 1], 2),
    ([3, 2], [3, 3], [2, 3], 4),
]


def whole(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-9, 10, shape, generator=generator).double()


def same(padding: list[int]) -> list[list[int]]:
    return [padding, padding]


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), CONVOLUTIONS)
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (2, 3)])
def test_images(stride: list[int], padding: list[int], dilation: list[int], groups: int, kernel: Any) -> None:
    x, weight = whole(3, 4, 9, 11), whole(8, 4 // groups, *kernel, seed=1)
    made = convolve(x.numpy(), weight.numpy(), stride, same(padding), dilation, groups)
    meant = functional.conv2d(x, weight, None, tuple(stride), tuple(padding), tuple(dilation), groups)
    assert made.shape == tuple(meant.shape) and np.array_equal(made, meant.numpy())


@pytest.mark.parametrize(("stride", "padding", "dilation", "groups"), CONVOLUTIONS)
def test_sequences(stride: list[int], padding: list[int], dilation: list[int], groups: int) -> None:
    x, weight = whole(2, 4, 15), whole(4, 4 // groups, 3, seed=1)
    made = convolve(x.numpy(), weight.numpy(), stride[:1], same(padding[:1]), dilation[:1], groups)
    meant = functional.conv1d(x, weight, None, stride[0], padding[0], dilation[0], groups)
    assert np.array_equal(made, meant.numpy())


def test_padding_may_differ_in_front_and_behind() -> None:
    x, weight = whole(1, 2, 5, 6), whole(3, 2, 2, 2, seed=1)
    made = convolve(x.numpy(), weight.numpy(), [1, 1], [[0, 2], [1, 0]], [1, 1], 1)
    meant = functional.conv2d(functional.pad(x, (2, 0, 0, 1)), weight)  # from the last dimension to the first
    assert np.array_equal(made, meant.numpy())
    assert np.array_equal(padded(x.numpy(), [[0, 2], [1, 0]], 7), functional.pad(x, (2, 0, 0, 1), value=7.0).numpy())
    assert padded(x.numpy(), same([0, 0]), 7) is not None


@pytest.mark.parametrize("whole_numbers", [True, False])
@pytest.mark.parametrize(("kernel", "stride", "padding", "dilation"), [
    ([2, 2], [2, 2], [0, 0], [1, 1]), ([3, 3], [2, 2], [1, 1], [1, 1]), ([3, 2], [1, 2], [1, 0], [2, 1]),
])  # fmt: skip
def test_the_largest_of_each_window(
    whole_numbers: bool, kernel: list[int], stride: list[int], padding: list[int], dilation: list[int]
) -> None:
    x = whole(2, 3, 9, 8) - 20  # all negative: padding with zeros would win
    array = x.numpy().astype(np.int64 if whole_numbers else np.float32)
    made = largest(array, kernel, stride, same(padding), dilation)
    meant = functional.max_pool2d(x, kernel, stride, padding, dilation)
    assert np.array_equal(made, meant.numpy()) and made.dtype == array.dtype
    one = largest(array[..., 0], kernel[:1], stride[:1], same(padding[:1]), dilation[:1])
    meant = functional.max_pool1d(x[..., 0], kernel[0], stride[0], padding[0], dilation[0])
    assert np.array_equal(one, meant.numpy())


@pytest.mark.parametrize(("kernel", "stride", "padding"), [
    ([2, 2], [2, 2], [0, 0]), ([3, 3], [2, 1], [1, 1]), ([1, 4], [3, 2], [0, 2]),
])  # fmt: skip
def test_sums_of_windows(kernel: list[int], stride: list[int], padding: list[int]) -> None:
    x = whole(2, 3, 9, 8)
    made = total(x.numpy().astype(np.int64), kernel, stride, same(padding))
    meant = functional.avg_pool2d(x, kernel, stride, padding, divisor_override=1)
    assert np.array_equal(made, meant.numpy()) and made.dtype == np.int64
    one = total(x.numpy()[..., 0], kernel[:1], stride[:1], same(padding[:1]))
    assert np.allclose(one, kernel[0] * functional.avg_pool1d(x[..., 0], kernel[0], stride[0], padding[0]).numpy())


def test_an_empty_batch() -> None:
    x, weight = whole(0, 2, 5, 5), whole(3, 2, 3, 3)
    assert convolve(x.numpy(), weight.numpy(), [1, 1], same([0, 0]), [1, 1], 1).shape == (0, 3, 3, 3)
