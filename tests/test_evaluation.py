"""Counting right answers and spikes, against numbers worked out by hand."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.common.modules import evaluating
from polarspike.errors import InputError, SpecError
from polarspike.evaluation import Firing, FiringCounter, Observer, Spiking, evaluate
from polarspike.readings import OverFrames
from tests.networks import calibrated, network, signal


class FakeSpiking(nn.Module):
    """Answers step t with row t of each sample: inputs (batch, T, classes), answers (T, batch, classes)."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[int] = []
        self._observers: list[Observer] = []

    @contextmanager
    def observe(self, callback: Observer) -> Iterator[None]:
        self._observers.append(callback)
        try:
            yield
        finally:
            self._observers.remove(callback)

    def forward(self, x: Tensor, timesteps: int = 1, every_step: bool = False) -> Tensor:
        assert every_step and not self.training
        self.calls.append(timesteps)
        for t in range(1, timesteps + 1):
            for callback in self._observers:
                callback("first", t, x.new_tensor([[2.0, 0.0, -3.0]]).expand(len(x), 3))
                callback("second", t, x.new_full((len(x), 2), 1.0 if t == 1 else -1.0))
        return x.movedim(1, 0)[:timesteps]


class Identity(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x


def one_hot(*classes: int) -> Tensor:
    return nn.functional.one_hot(torch.tensor(classes), 3).float()


def test_every_timestep_comes_from_one_run_of_the_longest() -> None:
    network = FakeSpiking().train()
    assert isinstance(network, Spiking) and not isinstance(Identity(), Spiking)
    # Three samples of class 0, 1, 2; after step 1 one is right, after 2 none, after 3 two, after 4 three.
    steps = torch.stack([one_hot(0, 0, 0), one_hot(1, 0, 0), one_hot(0, 1, 0), one_hot(0, 1, 2)], dim=1)
    loader = [(steps[:2], torch.tensor([0, 1])), (steps[2:], torch.tensor([2]))]
    result = evaluate(network, loader, timesteps=(4, 1, 3, 3))
    assert result.correct == {1: 1, 3: 2, 4: 3} and result.total == 3 and result.steps is None
    assert result.accuracy == {1: 1 / 3, 3: 2 / 3, 4: 1.0}
    assert network.calls == [4, 4] and network.training and not network._observers
    # Each image and step: events 2 at "first" (spikes 2 + 3, the 3 negative), 2 at "second" (negative after step 1).
    assert result.firing is not None
    assert result.firing[1] == Firing(events=12, spikes=21, negative_events=3, negative_spikes=9, pairs=15)
    assert result.firing[3] == Firing(events=36, spikes=63, negative_events=21, negative_spikes=39, pairs=15)
    assert result.firing[1].events_per_neuron == 12 / 15
    assert result.firing[1].spikes_per_neuron == 21 / 15
    assert result.firing[1].positive_spikes_per_neuron == 12 / 15
    assert result.firing[1].negative_spikes_per_neuron == 9 / 15


@pytest.mark.parametrize("over_frames", [False, True])
def test_capped_neurons_count_what_each_answer_waits_for_and_nothing_twice(over_frames: bool) -> None:
    qann = calibrated(network("branched"), ps.QuantSpec(2, 4), signal("branched", 4))
    snn = ps.convert(qann, ps.ConvertSpec(max_spikes_per_step=1))
    x = signal("branched", 4, frames=3) if over_frames else signal("branched", 4)
    found = evaluate(OverFrames(snn) if over_frames else snn, [(x, torch.zeros(4).long())], timesteps=(1, 3))
    assert found.firing is not None
    for T, fired in found.firing.items():
        counter = FiringCounter()
        with torch.no_grad(), snn.observe(counter):
            state = None
            for t in range(T):
                frame = x[:, t] if over_frames else x
                _, state = snn.step(frame, state)
            assert state is not None
            _, state = snn.drain(frame, state)
        assert state.drained and fired == counter.up_to()
        assert found.steps is not None and found.steps[T] == T + state.drained > T  # its true latency
        if not over_frames:
            codes = [site.codes for site in state.neurons.values()]
            assert fired.spikes >= sum(int(code.abs().sum()) for code in codes)
            assert fired.pairs == sum(code.numel() for code in codes)
            assert found.steps[T] == snn.latency(x, timesteps=T).steps
    assert [row["steps"] for row in found.to_dict()["rows"]] == [*found.steps.values()]
    heading, *rows = str(found).splitlines()
    assert heading.split()[3] == "steps" and [int(row.split()[3]) for row in rows] == [*found.steps.values()]
    assert len({len(heading), *map(len, rows)}) == 1


def test_the_table_shows_what_was_counted() -> None:
    loader = [(torch.stack([one_hot(0, 0), one_hot(0, 1)], dim=1), torch.tensor([0, 1]))]
    result = evaluate(FakeSpiking(), loader, timesteps=(1, 2))
    lines = str(result).splitlines()
    assert lines[0].split() == ["T", "accuracy", "correct", "events/neuron", "spikes/neuron", "positive", "negative"]
    assert lines[1].split() == ["1", "50.00%", "1/2", "0.8000", "1.4000", "0.8000", "0.6000"]
    assert lines[2].split()[:3] == ["2", "100.00%", "2/2"]
    assert len({len(line) for line in lines}) == 1
    assert result.to_dict()["rows"][0] == {
        "timesteps": 1, "correct": 1, "accuracy": 0.5,
        "events": 8, "spikes": 14, "negative_events": 2, "negative_spikes": 6, "pairs": 10,
    }  # fmt: skip


def test_a_network_without_time_answers_once() -> None:
    result = evaluate(Identity(), [(one_hot(0, 1, 1), torch.tensor([0, 1, 2], dtype=torch.uint8))])
    assert result.correct == {1: 2} and result.firing is None
    assert str(result).splitlines()[1].split() == ["1", "66.67%", "2/3"]
    assert result.to_dict() == {"total": 3, "rows": [{"timesteps": 1, "correct": 2, "accuracy": 2 / 3}]}
    with pytest.raises(SpecError, match="Identity has no time"):
        evaluate(Identity(), [], timesteps=(1, 2))


@pytest.mark.parametrize(
    "timesteps", [(), (0,), (1, -2), (1.0,), (True,), 2.0, True, "2", None, np.array([1.5]), torch.tensor([[1, 2]])]
)
def test_timesteps_are_positive_integers(timesteps: Any) -> None:
    with pytest.raises(SpecError, match="timesteps of at least 1"):
        evaluate(FakeSpiking(), [], timesteps=timesteps)


@pytest.mark.parametrize("timesteps", [np.int64(2), np.array([1, 2]), torch.tensor([2, 1]), iter((1, 2)), range(1, 3)])
def test_integers_of_other_libraries_are_timesteps(timesteps: Any) -> None:
    assert (
        max(
            evaluate(
                FakeSpiking(),
                [(torch.stack([one_hot(0, 0), one_hot(1, 1)]), torch.tensor([0, 1]))],
                timesteps=timesteps,
            ).correct
        )
        == 2
    )


def test_several_inputs_are_keywords() -> None:
    class Two(nn.Module):
        def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
            return left - right

    loader = [({"right": one_hot(1), "left": one_hot(2)}, torch.tensor([2]))]
    assert evaluate(Two(), loader).correct == {1: 1}


def test_modes_of_sub_modules_are_restored() -> None:
    network = nn.Sequential(nn.BatchNorm1d(3), nn.Sequential(nn.Dropout(), nn.Linear(3, 3)))
    network[0].eval()
    modes = [module.training for module in network.modules()]
    with pytest.raises(KeyError), evaluating(network):
        assert not any(module.training for module in network.modules())
        raise KeyError
    assert [module.training for module in network.modules()] == modes
    before = network[0].running_mean.clone()
    evaluate(network.train(), [(torch.randn(4, 3), torch.tensor([0, 1, 2, 0]))])
    assert torch.equal(network[0].running_mean, before)


GOOD = (torch.zeros(2, 3), torch.tensor([0, 2]))


@pytest.mark.parametrize(
    ("batch", "message"),
    [
        (torch.zeros(2, 3), "expected \\(inputs, target\\), got Tensor"),
        ((GOOD[0], GOOD[0], GOOD[1]), "got 3 values"),
        ((GOOD[0], GOOD[1].float()), "class indices as an integer tensor.*float32 of shape \\(2,\\)"),
        ((GOOD[0], one_hot(0, 1).long()), "int64 of shape \\(2, 3\\)"),
        ((GOOD[0], [0, 2]), "got list"),
        (([GOOD[0]], GOOD[1]), "inputs as a tensor or a dict of tensors, got list"),
        ((torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)), "the batch is empty"),
        ((GOOD[0], torch.tensor([0, 3])), "sample 1: expected a class in 0..2, got 3"),
        ((GOOD[0], torch.tensor([-1, 2])), "sample 0: expected a class in 0..2, got -1"),
        ((torch.zeros(3, 3), GOOD[1]), "output of shape \\(2, classes\\), got torch.float32 of shape \\(3, 3\\)"),
        ((torch.zeros(2, 3, 1), GOOD[1]), "output of shape \\(2, classes\\)"),
        ((torch.tensor([[0, 0, 0], [0, float("nan"), 0]]), GOOD[1]), "timestep 1, sample 1: the output is NaN"),
        ((torch.tensor([[0, 0, 0], [0, 0, -float("inf")]]), GOOD[1]), "timestep 1, sample 1: the output is NaN"),
    ],
)
def test_wrong_batches_are_named(batch: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"evaluate, batch 1.*{message}"):
        evaluate(Identity(), [GOOD, batch])


def test_nan_at_a_later_timestep_is_named() -> None:
    steps = torch.zeros(2, 3, 3)
    steps[1, 2, 0] = float("nan")
    assert evaluate(FakeSpiking(), [(steps, GOOD[1])], timesteps=(1, 2)).total == 2
    with pytest.raises(InputError, match="batch 0, timestep 3, sample 1"):
        evaluate(FakeSpiking(), [(steps, GOOD[1])], timesteps=(1, 3))


def test_an_empty_loader_has_no_accuracy() -> None:
    with pytest.raises(InputError, match="the loader gave no samples"):
        evaluate(Identity(), [])


def test_counts_are_exact_beyond_float32() -> None:
    counter = FiringCounter()
    spikes = torch.full((1, 3), 2.0**24)
    spikes[0, 2] = -1.0
    counter("site", 1, spikes)
    counter("other", 1, torch.ones(1, 2, 2))
    assert counter.sites == ["site", "other"]
    assert counter.up_to(1, "site") == Firing(3, 2**25 + 1, 1, 1, 3)
    assert counter.up_to(1) == Firing(7, 2**25 + 5, 1, 1, 7)
    assert FiringCounter().up_to(1) == Firing(0, 0, 0, 0, 0) and Firing(0, 0, 0, 0, 0).events_per_neuron == 0.0
