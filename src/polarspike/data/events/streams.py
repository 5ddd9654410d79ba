"""A recording of an event camera: where, when and with which sign the light changed at a pixel."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polarspike.errors import DataError

Integers = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class EventStream:
    """Events in the order of time.

    Args:
        x: columns, from 0, (N,).
        y: rows from the top, (N,).
        t: microseconds, (N,), never decreasing.
        p: 1 where it became brighter, 0 where darker, (N,).
        size: (H, W) of the sensor in pixels.

    Raises:
        DataError: the arrays differ in length, an event lies outside of the sensor, p is not 0 or 1, or times decrease.
    """

    x: Integers
    y: Integers
    t: Integers
    p: Integers
    size: tuple[int, int]

    def __post_init__(self) -> None:
        lengths = {len(values) for values in (self.x, self.y, self.t, self.p)}
        if len(lengths) != 1:
            raise DataError(f"events: expected as many x, y, t and p, got {sorted(lengths)}")
        if not len(self.x):
            return
        height, width = self.size
        for name, values, limit in (("x", self.x, width), ("y", self.y, height), ("p", self.p, 2)):
            low, high = int(values.min()), int(values.max())
            if low < 0 or high >= limit:
                raise DataError(f"events: expected {name} in 0..{limit - 1}, got {low}..{high}")
        if len(back := np.flatnonzero(self.t[1:] < self.t[:-1])):
            before, after = self.t[back[0]], self.t[back[0] + 1]
            raise DataError(
                f"events: expected times that never decrease, got {after} after {before}; "
                "EventStream.of puts them in order"
            )

    def __len__(self) -> int:
        return len(self.x)

    @classmethod
    def of(cls, x: object, y: object, t: object, p: object, size: tuple[int, int]) -> EventStream:
        """Arrays of whole numbers of any type, put in the order of time.

        Raises:
            DataError: a number is not whole, not finite or not below 2^63, or as for the class.
        """
        xs, ys, ts, ps = (_whole(name, values) for name, values in (("x", x), ("y", y), ("t", t), ("p", p)))
        if len({len(values) for values in (xs, ys, ts, ps)}) == 1 and bool((np.diff(ts) < 0).any()):
            order = np.argsort(ts, kind="stable")
            xs, ys, ts, ps = xs[order], ys[order], ts[order], ps[order]
        return cls(xs, ys, ts, ps, size)

    def between(self, start: int, end: int) -> EventStream:
        """The events with start <= t < end."""
        first, last = np.searchsorted(self.t, [start, end])
        return EventStream(self.x[first:last], self.y[first:last], self.t[first:last], self.p[first:last], self.size)


def _whole(name: str, values: object) -> Integers:
    given = np.asarray(values)
    with np.errstate(invalid="ignore"):  # what cannot be an integer becomes another number, which is seen below
        found = given.astype(np.int64)
    if (wrong := np.flatnonzero(found != given)).size:
        raise DataError(f"events: expected {name} as whole numbers below 2^63, got {given[wrong[0]]}")
    return found
