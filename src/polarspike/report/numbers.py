"""The numbers of a page: what is computed from a run's counts, and how it is written."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence

#: Student's t for a two-sided interval of 95 % with 1, 2, ... degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)
_UNITS = (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3))


def entropy_of(codes: Mapping[str, int]) -> float:
    """Shannon entropy of a histogram of codes in bits: H = - sum over codes of p log2 p."""
    total = sum(codes.values())
    return -sum(count / total * math.log2(count / total) for count in codes.values() if count)


def student(freedom: int) -> float:
    """The quantile 0.975 of Student's t, to three digits behind the point.

    From eleven degrees of freedom n on, of z = 1.95996 (Abramowitz and Stegun, 26.7.5):
    t = z + (z^3 + z) / 4n + (5 z^5 + 16 z^3 + 3 z) / 96 n^2 + (3 z^7 + 19 z^5 + 17 z^3 - 15 z) / 384 n^3.
    """
    if freedom <= len(_STUDENT):
        return _STUDENT[freedom - 1]
    z = statistics.NormalDist().inv_cdf(0.975)
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval: t s / sqrt(n) with the sample's standard deviation s, n >= 2."""
    half = student(len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values), half


def decimals(value: float | None, digits: int = 2) -> str:
    """So many digits behind the point; what rounds to nothing has no sign, and what is not there is a dash.

    >>> decimals(-0.001), decimals(None)
    ('0.00', '-')
    """
    return "-" if value is None else f"{round(value, digits) + 0.0:.{digits}f}"


def short(value: float) -> str:
    """Three digits and a unit.

    >>> short(999.7), short(5_380_000), short(0)
    ('1 k', '5.38 M', '0')
    """
    rounded = float(f"{value:.3g}")
    for unit, size in _UNITS:
        if rounded >= size:
            return f"{rounded / size:g} {unit}"
    return f"{rounded:g}"
