"""What is proved of a network that was trained through time, and that each of its proofs can fail."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import polarspike as ps
from polarspike import models
from polarspike.errors import InputError, SpecError
from polarspike.proofs import temporal_equivalence
from polarspike.proofs.proof import Proof
from polarspike.proofs.simulator import simulate
from polarspike.proofs.temporal_equivalence import quantized_at_first_frame, verify_temporal
from polarspike.runs import RunDirectory
from polarspike.spiking.through_time import LeakyPolarityNeuron
from tests.networks import calibrated, network, signal

SPEC = ps.QuantSpec(2, 4, gain=0.3, signed="all")


def trained_like(name: str, frames: int = 4) -> tuple[ps.QuantizedNetwork, ps.TemporalNetwork, Tensor]:
    """A network through time whose weights and leaks have left its parent, every leak another."""
    qann = calibrated(network(name), SPEC, signal(name, 16))
    net = ps.unroll(qann, leak=0.7)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(1 + 0.1 * torch.rand(parameter.shape, generator=generator))
    return qann, net.eval(), signal(name, frames=frames)


@pytest.mark.parametrize("against", ["stream", "events"])
@pytest.mark.parametrize("name", ["branched", "leaky", "group", "attention"])
def test_codes_of_every_frame_are_those_of_the_stream_and_of_unit_spikes(name: str, against: Any) -> None:
    _, net, frames = trained_like(name)
    assert len(set(net.leaks().values())) == len(net.sites())
    proof = verify_temporal(net, [frames[:4], frames[4:]], against=against)
    assert proof.exact and proof.timesteps == 4 and proof.output_difference < 1e-12
    ours = sum(int(k.numel()) for k in simulate(net, [x.double() for x in frames.unbind(1)]).codes.values())
    first = ours // 4 if against == "stream" else 0
    assert proof.compared == ours + first
    assert verify_temporal(net, [frames], 2, against).timesteps == 2
    assert next(net.parameters()).dtype == torch.float32  # a copy was compared


def test_max_pooling_of_spikes_is_simulated_frame_by_frame() -> None:
    torch.manual_seed(0)
    model = models.create("event_cnn", num_classes=4, in_channels=2, width=4, stages=2)
    frames = torch.randn(3, 3, 2, 8, 8)
    net = ps.unroll(calibrated(model.eval(), ps.QuantSpec(0, 7), frames.flatten(0, 1)), leak=0.9)
    found = simulate(net, list(frames.unbind(1)))
    assert found.comparator_spikes and not found.graded  # it is done on spikes
    assert verify_temporal(net, [frames], against="events").exact


@pytest.mark.parametrize("against", ["stream", "events"])
def test_a_membrane_that_is_lost_is_found_and_put_on_record(
    against: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, net, frames = trained_like("branched")
    run = LeakyPolarityNeuron.run

    def forgetful(self: LeakyPolarityNeuron, currents: Tensor, membrane: Tensor | None) -> Any:
        if against == "stream":
            return run(self, currents, None)  # right for a sequence at once
        values, spikes, left = zip(*(run(self, current.unsqueeze(0), None) for current in currents), strict=True)
        return torch.cat(values), torch.cat(spikes), left[-1]

    monkeypatch.setattr(LeakyPolarityNeuron, "run", forgetful)
    proof = verify_temporal(net, [frames], against=against)
    assert not proof.exact and proof.different > 0 and "NOT EXACT" in str(proof)
    run_directory = RunDirectory(tmp_path)
    run_directory.write_json("results.json", {"proof": proof.to_dict()})
    again = Proof.from_dict(run_directory.read_json("results.json")["proof"])
    assert again == proof and again.worst_margin == float("inf")
    assert verify_temporal(net, [frames], 1, against).exact  # one frame needs no memory


def test_its_first_frame_is_the_quantized_network_of_its_own_weights_and_not_its_parent() -> None:
    qann, net, frames = trained_like("branched")
    own = quantized_at_first_frame(net)
    with torch.no_grad():
        torch.testing.assert_close(own(frames[:, 0]), net(frames, timesteps=1))
        assert not torch.allclose(qann(frames[:, 0]), net(frames, timesteps=1), atol=1e-2)


def test_its_operations_are_those_of_first_timesteps_and_a_leak() -> None:
    """A leak of next to nothing is the reading of frames, whose counts are known; what leaks is counted on top."""
    qann = calibrated(network("branched"), SPEC, signal("branched", 16))
    frames = signal("branched", frames=3)
    by_frame = ps.count_operations(ps.convert(qann, ps.ConvertSpec(reading="frames")), frames, time_dim=1)
    found = ps.count_operations(ps.unroll(qann, leak=1e-30, learned=False), frames)
    leaks = {row.name: row.spiking for row in found.elementwise if row.name.endswith(" (leak)")}
    assert leaks == {f"{row.site} (leak)": 2 * len(frames) * row.neurons for row in found.sites}
    assert found.sites == by_frame.sites and found.synapses == by_frame.synapses and found.passes == 3
    assert found.totals | {"scalings": 0} == by_frame.totals | {"scalings": 0}
    assert found.totals["scalings"] == by_frame.totals["scalings"] + sum(leaks.values())
    kept = ps.count_operations(ps.unroll(qann, leak=1.0, learned=False), frames)
    assert not [row for row in kept.elementwise if "leak" in row.name]


def test_what_cannot_be_proved_is_refused() -> None:
    qann, net, frames = trained_like("mlp")
    with pytest.raises(SpecError, match=r"are not those of its quantized network any more, .*verify_temporal"):
        ps.verify(qann, net, [frames[:, 0]])  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="no format the leaking membranes of a network that is trained through time"):
        ps.export(net, "net.onnx", "onnx-float", frames[:, 0])  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"expected what polarspike.unroll returns, got QuantizedNetwork"):
        verify_temporal(qann, [frames])  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="expected against='stream' or 'events', got 'network'"):
        verify_temporal(net, [frames], against="network")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="at least one batch of sequences, got none"):
        verify_temporal(net, [])
    with pytest.raises(InputError, match="timesteps: expected 1 to 4, the frames given, got 5"):
        verify_temporal(net, [frames], 5)
    with pytest.raises(
        InputError, match=r"batch 1: expected 4 frames as in the first batch, got 3; .*or give timesteps"
    ):
        verify_temporal(net, [frames, frames[:, :3]])
    assert verify_temporal(net, [frames, {"x": frames[:, :3]}], 2).exact
    with pytest.raises(InputError, match=r"batch 1: expected inputs .* got str"):
        verify_temporal(net, [frames, "frames"])
    for value in (float("nan"), float("inf")):
        broken = frames.clone()
        broken[1, 2] = value
        with pytest.raises(InputError, match=r"verify_temporal, batch 1, input '0': expected finite values"):
            verify_temporal(net, [frames, broken])
    with torch.no_grad():
        next(net.parameters()).fill_(float("nan"))
    with pytest.raises(InputError, match="gets NaN from finite inputs"):
        verify_temporal(net, [frames])


@pytest.mark.parametrize("against", ["stream", "events"])
def test_batches_are_inputs_or_pairs_and_nothing_is_kept_of_them(against: Any) -> None:
    _, net, frames = trained_like("branched")
    held: list[int] = []

    def watched() -> Iterator[Any]:
        for start in (0, 2, 4):
            gc.collect()
            held.append(sum(each.numel() for each in gc.get_objects() if issubclass(type(each), Tensor)))
            yield frames[start : start + 2], torch.zeros(2)

    found = verify_temporal(net, watched(), against=against)
    assert held[1] == held[2]
    whole = [verify_temporal(net, given, against=against) for given in ([frames[:6]], frames[:6])]
    for one in (found, *whole):
        assert one.exact and one.sites == whole[0].sites
        assert all(site.distinct > 2 and 0.05 < site.nonzero_share < 0.95 for site in one.sites.values())


def test_a_device_without_float64_leaves_the_comparison_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    _, net, frames = trained_like("mlp")
    monkeypatch.setattr(temporal_equivalence, "device_of", lambda _: torch.device("mps"))
    assert verify_temporal(net, [frames]).exact
