"""Where spikes arrive in the event-by-event simulator: inboxes, outputs, and junctions that answer with a current.

Nothing of ``ops``, of the neurons' law or of the operators in time is used here, and no graph is known.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from polarspike.proofs.layouts import Layout, less


class Inbox:
    """One signal that a junction reads: what arrives in a timestep, by spikes and as current, is added up.

    Args:
        name: of the junction, for messages.
        layout: of the signal.
        batch: the number of samples.
        counts: a spike arrives as +-1, whatever its value.
    """

    def __init__(self, name: str, layout: Layout, batch: int, counts: bool = False) -> None:
        self.name, self.layout, self.counts = name, layout, counts
        self.sums = torch.zeros(batch, layout.shape.numel(), dtype=torch.float64)  # (batch, positions)

    def collect(self, graded: Tensor) -> Tensor:
        """What arrived in this timestep, (batch, positions), by spikes and as current; empties the inbox."""
        arrived = self.sums + graded
        self.sums.zero_()
        return arrived


class Junction(ABC):
    """Where spikes arrive: a site, a max pooling, any other operator that is not affine.

    Args:
        name: for messages and results.
        inboxes: one per signal that it reads.
    """

    def __init__(self, name: str, inboxes: Sequence[Inbox]) -> None:
        self.name, self.inboxes = name, list(inboxes)

    @abstractmethod
    def step(self, graded: Sequence[Tensor], timestep: int) -> Any:
        """Take what arrives in one timestep; return what goes on as a graded signal.

        Args:
            graded: for each inbox what arrives as current, (batch, positions).
            timestep: t = 1, 2, ...
        """


class GradedJunction(Junction):
    """An operator f that is not affine: after t steps it has injected ``t f(S / t)``, S being all that arrived.

    Args:
        name: for results.
        inboxes: one per signal.
        function: f of the signals, each in its own shape; its answer may hold several tensors.
    """

    def __init__(self, name: str, inboxes: Sequence[Inbox], function: Callable[[list[Tensor]], Any]) -> None:
        super().__init__(name, inboxes)
        self.function = function
        self.totals = [torch.zeros_like(inbox.sums) for inbox in self.inboxes]
        self.said: Any = None  # what was injected so far
        self.injected = 0

    def step(self, graded: Sequence[Tensor], timestep: int) -> Any:
        self.totals = [
            total + inbox.collect(current)
            for total, inbox, current in zip(self.totals, self.inboxes, graded, strict=True)
        ]
        means = [inbox.layout.shaped(total / timestep) for inbox, total in zip(self.inboxes, self.totals, strict=True)]
        goal = pytree.tree_map(lambda leaf: leaf * timestep if _is_real(leaf) else leaf, self.function(means))
        said = pytree.tree_map(_nothing, goal) if self.said is None else self.said
        change = pytree.tree_map(lambda new, old: less(new, old) if _is_real(new) else new, goal, said)
        self.said = goal
        self.injected += sum(int(leaf.count_nonzero()) for leaf in pytree.tree_leaves(change) if _is_real(leaf))
        return change


class FrameJunction(GradedJunction):
    """An operator that is not affine and works on every frame by itself: it injects f of what arrives in this one."""

    def step(self, graded: Sequence[Tensor], timestep: int) -> Any:
        del timestep
        arrived = [inbox.collect(current) for inbox, current in zip(self.inboxes, graded, strict=True)]
        answer = self.function([inbox.layout.shaped(total) for inbox, total in zip(self.inboxes, arrived, strict=True)])
        self.injected += sum(int(leaf.count_nonzero()) for leaf in pytree.tree_leaves(answer) if _is_real(leaf))
        return answer


class Output(Junction):
    """Adds up one leaf of the network's output."""

    def __init__(self, inbox: Inbox) -> None:
        super().__init__(inbox.name, [inbox])
        self.total = torch.zeros_like(inbox.sums)

    def step(self, graded: Sequence[Tensor], timestep: int) -> Tensor:
        """Add what arrives in one timestep; return the sum so far, in the shape of the output."""
        del timestep
        self.total = self.total + self.inboxes[0].collect(graded[0])
        return self.inboxes[0].layout.shaped(self.total)


def _is_real(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _nothing(value: Any) -> Any:
    return torch.zeros_like(value) if _is_real(value) else value
