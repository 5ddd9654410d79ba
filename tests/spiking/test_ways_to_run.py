"""Every way to run a spiking network gives the answers of the others: steps, sequences, streams and means."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

import polarspike as ps
from polarspike.common.frames import running_means
from polarspike.errors import InputError, SpecError
from polarspike.spiking import SpikingState
from tests.networks import NETWORKS, calibrated, network, signal
from tests.spiking.pairs import pair

pytestmark = pytest.mark.usefixtures("no_grad")


class TestWaysToRun:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_every_step_is_a_prefix_property(self, name: str) -> None:
        _, snn = pair(name)
        x = signal(name, 3)
        curve = snn(x, timesteps=5, every_step=True)
        assert curve.shape[0] == 5
        for t in range(1, 6):
            assert torch.equal(curve[t - 1], snn(x, timesteps=t))
        assert torch.equal(curve[0], snn(x))

    def test_every_step_of_a_sequence_is_a_prefix_property(self) -> None:
        _, snn = pair()
        frames = signal("branched", 3, frames=4)
        curve = snn(frames, time_dim=1, every_step=True)
        for t in range(1, 5):
            assert torch.equal(curve[t - 1], snn(frames[:, :t], time_dim=1))
        means = snn(frames, time_dim=1, every_step=True, execution="mean")
        for t in range(1, 5):
            assert torch.equal(means[t - 1], snn(frames[:, :t], time_dim=1, execution="mean"))

    @pytest.mark.parametrize("position", [0, 1, 2, 4, -1, -3])
    def test_time_may_be_in_any_dimension(self, position: int) -> None:
        _, snn = pair()
        frames = [signal("branched", 3, seed=seed) for seed in (1, 2, 3)]
        sequence = torch.stack(frames, dim=position)
        state: SpikingState | None = None
        for frame in frames:
            y, state = snn.step(frame, state)
        assert torch.equal(snn(sequence, time_dim=position), y)
        assert torch.equal(snn(sequence, time_dim=position, timesteps=3), y)  # saying the length is allowed

    def test_a_sequence_of_one_frame_is_the_first_timestep(self) -> None:
        _, snn = pair()
        x = signal("branched", 3)
        assert torch.equal(snn(x.unsqueeze(1), time_dim=1), snn(x))

    def test_a_repeated_frame_is_the_repeated_input(self) -> None:
        _, snn = pair()
        x = signal("branched", 3)
        sequence = x.unsqueeze(1).expand(-1, 4, -1, -1, -1)
        assert torch.equal(snn(sequence, time_dim=1), snn(x, timesteps=4))
        assert torch.equal(
            snn(sequence, time_dim=1, execution="mean"), snn(x, timesteps=4, execution="mean")
        )  # the mean of equal frames is not rounded

    def test_streaming_equals_forward(self) -> None:
        _, snn = pair()
        x, state = signal("branched", 3), None
        for t in range(1, 6):
            y, state = snn.step(x, state)
            assert state.timestep == t
            assert torch.equal(y, snn(x, timesteps=t))

    def test_a_state_is_a_value_and_may_branch(self) -> None:
        _, snn = pair()
        a, b = signal("branched", 3, seed=1), signal("branched", 3, seed=2)
        _, state = snn.step(a)
        kept = copy.deepcopy(state)
        left, _ = snn.step(a, state)
        right, _ = snn.step(b, state)
        again, _ = snn.step(a, state)
        assert torch.equal(left, again)
        assert not torch.equal(left, right)
        assert state.timestep == kept.timestep == 1
        assert len(state.neurons) == len(snn.sites())
        for now, before in zip(pytree.tree_leaves(vars(state.walk)), pytree.tree_leaves(vars(kept.walk)), strict=True):
            assert torch.equal(now, before)
        assert torch.equal(state.mean, kept.mean)

    def test_frames_reading_averages_first_timesteps(self) -> None:
        qann, snn = pair(spec=ps.ConvertSpec(reading="frames"))
        frames = signal("branched", 3, frames=4)
        single = torch.stack([qann(frames[:, t]) for t in range(4)])
        curve = snn(frames, time_dim=1, every_step=True)
        for t in range(4):
            torch.testing.assert_close(curve[t], single[: t + 1].mean(0))
        assert torch.equal(snn(frames, time_dim=1), curve[-1])
        integrating = ps.convert(qann)
        assert not torch.allclose(integrating(frames, time_dim=1), curve[-1])  # another network altogether
        # One image again and again: every step is its first timestep.
        torch.testing.assert_close(snn(frames[:, 0], timesteps=3), qann(frames[:, 0]))
        with pytest.raises(SpecError, match="takes every frame as a first timestep"):
            ps.verify(qann, snn, [frames[:, 0]], timesteps=2)

    def test_the_mean_domain_keeps_half_precision_means_wide(self) -> None:
        frames = [torch.full((1, 2), value, dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0, 1.0)]
        *_, mean = running_means(frames)
        assert isinstance(mean, Tensor)
        assert mean.dtype == torch.bfloat16
        assert torch.equal(mean, torch.full((1, 2), 64.75).bfloat16())

    def test_an_empty_batch_passes(self) -> None:
        qann, snn = pair()
        x = signal("branched", 2)[:0]
        assert qann(x).shape == snn(x).shape == snn(x, timesteps=3).shape == (0, 4)

    def test_other_spatial_sizes_pass_where_the_network_takes_them(self) -> None:
        qann, snn = pair("leaky")
        x = torch.randn(2, 2, 19, 17)
        assert torch.equal(snn(x), qann(x))
        _, plain = pair("plain")
        for timesteps in (1, 2):
            with pytest.raises(
                InputError, match=r"has shape \(2, 2, 19, 17\) where the example had \(batch, 2, 8, 8\)"
            ):
                plain(x, timesteps=timesteps)


def test_streaming_frames_averages_first_timesteps() -> None:
    model = network("plain", 0)
    x = signal("plain", batch=3, frames=4, seed=5)
    snn = ps.convert(calibrated(model, ps.QuantSpec(2, 5, signed="all"), x[:, 0]), ps.ConvertSpec(reading="frames"))
    state = None
    with torch.no_grad():
        for t in range(4):
            y, state = snn.step(x[:, t], state)
        expected = torch.stack([snn(x[:, t]) for t in range(4)]).mean(0)
        assert torch.allclose(y, expected, atol=1e-6)
        assert torch.allclose(snn(x, time_dim=1), expected, atol=1e-6)
