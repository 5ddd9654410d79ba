"""The rows of a count: what a site fired, what arrived at a summing operator, what was done element by element."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

Kind = Literal["convolution", "linear", "matmul", "average", "interpolation", "add", "accumulate"]
ElementKind = Literal["add", "bias", "scale", "comparison", "product", "function", "mean"]


@dataclass(frozen=True)
class SiteCounts:
    """What one site fired.

    Attributes:
        site: its name.
        levels: (N, P) of one step; of a neuron with a cap, of all steps. most_per_step: unit spikes of either sign that a
            step from rest can fire. gain: the value of a negative spike relative to a positive one.
        neurons: of one image. images: in the batch. timesteps: T.
        codes: how often each signed spike count k[t] occurred, over images, neurons and steps.
        silent: pairs (neuron, image) without an event in all T steps.
        take_backs: unit spikes that undid earlier ones, C[t] moving towards zero; none at T = 1.
        second_scale_events: events whose value needs the second scale g s, at gains other than 0 and 1. At T = 1 these are
            the negative events; later, all events that change C[t] below zero.
        valueless_events: events without any value, because the gain is 0 and C[t] changed below zero only.
        span: after so many steps codes start from rest again; T if never.
    """

    site: str
    levels: tuple[int, int]
    most_per_step: int
    gain: float
    neurons: int
    images: int
    timesteps: int
    codes: Mapping[int, int]
    silent: int
    take_backs: int
    second_scale_events: int
    valueless_events: int
    span: int

    @property
    def events(self) -> int:
        """Non-zero codes."""
        return sum(count for code, count in self.codes.items() if code)

    @property
    def spikes(self) -> int:
        """Unit spikes, the sum of |k|."""
        return sum(abs(code) * count for code, count in self.codes.items())

    @property
    def negative_events(self) -> int:
        """Events with k < 0."""
        return sum(count for code, count in self.codes.items() if code < 0)

    @property
    def negative_spikes(self) -> int:
        """Unit spikes of the negative events."""
        return sum(-code * count for code, count in self.codes.items() if code < 0)

    @property
    def distinct(self) -> int:
        """Different codes seen, zero included if it was."""
        return len(self.codes)

    @property
    def membrane_updates(self) -> int:
        """One for every neuron, image and step."""
        return self.neurons * self.images * self.timesteps

    @property
    def silent_share(self) -> float:
        """The share of (neuron, image) pairs that never fired."""
        return self.silent / (self.neurons * self.images)

    @property
    def ternary(self) -> bool:
        """What a step can fire, and all that was fired, lies in {-1, 0, 1}."""
        return self.most_per_step <= 1 and all(abs(code) <= 1 for code in self.codes)

    @property
    def bits(self) -> int:
        """Bits of an equivalent quantized activation, ``ceil(log2(span (N + P) + 1))`` (arXiv 2409.08290)."""
        return math.ceil(math.log2(self.span * sum(self.levels) + 1))


@dataclass(frozen=True)
class SynapseCounts:
    """One operator that sums its input over connections.

    In a matrix product of two signals A @ B a connection is a triple (row of A, column of B, inner index). Every event of A
    adds the values of B that it meets and that are not zero, so only events on both sides cost anything; ``acs_by_spike``
    then are the unit spikes of A (the left factor) times the non-zero values of B. Events of both sides arrive.

    Attributes:
        name: module path, or the name of a function behind the path that calls it.
        kind: ``"matmul"`` is a matrix product, of two signals or of a signal and a constant; ``"add"`` a sum of spikes and
            graded values; ``"accumulate"`` are spikes that enter a neuron, a maximum over a sum, or an operator that is
            not affine, without a weight, where a dense network has no operation.
        weighted: a dense pass multiplies (False: it only adds).
        spiking: what arrives are spikes; otherwise graded values. reason: why.
        sources: the sites that its spikes come from.
        ternary: every spike that arrived lies in {-1, 0, 1}, and so does what a step of its sources can fire.
        timesteps: T.
        connections: of one pass over the batch.
        outputs: elements that come out of one pass over the batch.
        static: graded values that depend on the input alone.
        events_in: events that arrive, and spikes_in their unit spikes.
        acs_by_event: connections that the events cross, one accumulate each.
        acs_by_spike: the same with |k| accumulates for an event of |k| spikes. largest: the largest |k|.
        second_scale_macs: one multiply-accumulate for every output, step and source with a gain other than 0 and 1: its
            spikes below zero are summed in a second accumulator, which joins the first times g.
        second_scale_acs: events that cross zero (T > 1) and so enter both accumulators: one accumulate more.
    """

    name: str
    kind: Kind
    weighted: bool
    spiking: bool
    reason: str
    sources: tuple[str, ...]
    ternary: bool
    timesteps: int
    connections: int
    outputs: int
    static: bool
    events_in: int = 0
    spikes_in: int = 0
    acs_by_event: int = 0
    acs_by_spike: int = 0
    largest: int = 0
    second_scale_macs: int = 0
    second_scale_acs: int = 0

    @property
    def dense_macs(self) -> int:
        """Multiply-accumulates of T dense passes."""
        return self.connections * self.timesteps if self.weighted else 0

    @property
    def dense_adds(self) -> int:
        """Additions of T dense passes, where there is no weight."""
        return 0 if self.weighted else self.connections * self.timesteps

    @property
    def macs(self) -> int:
        """Multiply-accumulates needed because graded values arrive."""
        return 0 if self.spiking else self.dense_macs

    @property
    def adds(self) -> int:
        """Additions of graded values needed where there is no weight."""
        return 0 if self.spiking else self.dense_adds

    @property
    def in_dense_network(self) -> bool:
        """The float network has this operation too."""
        return self.kind != "accumulate"


@dataclass(frozen=True)
class ElementwiseCounts:
    """Operations on graded elements: the same kind in the float network (one pass) and in the spiking one (T steps).

    Attributes:
        name: module path, or the name of a function behind the path that calls it.
        kind: ``"add"``, ``"bias"``, ``"scale"`` (a factor per channel, or a constant one), ``"comparison"``; of operators
            that are not affine: ``"product"`` (an element of a product of two signals), ``"function"`` (an element of a
            layer norm, a softmax, a GELU, ...: one multiplication each, which is kind to both networks), and ``"mean"``
            (what such an operator, or a matrix product of two signals, keeps over time: one multiply-accumulate for
            every element of every input mean and of the answer, at every step after the first).
        dense: in one pass of the float network.
        spiking: in T steps of the spiking one.
    """

    name: str
    kind: ElementKind
    dense: int
    spiking: int


@dataclass(frozen=True)
class MemoryCounts:
    """Memory accesses in words under a model without any reuse (Dampfhoffer et al. 2023: usually ignored).

    A multiply-accumulate reads a weight and an activation, and every output is written once. An accumulate reads a weight
    (where there is one), and reads and writes a membrane. An event is written once and read by every operator it
    reaches. A neuron reads and writes its membrane at every step, and so does an operator with each of its means. A bias is
    one weight. An addition or an elementwise product of graded values reads two activations and writes one. Batch norms,
    functions and comparisons act on what has just been read: nothing. In a matrix product of two signals, the right one
    stands for the weight. Caches, weight reuse across a feature map, and addresses (event routing) are left out, on both
    sides.
    """

    weight_reads: int = 0
    activation_reads: int = 0
    output_writes: int = 0
    membrane_reads: int = 0
    membrane_writes: int = 0
    event_reads: int = 0
    event_writes: int = 0

    @property
    def words(self) -> int:
        """All accesses."""
        return sum(dataclasses.astuple(self))
