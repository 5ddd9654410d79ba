"""The neuron as a module: explicit state, wide state, and refusals. Its law is in laws/test_neuron_law.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polarspike.errors import CalibrationError, InputError
from polarspike.neurons import CappedNeuron, HoldingNeuron, NeuronState, PolarityNeuron, build_neuron
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import ConvertSpec, SiteSpec


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


# --- variants ------------------------------------------------------------------------------------------------------------


def variant(spec: ConvertSpec, negative: int = 2, positive: int = 3, gain: float = 0.5) -> PolarityNeuron:
    site = build_neuron(SiteSpec(negative, positive, gain=gain), "act", spec).double()
    site.set_step(0.5)
    return site


def test_the_spec_says_which_neuron() -> None:
    assert type(variant(ConvertSpec())) is PolarityNeuron
    assert type(variant(ConvertSpec(neuron="holding"))) is HoldingNeuron
    capped = variant(ConvertSpec(max_spikes_per_step=2))
    assert type(capped) is CappedNeuron and capped.cap == 2 and "cap=2" in repr(capped)


def test_a_holding_neuron_keeps_the_grid() -> None:
    site = variant(ConvertSpec(neuron="holding"))
    inputs = list(torch.randn(8, 50, dtype=torch.float64))
    outputs, state = run(site, inputs)
    mean = torch.stack(inputs).mean(0)
    assert torch.equal(state.codes, 8 * site.encode(mean))
    torch.testing.assert_close(torch.stack(outputs).mean(0), site(mean), rtol=1e-12, atol=1e-12)
    assert torch.equal(site.settle(mean, 8), site(mean))
    still, state = run(site, [inputs[0]] * 5)
    assert all(torch.equal(y, still[0]) for y in still) and torch.equal(state.codes, 5 * site.encode(inputs[0]))


@pytest.mark.parametrize("gain", [1.0, 0.3])
def test_equal_inputs_give_a_holding_neuron_the_same_answer_at_every_step(gain: float) -> None:
    # Half of them on boundaries, with a step that is no binary fraction: 3 x / 3 in float32 is not always x.
    site = build_neuron(SiteSpec(2, 3, gain=gain), "act", ConvertSpec(neuron="holding"))
    site.set_step(0.3)
    boundaries = (torch.arange(-3, 5) - 0.5) * site.step.detach()
    x = torch.cat([torch.linspace(-1.5, 1.5, 4096), boundaries, boundaries.nextafter(torch.tensor(-9.0))])
    with torch.no_grad():
        outputs, state = run(site, [x] * 24)
        assert all(torch.equal(y, site(x)) for y in outputs)
        assert torch.equal(state.codes, 24 * site.encode(x)) and state.codes.dtype == torch.float32
        assert torch.equal(site.average(state, 24), site(x))


@pytest.mark.parametrize("cap", [1, 2, 5])
def test_a_capped_neuron_fires_no_more_than_its_cap_and_catches_up(cap: int) -> None:
    site, plain = variant(ConvertSpec(max_spikes_per_step=cap)), variant(ConvertSpec())
    assert isinstance(site, CappedNeuron)
    x = torch.tensor([1.4, -0.9, 0.2], dtype=torch.float64)
    state, before = None, torch.zeros(3, dtype=torch.float64)
    waited = []
    for t in range(1, 7):  # one input, then silence
        y, state = site.advance(x if t == 1 else torch.zeros_like(x), state, t)
        assert float((state.codes - before).detach().abs().max()) <= cap
        torch.testing.assert_close(y, site.decode(state.codes) - site.decode(before))
        before = state.codes
        waited.append(site.waiting(state, t))
    assert waited == sorted(waited, reverse=True) and waited[-1] == 0
    assert waited[0] == {1: 3, 2: 1, 5: 0}[cap]  # codes 3, -2, 0
    _, expected = run(plain, [x] + [torch.zeros_like(x)] * 5)
    assert torch.equal(state.codes, expected.codes)


@pytest.mark.parametrize("spec", [ConvertSpec(), ConvertSpec(neuron="holding")])
def test_means_and_steps_lead_to_the_same_codes(spec: ConvertSpec) -> None:
    site = variant(spec)
    inputs = torch.randn(6, 40, dtype=torch.float64)
    state = met = None
    for t in range(1, 7):
        before, previous = state, met
        state = site.integrate(inputs[t - 1], state, t)
        met = site.meet(inputs[:t].mean(0), met, t)
        assert torch.equal(state.codes, met.codes)
        torch.testing.assert_close(state.total, met.total)
        assert torch.equal(site.emitted(before, state), site.emitted(previous, met))
        torch.testing.assert_close(site.average(state, t), site.decode(state.codes) / t)


def test_steps_along_the_last_dimension() -> None:
    site = PolarityNeuron(SiteSpec(1, 2, channels=3, channel_dim=-1))
    site.set_step(torch.tensor([0.2, 0.4, 0.8]))
    x = torch.full((2, 5, 3), 0.4)
    assert torch.equal(site.encode(x)[0, 0], torch.tensor([2.0, 1.0, 1.0]))
    outputs, state = run(site, [x] * 2)
    assert outputs[0].shape == state.codes.shape == x.shape
