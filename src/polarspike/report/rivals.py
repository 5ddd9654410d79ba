"""The tables of a comparison: accuracy at true latency, and what an answer costs, means over seeds."""

from __future__ import annotations

import re
import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from polarspike.common.tables import aligned
from polarspike.errors import SpecError
from polarspike.report.numbers import decimals

Row = Mapping[str, str]
_KEYS = ("data", "network", "method", "levels", "trained_steps", "budget")
_SEQUENCES = re.compile(r"-\d+-frames$")
_WIDTH = 200
#: What an answer costs: heading, column, digits.
_COSTS = (("events", "events", 3), ("spikes", "spikes", 3), ("spike bits", "spike_bits", 0), ("bits", "bits", 0),
          ("nJ a", "nj_a", 1), ("nJ b", "nj_b", 1), ("nJ c", "nj_c", 1), ("nJ d", "nj_d", 1), ("nJ qann", "nj_qann", 1),
          ("nJ ann", "nj_ann", 1), ("x time", "time_ratio", 2), ("ms", "ms_per_image", 2))  # fmt: skip


def grouped(rows: Iterable[Row]) -> dict[tuple[str, ...], dict[int, list[Row]]]:
    """The rows of each method that was measured, by true latency; several are of several seeds, each seed once, its last.

    Raises:
        SpecError: rows of one method have different values of ``setup``: they were measured under other settings.
    """
    found: dict[tuple[str, ...], dict[int, dict[str, Row]]] = defaultdict(lambda: defaultdict(dict))
    setups: dict[tuple[str, ...], str] = {}
    for row in rows:
        if row["accuracy"]:
            key = tuple(row[column] for column in _KEYS)
            setup = row.get("setup", "")
            if setups.setdefault(key, setup) != setup:
                raise SpecError(
                    f"rows of {', '.join(key[:2])}, {name_of(key)}: expected one setup, got {setups[key]!r} and {setup!r}; "
                    "they were measured under different settings and have no common mean: give one page to each"
                )
            found[key][int(row["latency"])][row["seed"]] = row
    return {
        key: {latency: list(seeds.values()) for latency, seeds in latencies.items()} for key, latencies in found.items()
    }


def by_network(rows: Iterable[Row]) -> dict[tuple[str, str], dict[tuple[str, ...], dict[int, list[Row]]]]:
    """:func:`grouped`, by data and network, in the order in which these come."""
    found: dict[tuple[str, str], dict[tuple[str, ...], dict[int, list[Row]]]] = defaultdict(dict)
    for key, latencies in grouped(rows).items():
        data, network, *_ = key
        found[data, network][key] = latencies
    return dict(found)


def reads_sequences(network: str) -> bool:
    """Whether its name says that a network reads sequences of frames (:attr:`polarspike.baselines.Comparison.network`)."""
    return _SEQUENCES.search(network) is not None


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
    groups = by_network(rows).get(place, {})
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
    groups = by_network(rows).get(place, {})
    table = [["method", "at", "accuracy", *(heading for heading, _, _ in _COSTS)]]
    for key, found in groups.items():
        for latency in sorted(found) if every else [min(found)]:
            at = found[latency]
            asked = (("accuracy", 2), *((column, digits) for _, column, digits in _COSTS))
            cells = [_cell(at, column, digits, "some" if spread else "none") for column, digits in asked]
            table.append([name_of(key), str(latency), *cells])
    return table


def left_out(rows: Iterable[Row]) -> list[str]:
    """Methods that do not apply, with the reason, each once; on which network these rows are of, the caller says."""
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
    for place in dict.fromkeys((row["data"], row["network"]) for row in rows):
        here = (row for row in rows if (row["data"], row["network"]) == place)
        lines += [f"{', '.join(place)}: {reason}" for reason in left_out(here)]
    return "\n".join(lines).rstrip()


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
