"""Each rival neuron has the property that its authors state, on inputs whose answer is known."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polarspike import ops
from polarspike.baselines.neurons import (
    BinaryNeuron,
    MultiSpikeNeuron,
    OffsetSpikeNeuron,
    ResidualMembraneNeuron,
    SignedMemoryNeuron,
)
from polarspike.specs import SiteSpec
from polarspike.spiking.sequences import SequenceNeuron


def made(
    kind: type[SequenceNeuron], threshold: float, levels: tuple[int, int] = (0, 1), **options: float
) -> SequenceNeuron:
    neuron = kind(SiteSpec(*levels), "site", **options)
    neuron.set_step(threshold)
    return neuron


def spikes(neuron: SequenceNeuron, *currents: float) -> list[float]:
    with torch.no_grad():
        return neuron.train_of(torch.tensor(currents).view(-1, 1, 1)).spikes.flatten().tolist()


@pytest.mark.parametrize("timesteps", [1, 2, 4, 7])
def test_qcfs_fires_what_its_quantizer_says_when_input_is_constant_and_t_is_l(timesteps: int) -> None:
    threshold = 1.5
    x = torch.linspace(-1.0, 3.0, 4001).view(1, -1)
    x = x[:, ((x / threshold * timesteps + 0.5) % 1 - 0.5).flatten().abs() < 0.499]  # away from a boundary
    fired = made(BinaryNeuron, threshold).train_of(x.expand(timesteps, *x.shape)).spikes.sum(0)
    assert torch.equal(fired, ops.encode(x, threshold / timesteps, 0, timesteps))


def test_qcfs_cannot_take_back_what_uneven_input_made_it_fire() -> None:
    assert spikes(made(BinaryNeuron, 1.0), 1.0, 0.0, -1.0) == [1.0, 0.0, 0.0]  # the sum is zero


def test_the_plain_neuron_starts_empty_and_fires_later() -> None:
    assert spikes(made(BinaryNeuron, 1.0, start=0.0), 0.6, 0.6, 0.6, 0.6) == [0.0, 1.0, 0.0, 1.0]
    assert spikes(made(BinaryNeuron, 1.0), 0.6, 0.6, 0.6, 0.6) == [1.0, 0.0, 1.0, 0.0]


def test_signed_neuron_with_memory_takes_back_only_what_it_fired() -> None:
    assert spikes(made(SignedMemoryNeuron, 1.0), 1.0, -1.0, -1.0, -1.0) == [1.0, -1.0, 0.0, 0.0]
    # What stays in the membrane must be filled up first.
    assert spikes(made(SignedMemoryNeuron, 1.0), -1.0, 1.0, 1.0, 1.0) == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("timesteps", [1, 3, 8])
def test_one_step_of_many_spikes_is_many_steps_of_one(timesteps: int) -> None:
    # Temporal-to-spatial equivalence (2510.23383): theta_M = theta / T, and T times the input of a step at once.
    x = torch.rand(1, 500) * 2
    once = made(MultiSpikeNeuron, 1.0 / timesteps, (0, timesteps)).train_of(x.unsqueeze(0)).spikes[0]
    many = made(BinaryNeuron, 1.0).train_of(x.expand(timesteps, 1, 500)).spikes.sum(0)
    near = ((x * timesteps + 0.5) % 1 - 0.5).abs() > 0.4999
    assert torch.equal(once[~near], many[~near])


def test_a_group_fires_no_more_than_its_members_and_keeps_the_rest() -> None:
    assert spikes(made(MultiSpikeNeuron, 1.0, (0, 3)), 5.0, 0.0, 0.0) == [3.0, 2.0, 0.0]


def test_a_negative_residue_silences_the_neuron() -> None:
    over = [1.0, 1.0, -2.5]  # fires twice, though the sum is negative
    assert spikes(made(BinaryNeuron, 1.0), *over) == [1.0, 1.0, 0.0]
    fired = spikes(made(ResidualMembraneNeuron, 1.0, rehearsal=3), *over, *over)
    assert fired == [1.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    even = [0.6, 0.6, 0.6]
    alone = spikes(made(BinaryNeuron, 1.0), *even)
    assert spikes(made(ResidualMembraneNeuron, 1.0, rehearsal=3), *even, *even)[3:] == alone


def test_an_offset_spike_is_corrected() -> None:
    too_many = [1.0, 0.0, -1.0, -0.2]
    assert sum(spikes(made(BinaryNeuron, 1.0), *too_many)) == 1.0
    assert sum(spikes(made(OffsetSpikeNeuron, 1.0, rehearsal=4), *too_many)) == 0.0
    too_few = [-1.0, -1.0, 2.0, 2.0]  # the sum is 2: the membrane still holds a spike
    assert sum(spikes(made(BinaryNeuron, 1.0), *too_few)) == 1.0
    assert sum(spikes(made(OffsetSpikeNeuron, 1.0, rehearsal=4), *too_few)) == 2.0
    right = [0.6, 0.6, 0.6, 0.6]
    train = made(OffsetSpikeNeuron, 1.0, rehearsal=4).train_of(torch.tensor(right).view(-1, 1, 1))
    assert train.spikes.flatten().tolist() == spikes(made(BinaryNeuron, 1.0), *right)
    assert train.rehearsal is not None and train.rehearsal.flatten().tolist() == train.spikes.flatten().tolist()


def test_a_rehearsal_longer_than_the_run_begins_again_with_its_inputs() -> None:
    neuron = made(OffsetSpikeNeuron, 1.0, rehearsal=4)
    assert len(neuron.train_of(torch.ones(1, 1, 1)).rehearsal) == 4
    assert spikes(neuron, 1.0) == [1.0]


def test_a_threshold_per_channel_is_read_along_the_channels() -> None:
    neuron = BinaryNeuron(SiteSpec(0, 1, channels=2), "site", 0.0)
    neuron.set_step(torch.tensor([1.0, 4.0]))
    x = torch.full((1, 1, 2, 3), 2.0)
    assert neuron.train_of(x).spikes.flatten().tolist() == [1.0] * 3 + [0.0] * 3
    assert neuron(x[0]).flatten().tolist() == [1.0] * 3 + [0.0] * 3


def test_every_spike_is_worth_the_threshold() -> None:
    x = torch.tensor([[0.1, 2.0, 7.0]])
    values: Tensor = made(MultiSpikeNeuron, 2.0, (0, 2))(x)
    assert values.tolist() == [[0.0, 2.0, 4.0]]
