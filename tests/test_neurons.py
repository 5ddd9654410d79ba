"""The neuron as a module: explicit state, wide state, and refusals. Its law is in laws/test_neuron_law.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polarspike.errors import CalibrationError, InputError
from polarspike.neurons import NeuronState, PolarityNeuron
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec


def neuron(negative: int = 2, positive: int = 3, gain: float = 1.0, step: float = 0.5) -> PolarityNeuron:
    site = PolarityNeuron(SiteSpec(negative, positive, gain=gain), "layer.act")
    site.set_step(step)
    return site


def run(site: PolarityNeuron, inputs: list[Tensor]) -> tuple[list[Tensor], NeuronState]:
    state, outputs = None, []
    for timestep, x in enumerate(inputs, start=1):
        y, state = site.advance(x, state, timestep)
        outputs.append(y)
    assert state is not None
    return outputs, state


def test_a_rectified_neuron_takes_back_what_it_said_too_much() -> None:
    outputs, state = run(neuron(0, 3), [torch.tensor([[1.0]]), torch.tensor([[-0.7]]), torch.tensor([[-9.0]])])
    assert [y.item() for y in outputs] == [1.0, -0.5, -0.5]  # codes 2, -1, -1
    assert state.codes.item() == 0.0


def test_a_step_may_exceed_the_levels_but_the_sum_may_not() -> None:
    outputs, state = run(neuron(0, 3), [torch.tensor([[-5.0]]), torch.tensor([[9.0]])])
    assert [y.item() for y in outputs] == [0.0, 3.0]  # 6 spikes at once at P = 3; the sum stays within P T = 6
    assert state.codes.item() == 6.0


def test_a_negative_code_is_emitted_with_the_gain_and_taken_back_with_it() -> None:
    outputs, state = run(neuron(2, 3, gain=0.25), [torch.tensor([[-0.5]]), torch.tensor([[1.5]])])
    assert [y.item() for y in outputs] == [-0.125, 1.125]  # codes -1 then +3: from g s (-1) to s 2
    assert state.codes.item() == 2.0


def test_the_first_step_is_the_quantizer_in_every_bit() -> None:
    spec = SiteSpec(2, 3, gain=0.3)
    quantizer = PolarityQuantizer(spec)
    quantizer.set_step(0.37)
    site = PolarityNeuron(spec).adopt(quantizer)
    x = torch.randn(100, 5)
    assert torch.equal(site(x), quantizer(x))
    assert torch.equal(site.advance(x, None, 1)[0], quantizer(x))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_state_is_float32_for_half_precision_signals(dtype: torch.dtype) -> None:
    site = neuron(0, 100, step=1.0)
    x = torch.full((1, 1), 1.0078125, dtype=dtype)  # one bfloat16 step above 1
    outputs, state = run(site, [x] * 300)
    assert (state.total.dtype, state.codes.dtype) == (torch.float32, torch.float32)
    assert {y.dtype for y in outputs} == {dtype}
    assert state.total.item() == 300 * 1.0078125  # a bfloat16 sum would have stopped at 256
    assert state.codes.item() == 302.0


def test_state_is_float64_for_float64_signals() -> None:
    _, state = run(neuron().double(), [torch.randn(2, 3, dtype=torch.float64)] * 2)
    assert (state.total.dtype, state.codes.dtype) == (torch.float64, torch.float64)


def test_neither_input_nor_state_is_altered_so_a_state_can_be_used_twice() -> None:
    site = neuron(2, 3, gain=0.5)
    x = torch.randn(4, 5)
    _, state = run(site, [x, torch.randn(4, 5)])
    kept = NeuronState(*(part.clone() for part in state))
    y1, left = site.advance(x, state, 3)
    y2, right = site.advance(-x, state, 3)
    again, _ = site.advance(x, state, 3)
    assert torch.equal(state.total, kept.total)
    assert torch.equal(state.codes, kept.codes)
    assert torch.equal(y1, again)
    assert not torch.equal(y1, y2)
    assert not torch.equal(left.total, right.total)
    _, first = site.advance(x, None, 1)
    before = first.total.clone()
    site.advance(x, first, 2)
    assert torch.equal(x, before)  # the first sum is the input itself and must not grow in place


def test_a_state_of_another_batch_is_refused_even_where_it_would_broadcast() -> None:
    site = neuron()
    _, state = site.advance(torch.randn(1, 4), None, 1)
    with pytest.raises(InputError, match=r"'layer.act': expected the shape of the state, \(1, 4\), got \(6, 4\)"):
        site.advance(torch.randn(6, 4), state, 2)


def test_without_a_step_nothing_fires() -> None:
    site = PolarityNeuron(SiteSpec(0, 3), "act")
    with pytest.raises(CalibrationError, match="site 'act' has no step yet"):
        site.advance(torch.randn(1, 2), None, 1)
    with pytest.raises(CalibrationError, match="site 'act' has no step yet"):
        site.settle(torch.randn(1, 2), 4)


@pytest.mark.parametrize("shape", [(0, 3), (2, 3), (2, 3, 4, 5)])
def test_shapes_and_channels(shape: tuple[int, ...]) -> None:
    site = PolarityNeuron(SiteSpec(1, 2, channels=3))
    site.set_step(torch.tensor([0.2, 0.4, 0.8]))
    outputs, state = run(site, [torch.randn(shape)] * 3)
    assert all(y.shape == shape for y in outputs)
    assert state.codes.shape == shape
