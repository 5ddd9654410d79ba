"""One line of advice for a site: what would reduce its error, and to what, found by trying it on the site's law.

Where a part of the error dominates (:class:`~polarspike.statistics.distortion.Shares`), its repairs are computed,
cheapest first, and the first one that gains at least 1 dB is named:

1. polarity alone: negative levels where there are none; the float function's slope as the gain; no negative levels
   where the float function passes nothing;
2. the step of least square error, or one of them per channel if that halves the error that a single one leaves;
3. below 15 dB: more levels, for clipping on the side that clips. They cost spikes, so a site near the best that its
   levels allow is not told to take more as long as it keeps its signal.

The float network is the measure. A network that was trained with its sites may hold the float function wrong on purpose.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from polarspike.information import best_step
from polarspike.specs import SiteSpec
from polarspike.statistics.distortion import Shares, decibels, distortion
from polarspike.statistics.laws import Law

#: A site above this is fine: it loses less than 1 % of its signal's power.
FINE_DB = 20.0
#: Below this a site that has the best step is told to take more levels.
ENOUGH_DB = 15.0
#: What a repair must gain to be named.
LEAST_GAIN_DB = 1.0
#: What steps per channel must gain over one step: a signal scaled by channel costs a layer its single scale.
APART_GAIN_DB = 3.0

_MOST_LEVELS = 1 << 15


@dataclass(frozen=True)
class Advice:
    """What to do at one site.

    Attributes:
        text: one line.
        changes: the fields of :class:`~polarspike.specs.QuantSpec` to change at this site; empty if nothing is advised.
        expected: the signal-to-noise ratio in dB after the change and a calibration on the same data; now's without one.
    """

    text: str
    changes: Mapping[str, Any] = field(default_factory=dict)
    expected: float = math.inf


@dataclass(frozen=True)
class SiteLaws:
    """One site as its law sees it: what it is, what comes in, and what it loses.

    Attributes:
        spec: of the site.
        gain: its gain now.
        by_step: the law of its input, one group per step.
        by_channel: one group per channel, or None where the channels are not known apart.
        now: what it loses now.
        spread: the largest root mean square of a channel over the smallest that is not zero.
    """

    spec: SiteSpec
    gain: float
    by_step: Law
    by_channel: Law | None
    now: Shares
    spread: float


def advise(site: SiteLaws) -> Advice:
    """The advice for one site; see the top of this module."""
    now = site.now
    if now.power == 0.0 and now.error == 0.0:
        return Advice(
            "dead: the float network carries no signal here; look at the weights before it, and at the batches"
        )
    if now.snr >= FINE_DB:
        return Advice(f"fine: SNR {now.snr:.0f} dB", expected=now.snr)
    if now.polarity >= max(now.rounding, now.clipping):
        lead, repairs = _polarity(site)
    else:
        cause, part = max(("clipping", now.clipping), ("rounding", now.rounding), key=lambda pair: pair[1])
        lead, repairs = f"{cause} is {part / now.error:.0%} of the error", _repairs(site, cause)
    for repair in repairs:
        if repair.expected >= now.snr + LEAST_GAIN_DB:
            text = f"{lead}: {repair.words}: {now.snr:.1f} to {repair.expected:.1f} dB"
            return Advice(text, repair.changes, repair.expected)
    return Advice(f"enough: SNR {now.snr:.1f} dB, near the best of levels {site.spec.levels}", expected=now.snr)


@dataclass(frozen=True)
class _Repair:
    words: str
    changes: dict[str, Any]
    expected: float


def _repairs(site: SiteLaws, cause: str) -> Iterator[_Repair]:
    """The repairs of clipping and rounding, cheapest first."""
    again = "again " if site.spec.init == "mse" else ""
    step = _Repair(f"calibrate {again}with init='mse'", {"init": "mse"}, _expected(site, site.spec.levels))
    apart = _steps_apart(site)
    if apart and apart.expected >= step.expected + APART_GAIN_DB:
        yield apart
    yield step
    if site.now.snr < ENOUGH_DB:
        if apart:
            yield apart
        yield _more_levels(site, cause)


def _more_levels(site: SiteLaws, cause: str) -> _Repair:
    now, (negative, positive) = site.now, site.spec.levels
    both = cause == "rounding"
    changes: dict[str, Any] = {}
    if both or now.above >= now.below / 2:
        changes["positive"] = min(_MOST_LEVELS, 2 * positive + 1)
    if negative and (both or now.below >= now.above / 2):
        changes["negative"] = min(_MOST_LEVELS, 2 * negative + 1)
    words = " and ".join(f"{name} from {getattr(site.spec, name)} to {count}" for name, count in changes.items())
    levels = (changes.get("negative", negative), changes.get("positive", positive))
    return _Repair(f"raise {words}, with init='mse'", {**changes, "init": "mse"}, _expected(site, levels))


def _steps_apart(site: SiteLaws) -> _Repair | None:
    """One step per channel."""
    if site.spec.channels or site.by_channel is None or site.by_channel.groups < 2:
        return None
    words = f"the channels' rms differ {_fold(site.spread)}, take granularity='channel', init='mse'"
    changes = {"granularity": "channel", "init": "mse"}
    return _Repair(words, changes, _expected(site, site.spec.levels, law=site.by_channel))


def _fold(ratio: float) -> str:
    return f"{ratio:.0f}-fold" if ratio >= 10 else f"{ratio:.1f}-fold"


def _polarity(site: SiteLaws) -> tuple[str, Iterator[_Repair]]:
    """What is wrong below zero, and its repair, after which everything else is tried."""
    spec, now = site.spec, site.now
    if spec.negative == 0:
        count = _negative_levels(site)
        lead = f"{now.negative:.0%} of the signal's power is negative and N = 0"
        words, changes = f"negative={count}, init='mse'", {"negative": count, "signed": "by-nature", "init": "mse"}
        expected = _expected(site, (count, spec.positive), gain=spec.slope)
    elif spec.slope == 0.0:
        lead = f"negative codes are {now.polarity / now.error:.0%} of the error, the float function has none"
        words, changes = "signed='by-nature', init='mse', or train", {"signed": "by-nature", "gain": 1.0, "init": "mse"}
        expected = _expected(site, (0, spec.positive))
    else:
        lead = f"gain {site.gain:.2g} is {now.polarity / now.error:.0%} of the error"
        words, changes = f"gain={spec.slope:g}, init='mse'", {"gain": spec.slope, "init": "mse"}
        expected = _expected(site, spec.levels, gain=spec.slope)
    repair = _Repair(words, changes, expected)
    return lead, itertools.chain([repair], _repairs(site, "rounding"))


def _negative_levels(site: SiteLaws) -> int:
    """The smallest of 1, 3, 7, ... that leaves less clipping below zero than rounding, at the positive side's best step."""
    count, spec = 1, site.spec
    step = _best(site, (0, spec.positive), 1.0, site.by_step)
    while count < min(_MOST_LEVELS, 2 * spec.positive):
        parts = distortion(site.by_step, (count, spec.positive), step, spec.slope, spec.slope, spec.ceiling).shares()
        if parts.below <= parts.rounding:
            break
        count = 2 * count + 1
    return count


def _expected(site: SiteLaws, levels: tuple[int, int], *, gain: float | None = None, law: Law | None = None) -> float:
    """The signal-to-noise ratio in dB that :func:`polarspike.calibrate` reaches with ``init='mse'``."""
    chosen, gain = law or site.by_step, site.gain if gain is None else gain
    steps = _best(site, levels, gain, chosen)
    parts = distortion(chosen, levels, steps, gain, site.spec.slope, site.spec.ceiling)
    return decibels(parts.shares().error)


def _best(site: SiteLaws, levels: tuple[int, int], gain: float, law: Law) -> torch.Tensor:
    """The steps that calibration takes; a dead channel gets some step, since it loses nothing with any."""
    steps = best_step(levels, "mse", law, gain if levels[0] else 1.0)
    steps = torch.where(steps > 0, steps, 1.0)
    return steps if site.spec.ceiling is None else steps.clamp(max=site.spec.ceiling / levels[1])
