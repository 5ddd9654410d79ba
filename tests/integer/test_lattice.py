"""Integer thresholds: the codes are exact, no sum lies on a threshold, and float32 finds the same codes in any rounding."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from polarspike.errors import ExportError
from polarspike.integer.lattice import fire, largest_divisor, odd_at_most, odd_divisors, odd_fraction

LARGEST_CODES = [1, 3, 7, 15, 100, 255]


@given(st.integers(-(2**40), 2**40), st.integers(0, 2**20), st.integers(0, 40), st.integers(0, 40))
def test_a_code_is_the_rounded_fraction_within_its_levels(total: int, half: int, negative: int, positive: int) -> None:
    divisor = 2 * half + 1
    meant = max(-negative, min(positive, math.floor(Fraction(total, divisor) + Fraction(1, 2))))
    assert fire(np.array([total]), divisor, -negative, positive).tolist() == [meant]


def test_divisors_are_per_channel_and_narrow_sums_do_not_overflow() -> None:
    sums = np.array([[2**31 - 1, -(2**31)], [5, -5]], dtype=np.int32)
    found = fire(sums, np.array([3, 2**21 - 1], dtype=np.int32), -(2**40), 2**40)
    assert found.tolist() == [[715827882, -1024], [2, 0]]
    assert found.dtype == np.int64


@pytest.mark.parametrize("divisor", [1, 3, 5, 99])
def test_no_sum_meets_a_threshold_of_an_odd_divisor(divisor: int) -> None:
    sums = np.arange(-500, 501)
    assert ((2 * sums) % (2 * divisor) != divisor).all()
    assert np.array_equal(-fire(-sums, divisor, -999, 999), fire(sums, divisor, -999, 999))  # halves would go up


@pytest.mark.parametrize("largest", LARGEST_CODES)
def test_float32_finds_every_code_next_to_every_threshold(largest: int) -> None:
    for divisor in {odd_at_most(largest_divisor(largest) - less) for less in range(0, 400, 3)}:
        threshold = ((2 * np.arange(-largest - 1, largest + 1) + 1) * divisor) // 2
        sums = (threshold[:, None] + np.arange(-2, 4)).reshape(-1)
        meant = fire(sums, divisor, -largest - 1, largest + 1)
        wide, step = sums.astype(np.float32), np.float32(divisor)
        for value in (wide / step, wide * (np.float32(1) / step)):
            assert np.array_equal(np.rint(value), meant), divisor  # half to even
            assert np.array_equal(np.floor(value + np.float32(0.5)), meant), divisor
            assert np.array_equal(np.trunc(value + np.copysign(np.float32(0.5), value)), meant), divisor


@pytest.mark.parametrize("largest", LARGEST_CODES)
def test_the_largest_divisor_is_odd_and_leaves_a_factor_of_four(largest: int) -> None:
    divisor = largest_divisor(largest)
    assert divisor % 2 == 1 and (2 * largest + 1) * divisor <= 2**21 < (2 * largest + 1) * (divisor + 2)


@given(st.floats(-10, 2.0**30))
def test_odd_numbers_up_to_a_value(value: float) -> None:
    found = odd_at_most(value)
    assert found % 2 == 1 and found >= 1
    assert value < 1 or found <= value < found + 2


@given(st.lists(st.just(0.0) | st.floats(1e-300, 127), min_size=1, max_size=9), st.integers(1, 2**20))
def test_divisors_are_the_largest_that_keep_weights_within_their_limit(peaks: list[float], most: int) -> None:
    given_peaks: NDArray[Any] = np.array(peaks)
    found = odd_divisors(given_peaks, 127, most)
    assert (found % 2 == 1).all() and (found <= most).all() and (found * given_peaks <= 127 * (1 + 1e-12)).all()
    larger = found + 2
    assert ((larger > most) | (larger * given_peaks > 127 * (1 - 1e-12))).all()


def test_a_channel_without_weights_takes_any_divisor() -> None:
    assert odd_divisors(np.array([0.0, 127.0]), 127, 1001).tolist() == [1001, 1]


def test_a_weight_worth_more_than_its_limit_is_refused_by_channel() -> None:
    with pytest.raises(ExportError, match=r"output channel 2: .* worth 200 steps, more than the 127"):
        odd_divisors(np.array([0.1, 127.0, 200.0]), 127, 1001)
    with pytest.raises(ExportError, match="output channel 0"):
        odd_divisors(np.array([np.inf]), 127, 1001)


@pytest.mark.parametrize("ratio", [1.0, 0.37, math.pi, 1e-3, 250.0, 1 / 3, 2.0**-9, 7 / 11])
@pytest.mark.parametrize("most", [101, 139809])
def test_a_fraction_is_the_best_with_an_odd_divisor_of_the_upper_half(ratio: float, most: int) -> None:
    if most == 101 and ratio < 1 / 101:
        pytest.skip("below what it can hold")
    r, q = odd_fraction(ratio, most)
    assert q % 2 == 1 and 1 <= q <= most and math.gcd(r, q) == 1
    odd = range(odd_at_most(most / 2), most + 1, 2)
    best = min(abs(Fraction(round(q * ratio), q) - Fraction(ratio)) for q in odd)
    assert float(abs(Fraction(r, q) - Fraction(ratio))) <= float(best) + 1e-15 * ratio


@pytest.mark.parametrize(
    ("ratio", "why"),
    [(ratio, "positive") for ratio in (0.0, -1.0, math.inf, math.nan)] + [(1e-9, "below what whole numbers up to 101")],
)
def test_factors_that_no_fraction_holds_are_refused(ratio: float, why: str) -> None:
    with pytest.raises(ExportError, match=why):
        odd_fraction(ratio, 101)
