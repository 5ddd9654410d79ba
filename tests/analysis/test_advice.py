"""The advice for one site: every branch on a law that calls for it, and the promised figure against that law."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from polarspike.analysis.advice import Advice, SiteLaws, advise
from polarspike.information import best_step
from polarspike.specs import SiteSpec
from polarspike.statistics.distortion import distortion
from polarspike.statistics.laws import Law, NormalMixture, Samples

NORMAL = NormalMixture(torch.zeros(1, 1), torch.ones(1, 1))


def channels(*std: float) -> NormalMixture:
    return NormalMixture(torch.zeros(len(std), 1), torch.tensor(std).view(-1, 1))


def site(
    spec: SiteSpec, step: float | Tensor, law: Law = NORMAL, by_channel: Law | None = None, spread: float = 1.0
) -> SiteLaws:
    steps = torch.as_tensor(step, dtype=torch.float64)
    now = distortion(law, spec.levels, steps, spec.gain, spec.slope, spec.ceiling).shares()
    return SiteLaws(spec, spec.gain, law, by_channel, now, spread)


def reached(laws: SiteLaws, advice: Advice) -> float:
    """The ratio in dB after the change and a calibration by least square error, computed anew."""
    changes: dict[str, Any] = dict(advice.changes)
    assert changes["init"] == "mse"
    law = laws.by_channel if changes.get("granularity") == "channel" else laws.by_step
    assert law is not None
    gain = changes.get("gain", laws.spec.slope if laws.spec.negative == 0 else laws.gain)
    negative = changes.get("negative", 0 if changes.get("signed") == "by-nature" else laws.spec.negative)
    levels = (negative, changes.get("positive", laws.spec.positive))
    steps = best_step(levels, "mse", law, gain if negative else 1.0)
    if laws.spec.ceiling is not None:
        steps = steps.clamp(max=laws.spec.ceiling / levels[1])
    return distortion(law, levels, steps, gain, laws.spec.slope, laws.spec.ceiling).shares().snr


def check(laws: SiteLaws, words: str, **changes: Any) -> Advice:
    """The advice has these words and changes, keeps its promise, and gains at least 1 dB."""
    advice = advise(laws)
    assert words in advice.text
    assert dict(advice.changes) == {"init": "mse", **changes}
    assert advice.expected == pytest.approx(reached(laws, advice))
    assert advice.expected >= laws.now.snr + 1.0
    assert f"{laws.now.snr:.1f} to {advice.expected:.1f} dB" in advice.text
    return advice


def test_a_site_above_20_db_is_fine() -> None:
    laws = site(SiteSpec(0, 63), 0.06)
    advice = advise(laws)
    assert advice.text == f"fine: SNR {laws.now.snr:.0f} dB"
    assert not advice.changes


def test_a_site_without_a_signal_is_dead() -> None:
    advice = advise(site(SiteSpec(0, 7), 1.0, Samples(torch.tensor([[-1.0, -2.0]]), torch.ones(1, 2))))
    assert advice.text.startswith("dead")
    assert not advice.changes


def test_clipping_by_a_small_step_asks_for_the_step_of_least_error() -> None:
    laws = site(SiteSpec(0, 7), 0.15)
    assert laws.now.clipping > 0.9 * laws.now.error
    check(laws, "clipping is 9")


def test_a_step_chosen_by_square_error_on_other_data_is_calibrated_again() -> None:
    check(site(SiteSpec(0, 7, init="mse"), 0.15), "calibrate again with init='mse'")


def test_rounding_by_a_large_step_asks_for_the_step_of_least_error() -> None:
    laws = site(SiteSpec(0, 7), 1.5)
    assert laws.now.rounding > laws.now.clipping
    check(laws, "rounding is 1")


def test_clipping_at_the_best_step_asks_for_more_positive_levels() -> None:
    # A heavy tail: no step of four levels covers both scales.
    tail = NormalMixture(torch.zeros(1, 200), torch.tensor([[1.0] * 199 + [6.0]]))
    laws = site(SiteSpec(0, 3, init="mse"), best_step((0, 3), "mse", tail), tail)
    assert laws.now.clipping > laws.now.rounding
    check(laws, "clipping is 67% of the error: raise positive from 3 to 7", positive=7)


def test_clipping_below_asks_for_more_negative_levels_only() -> None:
    law = NormalMixture(torch.tensor([[-1.0]]), torch.tensor([[1.0]]))
    step = best_step((1, 15), "mse", law, 1.0)
    laws = site(SiteSpec(1, 15, slope=1.0, init="mse"), step * 0.75, law)
    assert laws.now.below > 2 * laws.now.above
    assert laws.now.clipping > laws.now.rounding
    check(laws, "raise negative from 1 to 3", negative=3)


def test_rounding_at_the_best_step_asks_for_more_levels_on_both_sides() -> None:
    step = best_step((2, 2), "mse", NORMAL, 1.0)
    laws = site(SiteSpec(2, 2, slope=1.0, init="mse"), step)
    check(laws, "raise positive from 2 to 5 and negative from 2 to 5", positive=5, negative=5)


def uneven(step: float) -> SiteLaws:
    """63 channels of small signals and one of large ones, under one step that serves the large one."""
    apart = channels(*[0.15] * 63, 6.0)
    pooled = NormalMixture(apart.mean.view(1, -1), apart.std.view(1, -1))
    return site(SiteSpec(0, 7), step, pooled, apart, spread=40.0)


def test_channels_of_different_spread_ask_for_a_step_each() -> None:
    laws = uneven(2.0)
    assert laws.now.rounding > laws.now.clipping
    advice = check(laws, "the channels' rms differ 40-fold, take granularity='channel'", granularity="channel")
    assert advice.text.startswith("rounding is")
    alone = dataclasses.replace(laws, by_channel=None)
    assert "granularity" not in advise(alone).changes
    assert advice.expected > 3.0 + distortion(laws.by_step, (0, 7), best_step((0, 7), "mse", laws.by_step)).shares().snr


def test_clipping_with_uneven_channels_asks_for_a_step_each_at_once() -> None:
    laws = uneven(0.3)
    assert laws.now.clipping > laws.now.rounding
    check(laws, "clipping is", granularity="channel")


def test_channels_that_are_alike_keep_one_step() -> None:
    alike = channels(1.0, 1.2, 0.9)
    pooled = NormalMixture(alike.mean.view(1, -1), alike.std.view(1, -1))
    check(site(SiteSpec(0, 7, init="entropy"), 0.1, pooled, alike, spread=1.3), "calibrate with init='mse'")


def test_the_best_of_its_levels_is_enough() -> None:
    laws = site(SiteSpec(0, 7), best_step((0, 7), "mse", NORMAL))
    assert 15.0 < laws.now.snr < 20.0
    advice = advise(laws)
    assert advice.text.startswith("enough")
    assert not advice.changes
    assert advice.expected == laws.now.snr


def test_negative_signal_without_negative_levels_asks_for_them() -> None:
    laws = site(SiteSpec(0, 7, slope=1.0), 0.35)
    assert laws.now.polarity > 0.9 * laws.now.error
    advice = check(laws, "50% of the signal's power is negative and N = 0", negative=7, signed="by-nature")
    assert advice.expected > 18.0


def test_as_many_negative_levels_as_the_negative_side_needs() -> None:
    law = NormalMixture(torch.tensor([[1.0]]), torch.tensor([[1.0]]))
    check(
        site(SiteSpec(0, 15, slope=1.0), 0.3, law),
        "4% of the signal's power is negative",
        negative=7,
        signed="by-nature",
    )


def test_a_gain_below_the_slope_asks_for_the_slope() -> None:
    laws = site(SiteSpec(7, 7, gain=0.25, slope=1.0), 0.35)
    assert laws.now.polarity > 0.9 * laws.now.error
    check(laws, "gain 0.25 is 9", gain=1.0)


def test_negative_codes_of_a_rectified_function_ask_for_none() -> None:
    laws = site(SiteSpec(7, 7, gain=1.0, slope=0.0), 0.35)
    assert laws.now.polarity > 0.9 * laws.now.error
    check(laws, "the float function has none", gain=1.0, signed="by-nature")


def test_a_ceiling_bounds_the_promise() -> None:
    law = NormalMixture(torch.zeros(1, 1), torch.full((1, 1), 20.0))
    check(site(SiteSpec(0, 15, ceiling=6.0), 0.1, law), "clipping is")


def test_expected_is_infinite_only_where_nothing_is_lost() -> None:
    assert advise(site(SiteSpec(0, 1), 1.0, Samples(torch.ones(1, 1), torch.ones(1, 1)))).expected == math.inf
