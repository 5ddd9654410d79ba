"""The neuron law, on any input: the closed law of codes, and how far the mean emission is from the mean input.

Error law. With S = sum of the inputs over T steps, r_g(x) = x for x >= 0 and g x below, and c = clip(S / T, -N s, P s),

    |mean emission - r_g(c)| <= w s / (2 T),     w = 1 for S >= 0 and w = g for S < 0,

for every input sequence: constant or varying, within the levels or beyond them at single steps or throughout. For g = 1
and an unsaturated sum this is |mean emission - mean input| <= s / (2 T). Reason: C = floor(S / s + 1/2) is within 1/2 of
S / s and never on its other side, decoding is r_g of s C, and clipping C to [-N T, P T] is clipping the mean.
Everything is float64; 1e-9 steps stand for its rounding.
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polarspike.neurons import NeuronState, PolarityNeuron
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec

ROUNDING = 1e-9

levels = st.sampled_from([(0, 1), (0, 4), (1, 1), (2, 5), (7, 3)])
gains = st.sampled_from([0.0, 0.1, 0.3, 0.5, 1.0])
steps = st.floats(2.0**-5, 2.0**5)
# In units of the step: saturating single steps, boundaries, and small noise all occur.
currents = st.lists(
    st.one_of(st.floats(-12, 12), st.floats(-0.2, 0.2), st.integers(-12, 12).map(lambda k: k + 0.5)),
    min_size=1,
    max_size=24,
)


def neuron(level: tuple[int, int], gain: float, step: float) -> PolarityNeuron:
    site = PolarityNeuron(SiteSpec(*level, gain=gain)).double()
    site.set_step(step)
    return site


def run(site: PolarityNeuron, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs and running codes, (T, ...) each."""
    state: NeuronState | None = None
    outputs, codes = [], []
    for timestep, x in enumerate(inputs, start=1):
        y, state = site.advance(x, state, timestep)
        outputs.append(y.detach())
        codes.append(state.codes.detach())
    return torch.stack(outputs), torch.stack(codes)


def leaky_clip(mean: float, level: tuple[int, int], gain: float, step: float) -> float:
    clipped = max(-level[0] * step, min(level[1] * step, mean))
    return clipped if clipped >= 0 else gain * clipped


@given(levels, gains, steps, currents)
def test_codes_follow_the_closed_law_at_every_step(
    level: tuple[int, int], gain: float, step: float, units: list[float]
) -> None:
    values = [step * unit for unit in units]
    _, codes = run(neuron(level, gain, step), torch.tensor(values, dtype=torch.float64).view(-1, 1))
    for t, total in enumerate(itertools.accumulate(values), start=1):  # Python's floats are the second implementation
        expected = max(-level[0] * t, min(level[1] * t, math.floor(total / step + 0.5)))
        assert codes[t - 1].item() == expected


@given(levels, gains, steps, currents)
def test_outputs_telescope_to_the_decoded_code(
    level: tuple[int, int], gain: float, step: float, units: list[float]
) -> None:
    site = neuron(level, gain, step)
    outputs, codes = run(site, step * torch.tensor(units, dtype=torch.float64).view(-1, 1))
    torch.testing.assert_close(outputs.cumsum(0), site.decode(codes), rtol=1e-12, atol=1e-12)
    bound = torch.arange(1, len(units) + 1, dtype=torch.float64).view(-1, 1)
    assert bool((codes <= level[1] * bound).all())
    assert bool((codes >= -level[0] * bound).all())


@given(levels, gains, steps, st.floats(-12, 12))
def test_the_first_step_is_the_quantizer(level: tuple[int, int], gain: float, step: float, unit: float) -> None:
    site = neuron(level, gain, step)
    quantizer = PolarityQuantizer(site.spec).double()
    quantizer.set_step(step)
    x = torch.tensor([[unit * step]], dtype=torch.float64)
    assert torch.equal(site.advance(x, None, 1)[0], quantizer(x))


@given(levels, gains, steps, currents)
def test_error_law_for_every_input(level: tuple[int, int], gain: float, step: float, units: list[float]) -> None:
    values = torch.tensor(units, dtype=torch.float64).view(-1, 1) * step
    outputs, _ = run(neuron(level, gain, step), values)
    mean, total = float(outputs.mean()), float(values.sum())
    weight = 1.0 if total >= 0 or level[0] == 0 else gain
    bound = weight * step / (2 * len(units))
    effective = gain if level[0] else 1.0  # without negative levels the clip ends at zero and the gain plays no part
    assert abs(mean - leaky_clip(total / len(units), level, effective, step)) <= bound + ROUNDING * step


@given(steps, st.lists(st.floats(-2, 5), min_size=1, max_size=32))
def test_error_law_for_unsaturated_varying_input_and_gain_one(step: float, units: list[float]) -> None:
    values = torch.tensor(units, dtype=torch.float64).view(-1, 1) * step
    outputs, _ = run(neuron((2, 5), 1.0, step), values)
    assert abs(float(outputs.mean() - values.mean())) <= step / (2 * len(units)) + ROUNDING * step


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.5, 1.0])
def test_the_error_falls_as_one_over_t_and_the_bound_is_met(gain: float) -> None:
    generator = torch.Generator().manual_seed(5)
    centre = torch.rand(4000, generator=generator, dtype=torch.float64) * 9 - 4  # some saturate at (2, 3), many do not
    site = neuron((2, 3), gain, 1.0)
    worst = {}
    for total in (1, 4, 16, 64):
        inputs = centre + 3 * torch.randn(total, 4000, generator=generator, dtype=torch.float64)
        outputs, _ = run(site, inputs)
        mean = inputs.mean(0)
        clipped = mean.clamp(-2, 3)
        expected = torch.where(clipped < 0, gain * clipped, clipped)
        error = (outputs.mean(0) - expected).abs() * total
        worst[total] = float(error.max())
        negative = mean < 0
        assert float(error[negative].max()) <= gain / 2 + ROUNDING
    # s / 2 whatever T, and nearly attained, so no smaller constant would hold.
    assert all(0.49 < value <= 0.5 + ROUNDING for value in worst.values())


@pytest.mark.parametrize("gain", [0.0, 0.1, 0.5, 1.0])
def test_saturated_input_clips_exactly(gain: float) -> None:
    site = neuron((2, 3), gain, 0.5)
    noise = torch.rand(16, 1, dtype=torch.float64)
    high, _ = run(site, 2.0 + noise)
    low, _ = run(site, -2.0 - noise)
    assert float(high.mean()) == 1.5
    assert float(low.mean()) == pytest.approx(-gain * 1.0, abs=1e-12)


def test_a_repeated_input_is_answered_with_the_refined_quantizer() -> None:
    quantizer = PolarityQuantizer(SiteSpec(2, 3, gain=0.3)).double()
    quantizer.set_step(0.5)
    x = torch.randn(500, 2, dtype=torch.float64)
    site = PolarityNeuron(quantizer.spec).double().adopt(quantizer)
    for total in (1, 2, 3, 4, 8):
        outputs, codes = run(site, x.expand(total, -1, -1))
        fine = quantizer.refined(total)
        assert torch.equal(codes[-1], fine.encode(x))
        torch.testing.assert_close(outputs.mean(0), fine(x), rtol=1e-12, atol=1e-12)


@given(levels, currents)
def test_order_does_not_matter_for_exact_sums(level: tuple[int, int], units: list[float]) -> None:
    # Multiples of 1/64 steps: their sums are exact, so any order must give the same last code.
    values = torch.tensor(units, dtype=torch.float64).mul(64).round().div(64).view(-1, 1)
    site = neuron(level, 1.0, 1.0)
    _, forward = run(site, values)
    _, backward = run(site, values.flip(0))
    assert torch.equal(forward[-1], backward[-1])
