"""Gradients through timesteps: straight through the rounding of every code, the same step by step as in the mean domain."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import polarspike as ps
from polarspike import ops
from tests.networks import CURVED, NETWORKS, calibrated, network, signal
from tests.spiking.pairs import SPEC, pair


def gradients(snn: ps.SpikingNetwork, x: Tensor, **how: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """The answer, and the gradients of a fixed sum of it with respect to the input and to every parameter."""
    given = x.clone().requires_grad_()
    answer = snn(given, **how)
    weights = torch.linspace(-1.0, 1.0, answer.numel(), dtype=answer.dtype).view_as(answer)
    learned = {name: value for name, value in snn.named_parameters() if value.requires_grad}
    found = torch.autograd.grad((answer * weights).sum(), [given, *learned.values()], allow_unused=True)
    named = zip(["input", *learned], [given, *learned.values()], found, strict=True)
    return answer.detach(), {name: torch.zeros_like(value) if slope is None else slope for name, value, slope in named}


# Max pooling over codes meets ties, which sums and means break otherwise by their last digit.
TIED = {"branched", "group"}


WAYS = {
    "polarity": ps.ConvertSpec(),
    "holding": ps.ConvertSpec(neuron="holding"),
    "one spike": ps.ConvertSpec(max_spikes_per_step=1),  # what waits is let go behind the last step
    "as many as levels": ps.ConvertSpec(max_spikes_per_step=4),
}


@pytest.mark.parametrize("spec", WAYS.values(), ids=WAYS)
@pytest.mark.parametrize("name", [*NETWORKS, *CURVED])
def test_steps_have_the_gradients_of_the_mean_domain(name: str, spec: ps.ConvertSpec) -> None:
    x = signal(name, 4).double()
    qann = calibrated(network(name).double(), ps.QuantSpec(2, 4, signed="all"), x)
    snn, settled = ps.convert(qann, spec), ps.convert(qann, ps.ConvertSpec(neuron=spec.neuron))
    for timesteps in (1, 3):
        step_by_step = gradients(snn, x, timesteps=timesteps)[1]
        at_once = gradients(settled, x, timesteps=timesteps, execution="mean")[1]
        assert step_by_step["input"].abs().sum() > 0
        if name in TIED and (timesteps > 1 or spec.max_spikes_per_step):
            apart = step_by_step["input"] - at_once["input"]
            assert apart.norm() < 0.2 * at_once["input"].norm()
            continue
        for parameter, expected in at_once.items():
            torch.testing.assert_close(step_by_step[parameter], expected, rtol=1e-7, atol=1e-9, msg=parameter)


@pytest.mark.parametrize(
    "spec", [None, ps.ConvertSpec(neuron="holding"), ps.ConvertSpec(max_spikes_per_step=1)], ids=str
)
def test_answers_are_the_same_bits_with_and_without_gradients(spec: ps.ConvertSpec | None) -> None:
    snn, x = pair(spec=spec)[1], signal("branched", 4)
    for timesteps in (1, 2, 3):
        with torch.no_grad():
            expected = snn(x, timesteps=timesteps)
        answer, slopes = gradients(snn, x, timesteps=timesteps)
        assert torch.equal(answer, expected) and slopes["input"].isfinite().all() and slopes["input"].abs().sum() > 0


def test_frozen_parameters_leave_the_gradient_of_the_input() -> None:
    snn, x = pair()[1], signal("branched", 4)
    expected = gradients(snn, x, timesteps=3)[1]["input"]
    assert torch.equal(gradients(snn.requires_grad_(False), x, timesteps=3)[1]["input"], expected)


def test_frames_of_a_stream_pass_gradients_back_to_the_first() -> None:
    snn = pair()[1]
    frames = [signal("branched", 2).requires_grad_() for _ in range(3)]
    state = None
    for frame in frames:
        mean, state = snn.step(frame, state)
    slopes = torch.autograd.grad(mean.square().sum(), frames)
    assert all(slope.abs().sum() > 0 for slope in slopes)


def test_codes_have_the_slopes_of_the_quantizer() -> None:
    levels, step = (SPEC.negative, SPEC.positive), torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    gain = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    x = torch.linspace(-2.0, 3.0, 777, dtype=torch.float64, requires_grad=True)
    weights = torch.cos(torch.arange(777)).double()
    ours = ops.decode(ops.encode_through(x, step, levels, gain), step, gain)
    expected = ops.quantize(x, step, gain, levels)
    assert torch.equal(ours, expected)
    found, wanted = (torch.autograd.grad((of * weights).sum(), (x, step, gain)) for of in (ours, expected))
    for ours_of, wanted_of in zip(found, wanted, strict=True):
        torch.testing.assert_close(ours_of, wanted_of)
