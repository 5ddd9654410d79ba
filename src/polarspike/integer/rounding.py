"""Weights as whole numbers: which integers stand for the weights of a layer, and in which units.

A layer's weights ``u`` come in steps of its neuron per code of its input. Three ways, for each output channel:

- **dyadic**: u = n / 2^p with |n| <= 63. Kept exactly, as (2 n) / 2^(p+1) with an odd bias 2 floor(2^p b) + 1, and so is any
  bias b: floor((m + 2^p b) / 2^p + 1/2) = floor((m + floor(2^p b)) / 2^p + 1/2) for whole m and p > 0. The added half of a
  unit lies below the grid of the sums, so halves go up as the spiking network's do, in any runtime.
- **on a grid of 127**: u = n g with the largest |n| = 127, as a :class:`~polarspike.quantizers.WeightQuantizer` of 8 bits
  leaves them. The integers are kept, and the divisor is the odd number next to 1 / g.
- **any other**: the largest odd divisor q with which ``round(q u)`` stays within 127.

In all of them 2 * sum is never an odd multiple of the divisor, so no sum lies on a threshold.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polarspike.integer.lattice import EXACT_IN_FLOAT32, WEIGHT_LIMIT, odd_at_most, odd_divisors

Vector = NDArray[np.float64]

#: Half of the limit, because dyadic weights are doubled.
_DYADIC_LIMIT = WEIGHT_LIMIT // 2
_POWERS = 20
#: How far from whole numbers weights on a grid may be, because they were rounded to float32 and scaled.
_ON_GRID = 1e-3


class Rounded(NamedTuple):
    """Of a layer that fires: weights and bias as whole numbers in units of 1 / divisor, by output channel."""

    weight: NDArray[np.int8]
    bias: Vector
    divisor: NDArray[np.int64]


def firing(units: Vector, bias: Vector, largest_input: int, most: int, *, wide: bool) -> Rounded:
    """Whole numbers for a layer in front of a neuron.

    Args:
        units: (outputs, ...) weights in steps of the neuron per code of the input.
        bias: (outputs,) in steps of the neuron.
        largest_input: the largest absolute code.
        most: the largest divisor allowed.
        wide: the input is sums of codes, and float kernels add them up: they must stay exact in float32.

    Raises:
        ExportError: a weight is worth more than 127 steps.
    """
    limit = WEIGHT_LIMIT
    while True:
        divisor = odd_divisors(peaks(units), limit, most)
        if limit == WEIGHT_LIMIT:
            divisor = _near_grid(units, divisor, most)
        weight = np.rint(per_output(units, divisor.astype(np.float64)))
        if not wide or largest_sum(weight, largest_input) <= EXACT_IN_FLOAT32 or limit == 1:
            break
        limit = max(1, limit // 2)
    counted = np.rint(bias * divisor)
    # A power of two divides a sum without error, so all of float32's digits count, and not the fourth part of the margin.
    for channel, (exact, power) in _dyadic(units, _DYADIC_LIMIT, 16 * most).items():
        whole, base, units_a_step = 2 * exact, 2 * math.floor(bias[channel] * 2.0**power) + 1, 2 ** (power + 1)
        if power == 0:  # whole numbers already, and none of their sums is a half
            whole, base, units_a_step = exact, math.floor(bias[channel] + 0.5), 1
        if not wide or np.abs(whole).sum() * largest_input + abs(base) <= EXACT_IN_FLOAT32:
            weight[channel], counted[channel], divisor[channel] = whole, base, units_a_step
    return Rounded(weight.astype(np.int8), counted, divisor)


def averaging(units: Vector, bias: Vector, most: int) -> Rounded:
    """Whole numbers for a layer whose rectified sums are averaged in front of a neuron.

    Halves are possible here, as the number of values in a window may be even; who rounds them to even must add half a unit.
    So divisors may be even, too, and dyadic weights need no doubling.

    Args:
        units: as for :func:`firing`.
        bias: as for :func:`firing`; exact where it lies on the grid of the sums.
        most: the largest divisor allowed.

    Raises:
        ExportError: a weight is worth more than 127 steps.
    """
    divisor = _near_grid(units, odd_divisors(peaks(units), WEIGHT_LIMIT, most), most)
    weight = np.rint(per_output(units, divisor.astype(np.float64)))
    for channel, (exact, power) in _dyadic(units, WEIGHT_LIMIT, 2 * most).items():
        weight[channel], divisor[channel] = exact, 2**power
    return Rounded(weight.astype(np.int8), np.rint(bias * divisor), divisor)


def scaling(units: Vector, largest_input: int, *, wide: bool) -> tuple[NDArray[np.int8], Vector]:
    """Whole numbers for a layer whose sums become float: weights, and by output channel what one of them is worth."""
    highest = peaks(units)
    scale = np.where(highest > 0, highest, 1.0) / WEIGHT_LIMIT
    weight = np.rint(per_output(units, 1 / scale))
    for channel, (exact, power) in _dyadic(units, WEIGHT_LIMIT, 2**_POWERS).items():
        weight[channel], scale[channel] = exact, 2.0**-power
    bound = largest_sum(weight, largest_input)
    if wide and bound > EXACT_IN_FLOAT32:
        scale = scale * (bound / EXACT_IN_FLOAT32) * 1.01
        weight = np.rint(per_output(units, 1 / scale))
    return weight.astype(np.int8), scale


def per_output(weight: Vector, factor: Vector) -> Vector:
    """Weights (outputs, ...) times one factor, or one for each output."""
    return weight * (factor if factor.ndim == 0 else factor.reshape(-1, *[1] * (weight.ndim - 1)))


def peaks(weight: Vector) -> Vector:
    """The largest absolute weight of each output."""
    highest: Vector = np.abs(weight.reshape(len(weight), -1)).max(axis=1)
    return highest


def largest_sum(weight: NDArray[Any], largest_input: int) -> float:
    """The largest absolute sum that inputs up to ``largest_input`` could make."""
    return float(np.abs(weight.reshape(len(weight), -1).astype(np.float64)).sum(axis=1).max()) * largest_input


def _near_grid(units: Vector, divisor: NDArray[np.int64], most: int) -> NDArray[np.int64]:
    """For channels whose weights are n g with a largest |n| of 127: the odd number next to 1 / g, not below it."""
    grid = peaks(units) / WEIGHT_LIMIT
    found = divisor.copy()
    for channel in np.flatnonzero(grid > 0):
        whole = units[channel] / grid[channel]
        near = odd_at_most(1 / grid[channel] + 1)  # the nearest odd number: at most 1 away
        # Weights keep their integers where the divisor's error moves none of them by half of one.
        kept = np.array_equal(np.rint(units[channel] * near), np.rint(whole))
        if np.abs(whole - np.rint(whole)).max() < _ON_GRID and near <= most and kept:
            found[channel] = near
    return found


def _dyadic(units: Vector, limit: int, most: int) -> dict[int, tuple[Vector, int]]:
    """The channels whose weights are whole numbers up to ``limit`` over a power of two: those numbers, and the exponent.

    The smallest exponent of each, with 2^(exponent + 1) up to ``most``.
    """
    found: dict[int, tuple[Vector, int]] = {}
    for power in reversed(range(_POWERS)):
        if 2 ** (power + 1) > most:
            continue
        scaled = units * 2.0**power
        whole = (scaled == np.rint(scaled)).reshape(len(units), -1).all(axis=1)
        for channel in np.flatnonzero(whole & (peaks(scaled) <= limit)):
            found[int(channel)] = (scaled[channel], power)
    return found
