"""Weights as whole numbers: which integers stand for the weights of a layer, and in which units.

A layer's weights ``u`` come in steps of its neuron per code of its input. Three ways, for each output channel:

- **dyadic**: u = n / 2^p with |n| <= 63. Kept exactly, as (2 n) / 2^(p+1) with an odd bias 2 floor(2^p b) + 1, and so is any
  bias b: floor((m + 2^p b) / 2^p + 1/2) = floor((m + floor(2^p b)) / 2^p + 1/2) for whole m and p > 0. The added half of a
  unit lies below the grid of the sums, so halves go up as the spiking network's do, in any runtime.
- **on a grid**: u = n g with the largest |n| = 2^(bits - 1) - 1, as a :class:`~polarspike.quantizers.WeightQuantizer` of
  2 to 8 bits leaves them. The integers are kept, times the largest f with which they stay within 127, and the divisor is the
  odd number next to f / g.
- **any other**: the largest odd divisor q with which ``round(q u)`` stays within 127.

In all of them 2 * sum is never an odd multiple of the divisor, so no sum lies on a threshold. Where sums do not fire at once
(means of them, float answers), dyadic weights take the largest power instead, because their biases are rounded to its units.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from polarspike.errors import ExportError
from polarspike.integer.lattice import EXACT_IN_FLOAT32, LARGEST_SUM, WEIGHT_LIMIT, odd_at_most, odd_divisors

Vector = NDArray[np.float64]

#: Half of the limit, because dyadic weights are doubled.
_DYADIC_LIMIT = WEIGHT_LIMIT // 2
_POWERS = 20
#: The largest weights of 8 to 2 bits.
_GRIDS = (127, 63, 31, 15, 7, 3, 1)
#: How far from whole numbers weights on a grid may be, because they were rounded to float32 and scaled.
_ON_GRID = 1e-3
#: Biases stay within these bits, which leaves half of 32-bit membranes to the codes.
_BIAS_BITS = 30
_FLOAT32_BITS = 24
#: The smallest normal number of float32.
_SMALLEST = 2.0**-126
#: Largest weights below this have fewer than 7 bits.
_COARSE = WEIGHT_LIMIT // 2
#: Up to this part of a step errors of rounded weights are nothing beside those of codes.
_LITTLE = 1 / 16


class Rounded(NamedTuple):
    """Of a layer that fires: weights and bias as whole numbers in units of 1 / divisor, by output channel."""

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    divisor: NDArray[np.int64]


class Scaled(NamedTuple):
    """Of a layer whose sums become float: weights and bias as whole numbers, and by output channel what one is worth."""

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    scale: Vector


def firing(units: Vector, bias: Vector, largest_input: int, most: int, *, wide: bool) -> Rounded:
    """Whole numbers for a layer in front of a neuron.

    Args:
        units: (outputs, ...) weights in steps of the neuron per code of the input.
        bias: (outputs,) in steps of the neuron.
        largest_input: the largest absolute code.
        most: the largest divisor allowed.
        wide: the input is sums of codes, of which no kernel limits the sums; they must stay within 30 bits.

    Raises:
        ExportError: a weight is worth more than 127 steps, or a bias more than 32 bits hold.
    """
    _require(np.isfinite(bias), bias, "a finite number")
    limit = WEIGHT_LIMIT
    while True:
        divisor = odd_divisors(peaks(units), limit, most)
        if limit == WEIGHT_LIMIT:
            divisor = _near_grid(units, divisor, most)
        divisor = _with_room(divisor, bias)
        weight = np.rint(per_output(units, divisor.astype(np.float64)))
        if not wide or largest_sum(weight, largest_input) <= LARGEST_SUM or limit == 1:
            break
        limit = max(1, limit // 2)
    counted = np.rint(bias * divisor)
    # Whole numbers already: none of their sums is a half, and nothing is doubled.
    found = {channel: (exact, 1, math.floor(bias[channel] + 0.5)) for channel, exact in _whole(units).items()}
    # A power of two divides a sum without error, so all of float32's digits count, and not the fourth part of the margin.
    for channel, (exact, power) in _dyadic(units, _DYADIC_LIMIT, 16 * most).items():
        if power > 0:
            found[channel] = (2 * exact, 2 ** (power + 1), 2 * math.floor(bias[channel] * 2.0**power) + 1)
    for channel, (whole, units_a_step, base) in found.items():
        fits = not wide or np.abs(whole).sum() * largest_input <= LARGEST_SUM
        if fits and abs(base) <= 2**_BIAS_BITS:
            weight[channel], counted[channel], divisor[channel] = whole, base, units_a_step
    return Rounded(weight.astype(np.int8), _int32(counted), divisor)


def leaves_digits(units: Vector, largest_input: int, most: int) -> bool:
    """Whether :func:`firing` keeps what codes up to ``largest_input`` are worth: full weights within 30 bits of sums.

    Weights that are kept exactly need no more digits than they have.
    """
    exact = _whole(units) | {c: 2 * whole for c, (whole, _) in _dyadic(units, _DYADIC_LIMIT, 16 * most).items()}
    kept = [channel for channel, whole in exact.items() if np.abs(whole).sum() * largest_input <= LARGEST_SUM]
    others = np.delete(units, kept, axis=0) if kept else units
    if not len(others):
        return True
    highest = np.maximum(peaks(others), _SMALLEST)
    full = WEIGHT_LIMIT * per_output(others, 1 / highest)
    coarse = (highest * most < _COARSE) & (_error(others, most, largest_input) > _LITTLE)
    return largest_sum(full, largest_input) <= LARGEST_SUM and not coarse.any()


def averaging(units: Vector, bias: Vector, largest_input: int, most: int) -> Rounded | None:
    """Whole numbers for a layer whose rectified sums are averaged in front of a neuron.

    Halves are possible here, as the number of values in a window may be even; who rounds them to even must add half a unit.
    So divisors may be even, too, and dyadic weights need no doubling.

    Args:
        units: as for :func:`firing`.
        bias: as for :func:`firing`; exact where it lies on the grid of the sums.
        largest_input: as for :func:`firing`.
        most: the largest divisor allowed.

    Returns:
        None where ``most`` leaves fewer than 7 bits to the weights of a channel, and its codes would show it.

    Raises:
        ExportError: as for :func:`firing`.
    """
    _require(np.isfinite(bias), bias, "a finite number")
    divisor = _with_room(_near_grid(units, odd_divisors(peaks(units), WEIGHT_LIMIT, most), most), bias)
    weight = np.rint(per_output(units, divisor.astype(np.float64)))
    coarse = (peaks(weight) < _COARSE) & (_error(units, divisor, largest_input) > _LITTLE)
    for channel, (exact, power) in _dyadic(units, WEIGHT_LIMIT, 2 * most).items():
        more = _more(exact, most / 2**power)
        if abs(bias[channel]) * 2.0 ** (power + more) <= 2**_BIAS_BITS:
            weight[channel], divisor[channel], coarse[channel] = exact * 2**more, 2 ** (power + more), False
    return None if coarse.any() else Rounded(weight.astype(np.int8), _int32(np.rint(bias * divisor)), divisor)


def scaling(units: Vector, bias: Vector, largest_input: int, *, wide: bool) -> Scaled:
    """Whole numbers for a layer whose sums become float.

    Args:
        units: (outputs, ...) weights in real units per code of the input.
        bias: (outputs,) in real units.
        largest_input: as for :func:`firing`.
        wide: as for :func:`firing`.

    Raises:
        ExportError: a bias that is no finite number.
    """
    _require(np.isfinite(bias), bias, "a finite number")
    exponent = np.frexp(bias)[1].astype(np.float64)  # |bias| < 2^exponent
    highest = peaks(units)
    scale = highest / WEIGHT_LIMIT
    for channel, (exact, power) in _dyadic(units, WEIGHT_LIMIT, 2**_POWERS).items():
        sums = np.abs(exact).sum() * largest_input + abs(bias[channel]) * 2.0**power
        scale[channel] = 2.0 ** -(power + _more(exact, EXACT_IN_FLOAT32 / max(sums, 1.0)))
    # No weights: the bias alone, with all digits that it has. Weights that are nothing beside it: in units that hold it.
    # A bias of 0 needs no room, and its exponent says nothing.
    room = np.where(bias == 0, 0.0, 2.0 ** (exponent - _BIAS_BITS))
    least = np.where(highest > 0, room, 2.0 ** (exponent - _FLOAT32_BITS))
    scale = np.maximum(np.where(highest > 0, scale, 0.0), np.maximum(least, _SMALLEST))
    weight = np.rint(per_output(units, 1 / scale))
    bound = largest_sum(weight, largest_input)
    if wide and bound > LARGEST_SUM:
        scale = scale * (bound / LARGEST_SUM) * 1.01
        weight = np.rint(per_output(units, 1 / scale))
    return Scaled(weight.astype(np.int8), _int32(np.rint(bias / scale)), scale)


def _error(units: Vector, divisor: NDArray[np.int64] | int, largest_input: int) -> Vector:
    """In steps: at most what the weights are worth, and of that many uniform errors of up to half a unit the deviation."""
    rows = np.abs(units.reshape(len(units), -1))
    error: Vector = np.minimum(rows.sum(axis=1), math.sqrt(rows.shape[1] / 12) / divisor) * largest_input
    return error


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
    """For channels whose weights are n g with |n| up to 2^(bits - 1) - 1: the odd number next to f / g, not below it.

    The weights are f n then, with the largest f that has room: the finer the units, the nearer an odd number of them.
    """
    found = divisor.copy()
    for channel, peak in enumerate(peaks(units)):
        if peak > 0 and (near := _grid_of(units[channel], float(peak), most)) is not None:
            found[channel] = near
    return found


def _grid_of(weights: Vector, peak: float, most: int) -> int | None:
    """The divisor with which the weights of a channel keep their integers; None where they lie on no grid."""
    for largest in _GRIDS:
        whole = weights * (largest / peak)
        counts = np.rint(whole)
        if np.abs(whole - counts).max() >= _ON_GRID:
            continue
        for factor in range(WEIGHT_LIMIT // largest, 0, -1):
            near = odd_at_most(factor * largest / peak + 1)  # the nearest odd number: at most 1 away
            # Weights keep their integers where the divisor's error moves none of them by half of one.
            if near <= most and np.array_equal(np.rint(weights * near), factor * counts):
                return near
    return None


def _with_room(divisor: NDArray[np.int64], bias: Vector) -> NDArray[np.int64]:
    """Odd divisors that are small enough for the biases, too."""
    room = 2**_BIAS_BITS / np.maximum(np.abs(bias), 1.0)
    held = [min(int(most), odd_at_most(space)) for most, space in zip(divisor, room, strict=True)]
    return np.array(held, dtype=np.int64)


def _int32(counted: Vector) -> NDArray[np.int32]:
    """Biases in the type of membranes."""
    _require(np.abs(counted) <= np.iinfo(np.int32).max, counted, f"at most {np.iinfo(np.int32).max} units (32 bits)")
    return counted.astype(np.int32)


def _require(fits: NDArray[np.bool_], bias: Vector, expected: str) -> None:
    if not fits.all():
        channel = int(np.argmin(fits))
        raise ExportError(
            f"output channel {channel}: expected a bias of {expected}, got {bias[channel]:.4g}; train it to an ordinary "
            "size, or give the site a larger step"
        )


def _whole(units: Vector) -> dict[int, Vector]:
    """The channels whose weights are whole numbers up to the limit."""
    rows = units.reshape(len(units), -1)
    whole = (rows == np.rint(rows)).all(axis=1) & (peaks(units) <= WEIGHT_LIMIT)
    return {int(channel): units[channel] for channel in np.flatnonzero(whole)}


def _more(exact: Vector, most: float) -> int:
    """How often whole numbers can be doubled: within the limit, and by a factor up to ``most``."""
    largest = max(float(np.abs(exact).max()), WEIGHT_LIMIT / 2**_POWERS)
    return max(0, math.floor(math.log2(min(WEIGHT_LIMIT / largest, max(most, 1.0)))))


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
