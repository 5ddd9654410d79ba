"""Neurons and comparators of the event-by-event simulator, each by itself."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from polarspike.proofs.junctions import Inbox
from polarspike.proofs.layouts import Layout
from polarspike.proofs.units import HoldingNeurons, Neurons, windows_of

LINE = Layout(0, torch.Size([1, 81]))


def wired(neurons: Neurons) -> Neurons:
    step = torch.full((81,), 0.5, dtype=torch.float64)
    neurons.wire(LINE, step, step, lambda unit, keys: None)
    return neurons


def currents() -> Tensor:
    """Quarters of a step, which are exact in binary, so that ties are real ties."""
    line = torch.arange(-40, 41, dtype=torch.float64).view(1, -1) / 4 * 0.5
    return torch.cat([line, line.flip(1), line.roll(17, 1)])


@pytest.mark.parametrize("levels", [(0, 3), (2, 2), (3, 1)])
def test_the_fire_rule_gives_the_code_of_the_closed_law(levels: tuple[int, int]) -> None:
    neurons = wired(Neurons("site", [Inbox("site", LINE, 3)], levels))
    total = torch.zeros_like(currents())
    for timestep, order in enumerate(([0, 1, 2], [1, 2, 0], [2, 2, 1], [0, 0, 0]), start=1):
        total += currents()[order]
        neurons.step([currents()[order]], timestep)
        for code, value in zip(neurons.codes.flatten().tolist(), total.flatten().tolist(), strict=True):
            assert code == max(-levels[0] * timestep, min(levels[1] * timestep, math.floor(value / 0.5 + 0.5)))


@pytest.mark.parametrize("levels", [(0, 3), (2, 2)])
def test_holding_neurons_keep_the_grid_of_the_mean(levels: tuple[int, int]) -> None:
    neurons = wired(HoldingNeurons("site", [Inbox("site", LINE, 3)], levels))
    total = torch.zeros_like(currents())
    for timestep, order in enumerate(([0, 1, 2], [1, 2, 0], [2, 2, 1]), start=1):
        total += currents()[order]
        neurons.step([currents()[order]], timestep)
        # Sixths of a step do not round to a tie: the sum is compared with t times the boundary, on both sides.
        for code, value in zip(neurons.codes.flatten().tolist(), total.flatten().tolist(), strict=True):
            held = math.floor((value + 0.25 * timestep) / (0.5 * timestep))
            assert code == timestep * max(-levels[0], min(levels[1], held))


def test_capped_neurons_fire_at_most_their_cap_and_the_rest_waits() -> None:
    free, capped = (wired(Neurons("site", [Inbox("site", LINE, 3)], (2, 5), cap)) for cap in (None, 2))
    before = torch.zeros_like(capped.codes)
    for timestep in (1, 2):
        free.step([currents()], timestep)
        capped.step([currents()], timestep)
        assert int((capped.codes - before).abs().max()) == 2
        before = capped.codes.clone()
    assert capped.waits(2) and not free.waits(2) and not torch.equal(free.codes, capped.codes)
    while capped.waits(2):
        capped.step([torch.zeros_like(currents())], 2)
    assert torch.equal(free.codes, capped.codes) and torch.equal(free.margin(2), capped.margin(2))


def test_windows_leave_implicit_padding_out() -> None:
    windows = windows_of(nn.MaxPool1d(3, stride=2, padding=1), (5,))
    assert [sorted(set(window)) for window in windows.tolist()] == [[0, 1], [1, 2, 3], [3, 4]]
