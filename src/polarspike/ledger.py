"""A table of finished runs as a CSV file: a long comparison goes on where it stopped, and several processes share it.

A line is written in one piece when its run has ended, behind those that are there, with the run's seconds, the date, the
version of torch and the number of threads.
"""

from __future__ import annotations

import csv
import datetime
import io
import os
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polarspike.errors import RunError

_CONDITIONS = ("seconds", "date", "torch", "threads")


class Ledger:
    """The rows of one CSV file.

    Args:
        path: of the file; it need not exist.
        columns: of a row, in order; what was said above is added to them.

    Raises:
        RunError: the file is there and has other columns.
    """

    def __init__(self, path: str | os.PathLike[str], columns: Sequence[str]) -> None:
        self.path = Path(path)
        self.columns = (*columns, *_CONDITIONS)
        if self.path.exists():
            with self.path.open(newline="") as file:
                there = tuple(next(csv.reader(file), ()))
            if there != self.columns:
                raise RunError(
                    f"{self.path}: expected the columns {', '.join(self.columns)}, got {', '.join(there) or 'none'}; "
                    "it was written for something else; give another file"
                )

    def rows(self) -> list[dict[str, str]]:
        """All rows as they are written."""
        if not self.path.exists():
            return []
        with self.path.open(newline="") as file:
            return [
                row for row in csv.DictReader(file) if None not in row.values()
            ]  # a kill may have torn the last one

    def add(self, *rows: Mapping[str, Any], started: float) -> None:
        """Append the rows of a run that began at ``started`` (:func:`time.perf_counter`), all of them or none."""
        conditions = (
            time.perf_counter() - started,
            datetime.date.today().isoformat(),
            torch.__version__,
            torch.get_num_threads(),
        )
        lines = b"".join(self._line({**row, **dict(zip(_CONDITIONS, conditions, strict=True))}) for row in rows)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT
        try:
            _append(self.path, flags | os.O_EXCL, self._line(dict(zip(self.columns, self.columns, strict=True))))
        except FileExistsError:
            _end_line(self.path)
        _append(self.path, flags, lines)

    def missing(self, runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The runs that no row answers: every row differs from them in a value."""
        rows = [frozenset(row.items()) for row in self.rows()]
        return [
            dict(run)
            for run in runs
            if not any({(key, as_text(value)) for key, value in run.items()} <= row for row in rows)
        ]

    def _line(self, row: Mapping[str, Any]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow({k: as_text(v) for k, v in row.items()})
        return text.getvalue().encode()


def as_text(value: object) -> str:
    """How a value is written: six digits of a float, nothing for None."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _append(path: Path, flags: int, data: bytes) -> None:
    handle = os.open(path, flags, 0o644)
    try:
        os.write(handle, data)  # one call, so that the lines of two processes do not mix
    finally:
        os.close(handle)


def _end_line(path: Path) -> None:
    """Close a line that a kill has torn, so that the next one stands by itself."""
    with path.open("rb") as file:
        if file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n":
            _append(path, os.O_WRONLY | os.O_APPEND, b"\n")
