"""Draw the studies' tables as the figures of docs/results.md.

    python benchmarks/studies/plots.py

One SVG file for each table in ``benchmarks/results/studies`` that has rows; means over seeds, bars from least to largest.
"""

from __future__ import annotations

import csv
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import matplotlib as mpl
from _table import RESULTS
from first_timestep import COURSES

mpl.use("Agg")
mpl.rcParams["svg.hashsalt"] = "polarspike"  # the same figure is the same file
from matplotlib import pyplot as plt  # noqa: E402 (after the backend is chosen)
from matplotlib.figure import Figure  # noqa: E402

FIGURES = Path(__file__).parents[2] / "docs" / "figures"
_MARKS = "osD^vP*XhdpH"


def rows(study: str) -> list[dict[str, str]]:
    """The rows of a study's table, or none."""
    path = RESULTS / f"{study}.csv"
    return list(csv.DictReader(path.open())) if path.exists() else []


def spread(found: Iterable[tuple[Any, float]]) -> tuple[list[Any], list[float], list[list[float]]]:
    """Places in order, the mean at each, and how far the least and the largest value are from it."""
    values: dict[Any, list[float]] = defaultdict(list)
    for place, value in found:
        values[place].append(value)
    places = sorted(values)
    means = [sum(values[place]) / len(values[place]) for place in places]
    lower = [mean - min(values[place]) for place, mean in zip(places, means, strict=True)]
    upper = [max(values[place]) - mean for place, mean in zip(places, means, strict=True)]
    return places, means, [lower, upper]


def series(table: list[dict[str, str]], key: str) -> Iterator[tuple[str, str, list[dict[str, str]]]]:
    """A mark, a value of ``key`` and the rows that have it, for each value in the order of the table."""
    for mark, value in zip(_MARKS, dict.fromkeys(row[key] for row in table), strict=False):
        yield mark, value, [row for row in table if row[key] == value]


def column(table: list[dict[str, str]], key: str) -> list[float]:
    """The numbers of one column."""
    return [float(row[key]) for row in table]


def sensitivity(figure: Figure) -> None:
    """Accuracy against the factor on the first steps, a line for each strategy."""
    axes = figure.subplots()
    for mark, strategy, mine in series(rows("sensitivity"), "strategy"):
        places, means, bars = spread(zip(column(mine, "factor"), column(mine, "test"), strict=True))
        axes.errorbar(places, means, bars, marker=mark, capsize=3, label=strategy)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("first step, times the strategy's own")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=7)


def activity(figure: Figure) -> None:
    """Accuracy against spikes per neuron, a line for each number of levels."""
    axes = figure.subplots()
    table = rows("activity")
    kinds = dict.fromkeys((row["positive"], row["means"]) for row in table)
    for mark, (positive, means) in zip(_MARKS, kinds, strict=False):
        mine = [row for row in table if (row["positive"], row["means"]) == (positive, means)]
        by_weight = {weight: [row for row in mine if row["weight"] == weight] for weight in {r["weight"] for r in mine}}
        points = sorted(
            tuple(sum(float(row[key]) for row in group) / len(group) for key in ("spikes", "test"))
            for group in by_weight.values()
        )
        axes.plot(*zip(*points, strict=True), marker=mark, label=f"(0, {positive}), {means}")
    axes.set_xlabel("spikes per neuron and image at T = 1")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=7)


def polarity(figure: Figure) -> None:
    """Accuracy of every row, networks beside each other."""
    axes = figure.subplots()
    table = rows("polarity")
    names = list(dict.fromkeys(f"({row['negative']},{row['positive']}) {row['gain']}" for row in table))
    for mark, network, mine in series(table, "network"):
        at = [names.index(f"({row['negative']},{row['positive']}) {row['gain']}") for row in mine]
        places, means, bars = spread(zip(at, column(mine, "test"), strict=True))
        axes.errorbar(means, places, xerr=bars, marker=mark, linestyle="none", capsize=3, label=network)
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("test accuracy, %")
    axes.legend(fontsize=7)


def entropy(figure: Figure) -> None:
    """Final accuracy against entropy at the start: 4 levels, one network, every strategy and factor."""
    axes = figure.subplots()
    for mark, strategy, mine in series(rows("sensitivity"), "strategy"):
        axes.plot(column(mine, "bits_start"), column(mine, "test"), mark, linestyle="none", label=strategy)
    control = rows("entropy")
    axes.plot(column(control, "bits_start"), column(control, "test"), "kx", label="equal codes")
    axes.set_xlabel("entropy of the codes before training, bits (mean over sites)")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=7)


def first_timestep(figure: Figure) -> None:
    """Accuracy of the control and of the spiking networks against T, a panel for each course."""
    table = [row for row in rows("first_timestep") if not float(row["activity"])]
    courses = [name for name in COURSES if any(row["network"] == name and row["levels"] != "float" for row in table)]
    panels = figure.subplots(1, len(courses), sharey=True, squeeze=False)[0]
    styles = dict(zip(dict.fromkeys(row["levels"] for row in table if row["levels"] != "float"), _MARKS, strict=False))
    for name, axes in zip(courses, panels, strict=True):
        axes.set_title(name.removeprefix("resnet9-"), fontsize=8)
        for _, levels, mine in series([row for row in table if row["network"] == name], "levels"):
            if levels == "float":
                axes.axhline(
                    sum(column(mine, "test")) / len(mine), linestyle="--", color="k", label="ANN, same training"
                )
                continue
            places, means, bars = spread((t, float(row[f"t{t}"])) for row in mine for t in (1, 2, 4, 8))
            color = f"C{list(styles).index(levels)}"
            axes.errorbar(places, means, bars, marker=styles[levels], color=color, capsize=3, label=f"levels {levels}")
        axes.set_xscale("log", base=2)
        axes.set_xticks((1, 2, 4, 8), ("1", "2", "4", "8"))
    figure.supxlabel("timesteps T", fontsize=9)
    panels[0].set_ylabel("test accuracy, %")
    shown = {label: handle for axes in panels for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    panels[-1].legend(shown.values(), shown.keys(), fontsize=6, loc="lower right")


def timesteps(figure: Figure) -> None:
    """Accuracy against T, a line for each network and share of the optimizer steps at T = 1."""
    axes = figure.subplots()
    table = rows("timesteps")
    shown = {"1": ("trained for T = 1", "--"), "0.67": ("trained for T = 1, 2, 4, 8", "-")}
    places_of = dict.fromkeys((row["network"], row["levels"]) for row in table)
    for color, (network, levels) in enumerate(places_of):
        for share, (title, style) in shown.items():
            mine = [row for row in table if (row["network"], row["levels"], row["share"]) == (network, levels, share)]
            places, means, bars = spread((t, float(row[f"t{t}"])) for row in mine for t in (1, 2, 4, 8))
            label = f"{network} {levels}, {title}"
            axes.errorbar(places, means, bars, marker="o", capsize=3, linestyle=style, color=f"C{color}", label=label)
    axes.set_xscale("log", base=2)
    axes.set_xlabel("timesteps T")
    axes.set_ylabel("test accuracy, %")
    axes.legend(fontsize=7, loc="center", bbox_to_anchor=(0.5, 0.63))  # between the networks


DRAWINGS: dict[str, Callable[[Figure], None]] = {
    "sensitivity": sensitivity,
    "polarity": polarity,
    "entropy": entropy,
    "first_timestep": first_timestep,
    "activity": activity,
    "timesteps": timesteps,
}
SIZES = {"polarity": (6.4, 5.4), "first_timestep": (9.0, 4.0)}


def main() -> None:
    FIGURES.mkdir(exist_ok=True)
    for name, draw in DRAWINGS.items():
        if not rows("sensitivity" if name == "entropy" else name):
            continue
        figure = plt.figure(figsize=SIZES.get(name, (6.4, 4.0)), layout="constrained")
        draw(figure)
        for axes in figure.axes:
            axes.grid(alpha=0.3)
        figure.savefig(FIGURES / f"{name}.svg", metadata={"Date": None})
        plt.close(figure)
        print(FIGURES / f"{name}.svg")


if __name__ == "__main__":
    main()
