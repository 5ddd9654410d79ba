"""Joules of a counted batch, from a named cost table, under every convention at once, beside honest rivals.

Codes of more than one unit can be priced in several ways, and a single number hides which was chosen. So every estimate
holds all of them (:data:`CONVENTIONS`), at the same precision on both sides, with what each one hides. Prices of
arithmetic are of one technology; memory, which usually costs more than arithmetic, is reported on lines of its own and
never mixed in. Critiques that this answers to: arXiv 2409.08290 (an equivalent quantized network has ceil(log2(T+1)) bits,
so it is the rival to beat) and Dampfhoffer et al. 2023 (memory access is usually ignored).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, Self, get_args

from polarspike.common.checks import is_not_negative
from polarspike.common.tables import aligned, fitted
from polarspike.counting import MemoryCounts, MessageUnit, OperationCounts, SynapseCounts
from polarspike.errors import SpecError
from polarspike.specs import Spec

Arithmetic = Literal["float32", "int8"]
System = Literal["ann", "qann", "a", "b", "c", "d"]
_WIDTH = 120  # of a line of text

#: How spikes of several units are priced, and what each way hides.
CONVENTIONS: dict[str, tuple[str, str]] = {
    "a": (
        "event = 1 AC",
        "hides a small multiplication: an event of k units adds k times the weight, at the price of one addition",
    ),
    "b": (
        "|k| ACs",
        "the only one that is consistent with 'accumulate only'; hides that |k| accumulates take |k| cycles",
    ),
    "c": (
        "not ternary = dense MAC",
        "charges zeros too wherever a spike or a level lies outside {-1, 0, 1}; hides what sparse hardware skips",
    ),
    "d": (
        "1 MAC per event",
        "needs multipliers (graded-spike hardware); hides that they may be narrower than the weights",
    ),
}

_MESSAGES: dict[str, MessageUnit] = {"a": "event", "b": "spike", "c": "dense", "d": "event"}

_RIVALS: dict[str, tuple[str, str]] = {
    "ann": ("ANN, dense", "one pass, every connection; activation functions that become sites are free"),
    "qann": (
        "QANN, integer accelerator",
        "the same codes, one dense pass of int8 MACs whatever the code's bits; zeros are not skipped",
    ),
}


@dataclass(frozen=True)
class CostTable(Spec):
    """What one operation costs, in picojoules.

    Args:
        name: of the technology.
        source: where the figures come from.
        float32_mac_pj: multiply and add, float32.
        float32_add_pj: add, float32.
        int8_mac_pj: 8-bit multiply and 32-bit add.
        int8_add_pj: 32-bit integer add: an int8 weight into its accumulator.
        sram_word_pj: a word from a small on-chip memory; a word is 32 bits here at either precision, although an int8
            weight is a quarter of it.
        dram_word_pj: the same from off-chip memory.

    Raises:
        SpecError: a cost is negative or not finite.
    """

    name: str
    source: str
    float32_mac_pj: float
    float32_add_pj: float
    int8_mac_pj: float
    int8_add_pj: float
    sram_word_pj: float
    dram_word_pj: float

    def __post_init__(self) -> None:
        super().__post_init__()
        for item in fields(self):
            if item.name.endswith("_pj"):
                self._require(item.name, is_not_negative(getattr(self, item.name)), "a finite number of at least 0")

    @classmethod
    def cmos45(cls) -> Self:
        """45 nm CMOS at 0.9 V: M. Horowitz, "Computing's energy problem", ISSCC 2014.

        Float32: multiplication 3.7 pJ, addition 0.9 pJ. Integer: 8-bit multiplication 0.2 pJ, 32-bit addition 0.1 pJ.
        Memory there is for 64 bits, halved here for a word of 32: 10 pJ from an 8 KB cache, 1.3 nJ (the lower end) from
        DRAM.
        """
        return cls("45 nm CMOS", "Horowitz, ISSCC 2014", 4.6, 0.9, 0.3, 0.1, sram_word_pj=5.0, dram_word_pj=650.0)

    def mac_pj(self, precision: Arithmetic) -> float:
        """A multiply-accumulate."""
        return self.float32_mac_pj if precision == "float32" else self.int8_mac_pj

    def add_pj(self, precision: Arithmetic) -> float:
        """An accumulate."""
        return self.float32_add_pj if precision == "float32" else self.int8_add_pj


@dataclass(frozen=True)
class EnergyRow:
    """The energy of one system under one convention, for the whole batch and all T steps.

    Attributes:
        precision: of weights and arithmetic, the same as of the ANN that ``ratio`` compares with.
        system: ``"ann"``, ``"qann"``, or the letter of a convention.
        label, hides: what it is, and what it hides.
        spikes_pj: accumulates (or what the convention makes of them) at connections that spikes reach.
        analog_pj: multiply-accumulates and additions because graded values arrive: all of a dense network, the first
            layer of a spiking one at every step, layers behind averages.
        second_scale_pj: gains other than 0 and 1, see :func:`estimate_energy`.
        neurons_pj: a multiply-accumulate per neuron and step: membrane updates, or the requantization of a QANN.
        biases_pj: an addition per bias, output and step.
        elementwise_pj: batch norms that are not folded, products of elements, functions (layer norm, softmax, GELU) and the
            means that these keep over time, a multiply-accumulate for each element; additions and comparisons.
        ratio: the total over that of the ANN at the same precision.
        memory: accesses in words. sram_pj, dram_pj: what they cost if every word came from there; not in ``total_pj``.
        input_once_pj: what hardware saves that computes the first layer of a repeated image once; not subtracted.
    """

    precision: Arithmetic
    system: System
    label: str
    hides: str
    spikes_pj: float
    analog_pj: float
    second_scale_pj: float
    neurons_pj: float
    biases_pj: float
    elementwise_pj: float
    ratio: float
    memory: MemoryCounts
    sram_pj: float
    dram_pj: float
    input_once_pj: float

    @property
    def total_pj(self) -> float:
        """Arithmetic, memory apart."""
        return sum(_arithmetic_pj(self).values())

    @property
    def joules(self) -> float:
        """Arithmetic in joules, memory apart."""
        return self.total_pj * 1e-12


@dataclass(frozen=True)
class EnergyEstimate:
    """Rows of all systems at all precisions; ``str`` gives the table, per image.

    Attributes:
        table: the prices.
        images: in the batch. timesteps: T. code_bits: of the widest site after T steps (arXiv 2409.08290).
        rows: :class:`EnergyRow`, by precision, the rivals first.
    """

    table: CostTable
    images: int
    timesteps: int
    code_bits: int
    rows: tuple[EnergyRow, ...]

    def row(self, system: System, precision: Arithmetic = "int8") -> EnergyRow:
        """One row.

        Raises:
            SpecError: there is none (the QANN on an integer accelerator is int8 only).
        """
        for row in self.rows:
            if (row.system, row.precision) == (system, precision):
                return row
        known = ", ".join(f"{row.system}/{row.precision}" for row in self.rows)
        raise SpecError(f"no energy of {system!r} at {precision!r}; expected one of {known}")

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON; joules are of the batch."""
        return {
            "table": self.table.to_dict(),
            "images": self.images,
            "timesteps": self.timesteps,
            "code_bits": self.code_bits,
            "rows": [
                {
                    "precision": row.precision,
                    "system": row.system,
                    "label": row.label,
                    "hides": row.hides,
                    "joules": row.joules,
                    "joules_per_image": row.joules / self.images,
                    "ratio": row.ratio,
                    **_arithmetic_pj(row),
                    "input_once_pj": row.input_once_pj,
                    "memory_words": row.memory.words,
                    "sram_pj": row.sram_pj,
                    "dram_pj": row.dram_pj,
                }
                for row in self.rows
            ],
        }

    def __str__(self) -> str:
        lines = fitted(
            f"energy per image, T = {self.timesteps}, {self.images} images; {self.table.name} ({self.table.source}); "
            f"codes of at most {self.code_bits} bits",
            _WIDTH,
        )
        heads = ("total", "of ANN", "spikes", "analog", "2nd scale", "neurons", "biases", "others")
        for precision in get_args(Arithmetic):
            rows = [row for row in self.rows if row.precision == precision]
            lines += aligned([(f"{precision}, in nJ", *heads), *map(self._arithmetic, rows)], _WIDTH)
        rows = [row for row in self.rows if row.precision == "int8"]  # words are the same at either precision
        lines += aligned([("memory apart, in nJ", "words", "SRAM", "DRAM"), *map(self._memory, rows)], _WIDTH)
        for row in rows:
            lines += fitted(f"{row.label}: {row.hides}", _WIDTH)
        if saved := self.row("a", "int8").input_once_pj:
            lines += fitted(
                f"the first layer of a repeated image computed once would save {self._nano(saved)} nJ (int8) "
                f"or {self._nano(self.row('a', 'float32').input_once_pj)} nJ (float32)",
                _WIDTH,
            )
        return "\n".join(lines)

    def _nano(self, value_pj: float) -> str:
        return f"{value_pj / self.images * 1e-3:,.4g}"

    def _arithmetic(self, row: EnergyRow) -> tuple[str, ...]:
        parts = map(self._nano, _arithmetic_pj(row).values())
        return f"  {row.label}", self._nano(row.total_pj), f"{row.ratio:.3f}", *parts

    def _memory(self, row: EnergyRow) -> tuple[str, ...]:
        words = f"{row.memory.words / self.images:,.0f}"
        return f"  {row.label}", words, self._nano(row.sram_pj), self._nano(row.dram_pj)


def estimate_energy(counts: OperationCounts, table: CostTable | None = None) -> EnergyEstimate:
    """Price counted operations under all conventions, and the ANN and the QANN beside them.

    A gain other than 0 and 1 needs a second weight scale. Priced is the accumulate-only way: negative spikes are summed in
    a second accumulator, which joins the first by one multiply-accumulate per output, step and such source; an event
    that crosses zero (T > 1) enters both, one more of the convention's operation. The QANN pays the same joins once.
    Convention (c) pays them only where it accumulates: a dense multiplier takes decoded values.

    A dense pass over connections without a weight (averages, sums) is priced as additions under every convention.

    Args:
        counts: what :func:`polarspike.count_operations` returned.
        table: the prices; 45 nm CMOS unless given.

    Raises:
        SpecError: not counts.
    """
    if not isinstance(counts, OperationCounts):
        raise SpecError(f"estimate_energy: expected what count_operations returns, got {type(counts).__name__}")
    table = table or CostTable.cmos45()
    rows: list[EnergyRow] = []
    for precision in get_args(Arithmetic):
        ann = _dense_row(counts, table, precision, "ann", None)
        rows.append(ann)
        if precision == "int8":
            rows.append(_dense_row(counts, table, precision, "qann", ann.total_pj))
        rows += [_spiking_row(counts, table, precision, letter, ann.total_pj) for letter in ("a", "b", "c", "d")]
    bits = max((site.bits for site in counts.sites), default=0)
    return EnergyEstimate(table, counts.images, counts.timesteps, bits, tuple(rows))


def _dense_row(
    counts: OperationCounts, table: CostTable, precision: Arithmetic, system: System, ann_pj: float | None
) -> EnergyRow:
    totals, mac, add = counts.totals, table.mac_pj(precision), table.add_pj(precision)
    quantized = system == "qann"
    neurons, joins = totals["membrane_updates"], totals["second_scale_macs"]
    parts = {
        "spikes_pj": 0.0,
        "analog_pj": totals["ann_macs"] * mac + _unweighted(counts) * add,
        "second_scale_pj": joins // counts.timesteps * counts.passes * mac if quantized else 0.0,
        "neurons_pj": neurons // counts.timesteps * counts.passes * mac if quantized else 0.0,
        "biases_pj": totals["ann_biases"] * add,
        "elementwise_pj": sum(totals.get(f"ann_{name}", 0) for name in _MULTIPLICATIONS) * mac
        + (totals["ann_comparisons"] + totals["ann_additions"] - _unweighted(counts)) * add,
    }
    return _row(counts, table, precision, system, parts, counts.ann_memory(), ann_pj, 0.0)


def _spiking_row(
    counts: OperationCounts, table: CostTable, precision: Arithmetic, convention: System, ann_pj: float
) -> EnergyRow:
    totals, mac, add = counts.totals, table.mac_pj(precision), table.add_pj(precision)
    arriving = [row for row in counts.synapses if row.spiking]
    graded_adds = sum(row.adds for row in counts.synapses)
    parts = {
        "spikes_pj": sum(_spikes_pj(row, convention, mac, add) for row in arriving),
        "analog_pj": totals["macs"] * mac + graded_adds * add,
        "second_scale_pj": sum(_second_scale_pj(row, convention, mac, add) for row in arriving),
        "neurons_pj": totals["membrane_updates"] * mac,
        "biases_pj": totals["biases"] * add,
        "elementwise_pj": sum(totals[name] for name in _MULTIPLICATIONS) * mac
        + (totals["comparisons"] + totals["additions"] - graded_adds) * add,
    }
    memory = counts.memory(_MESSAGES[convention])
    saved = (totals["input_macs"] - totals["static_input_macs"]) * mac
    return _row(counts, table, precision, convention, parts, memory, ann_pj, saved)


def _spikes_pj(row: SynapseCounts, convention: System, mac: float, add: float) -> float:
    """What the spikes that reach one operator cost."""
    if convention == "b":
        return row.acs_by_spike * add
    if convention == "c" and not row.ternary:
        return row.dense_macs * mac + row.dense_adds * add
    if convention == "d" and row.weighted:
        return row.acs_by_event * mac
    return row.acs_by_event * add


def _second_scale_pj(row: SynapseCounts, convention: System, mac: float, add: float) -> float:
    if convention == "c" and not row.ternary:
        return 0.0
    # In (b) an event that crosses zero splits its units between the accumulators: no more of them.
    again = 0 if convention == "b" else row.second_scale_acs
    return row.second_scale_macs * mac + again * (mac if convention == "d" and row.weighted else add)


def _unweighted(counts: OperationCounts) -> int:
    """Additions of the dense passes over connections without a weight: averages, sums of spikes and graded values."""
    rows = (row for row in counts.synapses if row.in_dense_network and not row.weighted)
    return counts.passes * sum(row.connections for row in rows)


def _row(
    counts: OperationCounts,
    table: CostTable,
    precision: Arithmetic,
    system: System,
    parts: Mapping[str, float],
    memory: MemoryCounts,
    ann_pj: float | None,
    saved_pj: float,
) -> EnergyRow:
    name, hides = _RIVALS[system] if system in _RIVALS else CONVENTIONS[system]
    if system in _RIVALS and counts.passes > 1:
        hides = f"{counts.passes} passes, one for each frame; of each: {hides}"
    total = sum(parts.values())
    reference = total if ann_pj is None else ann_pj
    return EnergyRow(
        precision=precision,
        system=system,
        label=name if system in _RIVALS else f"SNN ({system}) {name}",
        hides=hides,
        ratio=total / reference if reference else float("nan"),
        memory=memory,
        sram_pj=memory.words * table.sram_word_pj,
        dram_pj=memory.words * table.dram_word_pj,
        input_once_pj=saved_pj,
        **parts,
    )


_MULTIPLICATIONS = ("scalings", "products", "functions", "mean_updates")
_PARTS = ("spikes_pj", "analog_pj", "second_scale_pj", "neurons_pj", "biases_pj", "elementwise_pj")


def _arithmetic_pj(row: EnergyRow) -> dict[str, float]:
    return {name: getattr(row, name) for name in _PARTS}
