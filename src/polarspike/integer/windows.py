"""Convolutions, pooling and padding in NumPy: windows laid out as a matrix, one product.

Spatial dimensions are all behind (batch, channels). Sums of whole numbers go through float64 products, which are exact up to
2^53, because NumPy multiplies integer matrices a hundred times slower.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Array = NDArray[Any]


def padded(x: Array, padding: Sequence[Sequence[int]], value: float) -> Array:
    """An array whose spatial dimensions are longer by ``padding[0]`` in front and ``padding[1]`` behind."""
    before, after = padding
    if not any(before) and not any(after):
        return x
    return np.pad(x, [(0, 0), (0, 0), *zip(before, after, strict=True)], constant_values=value)


def windows(x: Array, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Array:
    """All windows of x (batch, channels, *space) as (batch, channels, *out, *kernel); a view."""
    spans = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    axes = tuple(range(2, x.ndim))
    seen: Array = sliding_window_view(x, spans, axis=axes)
    out = tuple(slice(None, None, s) for s in stride)
    inside = tuple(slice(None, None, d) for d in dilation)
    return seen[(slice(None), slice(None), *out, *inside)]


def convolve(
    x: Array,
    weight: Array,
    stride: Sequence[int],
    padding: Sequence[Sequence[int]],
    dilation: Sequence[int],
    groups: int,
) -> Array:
    """Images (batch, I, *space) with weight (O, I / groups, *kernel): (batch, O, *out), in the type of the product."""
    space = weight.ndim - 2
    seen = windows(padded(x, padding, 0), weight.shape[2:], stride, dilation)
    batch, out = len(x), seen.shape[2 : 2 + space]
    order = (0, *range(2, 2 + space), 1, *range(2 + space, 2 + 2 * space))  # (batch, *out, I, *kernel)
    made = []
    for part, filters in zip(np.split(seen, groups, axis=1), np.split(weight, groups), strict=True):
        rows = part.transpose(order).reshape(batch * math.prod(out), math.prod(filters.shape[1:]))
        made.append((rows @ filters.reshape(len(filters), -1).T).reshape(batch, *out, len(filters)))
    return np.moveaxis(np.concatenate(made, axis=-1), -1, 1)


def largest(
    x: Array, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[Sequence[int]], dilation: Sequence[int]
) -> Array:
    """The largest of each window; padding never wins."""
    lowest = np.iinfo(x.dtype).min if x.dtype.kind == "i" else -np.inf
    seen = windows(padded(x, padding, lowest), kernel, stride, dilation)
    return seen.max(axis=tuple(range(x.ndim, seen.ndim)))  # type: ignore[no-any-return]


def total(x: Array, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[Sequence[int]]) -> Array:
    """The sum of each window."""
    seen = windows(padded(x, padding, 0), kernel, stride, [1] * len(kernel))
    return seen.sum(axis=tuple(range(x.ndim, seen.ndim)))  # type: ignore[no-any-return]
