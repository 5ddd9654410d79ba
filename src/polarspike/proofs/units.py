"""What fires in the event-by-event simulator: neurons of every kind, and the comparators of a max pooling.

A :class:`Unit` fires unit spikes; each adds its column of :class:`Synapses` to every inbox that it reaches. Nothing of
``ops`` or of the neurons' law is used here: a neuron is what its fire rule says, one spike at a time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from polarspike.errors import InputError
from polarspike.proofs.junctions import Inbox, Junction
from polarspike.proofs.layouts import Layout

# Additions per piece of work: 32 MB in float64.
_PIECE = 1 << 22


class Synapses:
    """The columns from one unit's positions to one inbox, as far as they are known: flat arrays and an index."""

    def __init__(self, inbox: Inbox, columns: int) -> None:
        self.inbox = inbox
        self.start = torch.zeros(columns, dtype=torch.int64)
        self.length = torch.zeros(columns, dtype=torch.int64)
        self.target = torch.empty(0, dtype=torch.int64)
        self.strong = torch.empty(0, dtype=torch.float64)  # weight times the value of a spike at c >= 0
        self.weak = torch.empty(0, dtype=torch.float64)  # the same at c < 0

    def store(self, keys: Tensor, columns: Tensor, strong: Tensor, weak: Tensor) -> int:
        """Keep the non-zero entries of ``columns`` (keys, reached positions); return their number.

        ``strong`` and ``weak`` (keys,) are the values of a spike.
        """
        rows, target = columns.nonzero(as_tuple=True)
        weight = columns[rows, target]
        lengths = torch.bincount(rows, minlength=len(keys))
        self.start[keys] = len(self.target) + lengths.cumsum(0) - lengths
        self.length[keys] = lengths
        self.target = torch.cat([self.target, target])
        counts = self.inbox.counts
        self.strong = torch.cat([self.strong, weight if counts else weight * strong[rows]])
        self.weak = torch.cat([self.weak, weight if counts else weight * weak[rows]])
        return len(target)

    def deliver(self, samples: Tensor, keys: Tensor, weak: bool, sign: int) -> int:
        """Add (or subtract) the column of every spike, given by sample and column; return the number of additions."""
        weights = self.weak if weak else self.strong
        sums, added = self.inbox.sums, 0
        piece = max(1, _PIECE // max(1, int(self.length[keys].max())))
        for sample, key in zip(torch.split(samples, piece), torch.split(keys, piece), strict=True):
            lengths = self.length[key]
            first = self.start[key] - (lengths.cumsum(0) - lengths)
            entry = torch.repeat_interleave(first, lengths)
            entry += torch.arange(len(entry))
            index = torch.repeat_interleave(sample * sums.shape[1], lengths) + self.target[entry]
            sums.view(-1).index_add_(0, index, weights[entry], alpha=sign)
            added += len(entry)
        return added


class Unit(Junction):
    """A junction that fires: a site's neurons, or the comparators of a max pooling.

    ``strong`` and ``weak`` (positions,) are the values of a spike at codes c >= 0 and c < 0.
    """

    def wire(self, layout: Layout, strong: Tensor, weak: Tensor, learn: Callable[[Any, Tensor], None]) -> None:
        """Set what is fired: its layout, its values, and who finds the columns of new positions."""
        self.fired, self.learn = layout, learn
        self.strong, self.weak = strong.reshape(-1), weak.reshape(-1)
        self.polar = not torch.equal(self.strong, self.weak)
        self.codes = torch.zeros(len(self.inboxes[0].sums), len(self.strong), dtype=torch.int64)  # (batch, positions)
        self.spikes = self.additions = 0
        self.connect([], False)

    def connect(self, inboxes: Sequence[Inbox], by_sample: bool) -> None:
        """Set what is reached; ``by_sample``: the columns differ from sample to sample."""
        self.by_sample = by_sample
        columns = self.codes.numel() if by_sample else len(self.strong)
        self.known = torch.zeros(columns, dtype=torch.bool)
        self.synapses = [Synapses(inbox, columns) for inbox in inboxes]

    def silence(self) -> Tensor:
        """The graded signal after a unit: none, because everything it says it says by spikes."""
        return self.fired.shaped(torch.zeros(self.codes.shape, dtype=torch.float64))

    def emit(self, up: Tensor, down: Tensor) -> None:
        """One wave: at most one unit spike of every neuron, up or down one code; masks (batch, positions)."""
        for fires, sign in ((up, 1), (down, -1)):
            samples, positions = fires.nonzero(as_tuple=True)
            if not len(samples):
                continue
            self.spikes += len(samples)
            keys = samples * len(self.strong) + positions if self.by_sample else positions
            self.learn(self, keys)
            # The spike lies between codes c and c + 1, whichever way it goes; c decides what it is worth.
            lower = self.codes[samples, positions] + (0 if sign > 0 else -1)
            negative = (lower < 0) & self.polar
            for weak, chosen in ((False, ~negative), (True, negative)):
                if not bool(chosen.any()):
                    continue
                for synapses in self.synapses:
                    if synapses.inbox.counts or not weak or bool(self.weak.any()):
                        self.additions += synapses.deliver(samples[chosen], keys[chosen], weak, sign)
        self.codes += up.long() - down.long()


class Neurons(Unit):
    """The neurons of one site: residue v, code c.

    Args:
        name: of the site.
        inboxes: the one that it reads.
        levels: (N, P).
        cap: the most spikes that a neuron fires in a step; the others wait in its membrane. None: no limit.
    """

    def __init__(self, name: str, inboxes: Sequence[Inbox], levels: tuple[int, int], cap: int | None = None) -> None:
        super().__init__(name, inboxes)
        self.membrane = torch.zeros_like(self.inboxes[0].sums)
        self.levels, self.cap = levels, cap

    def step(self, graded: Sequence[Tensor], timestep: int) -> Tensor:
        """Integrate everything that arrives in this timestep, then fire; raises InputError where that overflows."""
        self.membrane += self.inboxes[0].collect(graded[0])
        if not bool(torch.isfinite(self.membrane).all()):
            raise InputError(
                f"site {self.name!r}: expected finite membranes, got NaN or Inf; scale the input or weights down"
            )
        for up, down in itertools.islice(self.fire(timestep), self.cap):
            self.emit(up, down)
        return self.silence()

    def fire(self, timestep: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Fire in waves until nothing is left to fire.

        Why this is C = clip(K, -N t, P t) with K = floor(A/s + 1/2): v = A - s c throughout. "v >= s/2" is
        c + 1 <= A/s + 1/2, which for an integer c is c < K (a tie, v = s/2 exactly, fires, as floor demands);
        "v < -s/2" is c > A/s + 1/2, which is c > K. So +1 is fired exactly while c < min(K, P t) and -1 exactly while
        c > max(K, -N t), never both; c starts inside [-N (t-1), P (t-1)], moves by one, and stops at the clip of K.
        """
        while True:
            up, down = self.ready(timestep)
            if not bool((up | down).any()):
                return
            step = self.strong.expand_as(self.membrane)
            self.membrane[up] -= step[up]
            self.membrane[down] += step[down]
            yield up, down

    def ready(self, timestep: int) -> tuple[Tensor, Tensor]:
        """Which neurons would fire a spike now, up and down."""
        lowest, highest = -self.levels[0] * timestep, self.levels[1] * timestep
        up = (self.membrane >= self.strong / 2) & (self.codes < highest)
        return up, (self.membrane < -self.strong / 2) & (self.codes > lowest)

    def waits(self, timestep: int) -> bool:
        """Whether a spike waits in a membrane."""
        up, down = self.ready(timestep)
        return bool((up | down).any())

    def margin(self, timesteps: int) -> Tensor:
        """Distance to the nearest boundary that exists, in steps: the outermost codes have none on their outer side."""
        residue = self.membrane / self.strong
        below = torch.where(self.codes > -self.levels[0] * timesteps, residue + 0.5, torch.inf)
        above = torch.where(self.codes < self.levels[1] * timesteps, 0.5 - residue, torch.inf)
        return torch.minimum(below, above).clamp(min=0.0)


class HoldingNeurons(Neurons):
    """Neurons that keep their grid: code ``t k``, where k boundaries of the mean input, at ``(j - 1/2) s``, are passed.

    The membrane keeps the whole sum A. "A >= (j - 1/2) s t" passes the boundary to the code j >= 1, and
    "A < -(j - 1/2) s t" the one to -j; a neuron fires until its code is t times what it passed.
    """

    def fire(self, timestep: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Fire in waves until every code is t times the number of boundaries passed."""
        goal = torch.zeros_like(self.codes)
        for level in range(1, self.levels[1] + 1):
            goal += self.membrane >= (level - 0.5) * self.strong * timestep
        for level in range(1, self.levels[0] + 1):
            goal -= (self.membrane < -(level - 0.5) * self.strong * timestep).long()
        goal *= timestep
        while bool((goal != self.codes).any()):
            yield goal > self.codes, goal < self.codes

    def margin(self, timesteps: int) -> Tensor:
        """Distance of the sum to the nearest boundary, in steps."""
        negative, positive = self.levels
        levels = [*range(1, positive + 1), *range(1 - negative, 1)]
        boundaries = (torch.tensor(levels, dtype=torch.float64) - 0.5) * timesteps
        return ((self.membrane / self.strong).unsqueeze(-1) - boundaries).abs().amin(-1)


class LeakyNeurons(Neurons):
    """Neurons that leak, ``v <- b v``, and whose code starts from zero at every frame: as many spikes as fit in (-N, P).

    Args:
        name, inboxes, levels: as of any neurons.
        leak: b.
    """

    def __init__(self, name: str, inboxes: Sequence[Inbox], levels: tuple[int, int], leak: float) -> None:
        super().__init__(name, inboxes, levels)
        self.leak = leak

    def step(self, graded: Sequence[Tensor], timestep: int) -> Tensor:
        """Leak, forget the last frame's code, then as any neuron at its first timestep."""
        del timestep
        self.membrane *= self.leak
        self.codes = torch.zeros_like(self.codes)  # those of the last frame have been handed out
        return super().step(graded, 1)


class Comparators(Unit):
    """Max pooling of spikes: the inbox counts the spikes at each input; the largest count of a window is the code.

    Args:
        name: of the pooling.
        inboxes: the one that counts.
        windows: the inputs of each window, as positions of one channel's plane, (windows, width).
        plane: positions of one channel.
        by_frame: counts and codes start from zero at every frame.
    """

    def __init__(
        self, name: str, inboxes: Sequence[Inbox], windows: Tensor, plane: int, by_frame: bool = False
    ) -> None:
        super().__init__(name, inboxes)
        self.windows, self.plane, self.by_frame = windows, plane, by_frame

    def step(self, graded: Sequence[Tensor], timestep: int) -> Tensor:
        """Fire until every code is the largest count of its window; ``graded`` is zero wherever a comparator stands."""
        del graded, timestep
        counts = self.inboxes[0].sums
        channels = counts.view(len(counts), -1, self.plane)  # (batch, channels, plane)
        goal = channels[..., self.windows].amax(-1).flatten(1).long()  # (batch, channels * windows)
        while bool((goal != self.codes).any()):
            self.emit(goal > self.codes, goal < self.codes)
        if self.by_frame:
            counts.zero_()
            self.codes.zero_()
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
