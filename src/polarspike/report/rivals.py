"""The table and the plots of a comparison: accuracy at true latency, and against spikes, means over seeds."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from polarspike.errors import MissingExtraError
from polarspike.files import replacing
from polarspike.tables import aligned

Row = Mapping[str, str]
_KEYS = ("network", "method", "levels", "trained_steps", "budget")
_WIDTH = 160
_MARKS = "os^vD*Phx+<>p"


def grouped(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[int, list[Row]]]:
    """The rows of each method, by true latency; several are of several seeds."""
    found: dict[tuple[str, ...], dict[int, list[Row]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        found[tuple(row[key] for key in _KEYS)][int(row["latency"])].append(row)
    return found


def name_of(key: Sequence[str]) -> str:
    """A method and its variant in one word."""
    _, method, levels, steps, budget = key
    parts = [method, f"{levels} levels" if levels else "", f"T={steps}" if steps else ""]
    return " ".join(part for part in (*parts, "" if budget == "epochs" else f"equal {budget}") if part)


def mean_of(rows: Sequence[Row], column: str) -> float | None:
    """The mean over seeds, None where it was not measured."""
    values = [float(row[column]) for row in rows if row[column]]
    return statistics.fmean(values) if values else None


def rivals_table(rows: Sequence[Row]) -> str:
    """Accuracy at every true latency, with its spread, and what the smallest one costs.

    ``+-`` is half of the difference between the best and the worst seed. Spikes are per neuron and image; energy is of int8
    arithmetic in nJ per image: |k| accumulates (b), the dense float network (ann) and the dense quantized one (qann).
    """
    if not rows:
        return "nothing has been measured yet"
    latencies = sorted({int(row["latency"]) for row in rows})
    lines: list[str] = []
    groups = grouped(rows)
    for network in dict.fromkeys(key[0] for key in groups):
        header = ["method", "seeds", "epochs", *(f"{latency}" for latency in latencies),
                  "at", "events", "spikes", "nJ b", "nJ qann", "nJ ann", "time"]  # fmt: skip
        table = [header]
        for key, found in groups.items():
            if key[0] != network:
                continue
            least = min(found)
            first = found[least]
            cells = [_accuracy(found.get(latency, ())) for latency in latencies]
            costs = [_number(mean_of(first, column), digits) for column, digits in (
                ("events", 3), ("spikes", 3), ("nj_b", 1), ("nj_qann", 1), ("nj_ann", 1), ("time_ratio", 2))]  # fmt: skip
            table.append([name_of(key), str(len(first)), first[0]["epochs"] or "-", *cells, str(least), *costs])
        lines += [
            f"{network}: accuracy in % at true latency, and the cost of the first answer",
            *aligned(table, _WIDTH),
            "",
        ]
    return "\n".join(lines)


def plot_rivals(rows: Sequence[Row], place: Path) -> list[Path]:
    """Two SVG files for each network: accuracy against true latency, and against spikes; none where nothing was measured.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    plt = _pyplot()
    written = []
    groups = grouped(rows)
    for network in dict.fromkeys(key[0] for key in groups):
        for axis in ("latency", "spikes"):
            figure, axes = plt.subplots(figsize=(8, 5), layout="constrained")
            for index, (key, found) in enumerate(groups.items()):
                points = [(latency if axis == "latency" else mean_of(found[latency], "spikes"), found[latency])
                          for latency in sorted(found)]  # fmt: skip
                drawn = [(x, mean_of(at, "accuracy")) for x, at in points if x is not None]
                if key[0] == network and drawn and key[1] != "ann":
                    axes.plot(*zip(*drawn, strict=True), marker=_MARKS[index % len(_MARKS)], label=name_of(key), lw=1)
                elif key[0] == network and key[1] == "ann":
                    axes.axhline(mean_of(found[1], "accuracy"), color="black", ls=":", label="ann")
            axes.set_xscale("log", base=2 if axis == "latency" else 10)
            axes.set_xlabel("true latency, timesteps" if axis == "latency" else "spikes per neuron and image")
            axes.set_ylabel("accuracy, %")
            axes.set_title(network)
            axes.legend(fontsize=7, loc="lower right")
            target = place / f"rivals-{network}-{axis}.svg"
            with replacing(target) as partial:
                figure.savefig(partial, format="svg", metadata={"Date": None})
            plt.close(figure)
            written.append(target)
    return written


def _accuracy(rows: Sequence[Row]) -> str:
    values = [float(row["accuracy"]) for row in rows]
    if not values:
        return "-"
    spread = f"+-{(max(values) - min(values)) / 2:.2f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.2f}{spread}"


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _pyplot() -> Any:
    try:
        import matplotlib as mpl
    except ImportError:
        raise MissingExtraError("matplotlib", "report") from None
    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "polarspike"  # the same figure is the same file
    from matplotlib import pyplot as plt

    return plt
