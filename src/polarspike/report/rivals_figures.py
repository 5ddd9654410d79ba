"""The figures of a comparison: accuracy against what an answer costs, by kinds of methods, and against spikes by levels.

Of every method the one with the fewest levels is drawn, in the panel of its kind, with ours beside it in each; what more
levels buy is a figure of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polarspike.report.claims import OURS
from polarspike.report.plotting import COLORS, MARKS, drawing
from polarspike.report.required import Kind
from polarspike.report.rivals import Row, grouped, mean_of, name_of, networks_of

_Found = Mapping[int, list[Row]]
_Methods = dict[tuple[str, ...], _Found]
_SEVERAL, _SINGLE, _DIRECT = "several spikes a step", "at most one spike a step", "trained through time"
#: What accuracy is drawn against: column -> label, base of the logarithmic scale.
_AXES = {
    "latency": ("true latency, timesteps", 2),
    "spikes": ("spikes per neuron and image", 10),
    "bits": ("weight bits x bits of a spike x true latency", 2),
}
#: Of ours, from the darkest; and of the others, in turn, none of them blue.
_OURS = dict(zip(OURS, (COLORS["snn"], "#5ba3cf", "#9ecae1"), strict=True))
_OTHERS = ("#e08214", "#1b7837", "#b2182b", "#762a83", "#8c6d31", "#5aae61", "#d6604d", "#9970ab", "#636363", "#c51b7d")
#: Percent of accuracy that a panel shows at most, and the one of several levels.
_SPAN, _SPAN_OF_LEVELS = 20.0, 10.0
_SIZE = (3.9, 4.8)


def plot_rivals(rows: Sequence[Row], kinds: Mapping[str, Kind], place: Path) -> list[Path]:
    """SVG files of each network: accuracy against true latency, spikes and bits, and of several levels against spikes.

    Args:
        rows: of a comparison.
        kinds: of its methods: they part the panels.
        place: the folder for the files.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    written = []
    groups = grouped(rows)
    for data, network in networks_of(rows):
        mine: _Methods = {key: found for key, found in groups.items() if key[:2] == (data, network)}
        title, stem = f"{data}, {network}", f"rivals-{data}-{network}"
        level = next((mean_of(found[max(found)], "accuracy") for key, found in mine.items() if key[2] == "ann"), None)
        panels = _panels(_fewest(mine), kinds)
        for axis in _AXES:
            target = place / f"{stem}-{axis}.svg"
            with drawing(target, (_SIZE[0] * len(panels), _SIZE[1]), 1, len(panels)) as places:
                for axes, (heading, methods) in zip(places, panels.items(), strict=True):
                    for index, (key, answers) in enumerate(methods.items()):
                        points = [
                            (latency if axis == "latency" else mean_of(at, axis), mean_of(at, "accuracy"))
                            for latency, at in sorted(answers.items())
                        ]
                        _line(axes, key, index, name_of(key), [(x, y) for x, y in points if x])
                    _finish(axes, f"{title}\n{heading}", axis, level, _SPAN)
            written.append(target)
        if several := _by_levels(mine, kinds):
            target = place / f"{stem}-levels.svg"
            with drawing(target, (_SIZE[0] * 1.6, _SIZE[1])) as (axes,):
                for index, (key, by_levels) in enumerate(several.items()):
                    points = [(mean_of(at, "spikes"), mean_of(at, "accuracy")) for at in by_levels.values()]
                    _line(axes, key, index, key[2], points)
                    for levels, point in zip(by_levels, points, strict=True) if key[2] in OURS else ():
                        axes.annotate(str(levels), point, xytext=(2, -9), textcoords="offset points", fontsize=7)
                _finish(axes, f"{title}\nT = 1, by the number of levels", "spikes", level, _SPAN_OF_LEVELS)
            written.append(target)
    return written


def _fewest(methods: _Methods) -> _Methods:
    """Of every method those with its fewest levels."""
    least: dict[str, int] = {}
    for key in methods:
        least[key[2]] = min(int(key[3] or 0), least.get(key[2], int(key[3] or 0)))
    return {key: found for key, found in methods.items() if int(key[3] or 0) == least[key[2]] and key[2] != "ann"}


def _panels(methods: _Methods, kinds: Mapping[str, Kind]) -> dict[str, _Methods]:
    """The methods by kind; what stands for ours, the first of its names that is there, is in every panel."""
    panels: dict[str, _Methods] = {_SEVERAL: {}, _SINGLE: {}, _DIRECT: {}}
    for key, found in methods.items():
        kind = kinds.get(key[2])
        direct, single = kind is not None and kind.family == "direct", kind is not None and kind.spikes != "multi"
        panels[_DIRECT if direct else _SINGLE if single else _SEVERAL][key] = found
    panels = {heading: panel for heading, panel in panels.items() if panel} or {_SEVERAL: {}}
    ours = next((key for name in OURS for key in methods if key[2] == name), None)
    return {heading: {**({ours: methods[ours]} if ours else {}), **panel} for heading, panel in panels.items()}


def _by_levels(methods: _Methods, kinds: Mapping[str, Kind]) -> dict[tuple[str, ...], dict[int, list[Row]]]:
    """Methods of several spikes that were asked at several numbers of levels: of each, the answers at T = 1 by levels."""
    found: dict[tuple[str, ...], dict[int, list[Row]]] = {}
    for key, answers in methods.items():
        kind = kinds.get(key[2])
        if key[3] and (kind is None or kind.spikes == "multi") and 1 in answers and mean_of(answers[1], "spikes"):
            found.setdefault((*key[:3], "", *key[4:]), {})[int(key[3])] = answers[1]
    return {key: dict(sorted(answers.items())) for key, answers in found.items() if len(answers) > 1}


def _line(axes: Any, key: tuple[str, ...], index: int, label: str, points: Sequence[tuple[Any, Any]]) -> None:
    if not points:
        return
    ours = key[2] in OURS
    axes.plot(
        *zip(*points, strict=True),
        color=_OURS[key[2]] if ours else _OTHERS[index % len(_OTHERS)],
        marker=MARKS[index % len(MARKS)],
        markersize=4,
        label=label,
        lw=2.2 if ours else 1.0,
        zorder=3 if ours else 2,
    )


def _finish(axes: Any, title: str, axis: str, level: float | None, span: float) -> None:
    label, base = _AXES[axis]
    axes.set_xscale("log", base=base, subs=(2, 5) if base == 10 else ())
    lowest = _cut(axes, span)
    if level is not None:
        axes.axhline(level, color="black", ls=":", label="float network")
    axes.set_title(title)
    axes.set_xlabel(label)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.set_ylabel("accuracy, %" if lowest is None else f"accuracy, % (not shown below {lowest:.0f})")
    axes.legend(fontsize=6.5, loc="upper center", bbox_to_anchor=(0.5, -0.14), borderaxespad=0, ncols=2)


def _cut(axes: Any, span: float) -> float | None:
    """Leave out what is further below the best, where lines that matter would else be one; where the axis then begins."""
    points = [(x, y) for line in axes.lines for x, y in zip(line.get_xdata(), line.get_ydata(), strict=True)]
    best = max((y for _, y in points), default=0.0)
    lowest = best - span
    shown = [x for x, y in points if y >= lowest]
    if len(shown) == len(points):
        return None
    axes.set_ylim(lowest, best + 0.05 * span)
    axes.set_xlim(min(shown) / 1.2, max(shown) * 1.2)
    return lowest
