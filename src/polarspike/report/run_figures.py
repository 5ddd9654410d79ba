"""The figures of one run: learning, accuracy against T, the codes of each site, energy under each convention."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from polarspike.report.numbers import entropy_of
from polarspike.report.plotting import COLORS, drawing
from polarspike.report.record import STAGES, Record
from polarspike.report.run_page import spikes_of

_COLORS = {**COLORS, "through_time_control": COLORS["control"]}
_COLUMNS, _MOST_SITES = 4, 24
_LEAST_SPAN = 1.0  # of an axis of accuracy, in points
_SYSTEMS = {"qann": "QANN, dense int8", "a": "(a) event = 1 AC", "b": "(b) |k| ACs", "c": "(c) dense if not ternary",
            "d": "(d) 1 MAC per event"}  # fmt: skip


def plot_run(record: Record, place: Path) -> list[Path]:
    """Draw what a run has found; each figure is an SVG file named after its section.

    Args:
        record: of the run; what is not finished has no figure.
        place: a directory.

    Raises:
        MissingExtraError: matplotlib is not installed.
        RunError: the run's files hold something else.
    """
    with record.understood():
        written = []
        if any(record.stages.values()):
            written.append(_learning(record.stages, place / "learning.svg"))
        if record.results is not None:
            written.append(_accuracy(record.results, place / "accuracy.svg"))
            written.append(_codes(record.results["counts"]["sites"], place / "codes.svg"))
            written.append(_energy(record.results["energy"]["rows"], place / "energy.svg"))
        return written


def _learning(stages: Mapping[str, Sequence[Mapping[str, Any]]], target: Path) -> Path:
    """Loss and training accuracy, epoch by epoch; what is trained side by side starts at the same epoch."""
    first = len(stages.get("ann", ()))
    begins = {"ann": 0, "qann": first, "control": first}
    later = first + len(stages.get("qann", ()))
    with drawing(target, (9, 3.2), columns=2) as (left, right):
        for name, epochs in stages.items():
            places = [begins.get(name, later) + index + 1 for index in range(len(epochs))]
            style = {
                "color": _COLORS[name],
                "label": STAGES[name],
                "marker": "." if len(epochs) < 40 else "",
                "lw": 1.2,
            }
            left.plot(places, [epoch["loss"] for epoch in epochs], **style)
            right.plot(places, [100 * epoch["train_accuracy"] for epoch in epochs], **style)
        left.set_ylabel("loss")
        right.set_ylabel("training accuracy, %")
        for panel in (left, right):
            panel.set_xlabel("epoch")
        left.legend()
    return target


def _accuracy(results: Mapping[str, Any], target: Path) -> Path:
    """The SNN at every T that was asked for, between the ANN and the QANN."""
    ann, qann = (100 * results[name]["rows"][0]["accuracy"] for name in ("ann", "qann"))
    lines = [("SNN", COLORS["snn"], "o", results["snn"]["rows"])]
    if "through_time" in results:
        lines.append(("SNN through time", COLORS["through_time"], "s", results["through_time"]["snn"]["rows"]))
    times = [row["timesteps"] for row in results["snn"]["rows"]]
    with drawing(target, (9, 3.2), columns=2) as (left, right):
        for panel, label in ((left, "T"), (right, "spikes per neuron")):
            panel.axhline(ann, color=COLORS["ann"], ls="--", lw=1, label="ANN")
            panel.axhline(qann, color=COLORS["qann"], ls=":", lw=1.4, label="QANN")
            for name, color, mark, rows in lines:
                places = [row["timesteps"] for row in rows] if panel is left else spikes_of(rows)
                accuracy = [100 * row["accuracy"] for row in rows]
                panel.plot(places, accuracy, color=color, marker=mark, lw=1.4, label=name)
            panel.set_xlabel(label)
            panel.ticklabel_format(axis="y", useOffset=False)
            low, high = panel.get_ylim()
            if high - low < _LEAST_SPAN:  # noise must not fill a panel
                middle = (low + high) / 2
                panel.set_ylim(middle - _LEAST_SPAN / 2, middle + _LEAST_SPAN / 2)
        left.set_xscale("log", base=2)
        left.set_xticks(times, [str(t) for t in times])
        left.minorticks_off()
        left.set_ylabel("test accuracy, %")
        left.legend()
    return target


def _codes(sites: Sequence[Mapping[str, Any]], target: Path) -> Path:
    """How often each code is fired, site by site; the share of silent neurons, which is far larger, as a number."""
    shown = sites[:_MOST_SITES]
    rows = -(-len(shown) // _COLUMNS)
    with drawing(target, (9, 2.1 * rows), rows, min(_COLUMNS, len(shown))) as panels:
        for axes, site in zip(panels, shown, strict=False):
            total = sum(site["codes"].values())
            codes = sorted((int(code), count) for code, count in site["codes"].items() if int(code))
            colors = [COLORS["snn"] if code > 0 else COLORS["qann"] for code, _ in codes]
            axes.bar([code for code, _ in codes], [100 * count / total for _, count in codes], color=colors)
            silent, bits = 100 * site["silent_share"], entropy_of(site["codes"])
            axes.set_title(f"{site['site']}\nsilent {silent:.0f} %, {bits:.2f} bits", fontsize=8)
            axes.tick_params(labelsize=7)
        for axes in panels[len(shown) :]:
            axes.axis("off")
        first = panels[0]
        if len(shown) < len(sites):
            first.figure.suptitle(f"the first {len(shown)} of {len(sites)} sites", fontsize=9)
        first.set_ylabel("of all codes, %", fontsize=8)
        first.set_xlabel("code", fontsize=8)
    return target


def _energy(rows: Sequence[Mapping[str, Any]], target: Path) -> Path:
    """Each system's arithmetic against the dense ANN of its precision."""
    precisions = list(dict.fromkeys(row["precision"] for row in rows))
    with drawing(target, (9, 2.8), columns=len(precisions)) as panels:
        for axes, precision in zip(panels, precisions, strict=True):
            here = [row for row in rows if row["precision"] == precision and row["system"] != "ann"][::-1]
            labels = [_SYSTEMS.get(row["system"], row["label"]) for row in here]
            colors = [COLORS["qann"] if row["system"] == "qann" else COLORS["snn"] for row in here]
            bars = axes.barh(labels, [row["ratio"] for row in here], color=colors)
            axes.bar_label(bars, [f"{row['ratio']:.2f}" for row in here], padding=2, fontsize=8)
            axes.axvline(1.0, color=COLORS["ann"], ls="--", lw=1)
            axes.set_xlabel(f"{precision}: energy over that of the dense ANN")
            axes.margins(x=0.12)
    return target
