"""The theorem where operators are not affine: attention, norms, products of signals, smooth activations, bottlenecks.

In float64 no code differs at any site, for repeated and varying input; steps and mean-domain execution agree. The
variants have statements of their own: a holding neuron keeps the grid, and a capped one arrives at the same codes late.
"""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

import polarspike as ps
from polarspike.errors import SpecError
from polarspike.neurons import CappedNeuron
from polarspike.quantized import QuantizedNetwork
from polarspike.spiking import SpikingState
from tests.networks import CURVED, NETWORKS, calibrated, codes_of, learned_like, network, signal

SPECS = {
    "by nature": ps.QuantSpec(3, 4),
    "channels": ps.QuantSpec(3, 4, granularity="channel"),
    "learned": ps.QuantSpec(2, 4, gain="learned", signed="all"),
    "inputs": ps.QuantSpec(4, 4, inputs=True),
}

pytestmark = [
    pytest.mark.usefixtures("no_grad"),
    pytest.mark.filterwarnings("ignore:channels that never carry a signal"),
]


def quantized(name: str, spec: str = "by nature") -> QuantizedNetwork:
    return learned_like(calibrated(network(name), SPECS[spec], signal(name, 16))).double()


def stream(snn: ps.SpikingNetwork, frames: Tensor) -> tuple[Tensor, SpikingState]:
    state: SpikingState | None = None
    for t in range(frames.shape[1]):
        answer, state = snn.step(frames[:, t], state)
    assert state is not None
    return answer, state


def same_codes(left: Any, right: Any) -> None:
    assert list(left) == list(right)
    for site, codes in left.items():
        assert int((codes != right[site]).sum()) == 0, site
        assert int(codes.count_nonzero())


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", CURVED)
def test_codes_equal_those_of_the_refined_network(name: str, spec: str) -> None:
    qann = quantized(name, spec)
    snn = ps.convert(qann)
    still, moving = signal(name, 3).double(), signal(name, 3, frames=4).double()
    assert torch.equal(snn(still), qann(still))
    for total in (2, 4):
        fine = ps.refine(qann, total)
        for frames in (still.unsqueeze(1).expand(-1, total, *still.shape[1:]), moving[:, :total]):
            mean = frames[:, 0] if frames.stride(1) == 0 else frames.mean(1)
            answer, state = stream(snn, frames)
            same_codes({site: part.codes for site, part in state.neurons.items()}, codes_of(fine, mean))
            torch.testing.assert_close(answer, fine(mean), rtol=1e-9, atol=1e-11)
            torch.testing.assert_close(snn(frames, time_dim=1, execution="mean"), answer, rtol=1e-9, atol=1e-11)
    for proof in (
        ps.verify(qann, snn, [still], timesteps=3, scope=False),
        ps.verify(qann, snn, [moving], time_dim=1, scope=False),
    ):
        assert proof.exact, str(proof)


@pytest.mark.parametrize("name", CURVED)
def test_the_first_timestep_is_the_quantized_network_in_every_bit(name: str) -> None:
    qann = quantized(name).float()
    snn, x = ps.convert(qann), signal(name, 3)
    for dtype in (torch.float32, torch.bfloat16):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            expected = qann(x)
            assert torch.equal(snn(x), expected)
            assert torch.equal(snn.step(x)[0], expected)
            assert torch.equal(snn(x, execution="mean"), expected)


@pytest.mark.parametrize("name", ["attention", "squeeze", "branched"])
def test_more_steps_approach_the_clipped_network(name: str) -> None:
    qann, x = quantized(name), signal(name, 3).double()
    snn, limit = ps.convert(qann), ps.refine(qann, 2048)(x)
    gaps = [float((snn(x, timesteps=t, execution="mean") - limit).abs().max()) for t in (2, 64)]
    assert gaps[1] < gaps[0] / 8


# --- holding neurons -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CURVED, "branched", "leaky"])
def test_holding_neurons_answer_as_the_quantized_network_on_the_mean_input(name: str) -> None:
    qann = quantized(name)
    snn = ps.convert(qann, ps.ConvertSpec(neuron="holding"))
    moving = signal(name, 3, frames=8).double()
    state: SpikingState | None = None
    for t in range(1, 9):
        answer, state = snn.step(moving[:, t - 1], state)
        mean = moving[:, :t].mean(1)
        torch.testing.assert_close(answer, qann(mean), rtol=1e-9, atol=1e-11)
        same_codes({site: part.codes / t for site, part in state.neurons.items()}, codes_of(qann, mean))
    torch.testing.assert_close(snn(moving, time_dim=1, execution="mean"), answer, rtol=1e-9, atol=1e-11)
    for t in (1, 3, 8):  # a repeated input changes nothing, ever
        torch.testing.assert_close(snn(moving[:, 0], timesteps=t), qann(moving[:, 0]), rtol=1e-12, atol=1e-12)


# --- capped neurons ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cap", [1, 3])
@pytest.mark.parametrize("name", [*CURVED, "branched", "leaky"])
def test_capped_neurons_arrive_at_the_codes_of_the_others(name: str, cap: int) -> None:
    qann = quantized(name)
    plain, capped = ps.convert(qann), ps.convert(qann, ps.ConvertSpec(max_spikes_per_step=cap))
    moving = signal(name, 3, frames=4).double()
    for total in (1, 2, 4):
        _, expected = stream(plain, moving[:, :total])
        _, state = stream(capped, moving[:, :total])
        assert all(site.cap == cap for site in capped.sites().values() if isinstance(site, CappedNeuron))
        answer, drained = capped.drain(moving[:, 0], state)
        assert drained.drained > 0 == state.drained
        assert any(int((state.neurons[site].codes != part.codes).sum()) for site, part in expected.neurons.items())
        same_codes(*({site: part.codes for site, part in net.neurons.items()} for net in (drained, expected)))
        torch.testing.assert_close(answer, plain(moving[:, :total], time_dim=1), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(capped(moving[:, :total], time_dim=1), answer, rtol=0, atol=0)
        torch.testing.assert_close(
            capped(moving[:, :total], time_dim=1, execution="mean"), answer, rtol=1e-9, atol=1e-9
        )
        again, kept = capped.drain(moving[:, 0], drained)  # nothing waits any more
        assert torch.equal(again, answer) and kept.drained == drained.drained


def test_no_step_of_a_capped_network_fires_more_than_its_cap() -> None:
    qann = quantized("bottleneck")
    x = signal("bottleneck", 3).double()
    for cap in (1, 2):
        snn, seen = ps.convert(qann, ps.ConvertSpec(max_spikes_per_step=cap)), []
        with snn.observe(lambda site, t, spikes, seen=seen: seen.append((t, float(spikes.abs().max())))):
            snn(x, timesteps=2)
        assert {value for _, value in seen} <= set(range(cap + 1)) and max(value for _, value in seen) == cap
        assert max(t for t, _ in seen) > 2  # also what comes after the last input


def test_latency_falls_with_the_cap_and_adds_a_step_for_every_layer() -> None:
    qann, x = quantized("branched"), signal("branched", 3).double()
    found = {
        cap: ps.convert(qann, ps.ConvertSpec(max_spikes_per_step=cap)).latency(x, timesteps=2) for cap in (1, 2, 4, 100)
    }
    steps = [latency.steps for latency in found.values()]
    assert steps == sorted(steps, reverse=True) and steps[0] > steps[1] > steps[-1] == 2
    for latency in found.values():
        assert latency.inputs == 2 and latency.steps == 2 + latency.drained
        assert latency.depth == 4 and latency.pipeline == latency.steps + 3  # stem, one, the sum, side
    assert ps.convert(qann).latency(x).drained == 0


@pytest.mark.parametrize("spec", [ps.ConvertSpec(neuron="holding"), ps.ConvertSpec(max_spikes_per_step=1)])
@pytest.mark.parametrize("timesteps", [1, 3])
def test_verify_knows_the_variants(spec: ps.ConvertSpec, timesteps: int) -> None:
    qann = quantized("branched")
    x = signal("branched", 3).double()
    try:
        proof = ps.verify(qann, ps.convert(qann, spec), [x], timesteps=timesteps, scope=False)
    except SpecError:
        return  # to say that it cannot is right as well
    assert proof.exact, str(proof)


# --- windows, channels, copies -------------------------------------------------------------------------------------------


def test_a_window_starts_again() -> None:
    qann = quantized("squeeze")
    snn = ps.convert(qann, ps.ConvertSpec(window=3))
    plain = ps.convert(qann)
    frames = signal("squeeze", 2, frames=8).double()
    state: SpikingState | None = None
    for t in range(8):
        answer, state = snn.step(frames[:, t], state)
        first = 3 * (t // 3)
        assert torch.equal(answer, stream(plain, frames[:, first : t + 1])[0])
        assert state.timestep == t - first + 1


def test_frames_as_channels_are_one_first_timestep() -> None:
    sequence = signal("bottleneck", 3, frames=1).repeat(1, 1, 1, 1, 1)[:, :, :1].expand(
        -1, 2, -1, -1, -1
    ) * torch.tensor([1.0, -0.5]).view(
        1, 2, 1, 1, 1
    )  # (batch, 2 frames, 1 channel, 8, 8) for a network of two channels
    x = sequence.flatten(1, 2)
    qann = calibrated(network("bottleneck"), SPECS["by nature"], x)
    snn = ps.convert(qann, ps.ConvertSpec(reading="channels"))
    assert torch.equal(snn(sequence, time_dim=1), qann(x))
    assert torch.equal(snn(sequence.movedim(1, 2), time_dim=2), qann(x))
    assert torch.equal(snn(x), qann(x))
    with pytest.raises(SpecError, match="reading='channels' takes a sequence as one timestep, got 2"):
        snn(sequence, time_dim=1, timesteps=2)
    with pytest.raises(SpecError, match="reading='channels' needs all frames at once"):
        snn.step(x)
    with pytest.raises(ps.PolarspikeError, match="expected a sequence"):
        snn(sequence, time_dim=0)


@pytest.mark.parametrize(
    "spec", [ps.ConvertSpec(), ps.ConvertSpec(neuron="holding"), ps.ConvertSpec(max_spikes_per_step=2)]
)
@pytest.mark.parametrize("name", ["attention", "squeeze"])
def test_copies_and_files_answer_alike(name: str, spec: ps.ConvertSpec, tmp_path: Any) -> None:
    snn = ps.convert(quantized(name), spec)
    frames = signal(name, 2, frames=3).double()
    expected = snn(frames, time_dim=1, every_step=True)
    ps.save(snn, tmp_path / "net.safetensors")
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn)), ps.load(tmp_path / "net.safetensors")):
        assert torch.equal(other(frames, time_dim=1, every_step=True), expected)
        assert [type(site) for site in other.sites().values()] == [type(site) for site in snn.sites().values()]
    assert set(CURVED) & set(NETWORKS) == set()
