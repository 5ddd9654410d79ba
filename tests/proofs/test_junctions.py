"""Junctions that answer with a current."""

from __future__ import annotations

import torch
from torch import Tensor

from polarspike.proofs.junctions import GradedJunction, Inbox, Output
from polarspike.proofs.layouts import Layout

LINE = Layout(0, torch.Size([1, 3]))


def test_a_graded_junction_has_injected_t_times_f_of_the_mean() -> None:
    inboxes = [Inbox("product", LINE, 2), Inbox("product", LINE, 2)]
    junction = GradedJunction("product", inboxes, lambda values: (values[0] * values[1].exp(), torch.tensor(3)))
    torch.manual_seed(0)
    spikes, currents = torch.randn(2, 4, 2, 2, 3, dtype=torch.float64)  # by spikes and as current: step, inbox
    injected = torch.zeros(2, 3, dtype=torch.float64)
    for timestep in range(1, 5):
        for inbox, arriving in zip(inboxes, spikes[timestep - 1], strict=True):
            inbox.sums += arriving
        change, constant = junction.step(list(currents[timestep - 1]), timestep)
        injected += change
        left, right = (spikes + currents)[:timestep].mean(0)
        torch.testing.assert_close(injected, timestep * left * right.exp())
        assert int(constant) == 3 and all(not bool(inbox.sums.any()) for inbox in inboxes)
    assert junction.injected == 4 * 6


def test_what_is_masked_stays_masked() -> None:
    inbox = Inbox("softmax", LINE, 1)
    junction = GradedJunction("softmax", [inbox], lambda values: values[0].softmax(-1))
    scores = torch.tensor([[1.0, 2.0, -torch.inf]], dtype=torch.float64)
    total: Tensor = junction.step([scores], 1) + junction.step([scores + 1], 2)
    torch.testing.assert_close(total, 2 * scores.softmax(-1))


def test_an_output_adds_up() -> None:
    output = Output(Inbox("head", LINE, 1))
    output.step([torch.ones(1, 3, dtype=torch.float64)], 1)
    assert output.step([torch.ones(1, 3, dtype=torch.float64)], 2).tolist() == [[2.0, 2.0, 2.0]]
