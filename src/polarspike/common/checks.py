"""What a number must be to be taken: True and False are none."""

from __future__ import annotations

import sys


def is_integer(value: object, least: int | None = None) -> bool:
    """Whether it is an integer (of at least ``least``), and not True or False."""
    return isinstance(value, int) and not isinstance(value, bool) and (least is None or value >= least)


def is_within(value: object, low: float, high: float) -> bool:
    """Whether it is a number in [low, high], and not True or False."""
    return isinstance(value, int | float) and not isinstance(value, bool) and low <= value <= high


def is_share(value: object) -> bool:
    """Whether it is a number above zero and at most one."""
    return is_within(value, 0.0, 1.0) and value != 0


def is_not_negative(value: object) -> bool:
    """Whether it is a finite number of at least zero."""
    return is_within(value, 0.0, sys.float_info.max)


def is_positive(value: object) -> bool:
    """Whether it is a finite number above zero."""
    return is_not_negative(value) and value != 0
