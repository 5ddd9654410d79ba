"""The second proof on networks of every kind: graded junctions, masks, integers, windows; and that it can fail."""

from __future__ import annotations

import copy
from collections.abc import Callable
from types import FunctionType, ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from polarspike import firing, neurons, ops, temporal
from polarspike.calibration import calibrate
from polarspike.conversion import convert
from polarspike.equivalence import verify
from polarspike.errors import InputError, OperatorError
from polarspike.graph import contract
from polarspike.graph.contract import Rule
from polarspike.proofs import circuit, stretches
from polarspike.proofs.simulator import Simulation, simulate
from polarspike.quantization import quantize
from polarspike.quantized import QuantizedNetwork
from polarspike.specs import ConvertSpec, QuantSpec
from polarspike.spiking import SpikingNetwork, timing, walks

pytestmark = pytest.mark.slow  # a simulation of every spike

SPEC = QuantSpec(negative=3, positive=4)


class Block(nn.Module):
    """A block of a transformer, with normalization in front and attention by torch's own module."""

    def __init__(self, width: int, batch_first: bool = True) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(width, 2, batch_first=batch_first)
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.before(x)
        x = x + self.attention(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.between(x))


class Vision(nn.Module):
    """Patches, a class token, two blocks."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.token = nn.Conv2d(3, 8, 4, stride=4), nn.Parameter(torch.randn(1, 1, 8))
        self.position = nn.Parameter(torch.randn(1, 5, 8) * 0.3)
        self.one, self.two = Block(8), Block(8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], 1) + self.position
        return self.head(self.norm(self.two(self.one(x)))[:, 0])


class Gated(nn.Module):
    """Group norm, squeeze and excitation, hardswish, and a division by a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm, self.two = nn.Conv2d(3, 6, 3, padding=1), nn.GroupNorm(2, 6), nn.Conv2d(6, 6, 3, stride=2)
        self.squeeze, self.excite, self.head = nn.Conv2d(6, 3, 1), nn.Conv2d(3, 6, 1), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(x)))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(x.mean((2, 3), keepdim=True)))))
        x = functional.hardswish(self.two(x * gate))
        x = x / (1 + x.abs().mean((2, 3), keepdim=True))
        return self.head(x.mean((2, 3)))


class Text(nn.Module):
    """Embeddings, a padding mask of minus infinity, and a mask that multiplies what spikes carry, sample by sample."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(20, 8), nn.Parameter(torch.randn(5, 8) * 0.3)
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.norm, self.up, self.down, self.head = nn.LayerNorm(8), nn.Linear(8, 16), nn.Linear(16, 8), nn.Linear(8, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
        x = self.norm(self.words(ids) + self.places)
        scores = self.q(x) @ self.k(x).transpose(1, 2) / 8**0.5
        p = scores.masked_fill(mask[:, None, :] == 0, -torch.inf).softmax(-1)
        x = self.norm(x + self.o(p @ self.v(x)))
        x = x + self.down(functional.gelu(self.up(x))) * mask.unsqueeze(-1)
        x = x.masked_fill(mask.unsqueeze(-1) == 0, 0.25)
        return {"classes": self.head(torch.tanh(x[:, 0])), "states": x, "most": x.max(1).values}


class Causal(nn.Module):
    """The batch in the middle, and a mask of minus infinity that is added to the scores."""

    def __init__(self) -> None:
        super().__init__()
        self.block, self.head = Block(8, batch_first=False), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        blocked = torch.full((5, 5), -torch.inf).triu(1)
        return self.head(self.block(x.transpose(0, 1), blocked)).transpose(0, 1)


class Windows(nn.Module):
    """Windows cut out of an image, which stand in the batch dimension while attention looks at them."""

    def __init__(self) -> None:
        super().__init__()
        self.lift, self.block, self.head = nn.Linear(3, 8), Block(8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        batch = x.shape[0]
        x = self.lift(x.permute(0, 2, 3, 1)).view(batch, 2, 2, 2, 2, 8).permute(0, 1, 3, 2, 4, 5)
        x = self.block(x.reshape(batch * 4, 4, 8))
        return self.head(x.view(batch, 16, 8).mean(1))


def image(size: int) -> Tensor:
    return torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def text() -> dict[str, Tensor]:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [1, 0, 1, 0, 1]])
    return {"ids": torch.randint(0, 20, (3, 5), generator=torch.Generator().manual_seed(1)), "mask": mask}


def tokens() -> Tensor:
    return torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


NETWORKS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Any]]] = {
    "vision": (Vision, lambda: image(8)),
    "gated": (Gated, lambda: image(6)),
    "text": (Text, text),
    "causal": (Causal, tokens),
    "windows": (Windows, lambda: image(4)),
}


def networks(name: str, dtype: torch.dtype = torch.float64) -> tuple[QuantizedNetwork, SpikingNetwork, Any]:
    build, example = NETWORKS[name]
    torch.manual_seed(2)
    given = example()
    if isinstance(given, Tensor):
        given = given.to(dtype)
    qann = quantize(build().to(dtype).eval(), SPEC, example=given)
    calibrate(qann, [given])
    return qann, convert(qann), given


def differing(simulation: Simulation, snn: SpikingNetwork, frames: list[Any], margin: float = 1e-9) -> list[str]:
    """The sites at which the spiking network's own codes differ from the simulation's."""
    state = None
    with torch.no_grad():
        for frame in frames:
            _, state = snn.step(frame, state)
        if snn.spec.max_spikes_per_step is not None:
            assert state is not None
            _, state = snn.drain(frames[-1], state)
    assert state is not None and list(simulation.codes) == list(state.neurons)
    return [
        site
        for site, codes in simulation.codes.items()
        if bool(((codes != state.neurons[site].codes) & (simulation.margins[site] > margin)).any())
    ]


@pytest.mark.parametrize("timesteps", [1, 2, 3])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_second_proof_holds(name: str, timesteps: int) -> None:
    qann, snn, given = networks(name)
    proof = verify(qann, snn, [given], timesteps, against="events", scope=False)
    assert proof.exact and proof.different == 0 and proof.compared > 500, proof
    assert all(site.distinct >= 3 for site in proof.sites.values())


def test_nothing_of_the_other_proof_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    qann, snn, x = networks("vision")
    holding, frames = convert(qann, ConvertSpec(neuron="holding")), [x, x.flip(0)]
    expected = [simulate(network, frames) for network in (snn, holding)]

    def forbidden(*_: object, **__: object) -> None:
        raise AssertionError("the simulator must have arithmetic of its own")

    for name in ("encode", "decode", "quantize"):
        monkeypatch.setattr(ops, name, forbidden)
    for place in (firing, temporal, timing, walks, neurons):
        own = [part for part in vars(place).values() if getattr(part, "__module__", "") == place.__name__]
        for function in own:
            if isinstance(function, FunctionType):
                monkeypatch.setattr(place, function.__name__, forbidden)
            elif issubclass(function, nn.Module):
                for method in ("forward", "advance", "settle", "encode", "decode"):
                    monkeypatch.setattr(function, method, forbidden)
    for network, before in zip((snn, holding), expected, strict=True):
        assert all(torch.equal(codes, before.codes[site]) for site, codes in simulate(network, frames).codes.items())


@pytest.mark.parametrize("name", ["vision", "gated", "causal"])
def test_varying_frames(name: str) -> None:
    qann, snn, x = networks(name)
    frames = [x, x.flip(0) * 1.3, x.roll(1, -1) - 0.2]
    assert verify(qann, snn, [torch.stack(frames)], time_dim=0, against="events").exact
    simulation = simulate(snn, frames)
    assert differing(simulation, snn, frames) == []
    torch.testing.assert_close(simulation.output, snn(torch.stack(frames), time_dim=0))


def test_float32_agrees_outside_its_rounding() -> None:
    qann, snn, given = networks("vision", torch.float32)
    assert verify(qann, snn, [given], 2, against="events", scope=False).exact


def test_what_is_graded_is_named_and_counted() -> None:
    _, snn, given = networks("gated")
    simulation = simulate(snn, [given])
    assert set(simulation.graded) == {"norm", "sigmoid", "mul", "hardswish", "abs_1", "truediv"}
    assert all(simulation.injections[name] > 0 for name in simulation.graded)


def take_for_affine(monkeypatch: pytest.MonkeyPatch, module: ModuleType, operator: str) -> None:
    """Give one operator, by the name of its node, the rule of affine ones, wherever this module asks."""

    def changed(*args: Any) -> dict[fx.Node, Rule]:
        rules = contract.rules_of(*args)
        assert any(node.name == operator and rule is not Rule.AFFINE for node, rule in rules.items())
        return {node: Rule.AFFINE if node.name == operator else rule for node, rule in rules.items()}

    monkeypatch.setattr(module, "rules_of", changed)


def step(snn: SpikingNetwork, site: str) -> None:
    snn.sites()[site].start.mul_(1.02)


def weight(snn: SpikingNetwork, path: str) -> None:
    snn.network.get_parameter(path).view(-1)[0].add_(0.3)


@pytest.mark.parametrize(
    ("change", "where", "first"),
    [
        (step, "one.mlp.2_input", "one.mlp.2_input"),
        (step, "two.attention.query", "two.attention.query"),
        (weight, "one.attention.v_proj.weight", "one.attention.value"),
        (weight, "norm.weight", "head_input"),
    ],
)
def test_a_changed_step_or_weight_is_found_at_its_site(
    change: Callable[[SpikingNetwork, str], None], where: str, first: str
) -> None:
    qann, snn, given = networks("vision")
    with torch.no_grad():
        change(snn, where)
    proof = verify(qann, snn, [given], 2, against="events", scope=False)
    assert not proof.exact and proof.first_difference == first


def test_a_rule_that_was_changed_in_the_network_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    qann, snn, x = networks("vision")
    frames = [x, x.flip(0)]
    assert differing(simulate(snn, frames), snn, frames) == []
    take_for_affine(monkeypatch, timing, "one_mlp_1")
    broken = convert(qann)
    assert differing(simulate(broken, frames), broken, frames)[0] == "one.mlp.2_input"


@pytest.mark.parametrize(("name", "operator"), [("vision", "one_mlp_1"), ("causal", "matmul"), ("gated", "mul")])
def test_an_operator_that_is_taken_for_affine_is_refused(
    name: str, operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also a product of two signals, which is affine in each of them alone."""
    _, snn, given = networks(name)
    take_for_affine(monkeypatch, stretches, operator)
    with pytest.raises(OperatorError, match=rf"node '{operator}'.* is not affine .* the wrong rule"):
        simulate(snn, [given])


def test_holding_and_capped_neurons_by_their_own_statements() -> None:
    qann, _, x = networks("vision")
    frames = [x, x.flip(0) * 1.3, x.roll(1, -1)]
    holding = convert(qann, ConvertSpec(neuron="holding"))
    simulation = simulate(holding, frames)
    assert differing(simulation, holding, frames) == [] and simulation.drained == 0
    assert all(bool((codes % 3 == 0).all()) for codes in simulation.codes.values())
    capped = convert(qann, ConvertSpec(max_spikes_per_step=1))
    simulation = simulate(capped, frames[:2])
    assert differing(simulation, capped, frames[:2]) == []
    state = None
    for frame in frames[:2]:
        _, state = capped.step(frame, state)
    assert state is not None
    _, state = capped.drain(frames[1], state)
    assert simulation.drained == state.drained > 0
    plain = simulate(convert(qann), frames[:2])
    assert all(torch.equal(codes, simulation.codes[site]) for site, codes in plain.codes.items())
    torch.testing.assert_close(plain.output, simulation.output)


def test_integers_are_those_of_the_first_step() -> None:
    _, snn, given = networks("text")
    other = {**given, "ids": given["ids"].flip(0)}
    with pytest.raises(InputError, match="timestep 2, input 'ids': expected the integers of the first step"):
        simulate(snn, [given, other])


def test_columns_are_found_in_pieces_as_they_are_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    _, snn, given = networks("text")
    expected = simulate(snn, [given])
    before = copy.deepcopy(snn.state_dict())
    monkeypatch.setattr(circuit, "_PIECE", 1000)
    found = simulate(snn, [given])
    assert found.additions == expected.additions and found.spikes == expected.spikes
    assert all(torch.equal(value, snn.state_dict()[key]) for key, value in before.items())
