"""Walking a graph in time: who works on steps and who on means, states that are values, and what is still on its way."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarspike as ps
from polarspike.errors import InputError
from polarspike.graph.contract import Rule
from polarspike.spiking.timing import timing_of
from tests.networks import CURVED, calibrated, network, signal

SPEC = ps.QuantSpec(3, 5, init="entropy")  # fine steps: few samples must not fall into the same codes
pytestmark = pytest.mark.usefixtures("no_grad")


def spiking(name: str, spec: ps.ConvertSpec | None = None) -> ps.SpikingNetwork:
    return ps.convert(calibrated(network(name), SPEC, signal(name, 8)).double(), spec)


def test_operators_know_their_rule() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.pool = nn.Conv2d(2, 4, 3), nn.Conv2d(4, 4, 1), nn.MaxPool2d(2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.pool(torch.relu(self.one(x)))
            return self.two(x * torch.sigmoid(self.two(x))) * 2

    qann = ps.quantize(Net(), SPEC, example=torch.randn(2, 2, 8, 8))
    for site in qann.sites().values():
        site.set_step(0.3)
    timing = timing_of(ps.convert(qann).network)
    rules = {name: timing[name].rule for name in timing}
    assert rules["one"] is rules["two"] is rules["mul_1"] is Rule.AFFINE
    assert rules["pool"] is Rule.HOMOGENEOUS
    gate = next(name for name in rules if name.startswith("sigmoid"))
    assert rules["mul"] is rules[gate] is Rule.DIFFERENCE
    assert rules["x"] is None and "test_walks.py" in timing["mul"].place


@pytest.mark.parametrize("name", CURVED)
def test_a_state_is_a_value(name: str) -> None:
    snn = spiking(name)
    a, b = signal(name, 2, seed=1).double(), signal(name, 2, seed=2).double()
    _, state = snn.step(a)
    _, state = snn.step(b, state)
    left, after = snn.step(a, state)
    right, _ = snn.step(b, state)
    again, _ = snn.step(a, state)
    assert torch.equal(left, again) and not torch.equal(left, right)
    assert (state.timestep, after.timestep) == (2, 3)
    with pytest.raises(InputError, match="expected the shape of the state"):
        snn.step(a[:1], state)


@pytest.mark.parametrize("name", CURVED)
def test_the_state_does_not_grow_with_time(name: str) -> None:
    snn = spiking(name)
    x, state, sizes = signal(name, 2).double(), None, []
    for _ in range(4):
        _, state = snn.step(x, state)
        leaves = [leaf for leaf in torch.utils._pytree.tree_leaves(vars(state.walk)) if isinstance(leaf, Tensor)]
        sizes.append(sum(leaf.numel() for leaf in leaves))
        assert all(leaf.dtype == torch.float64 for leaf in leaves)
    assert len(set(sizes[1:])) == 1 and set(state.neurons) == set(snn.sites())


@pytest.mark.parametrize("name", CURVED)
def test_states_are_wide_under_autocast(name: str) -> None:
    snn = spiking(name).float()
    x, state = signal(name, 2), None
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for _ in range(2):
            _, state = snn.step(x, state)
    leaves = torch.utils._pytree.tree_leaves(vars(state.walk))
    assert {leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)} == {torch.float32}


def test_constants_are_not_added_again_while_draining() -> None:
    class Shifted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.shift = nn.Linear(6, 8), nn.Linear(16, 4), nn.Parameter(torch.randn(8))

        def forward(self, x: Tensor) -> Tensor:
            x = F.relu(self.one(x)) + self.shift
            x = torch.cat([F.pad(x, (0, 4), value=0.5), self.shift[:4].expand(x.shape[0], 4)], 1)
            return self.two(torch.where(torch.arange(16) > 3, x, 1.5)) - 0.25

    model, x = Shifted(), torch.randn(5, 6)
    qann = calibrated(model, ps.QuantSpec(2, 7), x).double()
    plain, capped = ps.convert(qann), ps.convert(qann, ps.ConvertSpec(max_spikes_per_step=1))
    for timesteps in (1, 3):
        torch.testing.assert_close(
            capped(x.double(), timesteps=timesteps), plain(x.double(), timesteps=timesteps), rtol=1e-12, atol=1e-12
        )


def test_draining_an_uncapped_network_changes_nothing() -> None:
    snn, x = spiking("bottleneck"), signal("bottleneck", 2).double()
    answer, state = snn.step(x)
    again, after = snn.drain(x, state)
    assert torch.equal(answer, again) and after.drained == 0


def test_streaming_frames_of_a_capped_network_answers_late() -> None:
    snn, plain = spiking("squeeze", ps.ConvertSpec(max_spikes_per_step=1)), spiking("squeeze")
    x = signal("squeeze", 2).double()
    early, state = snn.step(x)
    late, drained = snn.drain(x, state)
    assert not torch.equal(early, late)
    torch.testing.assert_close(late, plain(x), rtol=1e-12, atol=1e-12)
    assert drained.drained == snn.latency(x).drained > 0
