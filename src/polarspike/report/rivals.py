"""The table and the plots of a comparison: accuracy at true latency, and against spikes, means over seeds."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from polarspike.common.tables import aligned
from polarspike.report.numbers import decimals
from polarspike.report.plotting import MARKS, drawing

Row = Mapping[str, str]
_KEYS = ("data", "network", "method", "levels", "trained_steps", "budget")
_WIDTH = 200
#: What an answer costs: heading, column, digits.
_COSTS = (("events", "events", 3), ("spikes", "spikes", 3), ("spike bits", "spike_bits", 0), ("bits", "bits", 0),
          ("nJ a", "nj_a", 1), ("nJ b", "nj_b", 1), ("nJ c", "nj_c", 1), ("nJ d", "nj_d", 1), ("nJ qann", "nj_qann", 1),
          ("nJ ann", "nj_ann", 1), ("x time", "time_ratio", 2), ("ms", "ms_per_image", 2))  # fmt: skip
#: Names in a column beside a figure, and percent of accuracy that it shows.
_NAMES, _SPAN = 28, 20.0
#: What accuracy is drawn against: column -> label, base of the logarithmic scale.
_AXES = {
    "latency": ("true latency, timesteps", 2),
    "spikes": ("spikes per neuron and image", 10),
    "bits": ("weight bits x bits of a spike x true latency", 2),
}


def grouped(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[int, list[Row]]]:
    """The rows of each method that was measured, by true latency; several are of several seeds, each seed once."""
    found: dict[tuple[str, ...], dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        if row["accuracy"]:
            found[tuple(row[key] for key in _KEYS)][int(row["latency"])].setdefault(row["seed"], row)
    return {
        key: {latency: list(seeds.values()) for latency, seeds in latencies.items()} for key, latencies in found.items()
    }


def name_of(key: Sequence[str]) -> str:
    """A method and its variant in one word."""
    *_, method, levels, steps, budget = key
    parts = [method, f"{levels} levels" if levels else "", f"T={steps}" if steps else ""]
    return " ".join(part for part in (*parts, "" if budget == "epochs" else f"equal {budget}") if part)


def mean_of(rows: Sequence[Row], column: str) -> float | None:
    """The mean over seeds, None where it was not measured."""
    values = [float(row[column]) for row in rows if row[column]]
    return statistics.fmean(values) if values else None


def networks_of(rows: Iterable[Row]) -> list[tuple[str, str]]:
    """Data and network of everything that was measured, in order."""
    return list(dict.fromkeys((row["data"], row["network"]) for row in rows if row["accuracy"]))


def accuracy_table(rows: Iterable[Row], place: tuple[str, str]) -> list[list[str]]:
    """Accuracy on one network at every true latency, with its spread, as cells; a heading first.

    ``+-`` is half of the difference between the best and the worst seed, and (n) says where fewer seeds than in the first
    column were measured. Epochs: the method's own / with those of the float network that it starts from.
    """
    groups = {key: found for key, found in grouped(rows).items() if key[:2] == place}
    latencies = sorted({latency for found in groups.values() for latency in found})
    table = [["method", "seeds", "epochs", "s own", *map(str, latencies)]]
    for key, found in groups.items():
        seeds, first = max(map(len, found.values())), found[min(found)]
        epochs = f"{first[0]['own_epochs'] or '-'}/{first[0]['epochs'] or '-'}"
        cells = [_accuracy(found.get(latency, ()), seeds) for latency in latencies]
        table.append([name_of(key), str(seeds), epochs, decimals(mean_of(first, "own_seconds"), 0), *cells])
    return table


def cost_table(
    rows: Iterable[Row], place: tuple[str, str], *, every: bool = False, spread: bool = True
) -> list[list[str]]:
    """What answers cost on one network, as cells, a heading first: the first answer of each method, or every one.

    Spikes are per neuron and image; ``bits`` are those of a weight times those of a spike times the true latency; energy is
    of int8 arithmetic in nJ per image under the conventions a to d, of the dense quantized network and of the dense float
    network; time is that of the float network times so much. With ``spread``, ``+-`` as in :func:`accuracy_table`, where it
    is not 0.
    """
    groups = {key: found for key, found in grouped(rows).items() if key[:2] == place}
    table = [["method", "at", "accuracy", *(heading for heading, _, _ in _COSTS)]]
    for key, found in groups.items():
        for latency in sorted(found) if every else [min(found)]:
            at = found[latency]
            asked = (("accuracy", 2), *((column, digits) for _, column, digits in _COSTS))
            cells = [_cell(at, column, digits, "some" if spread else "none") for column, digits in asked]
            table.append([name_of(key), str(latency), *cells])
    return table


def left_out(rows: Iterable[Row]) -> list[str]:
    """Methods that do not apply, with the reason, each once."""
    return list(dict.fromkeys(f"{row['method']}: {row['setting']}" for row in rows if not row["accuracy"]))


def rivals_table(rows: Sequence[Row]) -> str:
    """:func:`accuracy_table` of every network as text, with what the first answer costs beside it."""
    if not networks_of(rows):
        return "nothing has been measured yet"
    lines: list[str] = []
    for place in networks_of(rows):
        right = [[cost[1], *cost[3:]] for cost in cost_table(rows, place, spread=False)]
        table = [[*left, *cost] for left, cost in zip(accuracy_table(rows, place), right, strict=True)]
        lines += [f"{', '.join(place)}: accuracy in % at true latency; the cost of the first answer"]
        lines += [*aligned(table, _WIDTH), ""]
    return "\n".join([*lines, *left_out(rows)]).rstrip()


def plot_rivals(rows: Sequence[Row], place: Path) -> list[Path]:
    """Three SVG files for each network: accuracy against true latency, against spikes, and against bits.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    written = []
    groups = grouped(rows)
    for data, network in networks_of(rows):
        mine = {key: found for key, found in groups.items() if key[:2] == (data, network)}
        for axis, (label, base) in _AXES.items():
            target = place / f"rivals-{data}-{network}-{axis}.svg"
            columns = math.ceil(len(mine) / _NAMES)
            with drawing(target, (7 + 2.2 * columns, 5)) as (axes,):
                _draw(axes, axis, mine)
                lowest = _cut(axes)
                axes.set_xscale("log", base=base)
                axes.set_xlabel(label)
                axes.set_ylabel("accuracy, %" if lowest is None else f"accuracy, % (not shown below {lowest:.0f})")
                axes.set_title(f"{data}, {network}")
                axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1.01, 1.0), borderaxespad=0, ncols=columns)
            written.append(target)
    return written


def _draw(axes: Any, axis: str, found: Mapping[tuple[str, ...], Mapping[int, list[Row]]]) -> None:
    """A line for each method; a level for the float network."""
    for index, (key, answers) in enumerate(found.items()):
        if key[2] == "ann":
            axes.axhline(mean_of(next(iter(answers.values())), "accuracy"), color="black", ls=":", label="ann")
            continue
        places = [(latency if axis == "latency" else mean_of(at, axis), at) for latency, at in sorted(answers.items())]
        drawn = [(x, mean_of(at, "accuracy")) for x, at in places if x]
        if drawn:
            ours = key[2].startswith("polarspike")
            axes.plot(
                *zip(*drawn, strict=True),
                marker=MARKS[index % len(MARKS)],
                markersize=5,
                label=name_of(key),
                lw=2.0 if ours else 0.8,
                zorder=3 if ours else 2,
            )


def _cut(axes: Any) -> float | None:
    """Leave out what is far below the best, where lines that matter would else be one; where the axis then begins."""
    values = [float(value) for line in axes.lines for value in line.get_ydata()]
    lowest = max(values, default=0.0) - _SPAN
    if min(values, default=0.0) >= lowest:
        return None
    axes.set_ylim(lowest, max(values) + 0.05 * _SPAN)
    return lowest


def _accuracy(rows: Sequence[Row], seeds: int) -> str:
    fewer = f" ({len(rows)})" if 0 < len(rows) < seeds else ""
    return f"{_cell(rows, 'accuracy', 2, 'always')}{fewer}"


def _cell(rows: Sequence[Row], column: str, digits: int, spread: Literal["none", "some", "always"]) -> str:
    """The mean over seeds, with half of what lies between the least and the largest: never, where it is not 0, or always."""
    values = [float(row[column]) for row in rows if row[column]]
    if not values:
        return decimals(None)
    half = decimals((max(values) - min(values)) / 2, digits)
    told = len(values) > 1 and (spread == "always" or (spread == "some" and float(half) > 0))
    return decimals(statistics.fmean(values), digits) + (f"+-{half}" if told else "")
