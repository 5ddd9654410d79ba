"""Events -> frames of counts: what a network sees at each timestep.

    F[b, c, r, s] = number of events of sign c in bin b at the pixels that (r, s) covers, at most 255

Bins are of equal duration (``by="time"``) or of equally many events (``by="count"``).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from polarspike.data.events.streams import EventStream
from polarspike.specs import Spec

Frames = NDArray[np.uint8]
_MOST = 255


@dataclass(frozen=True)
class FrameSpec(Spec):
    """How a recording becomes frames.

    Args:
        bins: T.
        by: ``"time"``: bins of equal duration; ``"count"``: of equally many events, so that a pause makes no empty frame.
        height: rows of a frame, at most the sensor's; 0 for the sensor's. Each pixel counts the events of the sensor's
            pixels that fall on it.
        width: columns; 0 for the sensor's.
        duration_us: take the first so many microseconds; 0 for all.

    Raises:
        SpecError: a value is out of range.
    """

    bins: int = 10
    by: Literal["time", "count"] = "time"
    height: int = 0
    width: int = 0
    duration_us: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"bins": 1, "height": 0, "width": 0, "duration_us": 0}.items():
            value = getattr(self, name)
            self._require(name, type(value) is int and value >= least, f"an integer of at least {least}")

    def shape(self, size: tuple[int, int]) -> tuple[int, int, int, int]:
        """(T, 2, H, W) of a recording by a sensor of this size.

        Raises:
            SpecError: more rows or columns than the sensor has, of which some would always be empty.
        """
        for name, asked, there in (("height", self.height, size[0]), ("width", self.width, size[1])):
            self._require(name, asked <= there, f"at most {there}, as many as the sensor has")
        return self.bins, 2, self.height or size[0], self.width or size[1]


def to_frames(events: EventStream, spec: FrameSpec) -> Frames:
    """Counts (T, 2, H, W) as bytes; channel 1 is brighter.

    Raises:
        SpecError: the frames would be larger than the sensor.
    """
    bins, signs, height, width = spec.shape(events.size)
    if spec.duration_us and len(events):
        events = events.between(int(events.t[0]), int(events.t[0]) + spec.duration_us)
    if not len(events):
        return np.zeros((bins, signs, height, width), dtype=np.uint8)
    if spec.by == "time":
        elapsed = events.t - events.t[0]
        span = spec.duration_us or int(elapsed[-1]) + 1
        place = np.minimum(elapsed * bins // span, bins - 1)
    else:
        place = np.arange(len(events)) * bins // len(events)
    row = events.y * height // events.size[0]
    column = events.x * width // events.size[1]
    index = ((place * signs + events.p) * height + row) * width + column
    counts = np.bincount(index, minlength=bins * signs * height * width)
    return np.minimum(counts, _MOST).astype(np.uint8).reshape(bins, signs, height, width)
