"""The tables: times with their ranges and ratios, and what the files cost."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from polarspike.common.tables import aligned
from polarspike.speed.footprint import Footprint
from polarspike.speed.measurement import Heat

_WIDTH = 132
_CLOCKS = {"cpu": "processor time", "wall": "wall time"}
_RATIOS = (("x torch fp32", "x_torch"), ("x own fp32", "x_own_fp32"), ("x own int8", "x_own_int8"))
_MB = 1e6


def speed_table(heat: Heat) -> str:
    """One race: milliseconds for a batch, and how many times as fast as torch, the engine's own fp32 and own int8 it is.

    Medians over the rounds, ranges in brackets; below, why others did not run.
    """
    table = [["runtime", "ms", "range", *(heading for heading, _ in _RATIOS)]]
    for row in heat.rows():
        middle, low, high = row["ms"]
        table.append([row["runtime"], _number(middle), f"{_number(low)}..{_number(high)}", *_ratios(row)])
    threads = "1 thread" if heat.threads == 1 else f"{heat.threads} threads"
    lines = [f"batch {heat.batch}, {threads}, {_CLOCKS[heat.clock]} of a batch", *aligned(table, _WIDTH)]
    lines += [f"not run: {name}: {reason}" for name, reason in heat.skipped.items()]
    return "\n".join(lines)


def footprint_table(found: Sequence[Footprint], batch: int) -> str:
    """Bytes of the files, and of memory of a process that runs a batch in ONNX Runtime, over those of the float file."""
    base = next((each for each in found if each.kind == "fp32"), None)
    table = [["file", "MB", "x fp32", "peak MB", "x fp32", "own MB", "x fp32"]]
    for each in found:
        row = each.row(base)
        sizes = (("bytes", "x_bytes"), ("peak_bytes", "x_peak"), ("own_bytes", "x_own"))
        cells = [cell for size, ratio in sizes for cell in (_megabytes(row[size]), _ratio(row.get(ratio)))]
        table.append([each.kind, *cells])
    about = (
        f"files, and memory of a process that runs batch {batch} in ONNX Runtime (own: without interpreter and runtime)"
    )
    return "\n".join([about, *aligned(table, _WIDTH)])


def _ratios(row: Mapping[str, Any]) -> list[str]:
    cells = []
    for _, key in _RATIOS:
        cells.append("{:.2f} ({:.2f}..{:.2f})".format(*row[key]) if key in row else "-")
    return cells


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 100 else f"{value:.0f}"


def _megabytes(value: int | None) -> str:
    return "-" if value is None else f"{value / _MB:.2f}"


def _ratio(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"
