"""What a number must be: every predicate on every kind of value that comes by mistake."""

from __future__ import annotations

import math

import numpy as np
import pytest

from polarspike.common.checks import is_integer, is_not_negative, is_positive, is_within

ODD = [True, False, None, "1", math.nan, np.float32(1.0), np.int64(1), [1], 1j]


@pytest.mark.parametrize("value", ODD)
def test_what_is_no_number_of_python_is_none(value: object) -> None:
    assert not is_integer(value) and not is_integer(value, 0) and not is_within(value, 0, 1)
    assert not is_not_negative(value) and not is_positive(value)


def test_bounds_are_included_and_infinity_is_no_number() -> None:
    assert is_integer(-3) and is_integer(10**400) and not is_integer(1.0)
    assert is_integer(2, 2) and not is_integer(1, 2)
    assert is_within(0, 0.0, 1.0) and is_within(1.0, 0.0, 1.0) and not is_within(1.0001, 0.0, 1.0)
    assert is_not_negative(0.0) and is_not_negative(-0.0) and not is_not_negative(-5e-324)
    assert is_positive(5e-324) and is_positive(np.float64(2.0)) and not is_positive(0.0)
    for value in (math.inf, -math.inf, 10**400):
        assert not is_not_negative(value) and not is_positive(value)
