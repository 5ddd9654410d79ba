"""A study's table: one row of a CSV file for each finished run, so that an interrupted study goes on where it stopped."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from polarspike.cli.memory import keep_memory
from polarspike.runs.ledger import Ledger, as_text

RESULTS = Path(__file__).parents[1] / "results" / "studies"

Row = dict[str, Any]


def carry_out(
    study: str,
    columns: Sequence[str],
    runs: Iterable[Row],
    run: Callable[[Row], Row],
    *,
    part: int = 0,
    parts: int = 1,
    only: Sequence[str] = (),
    only_list: bool = False,
) -> None:
    """Do the runs that the table lacks, every ``parts``-th of them; or list them with what they will cost."""
    table = Ledger(RESULTS / f"{study}.csv", columns)
    asked_for = _chosen(list(runs), only)
    missing = table.missing(asked_for)
    if only_list:
        rest = 0.0
        for asked in missing:
            seconds = table.expected_seconds(asked)
            rest += seconds or 0.0
            print(_listed(asked), "" if seconds is None else f"[about {seconds / 60:.1f} minutes]")
        done = len(table.rows())
        cost = f"about {rest / 60:.0f} minutes of one core" if done else "unknown before the first run"
        print(f"{len(missing)} runs to do, {done} done; cost of the rest: {cost}")
        return
    keep_memory()
    for asked in missing[part::parts]:
        if not table.missing([asked]):
            continue  # another process has done it meanwhile
        start = time.perf_counter()
        found = run(asked)
        table.add({**asked, **found}, started=start)
        shown = {key: value for key, value in found.items() if not isinstance(value, str)}
        print(_listed({**asked, **shown}), f"[{time.perf_counter() - start:.0f} s]", flush=True)


def _chosen(runs: list[Row], only: Sequence[str]) -> list[Row]:
    """The planned runs with the values of ``only`` ("COLUMN=VALUE"); a value that no run has ends the program."""
    for text in only:
        column, equals, value = text.partition("=")
        values = list(dict.fromkeys(as_text(asked[column]) for asked in runs if column in asked))
        if not equals or not values:
            columns = dict.fromkeys(key for asked in runs for key in asked)
            raise SystemExit(f"--only: expected COLUMN=VALUE with a column of {', '.join(columns)}, got {text!r}")
        if value not in values:
            raise SystemExit(f"--only {column}: expected one of {', '.join(values)}, got {value!r}")
        runs = [asked for asked in runs if as_text(asked.get(column)) == value]
    return runs


def _listed(row: Row) -> str:
    return ", ".join(f"{key}={as_text(value)}" for key, value in row.items())


def options(doc: str | None, *, device: bool = False) -> dict[str, Any]:
    """The options that every study takes at the command line; a ``device`` where the study can be done on a GPU."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", dest="only_list", help="what is to do, and what it will cost")
    parser.add_argument("--part", type=int, default=0, help="do every PARTS-th run, from this one on")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=(), metavar="COLUMN=VALUE", help="the runs with these values")
    if device:
        parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    return vars(parser.parse_args())
