"""What is counted: rows of integers for sites, synapses and elementwise operators, their sums, and memory accesses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from polarspike.errors import SpecError

Kind = Literal["convolution", "linear", "average", "interpolation", "add", "accumulate"]
MessageUnit = Literal["event", "spike", "dense"]
_Row = TypeVar("_Row")


@dataclass(frozen=True)
class SiteCounts:
    """What one site fired.

    Attributes:
        site: its name.
        levels: (N, P) of one step. gain: the value of a negative spike relative to a positive one.
        neurons: of one image. images: in the batch. timesteps: T.
        codes: how often each signed spike count k[t] occurred, over images, neurons and steps.
        silent: pairs (neuron, image) without an event in all T steps.
        take_backs: unit spikes that undid earlier ones, C[t] moving towards zero; none at T = 1.
        second_scale_events: events whose value needs the second scale g s, at gains other than 0 and 1. At T = 1 these are
            the negative events; later, all events that change C[t] below zero.
        valueless_events: events without any value, because the gain is 0 and C[t] changed below zero only.
    """

    site: str
    levels: tuple[int, int]
    gain: float
    neurons: int
    images: int
    timesteps: int
    codes: Mapping[int, int]
    silent: int
    take_backs: int
    second_scale_events: int
    valueless_events: int

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
        """All levels, and all spikes of all steps, lie in {-1, 0, 1}."""
        return max(self.levels) <= 1 and all(abs(code) <= 1 for code in self.codes)

    @property
    def bits(self) -> int:
        """Bits of an equivalent quantized activation after T steps, ``ceil(log2(T (N + P) + 1))`` (arXiv 2409.08290)."""
        return math.ceil(math.log2(self.timesteps * sum(self.levels) + 1))


@dataclass(frozen=True)
class SynapseCounts:
    """One operator that sums its input over connections.

    Attributes:
        name: module path, or node name of a function.
        kind: ``"add"`` is a sum of spikes and graded values; ``"accumulate"`` are spikes that enter a neuron, or a maximum
            over a sum, without a weight, where a dense network has no operation.
        weighted: a dense pass multiplies (False: it only adds).
        spiking: what arrives are spikes; otherwise graded values. reason: why.
        sources: the sites that its spikes come from.
        ternary: every spike that arrived lies in {-1, 0, 1}, and so do the levels of the sources.
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
    """Operations on graded elements: the same kind in the float network (one pass) and in the spiking one (T steps)."""

    name: str
    kind: Literal["add", "bias", "scale", "comparison"]
    dense: int
    spiking: int


@dataclass(frozen=True)
class MemoryCounts:
    """Memory accesses in words under a model without any reuse (Dampfhoffer et al. 2023: usually ignored).

    A multiply-accumulate reads a weight and an activation, and every output is written once. An accumulate reads a weight
    (where there is one), and reads and writes a membrane. An event is written once and read by every operator it
    reaches. A neuron reads and writes its membrane at every step. A bias is one weight. An addition of graded values reads
    two activations and writes one. Batch norms and comparisons act on what has just been read: nothing. Caches, weight
    reuse across a feature map, and addresses (event routing) are left out, on both sides.
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


_OF_SYNAPSES = ("dense_macs", "macs", "events_in", "spikes_in", "acs_by_event", "acs_by_spike", "second_scale_macs",
                "second_scale_acs")  # fmt: skip
_OF_SITES = ("neurons", "membrane_updates", "events", "spikes", "negative_events", "negative_spikes", "take_backs",
             "silent", "second_scale_events", "valueless_events")  # fmt: skip
_OF_ELEMENTS = {"biases": "bias", "scalings": "scale", "comparisons": "comparison"}


@dataclass(frozen=True)
class OperationCounts:
    """All operations of a batch, by name and in total; every number is an integer, for all images and all T steps.

    What is counted, and what is not:

    * A **connection** is a pair (input element, output element) that exists: padding has none.
    * An **event** is a non-zero spike count k[t] of a neuron at a step; it carries |k| unit **spikes**. What reaches a
      synapse is what the site fired, moved by reshapes and padding, thinned by max pooling; a sum of several sites'
      signals arrives as the events of each. A batch norm or a constant factor on spikes belongs to the weights behind it
      and is free; a constant that is added to spikes belongs to the bias behind it and is free too.
    * **Spikes become graded** in an average or an interpolation: each event costs one accumulate for every window that it
      falls into (a row of its own), and what comes out is no longer spikes. So the linear layer behind a global average
      pool is counted as multiply-accumulates. A window of one element, or a nearest-neighbour enlargement, only copies.
    * A concatenation of spikes with graded values is graded as a whole.
    * The **input is analog**: the first layer costs dense multiply-accumulates at *every* step. Hardware that sees the
      same image at every step could compute it once: of ``input_macs`` (a part of ``macs``) ``static_input_macs`` stay.
    * A **negative code with gain 0** is worth nothing: the site fires it (``valueless_events``), nothing sends it on.
    * The activation function of the float network, the division of an average and the readout are free.

    Attributes:
        images: in the batch. timesteps: T.
        sites, synapses, elementwise: the rows, in the order in which a signal meets them.
    """

    images: int
    timesteps: int
    sites: tuple[SiteCounts, ...]
    synapses: tuple[SynapseCounts, ...]
    elementwise: tuple[ElementwiseCounts, ...]

    @property
    def totals(self) -> dict[str, int]:
        """Sums over the rows, for the batch; ``neurons`` alone is of one image.

        Names that begin with ``ann_`` are of one pass of the float network. ``additions`` are those of graded values, in
        averages and residual sums.
        """
        sums = {name: sum(getattr(row, name) for row in self.synapses) for name in _OF_SYNAPSES}
        static = [row for row in self.synapses if row.static]
        sums["input_macs"] = sum(row.macs for row in static)
        sums["static_input_macs"] = sum(row.macs // row.timesteps for row in static)
        sums |= {name: sum(getattr(row, name) for row in self.sites) for name in _OF_SITES}
        sums["additions"] = sum(row.adds for row in self.synapses) + self._elementwise("add", "spiking")
        sums |= {name: self._elementwise(kind, "spiking") for name, kind in _OF_ELEMENTS.items()}
        plain = (row.connections for row in self.synapses if row.in_dense_network and not row.weighted)
        sums["ann_macs"] = sum(row.connections for row in self.synapses if row.weighted)
        sums["ann_additions"] = sum(plain) + self._elementwise("add", "dense")
        return sums | {f"ann_{name}": self._elementwise(kind, "dense") for name, kind in _OF_ELEMENTS.items()}

    @property
    def per_image(self) -> dict[str, float]:
        """The totals divided by the number of images (``neurons`` as it is)."""
        return {name: total if name == "neurons" else total / self.images for name, total in self.totals.items()}

    def site(self, name: str) -> SiteCounts:
        """The row of one site."""
        return _named(self.sites, [row.site for row in self.sites], name)

    def synapse(self, name: str) -> SynapseCounts:
        """The row of one summing operator."""
        return _named(self.synapses, [row.name for row in self.synapses], name)

    def memory(self, unit: MessageUnit = "event") -> MemoryCounts:
        """Memory accesses of the spiking network.

        Args:
            unit: one message for each ``"event"``, or for each unit ``"spike"``; ``"dense"``: every operator that
                something else than ternary spikes reach is read densely, zeros included.
        """
        dense = [row for row in self.synapses if not row.spiking or (unit == "dense" and not row.ternary)]
        spiking = [row for row in self.synapses if row.spiking and (unit != "dense" or row.ternary)]
        units = unit == "spike"
        crossed = sum(row.acs_by_spike if units else row.acs_by_event for row in spiking)
        unweighted = sum(row.acs_by_spike if units else row.acs_by_event for row in spiking if not row.weighted)
        updates = self.totals["membrane_updates"]
        sums = self._elementwise("add", "spiking")
        return MemoryCounts(
            weight_reads=crossed
            - unweighted
            + sum(row.dense_macs for row in dense)
            + self._elementwise("bias", "spiking"),
            activation_reads=sum(row.dense_macs + row.dense_adds for row in dense) + 2 * sums,
            output_writes=sum(row.outputs * row.timesteps for row in dense) + sums,
            membrane_reads=crossed + updates,
            membrane_writes=crossed + updates,
            event_reads=sum(row.spikes_in if units else row.events_in for row in spiking),
            event_writes=self.totals["spikes" if units else "events"],
        )

    def ann_memory(self) -> MemoryCounts:
        """Memory accesses of one dense pass."""
        rows = [row for row in self.synapses if row.in_dense_network and row.kind != "add"]
        sums = self._elementwise("add", "dense") + sum(row.connections for row in self.synapses if row.kind == "add")
        return MemoryCounts(
            weight_reads=sum(row.connections for row in rows if row.weighted) + self._elementwise("bias", "dense"),
            activation_reads=sum(row.connections for row in rows) + 2 * sums,
            output_writes=sum(row.outputs for row in rows) + sums,
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: totals, rows with their derived numbers, memory."""
        return {
            "images": self.images,
            "timesteps": self.timesteps,
            "totals": self.totals,
            "sites": [_plain(row) for row in self.sites],
            "synapses": [_plain(row) for row in self.synapses],
            "elementwise": [_plain(row) for row in self.elementwise],
            "memory": {
                "by_event": _plain(self.memory("event")),
                "by_spike": _plain(self.memory("spike")),
                "ann": _plain(self.ann_memory()),
            },
        }

    def __str__(self) -> str:
        head = f"{self.images} images, {self.timesteps} timestep{'s' if self.timesteps > 1 else ''}; counts are of the batch"
        synapses = [("synapses", "arrives", "dense MAC", "MAC", "events in", "AC by event", "AC by spike")]
        synapses += [
            (row.name, "spikes" if row.spiking else "graded", f"{row.dense_macs:,}", f"{row.macs:,}",
             f"{row.events_in:,}", f"{row.acs_by_event:,}", f"{row.acs_by_spike:,}")
            for row in self.synapses
        ]  # fmt: skip
        sites = [("site", "neurons", "events", "spikes", "negative", "taken back", "silent")]
        sites += [
            (row.site, f"{row.neurons:,}", f"{row.events:,}", f"{row.spikes:,}", f"{row.negative_events:,}",
             f"{row.take_backs:,}", f"{row.silent_share:.0%}")
            for row in self.sites
        ]  # fmt: skip
        totals = [("total", "of the batch", "per image")]
        totals += [(name, f"{total:,}", f"{self.per_image[name]:,.1f}") for name, total in self.totals.items()]
        reasons = [f"{row.name}: {row.reason}" for row in self.synapses if not row.spiking]
        return "\n\n".join([head, _table(synapses), "\n".join(reasons), _table(sites), _table(totals)])

    def _elementwise(self, kind: str, side: Literal["dense", "spiking"]) -> int:
        return sum(getattr(row, side) for row in self.elementwise if row.kind == kind)


def _named(rows: tuple[_Row, ...], names: list[str], name: str) -> _Row:
    if name not in names:
        raise SpecError(f"no row {name!r}; expected one of {', '.join(names)}")
    return rows[names.index(name)]


def _plain(row: Any) -> dict[str, Any]:
    derived = {name for name, value in vars(type(row)).items() if isinstance(value, property)}
    data = {**dataclasses.asdict(row), **{name: getattr(row, name) for name in sorted(derived)}}
    if "codes" in data:
        data["codes"] = {str(code): count for code, count in data["codes"].items()}
    return {name: list(value) if isinstance(value, tuple) else value for name, value in data.items()}


def _table(rows: Sequence[tuple[str, ...]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if index == 0 else cell.rjust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )
