"""What is told of a spiking network: its spikes to observers, its parts in the report."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import polarspike as ps
from polarspike.spiking import SpikingState
from tests.networks import signal
from tests.spiking.pairs import pair

pytestmark = pytest.mark.usefixtures("no_grad")


class TestObserving:
    @pytest.mark.parametrize("execution", ["steps", "mean"])
    @pytest.mark.parametrize("total", [1, 4])
    def test_spikes_sum_to_codes(self, total: int, execution: Any) -> None:
        qann, snn = pair()
        x = signal("branched", 3)
        sums: dict[str, Tensor] = {}
        calls: list[tuple[str, int]] = []

        def observer(site: str, timestep: int, spikes: Tensor) -> None:
            calls.append((site, timestep))
            sums[site] = sums.get(site, torch.zeros(())) + spikes

        expected = snn(x, timesteps=total)
        with snn.observe(observer):
            assert torch.equal(snn(x, timesteps=total, execution=execution), expected)
        assert calls == [(site, t) for t in range(1, total + 1) for site in snn.sites()]
        state: SpikingState | None = None
        for _ in range(total):
            _, state = snn.step(x, state)
        assert state is not None
        for site, codes in sums.items():
            assert torch.equal(codes, state.neurons[site].codes)
        snn(x, timesteps=total)
        assert len(calls) == total * len(qann.sites())  # nothing is observed outside the context

    def test_frames_are_observed_each_as_a_first_timestep(self) -> None:
        qann, snn = pair(spec=ps.ConvertSpec(reading="frames"))
        frames = signal("branched", 3, frames=3)
        seen: dict[tuple[str, int], Tensor] = {}
        expected = snn(frames, time_dim=1)
        with snn.observe(lambda site, t, spikes: seen.__setitem__((site, t), spikes)):
            assert torch.equal(snn(frames, time_dim=1), expected)
        assert list(seen) == [(site, t) for t in (1, 2, 3) for site in qann.sites()]
        first = next(iter(qann.sites()))
        with snn.observe(lambda site, t, spikes: site == first and torch.testing.assert_close(spikes, seen[site, 2])):
            snn.step(frames[:, 1])

    def test_what_waits_for_an_earlier_answer_is_not_observed(self) -> None:
        _, snn = pair(spec=ps.ConvertSpec(max_spikes_per_step=1))
        x = signal("branched", 3)
        runs: list[list[tuple[str, int, Tensor]]] = [[], []]
        for every_step, seen in enumerate(runs):
            with snn.observe(lambda site, t, spikes, seen=seen: seen.append((site, t, spikes))):
                answer = snn(x, timesteps=2, every_step=bool(every_step))
        assert torch.equal(answer, torch.stack([snn(x), snn(x, timesteps=2)]))
        assert [call[:2] for call in runs[0]] == [call[:2] for call in runs[1]]
        assert len({call[:2] for call in runs[0]}) == len(runs[0])  # each site once a step
        assert all(torch.equal(one[2], other[2]) for one, other in zip(*runs, strict=True))

    def test_observers_may_nest(self) -> None:
        _, snn = pair()
        x = signal("branched", 2)
        outer: list[str] = []
        inner: list[str] = []
        with snn.observe(lambda site, t, spikes: outer.append(site)):
            with snn.observe(lambda site, t, spikes: inner.append(site)):
                snn(x)
            snn(x)
        assert len(outer) == 2 * len(inner) == 2 * len(snn.sites())


def test_the_report_says_what_became_what() -> None:
    _, snn = pair()
    assert "relu: quantizer -> neuron, levels (2, 4)" in snn.report
    assert "pool: MaxPool2d -> difference on sums" in snn.report
    assert "drop: dropout -> removed" in snn.report
    assert "head: Linear -> as it is" in snn.report
