"""Integer thresholds that no sum can meet: the arithmetic that makes every runtime agree.

A neuron fires ``floor(v + 1/2)`` of its membrane ``v`` in units of its step. With whole numbers as weights and codes,
``v`` is a fraction ``a / q`` of an integer sum ``a`` by a divisor ``q``. Where ``q`` is **odd**, ``v`` is never half of an
odd number:

    a / q = j + 1/2   <=>   2 a = (2 j + 1) q            (even = odd: impossible)

and the nearest ``v`` are ``1 / (2 q)`` away from every threshold. So rounding half up, half to even or half away is the
same, and a float32 evaluation finds the same code in any order of its operations, as long as its error stays below that
margin: :func:`largest_divisor` keeps it four times as large as the error of a product in float32. Divisors are free to
choose, because the scale of the integer weights is: weights in units of ``s_out / (s_in q)``.

NumPy alone; sums are int64.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from polarspike.errors import ExportError

Integers = NDArray[np.integer]

#: The largest weight of an int8 layer; -128 is left out, so that signs are free.
WEIGHT_LIMIT = 127
#: Integers up to here are exact in float32.
EXACT_IN_FLOAT32 = 2**24
#: Sums of wide codes stay within half of 32 bits; the other half is for their biases.
LARGEST_SUM = 2**30


def fire(sums: Integers, divisor: Integers | int, low: int, high: int) -> Integers:
    """Codes ``clip(floor(sums / divisor + 1/2), low, high)`` in whole numbers alone.

    Args:
        sums: of any shape.
        divisor: positive, broadcast against ``sums``; odd, or even where all sums are odd.
        low: the smallest code.
        high: the largest code.
    """
    wide = np.asarray(divisor, dtype=np.int64)
    codes: Integers = np.clip((2 * sums.astype(np.int64) + wide) // (2 * wide), low, high)
    return codes


def largest_divisor(largest_code: int) -> int:
    """The largest odd divisor with which float32 finds every code up to ``largest_code``.

    The error of ``a * (1 / q)`` in float32 is at most ``2^-23 (j + 1/2)`` near the threshold ``j + 1/2``, and the margin is
    ``1 / (2 q)``; so ``(2 j + 1) q <= 2^21`` leaves a factor of four.
    """
    return odd_at_most(2**21 / (2 * largest_code + 1))


def odd_at_most(value: float) -> int:
    """The largest odd number up to ``value``, at least 1."""
    whole = math.floor(value)
    return max(1, whole if whole % 2 else whole - 1)


def odd_divisors(peaks: NDArray[np.float64], limit: int, most: int) -> NDArray[np.int64]:
    """For every output channel the largest odd divisor that keeps its weights within ``limit``.

    Args:
        peaks: the largest weight of each channel, in units of a step of its output per code of its input.
        limit: of the integer weights.
        most: the largest divisor allowed.

    Raises:
        ExportError: a weight is worth more than ``limit`` steps, so that one spike saturates the neuron.
    """
    if (peaks > limit).any():
        channel = int(np.argmax(peaks))
        raise ExportError(
            f"output channel {channel}: one spike at its largest weight is worth {peaks[channel]:.4g} steps, more than the "
            f"{limit} that an integer weight can hold; calibrate again, or give this site a larger step"
        )
    # Below limit / most a weight is nothing, and its quotient may overflow.
    return np.array([odd_at_most(limit / peak if peak * most > limit else most) for peak in peaks], dtype=np.int64)


def odd_fraction(ratio: float, most: int) -> tuple[int, int]:
    """Whole numbers (r, q) with q odd, ``q <= most`` and r / q next to ``ratio``, for factors that no weight can absorb.

    The best of all odd q in the upper half of the range: its error is below ``1 / most^2`` in almost every case.
    """
    if not ratio > 0 or not math.isfinite(ratio):
        raise ExportError(f"expected a positive factor between two steps, got {ratio}")
    odd = np.arange(odd_at_most(most / 2), odd_at_most(most) + 1, 2, dtype=np.int64)
    numerators = np.rint(odd * ratio)
    best = int(np.argmin(np.abs(numerators / odd - ratio)))
    r, q = int(numerators[best]), int(odd[best])
    if r == 0:
        raise ExportError(
            f"a factor of {ratio:.3g} between two steps is below what whole numbers up to {most} can hold"
        )
    shared = math.gcd(r, q)
    return r // shared, q // shared
