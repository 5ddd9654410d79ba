"""Several runs as one page: a row each, and means over seeds where runs repeat each other."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarspike.errors import RunError
from polarspike.proofs.proof import Proof
from polarspike.report.numbers import decimals, interval
from polarspike.report.pages import Section
from polarspike.report.plotting import MARKS, drawing
from polarspike.report.record import Record
from polarspike.report.run_page import firing_of, headline, spikes_of

_EACH = (
    "Percent right on the test set at the last epoch. ANN: after as many epochs as the SNN's weights have had. Gap: points "
    "from the ANN to the SNN, of images at T = 1, of sequences after all frames; events and spikes, per neuron, are those "
    "of the same answer. Different: codes that differ between QANN and SNN at T = 1, of a network that was trained through "
    "time between its stream and the whole sequence at once. Energy is int8 arithmetic under convention (b), |k| "
    "accumulates for a spike of k units, over that of the dense ANN.",
)
_MEANS = (
    "Runs with the same recipe and data but other seeds; +- is half of the difference between the best and the worst. The "
    "gap is taken run by run; its interval has 95 % (Student's t), and few seeds make it wide.",
)


@dataclass(frozen=True)
class _Found:
    """One spiking network of a run: its rows, and what a table shows of it, in percent and points."""

    label: str
    name: str
    rows: Sequence[Mapping[str, Any]]
    numbers: Mapping[str, float]


def runs_page(records: Sequence[Record], figures: Sequence[Path] = ()) -> list[Section]:
    """The sections of several runs.

    Args:
        records: of the runs, all finished.
        figures: of :func:`plot_runs`.

    Raises:
        RunError: a run is not finished, or its files hold something else.
    """
    found = {record.path: _found(record, label) for record, label in zip(records, _labels(records), strict=True)}
    times = sorted({row["timesteps"] for each in found.values() for one in each for row in one.rows})
    every = [one for record in records for one in found[record.path]]
    sections = [Section("Runs", _EACH, _each(every, times), tuple(figures))]
    repeated = [group for group in grouped(records) if len(group) > 1]
    if repeated:
        rows = [["what", "seeds", "ANN", *(f"T = {t}" for t in times), "gap, interval", "events", "spikes", "energy"]]
        for group in repeated:
            seeds = ", ".join(str(record.seeds[0]) for record in group)
            rows += [_mean(seeds, part, times) for part in zip(*(found[record.path] for record in group), strict=True)]
        sections.append(Section("Means over seeds", _MEANS, rows))
    return sections


def grouped(records: Sequence[Record]) -> list[list[Record]]:
    """Runs that repeat each other with other seeds, together; of the same seeds twice, the first.

    Raises:
        RunError: the files of a run hold something else.
    """
    groups: dict[str, dict[tuple[Any, ...], Record]] = {}
    for record in records:
        with record.understood():
            groups.setdefault(json.dumps(record.unseeded, sort_keys=True), {}).setdefault(record.seeds, record)
    return [list(group.values()) for group in groups.values()]


def plot_runs(records: Sequence[Record], place: Path) -> list[Path]:
    """Accuracy against T and against spikes, a line for each spiking network; one SVG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        RunError: a run is not finished, or its files hold something else.
    """
    target = place / "runs.svg"
    every = [one for record, label in zip(records, _labels(records), strict=True) for one in _found(record, label)]
    with drawing(target, (9, 3.6), columns=2) as (left, right):
        for index, one in enumerate(every):
            accuracy = [100 * row["accuracy"] for row in one.rows]
            style = {"marker": MARKS[index % len(MARKS)], "lw": 1, "ms": 4, "label": one.label}
            left.plot([row["timesteps"] for row in one.rows], accuracy, **style)
            right.plot(spikes_of(one.rows), accuracy, **style)
        left.set_xscale("log", base=2)
        left.set_xlabel("T")
        left.set_ylabel("test accuracy, %")
        right.set_xscale("log")
        right.set_xlabel("spikes per neuron")
        left.legend(fontsize=7)
    return [target]


def _labels(records: Sequence[Record]) -> list[str]:
    """The names of the directories; where two have the same, with the way to them."""
    count = Counter(record.label for record in records)
    return [record.label if count[record.label] == 1 else str(record.path) for record in records]


def _found(record: Record, label: str) -> list[_Found]:
    """The converted network of a run, and what training through time made of it."""
    results = record.results
    if results is None:
        raise RunError(f"{record.path}: expected a finished run, results.json is missing; continue it with --resume")
    with record.understood():
        at, qann = headline(record), 100 * results["qann"]["rows"][0]["accuracy"]
        first = next(proof for proof in results["proofs"] if proof["timesteps"] == 1)
        numbers = {"qann": qann, **_numbers(results, first, at)}
        made = [_Found(label, record.name, results["snn"]["rows"], numbers)]
        if (later := results.get("through_time")) is not None:
            numbers = _numbers(later, later["proof"], at)
            made.append(_Found(f"{label}, through time", record.name, later["snn"]["rows"], numbers))
        return made


def _numbers(found: Mapping[str, Any], proof: Mapping[str, Any], at: int) -> dict[str, float]:
    ann, rows = 100 * found["ann"]["rows"][0]["accuracy"], found["snn"]["rows"]
    fired = firing_of(rows[at])
    assert fired is not None
    energy = next(row for row in found["energy"]["rows"] if row["system"] == "b" and row["precision"] == "int8")
    return {
        "ann": ann,
        **{f"T={row['timesteps']}": 100 * row["accuracy"] for row in rows},
        "gap": ann - 100 * rows[at]["accuracy"],
        "different": Proof.from_dict(proof).different,
        "events": fired.events_per_neuron,
        "spikes": fired.spikes_per_neuron,
        "energy": energy["ratio"],
    }


def _each(every: Sequence[_Found], times: Sequence[int]) -> list[list[str]]:
    rows = [
        ["run", "what", "ANN", "QANN", *(f"T = {t}" for t in times), "gap", "different", "events", "spikes", "energy"]
    ]
    for one in every:
        cells = (decimals(one.numbers.get(key)) for key in ("ann", "qann", *(f"T={t}" for t in times), "gap"))
        fired = (decimals(one.numbers[key], 3) for key in ("events", "spikes", "energy"))
        rows.append([one.label, one.name, *cells, f"{one.numbers['different']:,}", *fired])
    return rows


def _mean(seeds: str, found: Sequence[_Found], times: Sequence[int]) -> list[str]:
    """One row over the runs of several seeds."""
    cells = [
        _spread([one.numbers[key] for one in found if key in one.numbers])
        for key in ("ann", *(f"T={t}" for t in times))
    ]
    mean, half = interval([one.numbers["gap"] for one in found])
    gap = f"{decimals(mean)}, {decimals(mean - half)} to {decimals(mean + half)}"
    fired = [decimals(statistics.fmean(one.numbers[key] for one in found), 3) for key in ("events", "spikes", "energy")]
    through_time = ", through time" if "qann" not in found[0].numbers else ""
    return [f"{found[0].name.rpartition(', seed')[0]}{through_time}", seeds, *cells, gap, *fired]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.2f} +-{(max(values) - min(values)) / 2:.2f}"
