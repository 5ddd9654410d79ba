"""What travels along an edge of a spiking network at one timestep: streams of spikes, or graded values.

A stream holds the running codes of its source, so that the spikes of the step are ``C[t] - C[t-1]`` wherever it has come
to. A sum of streams is a list of streams, each with its own events. How operators pass them on:
:mod:`polarspike.counting.propagation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from torch import Tensor

from polarspike.neurons import NeuronState, PolarityNeuron

#: Where one increasing function turns codes into values: the whole tensor, each channel, or nowhere.
Order = Literal["tensor", "channel", "none"]


@dataclass(frozen=True)
class Stream:
    """Spikes on their way from one or several sites.

    Attributes:
        now: the running codes C[t] as they arrive here, float-typed integers.
        before: C[t-1], or None at the first step.
        sources: the sites that fired them.
        order: where values increase with codes, which max pooling needs.
        shifted: a constant has been added somewhere, so code 0 need not be the value 0.
    """

    now: Tensor
    before: Tensor | None
    sources: frozenset[str]
    order: Order
    shifted: bool = False

    @property
    def spikes(self) -> Tensor:
        """The signed spikes of this step."""
        return self.now if self.before is None else self.now - self.before

    def through(self, function: Callable[[Tensor], Tensor], **changes: Any) -> Stream:
        """The stream behind an operator that acts on codes as it acts on values."""
        before = None if self.before is None else function(self.before)
        return replace(self, now=function(self.now), before=before, **changes)


@dataclass(frozen=True)
class Spikes:
    """A signal that is a sum of streams, constants apart."""

    streams: tuple[Stream, ...]

    @property
    def sources(self) -> frozenset[str]:
        """The sites that it comes from."""
        return frozenset[str]().union(*(stream.sources for stream in self.streams))

    @property
    def shifted(self) -> bool:
        """Whether a constant has been added."""
        return any(stream.shifted for stream in self.streams)

    def through(self, function: Callable[[Tensor], Tensor], **changes: Any) -> Spikes:
        """Every stream behind an operator."""
        return Spikes(tuple(stream.through(function, **changes) for stream in self.streams))


@dataclass(frozen=True)
class Graded:
    """A signal of analog values.

    Attributes:
        reason: why it is not spikes.
        static: it depends on the input alone, so a repeated image repeats it.
    """

    reason: str
    static: bool = False


Operand = Spikes | Graded


def is_static(operand: Any) -> bool:
    """Whether a signal depends on the input alone; a tuple of operands if all of them do."""
    if isinstance(operand, tuple):
        return all(map(is_static, operand))
    return isinstance(operand, Graded) and operand.static


def graded_among(operands: Iterable[Any]) -> Graded | None:
    """The first operand that is graded."""
    return next((operand for operand in operands if isinstance(operand, Graded)), None)


def fired(site: PolarityNeuron, name: str, before: Mapping[str, NeuronState], now: Mapping[str, NeuronState]) -> Spikes:
    """What a site sends at a step.

    Args:
        site: the neuron, and ``name``, its path.
        name: see ``site``.
        before: the states of all sites at step t - 1, empty before the first.
        now: their states at step t.
    """
    codes = now[name].codes
    earlier = before[name].codes if name in before else None
    order: Order = "tensor"
    if site.spec.channels:
        order = "channel" if site.spec.channel_dim % codes.dim() == 1 else "none"
    stream = Stream(codes, earlier, frozenset({name}), order)
    if site.spec.negative and float(site.gain) == 0.0:
        # A negative code is worth nothing here, so it is not sent.
        stream = stream.through(lambda codes: codes.clamp(min=0))
    return Spikes((stream,))
