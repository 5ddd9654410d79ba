"""A study's table: one row of a CSV file for each finished run, so that an interrupted study goes on where it stopped."""

from __future__ import annotations

import argparse
import csv
import datetime
import fcntl
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parents[1] / "results" / "studies"

Row = dict[str, Any]


class Table:
    """The rows of ``benchmarks/results/studies/<name>.csv``; several processes may add to it."""

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        self.path = RESULTS / f"{name}.csv"
        self.columns = [*columns, "seconds", "date", "torch", "threads"]

    def rows(self) -> list[dict[str, str]]:
        """All rows that are there."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return list(csv.DictReader(file))

    def add(self, row: Mapping[str, Any]) -> None:
        """Append a row in one piece."""
        RESULTS.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", newline="") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            if file.seek(0, os.SEEK_END) == 0:
                writer.writeheader()
            writer.writerow({key: _text(value) for key, value in row.items()})

    def done(self, asked: Mapping[str, Any]) -> bool:
        """Whether a row answers this run."""
        wanted = {key: _text(value) for key, value in asked.items()}
        return any(all(row.get(key) == value for key, value in wanted.items()) for row in self.rows())


def _text(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def carry_out(
    table: Table,
    runs: Iterable[Row],
    run: Callable[[Row], Row],
    *,
    part: int = 0,
    parts: int = 1,
    only: Sequence[str] = (),
    only_list: bool = False,
) -> None:
    """Do the runs that the table lacks, every ``parts``-th of them; or list them with what they will cost."""
    wanted = dict(text.split("=", 1) for text in only)
    asked_for = [asked for asked in runs if all(_text(asked.get(key)) == value for key, value in wanted.items())]
    missing = [asked for asked in asked_for if not table.done(asked)]
    times = [float(row["seconds"]) for row in table.rows()]
    mean = sum(times) / len(times) if times else None
    if only_list:
        for asked in missing:
            print(", ".join(f"{key}={value}" for key, value in asked.items()))
        cost = (
            "unknown before the first run"
            if mean is None
            else f"about {len(missing) * mean / 60:.0f} minutes of one core"
        )
        print(f"{len(missing)} runs to do, {len(times)} done; cost of the rest: {cost}")
        return
    for asked in missing[part::parts]:
        if table.done(asked):
            continue
        start = time.perf_counter()
        found = run(asked)
        took = time.perf_counter() - start
        table.add(
            {
                **asked,
                **found,
                "seconds": took,
                "date": datetime.date.today().isoformat(),
                "torch": torch.__version__,
                "threads": torch.get_num_threads(),
            }
        )
        shown = {key: _text(value) for key, value in found.items() if not isinstance(value, str)}
        print(", ".join(f"{key}={value}" for key, value in {**asked, **shown}.items()), f"[{took:.0f} s]", flush=True)


def options(doc: str | None) -> dict[str, Any]:
    """The options that every study takes at the command line."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", dest="only_list", help="what is to do, and what it will cost")
    parser.add_argument("--part", type=int, default=0, help="do every PARTS-th run, from this one on")
    parser.add_argument("--parts", type=int, default=1)
    parser.add_argument("--only", nargs="*", default=(), metavar="COLUMN=VALUE", help="the runs with these values")
    return vars(parser.parse_args())
