"""Other tools behind our interface; where both have a method, ours agrees with theirs.

The tools are optional (pip install 'polarspike[baselines]'): without them, what is tested is that their absence is said.
"""

from __future__ import annotations

import importlib.util
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

import polarspike as ps
from polarspike.baselines import RivalSpec, prepare
from polarspike.baselines.leaky import IntegerNeuron, LeakyNeuron, TernaryNeuron
from polarspike.baselines.peers import PEERS, PeerNetwork, convert_with, registry, version
from polarspike.errors import MissingExtraError, SpecError
from polarspike.specs import SiteSpec
from tests.networks import trained_like

THERE = {name: importlib.util.find_spec(name) is not None for name in ("spikingjelly", "sinabs", "snntorch")}
needs = {name: pytest.mark.skipif(not there, reason=f"{name} is not installed") for name, there in THERE.items()}
pytestmark = pytest.mark.filterwarnings("ignore")  # what peers warn of is theirs


def chain() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(6, 8, 3, padding=1),
        nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5),
    )  # fmt: skip
    return trained_like(model), torch.rand(12, 1, 8, 8)


class Counter(nn.Module):
    """A stand-in for a tool's network: fires once for every two units of input, and remembers the rest."""

    def __init__(self) -> None:
        super().__init__()
        self.neuron = nn.Identity()
        self.rest = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        total = self.rest + x
        fired = self.neuron(torch.floor(total / 2))
        self.rest = total - 2 * fired
        return 2 * fired


def test_a_peers_network_runs_from_rest_and_is_counted() -> None:
    made = Counter()
    network = PeerNetwork(made, {"neuron": made.neuron}, lambda snn: setattr(snn, "rest", torch.zeros(())))
    x = torch.tensor([[1.0, 5.0]])
    means = torch.tensor([[[0, 4]], [[1, 5]], [[2 / 3, 14 / 3]], [[1, 5]]])
    assert torch.allclose(network(x, timesteps=4, every_step=True), means)
    assert torch.equal(network(x, timesteps=2), torch.tensor([[1.0, 5.0]]))
    firing = ps.evaluate(network, [(x, torch.tensor([1]))], timesteps=(1, 2)).firing
    assert firing is not None and (firing[1].spikes, firing[2].spikes, firing[2].events) == (2, 6, 3)
    assert not made.neuron._forward_hooks
    enlarged = PeerNetwork(made, {"neuron": made.neuron}, lambda snn: setattr(snn, "rest", torch.zeros(())), scale=4.0)
    assert enlarged(x).tolist() == [[1.0, 5.0]]


def test_an_image_may_enter_once_and_spikes_be_worth_more() -> None:
    made = Counter()
    doubled = nn.Identity()
    snn = nn.Sequential(made, doubled)  # what leaves it are spikes times two

    def rest(snn: nn.Module) -> None:
        made.rest = torch.zeros(())

    network = PeerNetwork(snn, {"neuron": doubled}, rest, worth={"neuron": torch.tensor([2.0, 2.0])}, once=True)
    x = torch.tensor([[5.0, 9.0]])
    assert network(x, timesteps=3, every_step=True).tolist() == [[[4.0, 8.0]]] * 3
    seen: list[tuple[int, list[float]]] = []
    with network.observe(lambda name, t, spikes: seen.append((t, spikes.flatten().tolist()))):
        network(x, timesteps=2)
    assert seen == [(1, [2.0, 4.0]), (2, [0.0, 0.0])]


def test_what_is_missing_is_named() -> None:
    with pytest.raises(MissingExtraError, match=r"polarspike\[baselines\]"):
        version("a-tool-that-nobody-has")
    with pytest.raises(SpecError, match="unknown peer 'norse'; known: spikingjelly-rate"):
        convert_with("norse", nn.ReLU(), [])


def raised_in(module: str, error: Exception) -> Any:
    """A conversion of a tool whose code in ``module`` raises this."""
    place: dict[str, Any] = {"__name__": module, "error": error}
    exec("def convert(*given, **settings):\n    raise error", place)
    return place["convert"]


@pytest.mark.parametrize(
    ("module", "error", "refusal"),
    [
        ("sinabs.from_torch", ValueError("no such layer"), True),
        ("sinabs.from_torch", NotImplementedError("no such layer"), True),
        ("torch.fx.proxy", fx.proxy.TraceError("control flow"), True),  # the tracing that a tool stands on
        ("numpy.lib", ValueError("empty array"), False),
        ("sinabs.from_torch", RuntimeError("out of memory"), False),
        ("sinabs.from_torch", TypeError("unexpected keyword argument"), False),
        ("sinabs.from_torch", ImportError("broken"), False),
    ],
)
def test_what_a_tool_refuses_is_told_from_what_goes_wrong(
    module: str, error: Exception, refusal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "version", lambda package: "3")
    monkeypatch.setitem(PEERS, "sinabs", replace(PEERS["sinabs"], convert=raised_in(module, error)))
    with pytest.raises(SpecError if refusal else type(error), match=str(error)) as caught:
        convert_with("sinabs", nn.ReLU(), [])
    assert isinstance(caught.value, SpecError) == refusal


@needs["spikingjelly"]
def test_spikingjelly_refuses_what_it_cannot_trace_or_calibrate() -> None:
    class Fork(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(SpecError, match="spikingjelly: TraceError"):
        convert_with("spikingjelly-rate", Fork(), [torch.rand(2, 3)])
    flat = nn.Sequential(nn.ReLU(), nn.Flatten(0))
    with pytest.raises(SpecError, match=r"spikingjelly: ValueError: .*at least 2 dimensions"):
        convert_with("spikingjelly-balanced", nn.Sequential(nn.Flatten(0), *flat), [torch.rand(2, 3)])


@needs["spikingjelly"]
@pytest.mark.parametrize("name", ["spikingjelly-rate", "spikingjelly-balanced"])
def test_spikingjelly_converts_and_agrees_with_ours(name: str) -> None:
    model, x = chain()
    # Ours has spikes behind an average that a convolution reads, theirs in front of it: compared on one site.
    single = nn.Sequential(*list(model.children())[:3], nn.Flatten(), nn.Linear(6 * 64, 5)).eval()
    ours = prepare("balanced" if name.endswith("balanced") else "rate-max", single, example=x)
    ours.calibrate([x])
    # Ours balances in ten passes of pieces of 25 images, so theirs is given its batches like that.
    settings = {"passes": 10, "images": 25} if name.endswith("balanced") else {}
    theirs = convert_with(name, single, [x], **settings)
    with torch.no_grad():
        one, two = ours.network()(x, timesteps=8, every_step=True), theirs(x, timesteps=8, every_step=True)
    # The image with the largest potential reaches the threshold exactly, and rounding decides; all others agree.
    images = ((one - two).abs() < 1e-4).flatten(2).all(2).all(0)
    assert int(images.sum()) >= len(x) - 1


@needs["spikingjelly"]
def test_spikingjellys_transformer_recipe_is_driven_as_it_is_meant() -> None:
    from spikingjelly.activation_based import ann2snn, functional

    torch.manual_seed(0)
    model = ps.models.create("vit", num_classes=5, in_channels=1, width=12, patch=4, image_size=8).eval()
    x = torch.randn(30, 1, 8, 8)
    network = convert_with("spikingjelly-sta", model, [x], time_steps=4)
    recipe = ann2snn.STATransformerRecipe([(x, torch.zeros(30))], time_steps=4, mode="spiking_encoder")
    theirs = ann2snn.Converter(recipe).convert(model).eval()
    functional.set_step_mode(theirs, "m")
    with torch.no_grad():
        sequence = torch.cat([x[None], torch.zeros(3, *x.shape)])
        answers = network(x, timesteps=4, every_step=True)
        assert torch.allclose(answers, theirs(sequence).cumsum(0), atol=1e-5)
        fine = convert_with("spikingjelly-sta", model, [x], time_steps=512)(x)
        assert (fine - model(x)).abs().max() < 0.1 * (answers[0] - model(x)).abs().max()
    spikes = []
    with network.observe(lambda name, t, fired: spikes.append(fired)):
        network(x)
    # Two blocks, each behind two norms, the attention and the GELU, and the last norm: signed, and several.
    assert len(spikes) == 9 and all(torch.equal(fired, fired.round()) for fired in spikes)
    assert min(float(fired.min()) for fired in spikes) < 0 and max(float(fired.max()) for fired in spikes) > 1
    with pytest.raises(SpecError, match="nothing was converted"):
        convert_with("spikingjelly-sta", nn.Sequential(nn.Linear(4, 4)), [torch.rand(2, 4)])


@needs["sinabs"]
def test_sinabs_converts_a_chain_and_enlarged_networks() -> None:
    model, x = chain()
    with torch.no_grad():
        truth = model(x)
        fine = convert_with("sinabs", model, [x], scale=512.0)(x)
        assert torch.allclose(fine, truth, atol=0.05 * truth.abs().max().item())
        assert convert_with("sinabs", model, [x], percentile=99.0)(x, timesteps=4).shape == truth.shape

    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc, self.relu = nn.Linear(4, 4), nn.ReLU()

        def forward(self, x: Tensor) -> Tensor:
            return x + self.relu(self.fc(x))

    with pytest.raises(SpecError, match="is a branch of this model; give scale"):
        convert_with("sinabs", Branch(), [torch.rand(2, 4)], percentile=99.0)
    assert convert_with("sinabs", Branch(), [torch.rand(2, 4)], scale=8.0)(torch.rand(2, 4)).shape == (2, 4)
    with pytest.raises(SpecError, match="nothing was converted"):
        convert_with("sinabs", nn.Linear(4, 4), [torch.rand(2, 4)])


@needs["sinabs"]
def test_sinabs_may_start_at_half_a_threshold() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
    x = torch.rand(5, 4)
    network = convert_with("sinabs", model, [x], scale=3.0, half_threshold=True)
    values = 3.0 * model(x).detach()
    for rows in (5, 2):  # from rest whatever was seen before, and however many
        answers = network(x[:rows], timesteps=4, every_step=True)
        steps = torch.arange(1.0, 5.0).view(-1, 1, 1)
        assert torch.allclose(answers * 3.0 * steps, torch.floor(values[:rows] * steps + 0.5), atol=1e-4)
    plain = convert_with("sinabs", model, [x], scale=3.0)(x)
    assert torch.allclose(plain * 3.0, torch.floor(values), atol=1e-4)


def hard_reset(node: Any, decay_input: bool = False, **leak: float) -> Any:
    """A node of SpikingJelly's that charges v + x, without 1 / tau unless asked, with our reset and surrogate."""
    from spikingjelly.activation_based import surrogate

    usual = surrogate.ATan(2.0)
    return node(
        decay_input=decay_input, v_reset=0.0, surrogate_function=usual, detach_reset=True, step_mode="m", **leak
    )


@needs["spikingjelly"]
def test_lif_fires_like_spikingjellys() -> None:
    from spikingjelly.activation_based import neuron

    theirs = hard_reset(neuron.LIFNode, tau=2.0)  # our law at b = 1/2
    currents = torch.randn(9, 4, 50, requires_grad=True)
    mine = LeakyNeuron(SiteSpec(0, 1)).train_of(currents).spikes
    other = theirs(currents)
    assert torch.equal(mine, other)
    weights = torch.randn_like(mine)
    (grad,) = torch.autograd.grad((mine * weights).sum(), currents)
    (expected,) = torch.autograd.grad((other * weights).sum(), currents)
    assert torch.allclose(grad, expected, atol=1e-5)


@needs["spikingjelly"]
def test_plif_fires_and_learns_its_leak_like_spikingjellys() -> None:
    from spikingjelly.activation_based import neuron

    theirs = hard_reset(neuron.ParametricLIFNode, init_tau=4.0, decay_input=True)  # as its authors have it
    ours = LeakyNeuron(SiteSpec(0, 1), leak=0.75, learned=True)
    currents = 3 * torch.randn(9, 4, 50)
    mine, other = ours.train_of(currents).spikes, theirs(currents)
    assert torch.equal(mine, other) and 0.0 < mine.mean() < 1.0
    weights = torch.randn_like(mine)
    assert ours.raw_decay is not None
    (grad,) = torch.autograd.grad((mine * weights).sum(), ours.raw_decay)
    (expected,) = torch.autograd.grad((other * weights).sum(), theirs.w)
    assert torch.allclose(grad, expected, rtol=1e-4)


@needs["spikingjelly"]
def test_ternary_spikes_are_like_spikingjellys() -> None:
    from spikingjelly.activation_based import neuron

    theirs = neuron.TernaryLIFNode(tau=4.0 / 3.0, decay_input=False, v_threshold=0.5, v_reset=0.0, step_mode="m")
    currents = torch.randn(9, 4, 50)
    mine = TernaryNeuron(SiteSpec(1, 1)).train_of(currents).spikes
    assert torch.equal(mine, theirs(currents)) and set(mine.unique().tolist()) == {-1.0, 0.0, 1.0}


@needs["spikingjelly"]
def test_integer_lif_fires_like_spikingjellys() -> None:
    from spikingjelly.activation_based import neuron, surrogate

    theirs = neuron.ILIFNode(
        tau=4.0 / 3.0, surrogate_function=surrogate.MultiLevelSpikeCount(4), detach_reset=True, step_mode="m"
    )
    currents = 3 * torch.randn(9, 4, 50)
    mine = IntegerNeuron(SiteSpec(0, 4)).train_of(currents).spikes
    assert torch.equal(mine, theirs(currents)) and mine.max() == 4


@needs["spikingjelly"]
def test_st_bif_settles_spike_for_spike_like_spikingjellys() -> None:
    from spikingjelly.activation_based.neuron import STBIFNode

    model, x = chain()
    single = nn.Sequential(*list(model.children())[:3], nn.Flatten(), nn.Linear(6 * 64, 5)).eval()
    rival = prepare("st-bif", single, RivalSpec(levels=5), example=x)
    rival.calibrate([x])
    assert rival.qann is not None
    (site,) = rival.qann.sites().values()
    theirs = STBIFNode(site.step.detach(), level=5)
    ours, fired = rival.network(), []
    with torch.no_grad(), ours.observe(lambda name, t, spikes: fired.append(spikes)):
        ours(x, timesteps=6)
        current = single[:2](x)  # the image enters once
        expected = [theirs(current if t == 0 else torch.zeros_like(current)) / site.step for t in range(len(fired))]
    assert len(fired) >= 4
    assert torch.equal(torch.stack(fired).round(), torch.stack(expected).round())


@needs["snntorch"]
def test_lif_fires_like_snntorchs() -> None:
    import snntorch

    theirs = snntorch.Leaky(beta=0.5, threshold=1.0, reset_mechanism="zero", reset_delay=False)
    currents = torch.randn(9, 4, 50)
    membrane = theirs.reset_mem()
    other = []
    for current in currents:
        spikes, membrane = theirs(current, membrane)
        other.append(spikes)
    assert torch.equal(LeakyNeuron(SiteSpec(0, 1)).train_of(currents).spikes, torch.stack(other))


def test_a_search_knows_where_it_ends() -> None:
    for peer in PEERS.values():
        assert all(edge in peer.settings for edge in peer.edges) and len(peer.edges) < len(peer.settings)
    scales = [setting["scale"] for setting in PEERS["sinabs"].settings]
    assert min(scales) < 1 and max(scales) == 64
    assert {(edge["half_threshold"], edge["scale"]) for edge in PEERS["sinabs"].edges} == {
        (False, 1), (False, 64), (True, 0.5), (True, 16),
    }  # fmt: skip


def test_all_settings_are_plain() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert all(isinstance(setting, dict) for peer in PEERS.values() for setting in peer.settings)
