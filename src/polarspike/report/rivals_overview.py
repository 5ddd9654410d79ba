"""A comparison at a glance: every network a column, means over the seeds that there are.

several spikes        accuracy at T = 1, and spikes per neuron and image, at the fewest levels that were asked
one spike at most     accuracy at true latency 1, 2, 4 and 8, with ours at T = 1 in the first line
trained through time  accuracy after T steps of what was trained at T, by budget
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polarspike.report.numbers import decimals
from polarspike.report.required import Kind
from polarspike.report.rivals import Row, grouped, mean_of, networks_of

_OURS = "polarspike"
_LATENCIES = (1, 2, 4, 8)
_Found = Mapping[int, Sequence[Row]]
_Column = dict[tuple[str, ...], _Found]


def several_spikes(rows: Sequence[Row], kinds: Mapping[str, Kind]) -> list[list[str]]:
    """Methods of several spikes a step at T = 1, as cells, a heading first: percent right; spikes."""
    columns = _columns(rows)
    table = []
    for name in (name for name, kind in kinds.items() if kind.spikes == "multi"):
        cells = [_at_once(_of(column, name)) for column in columns.values()]
        table.append([name, *cells])
    return _table(columns, table)


def single_spikes(rows: Sequence[Row], kinds: Mapping[str, Kind]) -> list[list[str]]:
    """Methods of one spike a step at most, as cells, a heading first: percent right at true latency 1, 2, 4 and 8."""
    columns = _columns(rows)
    ours = [decimals(_accuracy(_of(column, _OURS), 1)) for column in columns.values()]
    table = [[f"{_OURS} at T = 1", *("" if cell == "-" else cell for cell in ours)]]
    for name in (name for name, kind in kinds.items() if kind.spikes != "multi"):
        cells = []
        for column in columns.values():
            found = [_accuracy(_of(column, name), latency) for latency in _LATENCIES]
            cells.append("" if found == [None] * len(_LATENCIES) else ", ".join(decimals(one, 1) for one in found))
        table.append([name, *cells])
    return _table(columns, table)


def trained_through_time(rows: Sequence[Row], kinds: Mapping[str, Kind]) -> list[list[str]]:
    """Direct training after the T that it was trained at, beside ours, as cells, a heading first: percent right."""
    columns = _columns(rows)
    ours = [name for name in (_OURS, f"{_OURS}+t") if name in kinds]
    direct = [name for name, kind in kinds.items() if kind.family == "direct"]
    table = []
    for steps in (1, 2, 4):
        for name in ours:
            cells = [decimals(_accuracy(_of(column, name), steps)) for column in columns.values()]
            table.append([f"{name}, T = {steps}", *cells])
        for name in direct:
            for budget, said in (("epochs", "all epochs"), ("time", "equal time")):
                found = [_of(column, name, str(steps), budget) for column in columns.values()]
                cells = [decimals(_accuracy(one, steps)) for one in found]
                table.append([f"{name}, T = {steps}{f', {said}' if steps > 1 else ''}", *cells])
    return _table(columns, [[name, *("" if cell == "-" else cell for cell in cells)] for name, *cells in table])


def _columns(rows: Sequence[Row]) -> dict[tuple[str, str], _Column]:
    groups = grouped(rows)
    return {place: {key: found for key, found in groups.items() if key[:2] == place} for place in networks_of(rows)}


def _of(column: _Column, name: str, steps: str = "", budget: str = "epochs") -> _Found:
    """What a method gives at the fewest levels that it was asked at; of direct training after T = 1 unless told."""
    alike = {key: found for key, found in column.items() if key[2] == name and key[5] == budget}
    alike = {key: found for key, found in alike.items() if key[4] == steps or (not steps and key[4] == "1")}
    least = min((int(key[3] or 0) for key in alike), default=0)
    return next((found for key, found in alike.items() if int(key[3] or 0) == least), {})


def _accuracy(found: _Found, latency: int) -> float | None:
    return mean_of(found[latency], "accuracy") if latency in found else None


def _at_once(found: _Found) -> str:
    if 1 not in found:
        return ""
    return f"{decimals(_accuracy(found, 1))}; {decimals(mean_of(found[1], 'spikes'))}"


def _table(columns: Mapping[tuple[str, str], object], table: list[list[str]]) -> list[list[str]]:
    """With a heading, and without lines that say nothing; data are named where there are several."""
    several = len({data for data, _ in columns}) > 1
    heading = ["", *(f"{data}, {network}" if several else network for data, network in columns)]
    found = [line for line in table if any(line[1:])]
    return [heading, *found] if found else []
