"""Neurons of direct training: their potentials by hand, and their gradients by formula."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from polarspike.baselines.leaky import IntegerNeuron, LeakyNeuron, TernaryNeuron
from polarspike.specs import SiteSpec


def fired(neuron: LeakyNeuron, *currents: float) -> list[float]:
    return neuron.train_of(torch.tensor(currents).view(-1, 1, 1)).spikes.flatten().tolist()


def test_lif_leaks_and_forgets_where_it_fires() -> None:
    # u: .8, 1.2 -> fires and starts at 0, .9, 1.35 -> fires
    assert fired(LeakyNeuron(SiteSpec(0, 1)), 0.8, 0.8, 0.9, 0.9) == [0.0, 1.0, 0.0, 1.0]
    # u: .8, .85: the rest of .05 is less than a quarter of what came
    assert fired(LeakyNeuron(SiteSpec(0, 1), leak=0.0625), 0.8, 0.8, 0.8) == [0.0, 0.0, 0.0]


def test_plif_learns_its_leak() -> None:
    neuron = LeakyNeuron(SiteSpec(0, 1), learned=True)
    assert neuron.raw_decay is not None and math.isclose(torch.sigmoid(neuron.raw_decay).item(), 0.5)
    # u: .75, .75 + (1.5 - .75) / 2 = 1.125 -> fires and starts at 0
    assert fired(neuron, 1.5, 1.5, 1.9) == [0.0, 1.0, 0.0]
    neuron.train_of(torch.tensor([0.8, 0.3]).view(2, 1, 1)).spikes.sum().backward()
    # u[1] = a .8 = .4; u[2] = .4 + a (.3 - .4) = .35; dk/du is 1 / (1 + (pi (u - 1))^2), da/dw = a (1 - a)
    first, second = 1 / (1 + (math.pi * 0.6) ** 2), 1 / (1 + (math.pi * 0.65) ** 2)
    expected = 0.25 * (first * 0.8 + second * (0.8 * 0.5 + 0.3 - 0.4))
    assert neuron.raw_decay.grad is not None and math.isclose(float(neuron.raw_decay.grad), expected, rel_tol=1e-5)


def test_plif_learns_at_one_timestep() -> None:
    neuron = LeakyNeuron(SiteSpec(0, 1), learned=True)
    neuron.train_of(torch.full((1, 1, 1), 0.8)).spikes.sum().backward()
    assert neuron.raw_decay is not None and neuron.raw_decay.grad is not None and float(neuron.raw_decay.grad) > 0.0


def test_ternary_spikes_have_both_signs_and_a_learned_value() -> None:
    neuron = TernaryNeuron(SiteSpec(1, 1))
    # u: .4, .4 / 4 + .45 = .55 -> 1, -.7 -> -1, .1
    assert fired(neuron, 0.4, 0.45, -0.7, 0.1) == [0.0, 1.0, -1.0, 0.0]
    neuron.decode(neuron.train_of(torch.full((1, 1, 3), 0.9)).spikes[0]).sum().backward()
    assert neuron.offset.grad is not None and float(neuron.offset.grad) == 3.0


def test_integer_spikes_are_worth_a_part_each() -> None:
    neuron = IntegerNeuron(SiteSpec(0, 4))
    # u: 2.6 -> 3; (2.6 - 3) / 4 + 1.7 = 1.6 -> 2; 9.9 -> 4
    assert fired(neuron, 2.6, 1.7, 10.0) == [3.0, 2.0, 4.0]
    assert neuron(torch.tensor([[2.6]])).tolist() == [[0.75]]


@pytest.mark.parametrize(
    ("neuron", "at", "slope"),
    [
        (LeakyNeuron(SiteSpec(0, 1)), 1.0, 1.0),
        (LeakyNeuron(SiteSpec(0, 1)), 0.0, 1 / (1 + math.pi**2)),
        (TernaryNeuron(SiteSpec(1, 1)), -0.6, 1.0),
        (TernaryNeuron(SiteSpec(1, 1)), 1.2, 0.0),
        (IntegerNeuron(SiteSpec(0, 4)), 2.2, 1.0),
        (IntegerNeuron(SiteSpec(0, 4)), 6.0, 0.0),
    ],
)
def test_the_surrogate_gradient(neuron: LeakyNeuron, at: float, slope: float) -> None:
    x: Tensor = torch.tensor([[[at]]], requires_grad=True)
    neuron.train_of(x).spikes.sum().backward()
    assert x.grad is not None and math.isclose(float(x.grad), slope, rel_tol=1e-5)


def test_no_gradient_passes_through_a_reset() -> None:
    x = torch.tensor([1.5, 0.2]).view(2, 1, 1).requires_grad_()
    LeakyNeuron(SiteSpec(0, 1)).train_of(x).spikes[1].sum().backward()
    # u[2] = b u[1] (1 - k[1]) + I[2] with k[1] = 1 held constant
    assert x.grad is not None and float(x.grad[0]) == 0.0 and float(x.grad[1]) > 0.0
