"""Verification that cannot fail proves nothing: small defects are planted, and verify must find and name each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import InputError, SpecError
from polarspike.neurons import PolarityNeuron
from polarspike.quantized import QuantizedNetwork
from polarspike.specs import SiteSpec
from polarspike.spiking import SpikingNetwork
from tests.networks import NETWORKS, calibrated, learned_like, network, signal

SPEC = ps.QuantSpec(2, 4, gain=0.3, signed="all")

#: network -> (first convolution or linear layer, the site behind it, a deeper layer with a bias, the site behind that)
LAYERS = {
    "plain": ("conv1", "conv2_input", "conv2", "relu_1"),
    "branched": ("stem", "relu", "side", "relu_3"),
    "mlp": ("fc1", "act1", "fc2", "act2"),
    "leaky": ("conv1", "act1", "conv3", "act3"),
}


def pair(name: str) -> tuple[QuantizedNetwork, SpikingNetwork]:
    qann = learned_like(calibrated(network(name), SPEC, signal(name, 16))).double()
    return qann, ps.convert(qann)


def check(name: str, qann: QuantizedNetwork, snn: SpikingNetwork, timesteps: int) -> ps.Proof:
    return ps.verify(qann, snn, [signal(name, 32).double()], timesteps=timesteps, scope=False)


@torch.no_grad()
def perturb_step(snn: SpikingNetwork, site: str, factor: float = 1.001) -> None:
    neuron = snn.sites()[site]
    neuron.set_step(neuron.step * factor)


@torch.no_grad()
def drop_bias(snn: SpikingNetwork, layer: str) -> None:
    bias = snn.network.get_submodule(layer).bias
    assert isinstance(bias, nn.Parameter)
    bias.zero_()


@torch.no_grad()
def perturb_weight(snn: SpikingNetwork, layer: str) -> None:
    weight = snn.network.get_submodule(layer).weight
    assert isinstance(weight, nn.Parameter)
    weight.view(-1)[0] += 0.3  # much less may truly move no code: rounding is there to absorb it


def swap_sites(snn: SpikingNetwork, one: str, other: str) -> None:
    sites = snn.sites()
    snn.network.set_submodule(one, sites[other])
    snn.network.set_submodule(other, sites[one])


@pytest.mark.parametrize("timesteps", [1, 4])
@pytest.mark.parametrize("name", NETWORKS)
class TestPlantedDefects:
    def test_none_is_exact(self, name: str, timesteps: int) -> None:
        proof = check(name, *pair(name), timesteps)
        assert proof.exact
        assert proof.first_difference is None
        assert "EXACT" in str(proof)

    def test_every_site_with_its_step_off_by_a_thousandth(self, name: str, timesteps: int) -> None:
        qann, _ = pair(name)
        for site in qann.sites():
            snn = ps.convert(qann)
            perturb_step(snn, site)
            proof = check(name, qann, snn, timesteps)
            assert not proof.exact
            assert proof.first_difference == site
            assert f"first difference: {site}" in str(proof)

    def test_two_sites_swapped(self, name: str, timesteps: int) -> None:
        qann, snn = pair(name)
        one, other = list(snn.sites())[:2]
        swap_sites(snn, one, other)
        proof = check(name, qann, snn, timesteps)
        assert not proof.exact
        assert proof.first_difference == one

    @pytest.mark.parametrize("defect", [drop_bias, perturb_weight])
    def test_a_layer_changed(self, name: str, timesteps: int, defect: Callable[[SpikingNetwork, str], None]) -> None:
        first, behind_first, deeper, behind_deeper = LAYERS[name]
        for layer, site in ((first, behind_first), (deeper, behind_deeper)):
            qann, snn = pair(name)
            defect(snn, layer)
            proof = check(name, qann, snn, timesteps)
            assert not proof.exact
            assert proof.first_difference == site

    @pytest.mark.parametrize("defect", [drop_bias, perturb_weight])
    def test_the_last_layer_changed_is_seen_at_the_output(
        self, name: str, timesteps: int, defect: Callable[[SpikingNetwork, str], None]
    ) -> None:
        qann, snn = pair(name)
        defect(snn, "head")
        proof = check(name, qann, snn, timesteps)
        assert not proof.exact
        assert proof.first_difference == "output"
        assert proof.different == proof.diverged == 0
        assert proof.output_difference > 0

    def test_a_gain_changed(self, name: str, timesteps: int) -> None:
        qann, snn = pair(name)
        last = list(snn.sites())[-1]
        neuron = snn.sites()[last]
        spec = SiteSpec(**{**vars(neuron.spec), "gain": neuron.spec.gain * 0.999})
        snn.network.set_submodule(last, PolarityNeuron(spec, last).double().adopt(neuron))
        proof = check(name, qann, snn, timesteps)
        assert not proof.exact
        # Codes do not know the gain: at T = 1 the values of the site betray it, later only what reads them.
        assert proof.first_difference == (last if timesteps == 1 else "output")

    def test_levels_changed(self, name: str, timesteps: int) -> None:
        qann, snn = pair(name)
        first = next(iter(snn.sites()))
        neuron = snn.sites()[first]
        spec = SiteSpec(**{**vars(neuron.spec), "positive": neuron.spec.positive - 1})
        snn.network.set_submodule(first, PolarityNeuron(spec, first).double().adopt(neuron))
        proof = check(name, qann, snn, timesteps)
        assert not proof.exact
        assert proof.first_difference == first


def test_a_defect_in_one_batch_of_many_is_found() -> None:
    qann, snn = pair("mlp")
    batches = [signal("mlp", 8, seed=seed).double() for seed in range(4)]
    alone = copy.deepcopy(batches[2])
    alone[0, 0] = torch.nextafter(alone[0, 0], alone[0, 0] + 1)
    proof = ps.verify(qann, snn, [*batches, (alone, torch.zeros(8))])
    assert proof.exact
    assert proof.sites["act1"].compared == 5 * 8 * 16
    perturb_step(snn, "act2")
    assert ps.verify(qann, snn, batches).first_difference == "act2"


@pytest.mark.parametrize("against", ["network", "events"])
def test_integers_beside_an_answer_make_no_room_for_rounding(against: Literal["network", "events"]) -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.fc, self.head = nn.Embedding(7, 8), nn.Linear(8, 8), nn.Linear(8, 3)

        def forward(self, words: Tensor) -> tuple[Tensor, Tensor, Tensor]:
            return self.head(torch.relu(self.fc(self.embedding(words)))), words, words > 2

    torch.manual_seed(0)
    words = torch.randint(7, (16, 5))
    qann = calibrated(Words().eval(), SPEC, words).double()
    snn = ps.convert(qann)
    assert ps.verify(qann, snn, [words], 3, against=against).output_equal
    with torch.no_grad():
        snn.network.get_submodule("head").bias.add_(1e-7)
    assert not ps.verify(qann, snn, [words], 3, against=against).output_equal


def test_a_plain_integrate_and_fire_neuron_that_takes_nothing_back_is_caught() -> None:
    class OneWay(PolarityNeuron):
        """Fires the quantized membrane and never takes back; exact at T = 1 only."""

        def advance(self, x, state, timestep, **options):  # type: ignore[no-untyped-def]
            y, after = super().advance(x, state, timestep, **options)
            if state is None:
                return y, after
            codes = torch.maximum(after.codes, state.codes)
            return self.decode(codes) - self.decode(state.codes), after._replace(codes=codes)

    qann = calibrated(network("plain"), ps.QuantSpec(0, 4), signal("plain", 16)).double()
    snn = ps.convert(qann)
    for name, neuron in snn.sites().items():
        snn.network.set_submodule(name, OneWay(neuron.spec, name).double().adopt(neuron))
    frames = signal("plain", 16, frames=4).double()
    assert ps.verify(qann, snn, [frames[:, 0]]).exact
    proof = ps.verify(qann, snn, [frames], time_dim=1)
    assert not proof.exact
    assert proof.first_difference == "conv2_input"


class TestVoidComparisons:
    def test_an_almost_dead_site_makes_the_proof_inconclusive(self) -> None:
        qann, _ = pair("mlp")
        qann.sites()["act2"].set_step(1e6)
        proof = check("mlp", qann, ps.convert(qann), 1)
        assert proof.exact
        assert not proof.conclusive
        assert proof.sites["act1"].counts
        assert not proof.sites["act2"].counts
        assert proof.sites["act2"].nonzero_share == 0.0
        assert "VOID: too few codes to count" in str(proof)
        assert "EXACT, not conclusive" in str(proof)

    def test_a_saturated_site_is_void_as_well(self) -> None:
        qann, _ = pair("mlp")
        qann.sites()["act1"].set_step(1e-6)
        proof = check("mlp", qann, ps.convert(qann), 1)
        assert not proof.sites["act1"].counts
        assert proof.sites["act1"].nonzero_share > 0.95

    def test_binary_sites_need_two_codes_only(self) -> None:
        qann = calibrated(network("mlp"), ps.QuantSpec(0, 1), signal("mlp", 16))
        proof = ps.verify(qann, ps.convert(qann), [signal("mlp", 32)])
        assert all(site.binary and site.distinct == 2 for site in proof.sites.values())
        assert proof.conclusive


class TestScope:
    def test_other_conditions_are_counted_and_shown(self) -> None:
        qann = calibrated(network("branched"), SPEC, signal("branched", 16))
        proof = ps.verify(qann, ps.convert(qann), [signal("branched", 8)])
        assert list(proof.scope) == ["batch 1 against 8", "1 against 2 threads", "contiguous against channels_last"]
        assert all(0 <= different <= compared for different, compared in proof.scope.values())
        assert all(compared == proof.compared for _, compared in proof.scope.values())
        assert "scope: batch 1 against 8" in str(proof)
        assert torch.get_num_threads() == 1

    def test_flat_input_has_no_memory_format(self) -> None:
        qann = calibrated(network("mlp"), SPEC, signal("mlp", 16))
        assert list(ps.verify(qann, ps.convert(qann), [signal("mlp", 4)]).scope) == [
            "batch 1 against 4",
            "1 against 2 threads",
        ]


class TestFloat32:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_after_several_steps_each_difference_is_near_a_boundary_and_counted(self, name: str) -> None:
        qann = calibrated(network(name), ps.QuantSpec(7, 7, gain=0.3, signed="all"), signal(name, 16))
        snn = ps.convert(qann)
        compared = different = 0
        for total in (2, 3, 8):
            for frames, options in (
                (signal(name, 64), {"timesteps": total}),
                (signal(name, 64, frames=total, seed=total), {"time_dim": 1}),
            ):
                proof = ps.verify(qann, snn, [frames], scope=False, **options)
                assert proof.worst_margin <= 1e-5
                assert proof.different == sum(site.different for site in proof.sites.values())
                assert proof.exact == (proof.different == 0 and proof.diverged == 0)
                assert proof.output_equal  # on equal codes
                compared, different = compared + proof.compared, different + proof.different
        assert different <= max(3, 1e-5 * compared)

    def test_points_on_a_boundary_are_counted_as_differences_with_a_margin_of_zero(self) -> None:
        model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1)).eval()
        nn.init.ones_(model[0].weight)
        x = torch.linspace(0.01, 1, 500).view(-1, 1)
        qann = calibrated(model, ps.QuantSpec(0, 7), x)
        qann.sites()["1"].set_step(0.1)
        points = torch.arange(1, 60).view(-1, 1) * 0.1 / 3 - 0.1 / 6  # every boundary of the grid at T = 3
        proof = ps.verify(qann, ps.convert(qann), [points], timesteps=3, scope=False)
        assert 0 < proof.different < 40
        assert not proof.exact
        assert proof.first_difference == "1"
        assert proof.worst_margin <= 1e-5
        assert "steps from a boundary" in str(proof)


class TestRefusals:
    def test_nothing_to_compare(self) -> None:
        qann, snn = pair("mlp")
        with pytest.raises(InputError, match="expected at least one batch, got none"):
            ps.verify(qann, snn, [])
        for timesteps in (1, 2):
            with pytest.raises(InputError, match="expected at least one sample in every batch, got none"):
                ps.verify(qann, snn, [signal("mlp", 3).double()[:0]], timesteps=timesteps)

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_input_that_is_not_finite_is_named_by_its_batch(self, value: float) -> None:
        qann, snn = pair("mlp")
        bad = signal("mlp", 3).double()
        bad[1, 2] = value
        with pytest.raises(InputError, match="verify, batch 1, input '0': expected finite values, got NaN or Inf"):
            ps.verify(qann, snn, [signal("mlp", 3).double(), bad])

    def test_weights_that_are_not_finite(self) -> None:
        qann, snn = pair("mlp")
        with torch.no_grad():
            qann.network.fc2.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
        with pytest.raises(InputError, match="site 'act2' of the quantized network gets NaN from finite inputs"):
            ps.verify(qann, snn, [signal("mlp", 3).double()])
        sound, broken = pair("mlp")
        with torch.no_grad():
            broken.network.fc2.weight[0, 0] = float("nan")  # type: ignore[union-attr, index]
        proof = ps.verify(sound, broken, [signal("mlp", 8).double()])
        assert not proof.exact
        assert proof.first_difference == "act2"

    def test_networks_that_do_not_belong_together(self) -> None:
        qann, snn = pair("mlp")
        _, other = pair("plain")
        with pytest.raises(SpecError, match="the two networks have different sites"):
            ps.verify(qann, other, [signal("mlp", 3).double()])
        with pytest.raises(SpecError, match="expected a quantized and a spiking network, got SpikingNetwork and Quant"):
            ps.verify(snn, qann, [signal("mlp", 3).double()])  # type: ignore[arg-type]

    @pytest.mark.parametrize("timesteps", [0, True, -1, 1.5])
    def test_timesteps(self, timesteps: int) -> None:
        qann, snn = pair("mlp")
        with pytest.raises(SpecError, match="timesteps: expected a positive integer"):
            ps.verify(qann, snn, [signal("mlp", 3).double()], timesteps=timesteps)

    def test_sequences(self) -> None:
        qann, snn = pair("mlp")
        frames = signal("mlp", 3, frames=4).double()
        with pytest.raises(SpecError, match="timesteps=3 contradicts a sequence of 4 frames"):
            ps.verify(qann, snn, [frames], timesteps=3, time_dim=1)
        with pytest.raises(InputError, match=r"time_dim=3: input '0' .* has no such dimension"):
            ps.verify(qann, snn, [frames], time_dim=3)
        with pytest.raises(InputError, match="batch 1: expected 4 frames as in the first batch, got 2"):
            ps.verify(qann, snn, [frames, frames[:, :2]], time_dim=1)
        reader = ps.convert(qann, ps.ConvertSpec(reading="frames"))
        with pytest.raises(SpecError, match="takes every frame as a first timestep"):
            ps.verify(qann, reader, [frames], time_dim=1)
        assert ps.verify(qann, reader, [frames.flatten(0, 1)]).exact

    def test_against(self) -> None:
        qann, snn = pair("mlp")
        with pytest.raises(SpecError, match="expected against='network' or 'events', got 'itself'"):
            ps.verify(qann, snn, [signal("mlp", 3).double()], against="itself")  # type: ignore[arg-type]

    def test_the_mode_and_hooks_of_the_networks_are_left_as_they_were(self) -> None:
        qann, snn = pair("mlp")
        qann.train()
        qann.network.norm1.eval()  # type: ignore[union-attr]
        before = [module.training for module in qann.modules()]
        ps.verify(qann, snn, [signal("mlp", 3).double()], timesteps=2)
        with pytest.raises(InputError):
            ps.verify(qann, snn, [torch.full((2, 12), float("nan"), dtype=torch.float64)])
        assert [module.training for module in qann.modules()] == before
        assert not any(module._forward_hooks for module in [*qann.modules(), *snn.modules()])


def test_the_event_simulator_proves_and_fails_too() -> None:
    qann, snn = pair("mlp")
    x = signal("mlp", 8).double()
    for timesteps in (1, 3):
        proof = ps.verify(qann, snn, [x], timesteps=timesteps, against="events")
        assert proof.exact
        assert "unit spikes" in proof.note
    perturb_step(snn, "act1", 1.01)
    assert not ps.verify(qann, snn, [x], timesteps=3, against="events").exact


class Viewing(nn.Module):
    """The commonest style of all: it cannot run on channels_last images, which is not the proof's fault."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4 * 36, 3)

    def forward(self, x: Tensor, scale: Tensor) -> Tensor:
        y = torch.relu(self.conv(x) + scale)
        return self.head(y.view(y.size(0), -1))


def test_a_condition_that_cannot_be_run_takes_nothing_from_the_proof() -> None:
    inputs = {"x": torch.randn(6, 3, 8, 8), "scale": torch.tensor(0.3)}
    qann = ps.quantize(Viewing().eval(), ps.QuantSpec(0, 5), example=inputs)
    ps.calibrate(qann, [inputs])
    proof = ps.verify(qann, ps.convert(qann), [inputs])
    assert proof.exact and proof.conclusive
    assert proof.scope["batch 1 against 6"] == (0, 6 * 4 * 36)
    assert "the network cannot run so" in str(proof.scope["contiguous against channels_last"])


def test_a_code_that_is_wrong_near_a_boundary_is_not_rounding() -> None:
    """The margin is the distance to the interval of the code that was given, not to any boundary that is near."""
    x = torch.full((1, 4), 2.49)  # code 2, near the boundary of code 3
    qann = ps.quantize(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)).eval(), ps.QuantSpec(0, 5), example=x)
    with torch.no_grad():
        qann.network.get_submodule("0").weight.copy_(torch.eye(4))
        qann.network.get_submodule("0").bias.zero_()
    next(iter(qann.sites().values())).set_step(1.0)
    snn = ps.convert(qann)
    next(iter(snn.sites().values())).set_step(10.0)  # gives code 0 at every element
    proof = ps.verify(qann, snn, [x], scope=False)
    assert proof.worst_margin == pytest.approx(1.99) and not proof.within_rounding
