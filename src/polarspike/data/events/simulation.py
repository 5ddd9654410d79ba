"""A simulated event camera that looks at an image through three saccades.

Stimulus: the image stands on a dark sensor and is moved along the sides of a triangle, as in N-MNIST, with bilinear
sub-pixel positions. Pixel model (log intensity, each pixel with a reference level of its own)::

    L(t) = ln(eps + I(t))                               I in 0..255, linear between two rendered moments
    event of sign +-1 when L - R crosses +-theta        and R moves there; theta ~ N(th, (.15 th)^2) for each pixel and sign
    refractory: an event less than 1 ms after the last one of its pixel is lost, though R moves
    noise: events of either sign at 0.1 Hz a pixel

Times are interpolated between rendered moments, so that neither the number of events nor their times depend much on how
finely the stimulus is rendered, on two conditions. A pixel's level must not turn between two moments, as it does where
an image has fine texture. And its crossings must be farther apart than the refractory time, as they mostly are at the
default threshold: a coarse rendering spreads the crossings of an interval evenly, so that fewer are lost (a bar at th =
0.05: 14 % more events with 22 moments than with 1,000; as many without a refractory time). A simulation that compares
successive frames has no reference level: it forgets what stays below the threshold at every frame, and its events
vanish as the frames become finer.

It is a simulation and nothing else: no photon noise, no bandwidth of the photoreceptor, no readout.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from polarspike.common.checks import is_integer, is_not_negative, is_positive
from polarspike.data.events.streams import EventStream
from polarspike.errors import InputError
from polarspike.specs import Spec

Floats = NDArray[np.float64]
#: The corners of the path in pixels (down, right), one saccade between each two, then back to the start.
_CORNERS = ((0.0, 0.0), (3.5, 3.5), (-3.5, 3.5), (0.0, 0.0))


@dataclass(frozen=True)
class CameraSpec(Spec):
    """The simulated camera and its stimulus.

    Args:
        size: side of the square sensor in pixels.
        saccade_us: microseconds of each of the three movements.
        renders: moments at which the stimulus is rendered, over all of them.
        threshold: th, in natural logarithms of intensity.
        mismatch: the deviation of a pixel's thresholds, in thresholds.
        floor: eps, in grey levels: the darkness below which contrast is lost.
        refractory_us: microseconds.
        noise_hz: events of noise per pixel and second.

    Raises:
        SpecError: a value is out of range.
    """

    size: int = 34
    saccade_us: int = 105_000
    renders: int = 55
    threshold: float = 0.5
    mismatch: float = 0.15
    floor: float = 40.0
    refractory_us: int = 1000
    noise_hz: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, least in {"size": 1, "saccade_us": 1, "renders": 2, "refractory_us": 0}.items():
            self._require(name, is_integer(getattr(self, name), least), f"an integer of at least {least}")
        for name in ("threshold", "floor"):
            self._require(name, is_positive(getattr(self, name)), "a positive number")
        for name in ("mismatch", "noise_hz"):
            self._require(name, is_not_negative(getattr(self, name)), "a finite number of at least 0")


def simulate(image: NDArray[np.uint8], spec: CameraSpec, seed: int) -> EventStream:
    """The events of one image (H, W) of bytes; the same seed gives the same events.

    Raises:
        InputError: the image is not such an array.
    """
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise InputError(f"simulate: expected one image (H, W) of uint8, got {image.dtype} {image.shape}")
    random = np.random.default_rng(seed)
    size, span = spec.size, 3 * spec.saccade_us
    positive, negative = np.abs(random.normal(spec.threshold, spec.mismatch * spec.threshold, (2, size, size)))
    thresholds = np.maximum(np.stack([negative, positive]), 0.2 * spec.threshold)
    times = np.linspace(0.0, span, spec.renders)
    rows, columns = _path(times / span)
    levels = [np.log(spec.floor + _seen(image, row, column, size)) for row, column in zip(rows, columns, strict=True)]
    found = [*_crossings(levels, times, thresholds), _noise(spec, span, random)]
    y, x, t, p = (np.concatenate([part[index] for part in found]) for index in range(4))
    order = np.argsort(t, kind="stable")
    kept = order[_apart(y[order] * size + x[order], t[order], spec.refractory_us)]
    return EventStream.of(x[kept], y[kept], np.floor(t[kept]), p[kept], (size, size))


def _path(places: Floats) -> tuple[Floats, Floats]:
    """(down, right) at places in 0..1 of the way."""
    corners = np.asarray(_CORNERS)
    along = np.linspace(0.0, 1.0, len(corners))
    return np.interp(places, along, corners[:, 0]), np.interp(places, along, corners[:, 1])


def _seen(image: NDArray[np.uint8], down: float, right: float, size: int) -> Floats:
    """The image on the sensor, its middle displaced by so many pixels; bilinear."""
    height, width = image.shape
    rows = np.arange(size) - ((size - height) / 2 + down)
    columns = np.arange(size) - ((size - width) / 2 + right)
    padded = np.pad(image.astype(np.float64), 1)
    row, column = (np.clip(values + 1, 0.0, limit) for values, limit in ((rows, height + 1), (columns, width + 1)))
    top, left = np.minimum(row.astype(int), height), np.minimum(column.astype(int), width)
    a, b = (row - top)[:, None], (column - left)[None, :]
    upper = padded[np.ix_(top, left)] * (1 - b) + padded[np.ix_(top, left + 1)] * b
    lower = padded[np.ix_(top + 1, left)] * (1 - b) + padded[np.ix_(top + 1, left + 1)] * b
    seen: Floats = upper * (1 - a) + lower * a
    return seen


def _crossings(levels: list[Floats], times: Floats, thresholds: Floats) -> list[tuple[Floats, ...]]:
    """(y, x, t, p) of all crossings; within an interval the level is linear, so each crossing has its time."""
    found: list[tuple[Floats, ...]] = []
    reference = levels[0].copy()
    for before, after, start, end in zip(levels, levels[1:], times, times[1:], strict=False):
        for sign, threshold in ((-1.0, thresholds[0]), (1.0, thresholds[1])):
            count = np.maximum(np.floor(sign * (after - reference) / threshold), 0).astype(int)
            y, x = np.nonzero(count)
            if not len(y):
                continue
            times_each = count[y, x]
            y, x = np.repeat(y, times_each), np.repeat(x, times_each)
            number = np.concatenate([np.arange(1, many + 1) for many in times_each])
            level = reference[y, x] + sign * number * threshold[y, x]
            part = (level - before[y, x]) / (after[y, x] - before[y, x])
            t = start + np.clip(part, 0.0, 1.0) * (end - start)
            found.append((y.astype(float), x.astype(float), t, np.full(len(t), (sign + 1) / 2)))
            reference = reference + sign * count * threshold
    return found


def _noise(spec: CameraSpec, span: int, random: np.random.Generator) -> tuple[Floats, ...]:
    count = random.poisson(spec.noise_hz * spec.size**2 * span * 1e-6)
    y, x = random.integers(spec.size, size=(2, count)).astype(float)
    return y, x, random.uniform(0, span, count), random.integers(2, size=count).astype(float)


def _apart(pixel: Floats, t: Floats, refractory: int) -> NDArray[np.int64]:
    """The events that come late enough after the last one that their pixel sent."""
    order = np.lexsort((t, pixel))
    kept, last_pixel, last_time = [], -1.0, 0.0
    for index, place, time in zip(order.tolist(), pixel[order].tolist(), t[order].tolist(), strict=True):
        if place != last_pixel or time - last_time >= refractory:
            kept.append(index)
            last_pixel, last_time = place, time
    return np.sort(np.asarray(kept, dtype=np.int64))
