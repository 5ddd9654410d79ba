"""The parts of a site's error: against brute force, disjoint, and summing to the whole."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from polarspike import ops
from polarspike.errors import InputError
from polarspike.information import square_error
from polarspike.statistics.distortion import best_gain, decibels, distortion
from polarspike.statistics.laws import NormalMixture, Samples

X = torch.randn(2, 4000, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * torch.tensor([[1.0], [3.0]])
STEP = torch.tensor([0.3, 0.5], dtype=torch.float64)


def points(x: Tensor) -> Samples:
    return Samples(x, torch.ones_like(x))


def brute(x: Tensor, levels: tuple[int, int], gain: float, slope: float, ceiling: float | None) -> dict[str, Tensor]:
    """The parts by masks on the unclipped code; (G,) each."""
    negative, positive = levels
    step = STEP.unsqueeze(1)
    r = torch.where(x >= 0, x if ceiling is None else x.clamp(max=ceiling), slope * x)
    code = ops.encode(x, step, 1 << 20, 1 << 20)
    q = ops.decode(code.clamp(-negative, positive), step, gain)
    error = (q - r).square()
    ideal = (ops.decode(code.clamp(-negative, positive), step, slope) - r).square()
    below = x < 0
    own, best = (error * below).mean(1, keepdim=True), (ideal * below).mean(1, keepdim=True)
    polarity = torch.zeros_like(own)
    if negative:
        polarity = (own - best).clamp(min=0.0)
        error = torch.where(below & (polarity > 0), ideal, error)
    parts = {
        "rounding": (error * ((code >= -negative) & (code <= positive))).mean(1),
        "above": (error * (code > positive)).mean(1),
        "below": (error * (code < -negative)).mean(1),
        "polarity": polarity.squeeze(1),
        "power": r.square().mean(1),
        "negative": (r * below).square().mean(1),
    }
    if not negative:
        parts["polarity"], parts["below"] = parts["below"], torch.zeros(len(x), dtype=x.dtype)
    return parts


CASES = list(
    itertools.product(
        [(0, 1), (0, 5), (1, 3), (4, 4), (7, 2)], [0.0, 0.25, 1.0], [0.0, 0.1, 1.0], [None, 0.4, 1.0, 6.0]
    )
)


@pytest.mark.parametrize(("levels", "gain", "slope", "ceiling"), CASES)
def test_parts_are_those_of_the_definition(
    levels: tuple[int, int], gain: float, slope: float, ceiling: float | None
) -> None:
    found = distortion(points(X), levels, STEP, gain, slope, ceiling)
    for name, expected in brute(X, levels, gain, slope, ceiling).items():
        assert torch.allclose(getattr(found, name), expected, rtol=1e-9, atol=1e-12), name


@pytest.mark.parametrize(("levels", "gain", "slope", "ceiling"), CASES)
def test_parts_sum_to_the_square_error_of_the_decoded_codes(
    levels: tuple[int, int], gain: float, slope: float, ceiling: float | None
) -> None:
    step = STEP.unsqueeze(1)
    q = ops.decode(ops.encode(X, step, *levels), step, gain if levels[0] else 1.0)
    r = torch.where(X >= 0, X if ceiling is None else X.clamp(max=ceiling), slope * X)
    found = distortion(points(X), levels, STEP, gain, slope, ceiling)
    assert torch.allclose(found.error, (q - r).square().mean(1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("levels", [(0, 4), (3, 5)])
def test_a_normal_law_gives_the_parts_of_its_quantiles(levels: tuple[int, int]) -> None:
    places = (torch.arange(200_000, dtype=torch.float64) + 0.5) / 200_000
    x = torch.special.ndtri(places) * 1.5 + 0.2
    law = NormalMixture(torch.tensor([[0.2]]), torch.tensor([[1.5]]))
    exact = distortion(law, levels, torch.tensor(0.4), 0.5, 0.25, 2.0)
    dense = distortion(points(x.unsqueeze(0)), levels, torch.tensor(0.4), 0.5, 0.25, 2.0)
    for name, value in vars(exact).items():
        assert value.item() == pytest.approx(getattr(dense, name).item(), rel=2e-3, abs=1e-9), name


@pytest.mark.parametrize(("levels", "gain"), [((0, 4), 1.0), ((2, 4), 1.0), ((2, 4), 0.3)])
def test_with_the_gain_as_slope_it_is_the_square_error_that_calibration_minimizes(
    levels: tuple[int, int], gain: float
) -> None:
    found = distortion(points(X), levels, STEP, gain, gain if levels[0] else 0.0)
    assert torch.allclose(found.error, square_error(levels, STEP, points(X), gain), rtol=1e-9)
    assert float(found.polarity.max()) == 0.0


def test_bins_of_a_histogram_are_cut_where_a_code_ends() -> None:
    # One bin on [0, 2): uniform, levels (0, 1), step 1: codes end at 1.5; errors integrate to fractions.
    law = Samples(torch.tensor([[1.0]]), torch.tensor([[1.0]]), torch.tensor([[2.0]]))
    found = distortion(law, (0, 1), torch.tensor(1.0))
    assert found.power.item() == pytest.approx(4 / 3)
    assert found.above.item() == pytest.approx((1.0 - 0.5**3) / 3 / 2)  # (x - 1)^2 over [1.5, 2), density 1/2
    assert found.rounding.item() == pytest.approx((0.5**3 + 2 * 0.5**3) / 3 / 2)


def test_shares_weigh_groups_by_their_power() -> None:
    found = distortion(points(X), (0, 5), STEP)
    shares = found.shares()
    assert shares.error == pytest.approx(float(found.error.sum() / found.power.sum()))
    assert shares.error == pytest.approx(shares.rounding + shares.above + shares.below + shares.polarity)
    assert shares.snr == pytest.approx(-10 * math.log10(shares.error))


def test_no_signal_is_no_loss_and_noise_alone_is_infinite() -> None:
    silent = points(torch.full((1, 3), -1.0))
    nothing = distortion(silent, (0, 3), torch.tensor(1.0))
    assert nothing.shares().error == 0.0
    assert nothing.shares().snr == math.inf
    assert math.isnan(nothing.of_groups().item())
    noise = distortion(silent, (2, 3), torch.tensor(1.0), gain=1.0, slope=0.0).shares()
    assert noise.polarity == math.inf
    assert noise.snr == -math.inf


@pytest.mark.parametrize("levels", [(1, 3), (4, 4), (7, 2)])
@pytest.mark.parametrize("slope", [0.1, 1.0])
def test_the_best_gain_is_least_squares_over_the_codes_that_the_quantizer_makes(
    levels: tuple[int, int], slope: float
) -> None:
    x, weight = X - torch.tensor([[0.0], [2.0]], dtype=torch.float64), torch.tensor([3.0, 0.5], dtype=torch.float64)
    whole = ops.encode(x, STEP.unsqueeze(1), *levels).clamp(max=0) * STEP.unsqueeze(1)
    expected = slope * float(((whole * x).mean(1) * weight).sum() / (whole.square().mean(1) * weight).sum())
    found = best_gain(points(x), levels, STEP, slope, weight)
    assert found is not None and found == pytest.approx(min(1.0, expected), rel=1e-9)

    def loss(gain: float) -> float:
        return float((distortion(points(x), levels, STEP, gain, slope).error * weight).sum())

    assert all(loss(found) < loss(other) for other in (found - 0.02, found + 0.02) if other <= 1.0)


def test_the_best_gain_lies_between_half_the_slope_and_the_slope() -> None:
    one = torch.ones(1, dtype=torch.float64)
    for x, gain in ((-0.5001, 0.5), (-1.0, 1.0), (-0.75, 0.75)):
        assert best_gain(points(torch.full((1, 3), x)), (3, 3), one, 1.0) == pytest.approx(gain, abs=1e-3)
    assert best_gain(points(torch.tensor([[-9.0]])), (3, 3), one, 1.0) == 1.0  # clipped: a larger one would be better
    assert best_gain(points(torch.tensor([[-0.4, 2.0]])), (3, 3), one, 1.0) is None
    assert best_gain(points(torch.tensor([[-4.0, 2.0]])), (0, 3), one, 1.0) is None
    assert best_gain(points(X), (3, 3), STEP, 1.0, torch.zeros(2)) is None


def test_decibels() -> None:
    assert decibels(1.0) == 0.0
    assert decibels(0.0) == math.inf
    assert decibels(math.inf) == -math.inf


@pytest.mark.parametrize("step", [0.0, -1.0, math.nan, math.inf])
def test_an_impossible_step_is_refused(step: float) -> None:
    with pytest.raises(InputError, match="positive finite"):
        distortion(points(X), (0, 3), torch.tensor(step))


def test_steps_of_another_number_of_groups_are_refused() -> None:
    with pytest.raises(InputError, match=r"shape \(2,\), got \(3,\)"):
        distortion(points(X), (0, 3), torch.ones(3))
