"""All counts of a batch: rows by name, their totals, memory accesses, and how they are printed."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from itertools import groupby
from typing import Any, Literal, TypeVar

from polarspike.common.tables import aligned, fitted
from polarspike.counting.rows import ElementwiseCounts, MemoryCounts, SiteCounts, SynapseCounts
from polarspike.errors import SpecError

MessageUnit = Literal["event", "spike", "dense"]
_Row = TypeVar("_Row")
_WIDTH = 120

_OF_SYNAPSES = ("dense_macs", "macs", "events_in", "spikes_in", "acs_by_event", "acs_by_spike", "second_scale_macs",
                "second_scale_acs")  # fmt: skip
_OF_SITES = ("neurons", "membrane_updates", "events", "spikes", "negative_events", "negative_spikes", "take_backs",
             "silent", "second_scale_events", "valueless_events")  # fmt: skip
_OF_ELEMENTS = {"biases": "bias", "scalings": "scale", "comparisons": "comparison", "products": "product",
                "functions": "function", "mean_updates": "mean"}  # fmt: skip
_MULTIPLYING = ("convolution", "linear", "matmul")


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
    * A **matrix product of two signals** only adds at T = 1 (:class:`SynapseCounts`). At T > 1 the running-mean contract
      multiplies means: dense multiply-accumulates at *every* step, also at a single one that ``ConvertSpec.window`` leaves
      over at the end, because the circuit is the same.
    * **Operators that are not affine** (layer norm, softmax, GELU, products of elements) make graded values, also of
      spikes, which then enter at one accumulate per event. Each element of the answer is one multiplication, at every
      step, and their means are more (:class:`ElementwiseCounts`). Positively homogeneous ones (max pooling, a ReLU that is
      no site) compare, and at T > 1 add to their sums.
    * An **embedding** of integers is looked up, which costs nothing here, and is graded like the input.
    * The **input is analog**: the first layer costs dense multiply-accumulates at *every* step. Hardware that sees the
      same image at every step could compute it once: of ``input_macs`` (a part of ``macs``) ``static_input_macs`` stay.
      The frames of a sequence differ (``repeated`` is false), and all stay.
    * A **negative code with gain 0** is worth nothing: the site fires it (``valueless_events``), nothing sends it on.
    * The activation function of the float network where it becomes a site, the division of an average, masks and the
      readout are free.

    Attributes:
        images: in the batch. timesteps: T.
        sites, synapses, elementwise: the rows, in the order in which a signal meets them.
        passes: how often the float network runs for the same answers: once for each frame that it reads by itself.
        repeated: the input was the same at every step.
    """

    images: int
    timesteps: int
    sites: tuple[SiteCounts, ...]
    synapses: tuple[SynapseCounts, ...]
    elementwise: tuple[ElementwiseCounts, ...]
    passes: int = 1
    repeated: bool = True

    @property
    def totals(self) -> dict[str, int]:
        """Sums over the rows, for the batch; ``neurons`` alone is of one image.

        Names that begin with ``ann_`` are of the float network's ``passes``. ``additions`` are those of graded values, in
        averages and residual sums, and those of sums that max pooling keeps over time. ``mean_updates`` are the
        multiplications that means over time cost.
        """
        sums = {name: sum(getattr(row, name) for row in self.synapses) for name in _OF_SYNAPSES}
        static = [row for row in self.synapses if row.static]
        sums["input_macs"] = sum(row.macs for row in static)
        sums["static_input_macs"] = sum(row.macs // (row.timesteps if self.repeated else 1) for row in static)
        sums |= {name: sum(getattr(row, name) for row in self.sites) for name in _OF_SITES}
        sums["additions"] = sum(row.adds for row in self.synapses) + self._elementwise("add", "spiking")
        sums |= {name: self._elementwise(kind, "spiking") for name, kind in _OF_ELEMENTS.items()}
        plain = (row.connections for row in self.synapses if row.in_dense_network and not row.weighted)
        dense = {"ann_macs": sum(row.connections for row in self.synapses if row.weighted)}
        dense["ann_additions"] = sum(plain) + self._elementwise("add", "dense")
        once = {name: kind for name, kind in _OF_ELEMENTS.items() if kind != "mean"}
        dense |= {f"ann_{name}": self._elementwise(kind, "dense") for name, kind in once.items()}
        return sums | {name: self.passes * count for name, count in dense.items()}

    @property
    def per_image(self) -> dict[str, float]:
        """The totals divided by the number of images (``neurons`` as it is)."""
        return {name: total if name == "neurons" else total / self.images for name, total in self.totals.items()}

    @property
    def accumulate_share(self) -> float:
        """The share of the float network's multiplications that spikes turn into additions.

        As in :meth:`polarspike.Plan.accumulate_share`: of convolutions, linear layers, matrix products, and of operators
        that are not affine (one for each element); batch norms and constant factors are left out.
        """
        rows = [row for row in self.synapses if row.kind in _MULTIPLYING]
        others = self._elementwise("product", "dense") + self._elementwise("function", "dense")
        total = sum(row.connections for row in rows) + others
        return sum(row.connections for row in rows if row.spiking) / total if total else 0.0

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
        sums = self._elementwise("add", "spiking") + self._elementwise("product", "spiking")
        means = self._elementwise("mean", "spiking")
        return MemoryCounts(
            weight_reads=crossed
            - unweighted
            + sum(row.dense_macs for row in dense)
            + self._elementwise("bias", "spiking"),
            activation_reads=sum(row.dense_macs + row.dense_adds for row in dense) + 2 * sums,
            output_writes=sum(row.outputs * row.timesteps for row in dense) + sums,
            membrane_reads=crossed + updates + means,
            membrane_writes=crossed + updates + means,
            event_reads=sum(row.spikes_in if units else row.events_in for row in spiking),
            event_writes=self.totals["spikes" if units else "events"],
        )

    def ann_memory(self) -> MemoryCounts:
        """Memory accesses of the float network's dense passes."""
        rows = [row for row in self.synapses if row.in_dense_network and row.kind != "add"]
        sums = self._elementwise("add", "dense") + self._elementwise("product", "dense")
        sums += sum(row.connections for row in self.synapses if row.kind == "add")
        return MemoryCounts(
            weight_reads=self.passes
            * (sum(row.connections for row in rows if row.weighted) + self._elementwise("bias", "dense")),
            activation_reads=self.passes * (sum(row.connections for row in rows) + 2 * sums),
            output_writes=self.passes * (sum(row.outputs for row in rows) + sums),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON: totals, rows with their derived numbers, memory."""
        return {
            "images": self.images,
            "timesteps": self.timesteps,
            "passes": self.passes,
            "repeated": self.repeated,
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
        head += f" (ann: of {self.passes} passes, one for each frame)" if self.passes > 1 else ""
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
        share = f"accumulate-only: {self.accumulate_share:.1%} of the float network's multiplications"
        parts = [
            [head],
            aligned(synapses, _WIDTH),
            self._reasons(),
            aligned(sites, _WIDTH),
            aligned(totals, _WIDTH),
            [share],
        ]
        return "\n\n".join("\n".join(part) for part in parts)

    def _reasons(self) -> list[str]:
        """Why graded values arrive, a line for each row or for neighbors that share the reason."""
        graded = [row for row in self.synapses if not row.spiking]
        lines: list[str] = []
        for reason, rows in groupby(graded, key=lambda row: row.reason):
            names = [row.name for row in rows]
            which = names[0] if len(names) == 1 else f"{names[0]} ... {names[-1]} ({len(names)} rows)"
            lines += fitted(f"{which}: {reason}", _WIDTH)
        return lines

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
