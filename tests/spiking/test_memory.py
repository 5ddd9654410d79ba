"""A spiking network remembers nothing and shares nothing with anybody, and its copies answer as it does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import InputError
from tests.networks import NETWORKS, calibrated, network, signal
from tests.spiking.pairs import SPEC, pair

pytestmark = pytest.mark.usefixtures("no_grad")


class TestMemory:
    def test_it_remembers_nothing_between_calls(self) -> None:
        _, snn = pair()
        x, other = signal("branched", 3), signal("branched", 5, seed=9)
        first = {t: snn(x, timesteps=t) for t in (1, 3)}
        snn(other, timesteps=7)
        snn.step(other)
        with pytest.raises(InputError):
            snn(torch.randn(1, 7, 8, 8), timesteps=3)
        with pytest.raises(RuntimeError), snn.observe(_interrupt):
            snn(x, timesteps=3)
        assert not snn._observers
        for t, y in first.items():
            assert torch.equal(snn(x, timesteps=t), y)

    def test_it_stays_in_evaluation_mode(self) -> None:
        _, snn = pair()
        x = signal("branched", 3)
        expected = snn(x, timesteps=2)
        assert snn.train() is snn
        nn.Sequential(snn).train()
        assert not any(module.training for module in snn.modules())
        assert torch.equal(snn(x, timesteps=2), expected)

    def test_its_buffers_do_not_move(self) -> None:
        _, snn = pair()
        before = copy.deepcopy(snn.state_dict())
        snn(signal("branched", 3), timesteps=4)
        for name, value in snn.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_input_and_output_are_the_callers(self) -> None:
        _, snn = pair()
        x = signal("branched", 3)
        before = x.clone()
        y, state = snn.step(x)
        kept = snn.step(x, state)[0].clone()
        y.add_(100.0)  # the caller may do what it likes with an answer
        assert torch.equal(x, before)
        assert torch.equal(snn.step(x, state)[0], kept)

    def test_a_buffer_for_frames_may_be_used_again(self) -> None:
        model = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 3, 3), nn.ReLU())  # its first state is a sum of inputs
        frames = [torch.randn(2, 2, 8, 8) for _ in range(3)]
        qann = calibrated(model, SPEC, frames[0])
        snn = ps.convert(qann)
        buffer, state = torch.empty(2, 2, 8, 8), None
        for frame in frames:
            y, state = snn.step(buffer.copy_(frame), state)
        assert torch.equal(y, snn(torch.stack(frames), time_dim=0))

    def test_the_two_networks_share_no_tensor(self) -> None:
        qann, snn = pair()
        x = signal("branched", 3)
        expected = snn(x)
        for value in qann.parameters():
            value.zero_()
        assert torch.equal(snn(x), expected)


def _interrupt(site: str, timestep: int, spikes: Tensor) -> None:
    raise RuntimeError(f"{site} at {timestep}")


class TestCopies:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_deep_copy_and_a_state_dict_give_the_same_answers(self, name: str) -> None:
        qann, snn = pair(name)
        x = signal(name, 3)
        expected = snn(x, timesteps=3)
        assert torch.equal(copy.deepcopy(snn)(x, timesteps=3), expected)
        other = ps.convert(calibrated(network(name, seed=5), SPEC, signal(name, 16, seed=7)))
        assert not torch.equal(other(x, timesteps=3), expected)
        other.load_state_dict(snn.state_dict())
        assert torch.equal(other(x, timesteps=3), expected)
        fresh = ps.quantize(network(name, seed=5), SPEC, example=x)  # never calibrated: its state dict brings the steps
        fresh.load_state_dict(qann.state_dict())
        assert torch.equal(fresh.eval()(x), qann(x))

    def test_double_and_back_agrees_with_the_quantized_network(self) -> None:
        qann, snn = pair()
        x = signal("branched", 3)
        assert torch.equal(copy.deepcopy(snn).double()(x.double()), copy.deepcopy(qann).double()(x.double()))
        assert torch.equal(copy.deepcopy(snn).double().float()(x), snn(x))


def test_refine_is_a_copy_and_composes() -> None:
    qann, _ = pair()
    x = signal("branched", 3)
    expected = qann(x)
    six = ps.refine(qann, 6)
    assert torch.equal(qann(x), expected)
    twice = ps.refine(ps.refine(qann, 2), 3)
    for name, site in six.sites().items():
        assert site.levels == twice.sites()[name].levels
        torch.testing.assert_close(site.step, twice.sites()[name].step)
    assert not six.training
    assert ps.refine(copy.deepcopy(qann).train(), 2).training
