"""A comparison at a glance: every network a column, means over the seeds that there are.

several spikes        accuracy at T = 1, and spikes per neuron and image, at the fewest levels that ours was asked at
one spike at most     accuracy at true latency 1, 2, 4 and 8, beside ours at T = 1 (of sequences after as many frames)
trained through time  accuracy after T steps of what was trained at T, by budget, beside ours after as many
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polarspike.report.claims import OURS
from polarspike.report.numbers import decimals
from polarspike.report.required import TRAINED_AT, Kind
from polarspike.report.rivals import Row, by_network, mean_of, reads_sequences

_LATENCIES = (1, 2, 4, 8)
_Found = Mapping[int, Sequence[Row]]
_Column = Mapping[tuple[str, ...], _Found]


def several_spikes(rows: Sequence[Row], kinds: Mapping[str, Kind]) -> list[list[str]]:
    """Methods of several spikes a step at T = 1, as cells, a heading first: percent right; spikes."""
    columns = by_network(rows)
    levels = {place: _levels(column) for place, column in columns.items()}
    table = []
    for name in (name for name, kind in kinds.items() if kind.spikes == "multi"):
        cells = []
        for place, column in columns.items():
            alike = (found for key, found in _of(column, name, ("", "1")).items() if key[3] in ("", levels[place]))
            cells.append(_at_once(next(alike, {})))
        table.append([name, *cells])
    return _table(columns, table)


def single_spikes(rows: Sequence[Row], kinds: Mapping[str, Kind]) -> list[list[str]]:
    """Methods of one spike a step at most, as cells, a heading first: percent right at true latency 1, 2, 4 and 8.

    At the fewest levels; of direct training the best that was trained at any T.
    """
    columns = by_network(rows)
    ours = []
    for place, column in columns.items():
        found = _fewest(_of(column, OURS[0]))
        ours.append(_several(found) if reads_sequences(place[1]) else _one(found, 1))
    table = [[OURS[0], *ours]]
    for name, kind in kinds.items():
        if kind.spikes == "multi":
            continue
        cells = []
        for column in columns.values():
            if kind.family != "direct":
                cells.append(_several(_fewest(_of(column, name))))
                continue
            trained = _of(column, name).values()
            answers = [[_accuracy(found, latency) for found in trained] for latency in _LATENCIES]
            cells.append(_joined([max((one for one in at if one is not None), default=None) for at in answers]))
        table.append([name, *cells])
    return _table(columns, table)


def trained_through_time(rows: Sequence[Row], kinds: Mapping[str, Kind]) -> list[list[str]]:
    """Direct training after the T that it was trained at, beside ours, as cells, a heading first: percent right."""
    columns = by_network(rows)
    table = []
    for steps in TRAINED_AT:
        for name in (name for name in OURS[:2] if name in kinds):
            cells = [_one(_fewest(_of(column, name)), steps) for column in columns.values()]
            table.append([f"{name}, T = {steps}", *cells])
        for name in (name for name, kind in kinds.items() if kind.family == "direct"):
            for budget, said in (("epochs", "all epochs"), ("time", "equal time")):
                found = [_fewest(_of(column, name, (str(steps),), budget)) for column in columns.values()]
                cells = [_one(one, steps) for one in found]
                table.append([f"{name}, T = {steps}{f', {said}' if steps > 1 else ''}", *cells])
    return _table(columns, table)


def _levels(column: _Column) -> str:
    """The fewest levels of ours, or where it was not asked, of anybody."""
    asked = [int(key[3]) for key in column if key[3] and key[2] in OURS]
    asked = asked or [int(key[3]) for key in column if key[3]]
    return str(min(asked)) if asked else ""


def _of(column: _Column, name: str, steps: Sequence[str] | None = None, budget: str | None = None) -> _Column:
    """What a method gives, of direct training by the T and the budget that it was trained at."""
    return {
        key: found
        for key, found in column.items()
        if key[2] == name and (steps is None or key[4] in steps) and (budget is None or key[5] == budget)
    }


def _fewest(alike: _Column) -> _Found:
    """That at the fewest levels."""
    return alike[min(alike, key=lambda key: int(key[3] or 0))] if alike else {}


def _accuracy(found: _Found, latency: int) -> float | None:
    return mean_of(found[latency], "accuracy") if latency in found else None


def _one(found: _Found, latency: int) -> str:
    return decimals(_accuracy(found, latency)) if latency in found else ""


def _several(found: _Found) -> str:
    return _joined([_accuracy(found, latency) for latency in _LATENCIES])


def _joined(answers: Sequence[float | None]) -> str:
    return "" if not any(answers) else ", ".join(decimals(one, 1) for one in answers)


def _at_once(found: _Found) -> str:
    return f"{_one(found, 1)}; {decimals(mean_of(found[1], 'spikes'))}" if 1 in found else ""


def _table(columns: Mapping[tuple[str, str], object], table: list[list[str]]) -> list[list[str]]:
    """With a heading, and without lines that say nothing; none where no rival says anything."""
    several = len({data for data, _ in columns}) > 1
    heading = ["", *(f"{data}, {network}" if several else network for data, network in columns)]
    found = [line for line in table if any(line[1:])]
    rivals = [line for line in found if line[0].partition(",")[0] not in OURS]
    return [heading, *found] if rivals else []
