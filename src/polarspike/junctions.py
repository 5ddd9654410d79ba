"""Spikes that arrive, add up and fire: the parts of the event-by-event simulator that know no graph.

A :class:`Unit` fires unit spikes; each adds its column of :class:`Synapses` to the inbox of every :class:`Junction`
that it reaches. :mod:`polarspike.simulator` puts them together. Nothing of ``ops`` or of the neurons' law is used here.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polarspike.errors import InputError

# Additions per piece of work: 32 MB in float64.
_PIECE = 1 << 22


class Junction(ABC):
    """Where spikes arrive: a site, a max pooling or an output.

    Args:
        name: for messages and results.
        shape: of one sample of what it receives.
        batch: the number of samples.
    """

    counts = False  # True: a spike arrives as +-1, whatever its value

    def __init__(self, name: str, shape: torch.Size, batch: int) -> None:
        self.name, self.shape = name, shape
        self.inbox = torch.zeros(batch, math.prod(self.shape), dtype=torch.float64)  # (batch, positions)

    @abstractmethod
    def step(self, graded: Tensor, timestep: int) -> Tensor:
        """Take what arrives in one timestep; return what goes on as a graded signal, (batch, ...)."""

    def collect(self, graded: Tensor) -> Tensor:
        """What arrived in this timestep, by spikes and as current; empties the inbox."""
        arrived = self.inbox + graded.reshape(self.inbox.shape)
        self.inbox.zero_()
        return arrived

    def shaped(self, values: Tensor) -> Tensor:
        """Flat values as (batch, ...)."""
        return values.view(len(values), *self.shape)


class Output(Junction):
    """Adds up one leaf of the network's output."""

    total: Tensor

    def __init__(self, name: str, shape: torch.Size, batch: int) -> None:
        super().__init__(name, shape, batch)
        self.total = self.shaped(torch.zeros_like(self.inbox))

    def step(self, graded: Tensor, timestep: int) -> Tensor:
        """Add what arrives in one timestep; return the sum so far, (batch, ...)."""
        del timestep
        self.total = self.total + self.shaped(self.collect(graded))
        return self.total


class GradedPool(Junction):
    """Max pooling of analog sums: injects f(S[t]) - f(S[t-1]), S being everything that arrived so far."""

    def __init__(self, name: str, shape: torch.Size, batch: int, operator: nn.Module) -> None:
        super().__init__(name, shape, batch)
        self.operator = operator
        self.total = torch.zeros_like(self.inbox)
        self.response: Tensor | float = 0.0
        self.injected = 0

    def step(self, graded: Tensor, timestep: int) -> Tensor:
        """Take what arrives in one timestep; return the current to inject, (batch, ...)."""
        del timestep
        self.total += self.collect(graded)
        response = self.operator(self.shaped(self.total))
        change: Tensor = response - self.response
        self.response = response
        self.injected += int(change.count_nonzero())
        return change


class Synapses:
    """The columns from one unit's positions to one junction, as far as they are known: flat arrays and an index."""

    def __init__(self, junction: Junction, positions: int) -> None:
        self.junction = junction
        self.start = torch.zeros(positions, dtype=torch.int64)
        self.length = torch.zeros(positions, dtype=torch.int64)
        self.target = torch.empty(0, dtype=torch.int64)
        self.strong = torch.empty(0, dtype=torch.float64)  # weight times the value of a spike at c >= 0
        self.weak = torch.empty(0, dtype=torch.float64)  # the same at c < 0

    def store(self, positions: Tensor, columns: Tensor, strong: Tensor, weak: Tensor) -> int:
        """Keep the non-zero entries of ``columns`` (positions, reached positions); return their number."""
        rows, target = columns.nonzero(as_tuple=True)
        weight = columns[rows, target]
        lengths = torch.bincount(rows, minlength=len(positions))
        self.start[positions] = len(self.target) + lengths.cumsum(0) - lengths
        self.length[positions] = lengths
        self.target = torch.cat([self.target, target])
        one = torch.ones_like(strong)
        scales = (one, one) if self.junction.counts else (strong, weak)
        self.strong = torch.cat([self.strong, weight * scales[0][positions][rows]])
        self.weak = torch.cat([self.weak, weight * scales[1][positions][rows]])
        return len(target)

    def deliver(self, samples: Tensor, positions: Tensor, weak: bool, sign: int) -> int:
        """Add (or subtract) the column of every spike, given by sample and position; return the number of additions."""
        weights = self.weak if weak else self.strong
        inbox, added = self.junction.inbox, 0
        piece = max(1, _PIECE // max(1, int(self.length[positions].max())))
        for sample, position in zip(torch.split(samples, piece), torch.split(positions, piece), strict=True):
            lengths = self.length[position]
            first = self.start[position] - (lengths.cumsum(0) - lengths)
            entry = torch.repeat_interleave(first, lengths)
            entry += torch.arange(len(entry))
            index = torch.repeat_interleave(sample * inbox.shape[1], lengths) + self.target[entry]
            inbox.view(-1).index_add_(0, index, weights[entry], alpha=sign)
            added += len(entry)
        return added


class Unit(Junction):
    """A junction that fires: a site's neurons, or the comparators of a max pooling.

    ``strong`` and ``weak`` (positions,) are the values of a spike at codes c >= 0 and c < 0.
    """

    def wire(self, shape: torch.Size, strong: Tensor, weak: Tensor, learn: Callable[[Any, Tensor], None]) -> None:
        """Set what is fired: its shape (of one sample), its values, and who finds the columns of new positions."""
        self.fired_shape, self.learn = shape, learn
        self.strong, self.weak = strong.reshape(-1), weak.reshape(-1)
        self.polar = not torch.equal(self.strong, self.weak)
        self.codes = torch.zeros(len(self.inbox), len(self.strong), dtype=torch.int64)  # (batch, positions)
        self.known = torch.zeros(len(self.strong), dtype=torch.bool)
        self.synapses: list[Synapses] = []
        self.spikes = self.additions = 0

    def silence(self) -> Tensor:
        """The graded signal after a unit: none, because everything it says it says by spikes."""
        return torch.zeros(len(self.inbox), *self.fired_shape, dtype=torch.float64)

    def emit(self, up: Tensor, down: Tensor) -> None:
        """One wave: at most one unit spike of every neuron, up or down one code; masks (batch, positions)."""
        for fires, sign in ((up, 1), (down, -1)):
            samples, positions = fires.nonzero(as_tuple=True)
            if not len(samples):
                continue
            self.spikes += len(samples)
            self.learn(self, positions)
            # The spike lies between codes c and c + 1, whichever way it goes; c decides what it is worth.
            lower = self.codes[samples, positions] + (0 if sign > 0 else -1)
            negative = (lower < 0) & self.polar
            for weak, chosen in ((False, ~negative), (True, negative)):
                if not bool(chosen.any()):
                    continue
                for synapses in self.synapses:
                    if synapses.junction.counts or not weak or bool(self.weak.any()):
                        self.additions += synapses.deliver(samples[chosen], positions[chosen], weak, sign)
        self.codes += up.long() - down.long()


class Neurons(Unit):
    """The neurons of one site: residue v, code c."""

    def __init__(self, name: str, shape: torch.Size, batch: int, levels: tuple[int, int]) -> None:
        super().__init__(name, shape, batch)
        self.membrane = torch.zeros_like(self.inbox)
        self.levels = levels

    def step(self, graded: Tensor, timestep: int) -> Tensor:
        """Integrate everything that arrives in this timestep, then fire; raises InputError where that overflows."""
        self.membrane += self.collect(graded)
        if not bool(torch.isfinite(self.membrane).all()):
            raise InputError(f"site {self.name!r}: expected finite membranes, got Inf; scale the input or weights down")
        for up, down in self.fire(timestep):
            self.emit(up, down)
        return self.silence()

    def fire(self, timestep: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Fire in waves until nothing is left to fire.

        Why this is C = clip(K, -N t, P t) with K = floor(A/s + 1/2): v = A - s c throughout. "v >= s/2" is
        c + 1 <= A/s + 1/2, which for an integer c is c < K (a tie, v = s/2 exactly, fires, as floor demands);
        "v < -s/2" is c > A/s + 1/2, which is c > K. So +1 is fired exactly while c < min(K, P t) and -1 exactly while
        c > max(K, -N t), never both; c starts inside [-N (t-1), P (t-1)], moves by one, and stops at the clip of K.
        """
        lowest, highest = -self.levels[0] * timestep, self.levels[1] * timestep
        while True:
            up = (self.membrane >= self.strong / 2) & (self.codes < highest)
            down = (self.membrane < -self.strong / 2) & (self.codes > lowest)
            if not bool((up | down).any()):
                return
            yield up, down
            step = self.strong.expand_as(self.membrane)
            self.membrane[up] -= step[up]
            self.membrane[down] += step[down]

    def margin(self, timesteps: int) -> Tensor:
        """Distance to the nearest boundary that exists, in steps: the outermost codes have none on their outer side."""
        residue = self.membrane / self.strong
        below = torch.where(self.codes > -self.levels[0] * timesteps, residue + 0.5, torch.inf)
        above = torch.where(self.codes < self.levels[1] * timesteps, 0.5 - residue, torch.inf)
        return torch.minimum(below, above).clamp(min=0.0)


class Comparators(Unit):
    """Max pooling of spikes: the inbox counts the spikes at each input; the largest count of a window is the code."""

    counts = True

    def __init__(self, name: str, shape: torch.Size, batch: int, windows: Tensor, plane: int) -> None:
        super().__init__(name, shape, batch)
        self.windows = windows  # (windows, width): the inputs of each window, as positions of one channel's plane
        self.plane = plane  # positions of one channel

    def step(self, graded: Tensor, timestep: int) -> Tensor:
        """Fire until every code is the largest count of its window; ``graded`` is zero wherever a comparator stands."""
        del graded, timestep
        channels = self.inbox.view(len(self.inbox), -1, self.plane)  # (batch, channels, plane)
        goal = channels[..., self.windows].amax(-1).flatten(1).long()  # (batch, channels * windows)
        while bool((goal != self.codes).any()):
            self.emit(goal > self.codes, goal < self.codes)
        return self.silence()


def windows_of(operator: nn.Module, spatial: Sequence[int]) -> Tensor:
    """The inputs of every window of a max pooling, (windows, width); short windows repeat their first input."""
    plane = math.prod(spatial)
    hot = torch.eye(plane, dtype=torch.float64).view(plane, 1, *spatial)
    member = operator(hot).reshape(plane, -1).T > 0  # (windows, plane): the response to one hot pixel
    size = member.sum(1, keepdim=True)
    width = int(size.max())
    inputs = member.int().argsort(dim=1, descending=True, stable=True)[:, :width]
    return torch.where(torch.arange(width) < size, inputs, inputs[:, :1])
