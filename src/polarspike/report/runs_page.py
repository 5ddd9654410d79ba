"""Several runs as one page: a row each, and means over seeds where runs repeat each other."""

from __future__ import annotations

import json
import math
import statistics
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polarspike.errors import RunError
from polarspike.report.pages import Section
from polarspike.report.plotting import MARKS, drawing
from polarspike.report.record import Record
from polarspike.report.run_page import firing_of

#: Student's t for a two-sided interval of 95 % with 1, 2, ... degrees of freedom.
_STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
_LATE = 1.96
_EACH = (
    "Percent right on the test set at the last epoch. ANN: after as many epochs as the SNN's weights have had. Gap: points "
    "from the ANN to the SNN at T = 1. Different: codes of the QANN that the SNN does not repeat at T = 1. Events and "
    "spikes are per neuron at T = 1; energy is int8 arithmetic under convention (b), |k| accumulates for a spike of k "
    "units, over that of the dense ANN."
)
_MEANS = (
    "Runs with the same recipe and data but other seeds; +- is half of the difference between the best and the worst. The "
    "gap is paired by seed; its interval has 95 % (Student's t), and few seeds make it wide."
)


def runs_page(records: Sequence[Record], figures: Sequence[Path] = ()) -> list[Section]:
    """The sections of several runs.

    Args:
        records: of the runs, all finished.
        figures: of :func:`plot_runs`.

    Raises:
        RunError: a run is not finished, or its files hold something else.
    """
    times = sorted({row["timesteps"] for record in records for row in _results(record)["snn"]["rows"]})
    sections = [Section("Runs", (_EACH,), _each(records, times), tuple(figures))]
    repeated = [group for group in grouped(records) if len(group) > 1]
    if repeated:
        sections.append(Section("Means over seeds", (_MEANS,), _means(repeated, times)))
    return sections


def grouped(records: Sequence[Record]) -> list[list[Record]]:
    """Runs that repeat each other with other seeds, together; of one seed twice, the first."""
    groups: dict[str, dict[Any, Record]] = defaultdict(dict)
    for record in records:
        groups[json.dumps(record.unseeded, sort_keys=True)].setdefault(record.recipe.get("seed"), record)
    return [list(group.values()) for group in groups.values()]


def interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean and half the width of its 95 % interval: t s / sqrt(n) with the sample's standard deviation s, n >= 2."""
    freedom = len(values) - 1
    t = _STUDENT[freedom - 1] if freedom <= len(_STUDENT) else _LATE
    return statistics.fmean(values), t * statistics.stdev(values) / math.sqrt(len(values))


def plot_runs(records: Sequence[Record], place: Path) -> list[Path]:
    """Accuracy against T and against spikes, a line for each run; one SVG file.

    Raises:
        MissingExtraError: matplotlib is not installed.
        RunError: a run is not finished, or its files hold something else.
    """
    target = place / "runs.svg"
    with drawing(target, (9, 3.6), columns=2) as (left, right):
        for index, record in enumerate(records):
            with record.understood():
                rows = _results(record)["snn"]["rows"]
                accuracy = [100 * row["accuracy"] for row in rows]
                style = {"marker": MARKS[index % len(MARKS)], "lw": 1, "ms": 4, "label": record.path.name}
                left.plot([row["timesteps"] for row in rows], accuracy, **style)
                right.plot([firing_of(row)["spikes"] or 0.0 for row in rows], accuracy, **style)
        left.set_xscale("log", base=2)
        left.set_xlabel("T")
        left.set_ylabel("test accuracy, %")
        right.set_xscale("log")
        right.set_xlabel("spikes per neuron")
        left.legend(fontsize=7)
    return [target]


def _each(records: Sequence[Record], times: Sequence[int]) -> list[list[str]]:
    rows = [
        ["run", "what", "ANN", "QANN", *(f"T = {t}" for t in times), "gap", "different", "events", "spikes", "energy"]
    ]
    for record in records:
        with record.understood():
            found = _numbers(record)
            at = [_shown(found.get(f"T={t}")) for t in times]
            fired = (_shown(found.get(key), 3) for key in ("events", "spikes", "energy"))
            rows.append([
                record.path.name, record.name, _shown(found["ann"]), _shown(found["qann"]), *at, _shown(found.get("gap")),
                f"{found['different']:,.0f}", *fired,
            ])  # fmt: skip
    return rows


def _means(groups: Sequence[Sequence[Record]], times: Sequence[int]) -> list[list[str]]:
    keys = ["ann", *(f"T={t}" for t in times)]
    rows = [["what", "seeds", "ANN", *(f"T = {t}" for t in times), "gap, interval", "events", "spikes", "energy"]]
    for group in groups:
        found = [_numbers(record) for record in group]
        cells = [_spread([one[key] for one in found if key in one]) for key in keys]
        mean, half = interval([one["gap"] for one in found])
        gap = f"{mean:.2f}, {mean - half:.2f} to {mean + half:.2f}"
        fired = [_shown(statistics.fmean(one[key] for one in found), 3) for key in ("events", "spikes", "energy")]
        name = group[0].name.rpartition(", seed")[0]
        seeds = ", ".join(str(record.recipe.get("seed")) for record in group)
        rows.append([name, seeds, *cells, gap, *fired])
    return rows


def _numbers(record: Record) -> dict[str, float]:
    """What a table shows of one run, in percent and points."""
    results = _results(record)
    ann, qann = (100 * results[name]["rows"][0]["accuracy"] for name in ("ann", "qann"))
    found = {"ann": ann, "qann": qann}
    found |= {f"T={row['timesteps']}": 100 * row["accuracy"] for row in results["snn"]["rows"]}
    found["gap"] = ann - found["T=1"]
    fired = firing_of(results["snn"]["rows"][0])
    found |= {key: fired[key] or 0.0 for key in ("events", "spikes")}
    found["different"] = sum(site["different"] for site in results["proofs"][0]["sites"].values())
    rows = results["energy"]["rows"]
    found["energy"] = next(row["ratio"] for row in rows if row["system"] == "b" and row["precision"] == "int8")
    return found


def _results(record: Record) -> Mapping[str, Any]:
    if record.results is None:
        raise RunError(f"{record.path}: expected a finished run, results.json is missing; continue it with --resume")
    return record.results


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    return f"{statistics.fmean(values):.2f} +-{(max(values) - min(values)) / 2:.2f}"


def _shown(value: float | None, digits: int = 2) -> str:
    return "-" if value is None else f"{value + 0.0:.{digits}f}"
