"""All timesteps in one batch give what the timesteps one by one give, and rehearsals are counted."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.baselines import METHODS, RivalSpec, SequenceNetwork, prepare
from polarspike.baselines.counting import count_rival
from polarspike.baselines.neurons import SoftResetNeuron
from polarspike.common.modules import hooked
from polarspike.errors import InputError, OperatorError
from polarspike.quantized import respecify
from polarspike.spiking.sequences import Walk
from tests.networks import calibrated, network, signal


class FreeNeuron(SoftResetNeuron):
    """As many spikes as it takes, and takes back what was too much: our neuron without a bound."""

    def rule(self, residue: Tensor, fired: Tensor, threshold: Tensor) -> Tensor:
        wanted = torch.floor(residue / threshold + 0.5)
        return wanted if self.spec.negative else torch.maximum(wanted, -fired)


def spiking(method: str, name: str = "branched", **options: int | str) -> tuple[SequenceNetwork, Tensor]:
    x = signal(name)
    rival = prepare(method, network(name), RivalSpec(**options), example=x)
    rival.calibrate([x])
    made = rival.network()
    assert isinstance(made, SequenceNetwork)
    return made, x


def test_a_fine_enough_group_is_our_network_at_the_first_timestep() -> None:
    x = signal("branched")
    model = network("branched")
    rival = prepare("scale-and-fire", model, RivalSpec(levels=8), example=x)
    rival.calibrate([x])
    qann = ps.quantize(model, ps.QuantSpec(0, 7, signed="by-nature"), example=x)
    ps.calibrate(qann, [x])
    assert torch.equal(rival.network()(x), ps.convert(qann)(x))


@pytest.mark.parametrize("name", ["branched", "plain"])
def test_binary_spikes_come_near_the_clipped_network(name: str) -> None:
    made, x = spiking("rate-max", name)
    with torch.no_grad():
        error = [(made(x, timesteps=t) - network(name)(x)).abs().mean() for t in (4, 32, 256)]
    assert error[0] > 3 * error[1] > 9 * error[2]


def test_max_pooling_of_spikes_is_not_max_pooling_of_rates() -> None:
    sums, x = spiking("rate-max", pooling="sums")
    steps, _ = spiking("rate-max", pooling="steps")
    with torch.no_grad():
        truth = network("branched")(x)
        assert (steps(x, timesteps=256) - truth).abs().mean() > 5 * (sums(x, timesteps=256) - truth).abs().mean()


@pytest.mark.parametrize("name", ["branched", "group", "squeeze", "attention"])
def test_all_operators_keep_the_running_mean_contract(name: str) -> None:
    # With neurons that fire like ours, all timesteps in one batch give what ours give one by one, also on varying frames.
    x = signal(name)
    qann = calibrated(network(name), ps.QuantSpec(1, 1, signed="by-nature"), x)
    for path, site in qann.sites().items():
        levels = (4095 if site.spec.negative else 0, 4095)
        respecify(qann, path, replace(site.spec, negative=levels[0], positive=levels[1]), torch.tensor(1 / 64))
    ours = ps.convert(qann)
    for path, site in qann.sites().items():
        qann.network.set_submodule(path, FreeNeuron(site.spec, path).adopt(site))
    theirs = SequenceNetwork(qann.network, qann.signature)
    frames = signal(name, frames=5)
    with torch.no_grad():
        assert torch.allclose(
            theirs(frames, time_dim=1, every_step=True), ours(frames, time_dim=1, every_step=True), atol=0.02
        )


@pytest.mark.parametrize(
    "method", [name for name, method in METHODS.items() if method.build and method.family != "direct"]
)
def test_pieces_and_prefixes_give_the_same_answers(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made, x = spiking(method, rehearsal=3)
    with torch.no_grad():
        whole = made(x, timesteps=5, every_step=True)
        assert torch.allclose(whole[-1], made(x, timesteps=5), atol=1e-6)
        monkeypatch.setattr("polarspike.spiking.sequences._PIECE", 16)
        assert torch.allclose(whole, made(x, timesteps=5, every_step=True), atol=1e-5)
        if method == "cos":  # whose rehearsal sees at least as many corrected inputs as it is long
            assert torch.allclose(made(x, timesteps=1), made(x, timesteps=3, every_step=True)[0], atol=1e-5)
        else:
            assert torch.allclose(whole[:3], made(x, timesteps=3, every_step=True), atol=1e-5)


def test_a_sequence_of_equal_frames_is_a_repeated_input() -> None:
    made, x = spiking("snm")
    frames = x.unsqueeze(1).expand(-1, 4, *x.shape[1:])
    with torch.no_grad():
        assert torch.equal(made(frames, time_dim=1), made(x, timesteps=4))


def test_rehearsals_count() -> None:
    plain, x = spiking("qcfs")
    srp, _ = spiking("srp", rehearsal=3)
    cos, _ = spiking("cos", rehearsal=3)
    assert (plain.rehearsal, srp.rehearsal, cos.rehearsal) == (0, 3, 3)
    assert (srp.pre_run, cos.pre_run) == (3, 0)
    depth = 4
    assert [net.pipeline_latency(2) for net in (plain, srp, cos)] == [
        2 + depth - 1,
        5 + depth - 1,
        2 + depth - 1 + 3 * depth,
    ]
    seen: dict[int, int] = {}
    with cos.observe(lambda site, t, spikes: seen.update({t: seen.get(t, 0) + int(spikes.sum())})), torch.no_grad():
        cos(x, timesteps=2)
    assert sorted(seen) == [-2, -1, 0, 1, 2, 3]  # also what the rehearsals of later sites need beyond T
    counts = count_rival(cos, x, 2)
    assert (counts.timesteps, counts.totals["spikes"]) == (3 + 3, sum(seen.values()))
    assert count_rival(cos, x, 4).timesteps == 3 + 4
    for timesteps in (1, 2):
        fired = ps.evaluate(cos, [(x, torch.zeros(len(x), dtype=torch.int64))], timesteps=timesteps).firing
        assert fired is not None and fired[timesteps].spikes == count_rival(cos, x, timesteps).totals["spikes"]
        assert fired[timesteps].pairs == sum(row.neurons for row in counts.sites) * len(x)


def arriving(made: SequenceNetwork, x: Tensor, timesteps: int) -> dict[str, int]:
    """The events that a run hands to each convolution and linear layer."""
    seen: dict[str, int] = {}
    parts = {name: part for name, part in made.network.named_modules() if isinstance(part, nn.Conv2d | nn.Linear)}

    def hook(name: str) -> Any:
        def see(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[name] = seen.get(name, 0) + int((inputs[0].abs() > 1e-4).sum())

        return see

    with hooked([part.register_forward_pre_hook(hook(name)) for name, part in parts.items()]), torch.no_grad():
        made(x, timesteps=timesteps)
    return seen


@pytest.mark.parametrize("pooling", ["sums", "steps"])
@pytest.mark.parametrize("method", ["qcfs", "snm", "group", "srp", "cos"])
def test_what_is_counted_has_arrived(method: str, pooling: str) -> None:
    made, x = spiking(method, rehearsal=3, pooling=pooling)
    counts, earlier = count_rival(made, x, 6), count_rival(made, x, 4)
    seen, before = arriving(made, x, 6), arriving(made, x, 4)
    rows = [row for row in counts.synapses if row.name in seen and row.spiking]
    assert rows
    for row in rows:
        if method != "cos":  # whose rehearsals are counted as if they had been sent
            assert row.events_in == seen[row.name]
        assert row.events_in - earlier.synapse(row.name).events_in == seen[row.name] - before[row.name]
    sums = [row for row in counts.elementwise if row.kind == "add" and row.spiking > row.dense]
    assert bool(sums) == (pooling == "sums")  # of pooling of single steps nothing is kept


def test_counts_agree_with_ours_where_the_networks_do() -> None:
    x = signal("branched")
    model = network("branched")
    rival = prepare("scale-and-fire", model, RivalSpec(levels=8), example=x)
    rival.calibrate([x])
    qann = ps.quantize(model, ps.QuantSpec(0, 7, signed="by-nature"), example=x)
    ps.calibrate(qann, [x])
    assert rival.count(x).totals == ps.count_operations(ps.convert(qann), x).totals


def test_sums_over_time_start_anew_after_a_pre_run() -> None:
    # The counted part of SRP is what its neurons fire from rest, so max pooling adds up nothing from before.
    made, x = spiking("srp", rehearsal=3)
    frames = signal("branched", frames=5)
    ahead = torch.cat((frames[:, :3], frames), 1)
    with torch.no_grad():
        whole = made(frames, time_dim=1, every_step=True)
        other = made(torch.cat((ahead[:, :3], frames[:, :2]), 1), time_dim=1, every_step=True)
    assert whole.shape == (5, *other.shape[1:])
    pooled = Walk(made.network, 5, 3, len(x), "all")
    steps = torch.rand(5 * len(x), 2)
    sums = pooled._sums(steps, None).view(5, len(x), 2)
    assert torch.allclose(sums[3], steps.view(5, len(x), 2)[3]) and torch.allclose(
        sums[4], steps.view(5, len(x), 2)[3:].sum(0)
    )
    assert torch.allclose(pooled._steps(pooled._sums(steps, None), None), steps, atol=1e-6)


def test_a_batch_that_is_not_in_front_is_refused() -> None:
    class Turned(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc(torch.relu(self.fc(x).transpose(0, 1))).transpose(0, 1)

    x = torch.randn(6, 3, 4)
    rival = prepare("rate-max", Turned(), example=x)
    rival.calibrate([x])
    with pytest.raises(OperatorError, match="expected the batch in dimension 0, 6 images at 4 timesteps"):
        rival.network()(x, timesteps=4)
    with pytest.raises(InputError, match="got an empty batch"):
        spiking("qcfs")[0](torch.empty(0, 2, 8, 8))


def test_wrong_shapes_are_refused() -> None:
    made, x = spiking("qcfs")
    with pytest.raises(InputError, match="expected shape"):
        made(x[:, :1], timesteps=2)
