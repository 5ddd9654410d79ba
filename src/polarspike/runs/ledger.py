"""A table of finished runs as a CSV file: a long comparison goes on where it stopped, and several processes share it.

The rows of a run are written in one piece when it has ended, behind those that are there, with the run's seconds, the date,
the version of torch, the number of threads, how many rows the run has, and a mark at the end of each. What a kill has torn
lacks the mark, and a run counts only with all of its rows. A row that has its mark and holds what nobody writes was damaged
later: that is an error, since a number that is none would else be left out of means, or end a report far from its cause.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import itertools
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polarspike.common.files import replacing
from polarspike.errors import RunError, WriteError

#: Said of a run whose best setting is the last of those that were searched in its direction: a better one may lie beyond.
AT_THE_EDGE = "at the edge of the search"
_END = "."
_CONDITIONS = ("seconds", "date", "torch", "threads", "rows", "end")


class Ledger:
    """The rows of one CSV file.

    Args:
        path: of the file; it need not exist.
        columns: of a row, in order; what was said above is added to them.
        check: raises ValueError where a row that was read holds what is never written.

    Raises:
        RunError: the file is there and has other columns, or cannot be read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        columns: Sequence[str],
        check: Callable[[Mapping[str, str]], None] = lambda row: None,
    ) -> None:
        self.path = Path(path)
        self.columns = (*columns, *_CONDITIONS)
        self._check = check
        if self.path.exists():
            there = tuple(_cells(b"".join(self._lines()[:1])))
            if there != self.columns:
                raise RunError(
                    f"{self.path}: expected the columns {', '.join(self.columns)}, got {', '.join(there) or 'none'}; "
                    "it was written for something else; give another file"
                )

    def rows(self) -> list[dict[str, str]]:
        """All rows of whole runs, as they are written.

        Raises:
            RunError: the file cannot be read, or a line of it is damaged.
        """
        return [row for rows in self.groups() for row in rows]

    def groups(self) -> list[list[dict[str, str]]]:
        """The rows of each whole run, in the order in which the runs were written; one that was repeated is there twice.

        Raises:
            RunError: the file cannot be read, or a line of it is damaged.
        """
        found: list[list[dict[str, str]]] = []
        begun: dict[tuple[str, ...], list[dict[str, str]]] = {}  # by what all rows of one piece have in common
        for number, line in enumerate(self._lines()[1:], start=2):
            if not line:
                continue
            row = self._row(number, line)
            if row is None:  # the end of a piece that will not be finished
                begun.clear()
                continue
            piece = tuple(row[column] for column in _CONDITIONS)
            begun.setdefault(piece, []).append(row)
            if len(begun[piece]) == int(row["rows"]):
                found.append(begun.pop(piece))
        return found

    def _lines(self) -> list[bytes]:
        # Bytes, since a kill tears within a character, too; line by line, since it tears within quotation marks.
        try:
            return self.path.read_bytes().splitlines()
        except FileNotFoundError:
            return []
        except OSError as error:
            raise RunError(
                f"{self.path}: the table cannot be read ({error}); check permissions, or give another file"
            ) from error

    def _row(self, number: int, line: bytes) -> dict[str, str] | None:
        """The row of a line; None where it is torn."""
        cells = _cells(line)
        if len(cells) != len(self.columns) or cells[-1] != _END:
            return None
        row = dict(zip(self.columns, cells, strict=True))
        try:
            line.decode()
            require_numbers(row, ("seconds",), empty=False)
            require_numbers(row, ("threads", "rows"), whole=True, empty=False)
            self._check(row)
        except ValueError as error:  # of a character that is none, too
            raise RunError(
                f"{self.path}, line {number}: {error}; the line was damaged: correct it from a copy, or remove it, and its "
                "run is done again"
            ) from error
        return row

    def add(self, *rows: Mapping[str, Any], started: float) -> None:
        """Append the rows of a run that began at ``started`` (:func:`time.perf_counter`), all of them in one piece.

        Raises:
            RunError: a row holds what could not be read again, such as a nan.
            WriteError: the file cannot be written.
        """
        conditions = (
            time.perf_counter() - started,
            datetime.date.today().isoformat(),
            torch.__version__,
            torch.get_num_threads(),
            len(rows),
            _END,
        )
        whole = [{**row, **dict(zip(_CONDITIONS, conditions, strict=True))} for row in rows]
        for row in whole:
            try:
                self._check({column: as_text(row.get(column)) for column in self.columns})
            except ValueError as error:
                raise RunError(
                    f"a row for {self.path}: {error}; it is not written; look at what it was measured on"
                ) from None
        lines = b"".join(map(self._line, whole))
        try:
            if not self.path.exists():
                self._begin()
            _end_line(self.path)
            _append(self.path, lines)
        except OSError as error:
            raise WriteError(
                f"{self.path}: the table cannot be written ({error}); check permissions and free space, or give another file"
            ) from error

    def missing(self, runs: Iterable[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """The runs that do not have all of their rows."""
        done = [
            frozenset[tuple[str, str]].intersection(*(frozenset(row.items()) for row in rows)) for rows in self.groups()
        ]

        def whole(run: Mapping[str, Any]) -> bool:
            wanted = {(key, as_text(value)) for key, value in run.items()}
            return any(wanted <= items for items in done)

        return [dict(run) for run in runs if not whole(run)]

    def expected_seconds(self, run: Mapping[str, Any]) -> float | None:
        """What a run will take: the mean of those done that are most like it; None where none is done.

        Alike are those that have the most of its first values, in its own order: what costs most comes first there.
        """

        def shared(row: Mapping[str, str]) -> int:
            same = (row.get(key) == as_text(value) for key, value in run.items())
            return sum(1 for _ in itertools.takewhile(bool, same))

        # A run of several rows has its seconds in each of them.
        done = [(shared(row), float(row["seconds"])) for row in self.rows()]
        most = max((count for count, _ in done), default=0)
        alike = [seconds for count, seconds in done if count == most]
        return sum(alike) / len(alike) if alike else None

    def _line(self, row: Mapping[str, Any]) -> bytes:
        text = io.StringIO()
        csv.DictWriter(text, self.columns, lineterminator="\n").writerow({k: as_text(v) for k, v in row.items()})
        return text.getvalue().encode()

    def _begin(self) -> None:
        """Put the header there, whole; another process may be faster."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        header = self._line(dict(zip(self.columns, self.columns, strict=True)))
        beside = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        with replacing(beside) as partial:
            partial.write_bytes(header)
        try:
            os.link(beside, self.path)
        except FileExistsError:
            pass
        except OSError:  # a file system without hard links: for a moment the file is there without its header
            with contextlib.suppress(FileExistsError):
                # Appended, so that rows which another process has put there by then are not written over.
                handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o666)
                with os.fdopen(handle, "ab") as file:
                    file.write(header)
        finally:
            beside.unlink(missing_ok=True)


def as_text(value: object) -> str:
    """How a value is written: six digits of a float, nothing for None, one line."""
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.splitlines())


def require_numbers(row: Mapping[str, str], columns: Iterable[str], *, whole: bool = False, empty: bool = True) -> None:
    """Refuse a row with a cell that is not a finite number (nan and inf are none).

    Args:
        row: as it was read.
        columns: of these cells.
        whole: numbers without a fraction.
        empty: a cell may be empty, too.

    Raises:
        ValueError: the message is the column, what was expected and what is there.
    """
    number = int if whole else float
    for column in columns:
        text = row[column]
        try:
            if (empty and not text) or math.isfinite(number(text)):
                continue
        except (ValueError, OverflowError):
            pass
        kind = "a whole number" if whole else "a finite number"
        raise ValueError(f"column {column}: expected {kind}{' or nothing' if empty else ''}, got {text!r}")


def _cells(line: bytes) -> list[str]:
    text = line.decode(errors="replace")
    if '"' not in text:  # most lines, and several times faster
        return text.split(",")
    try:
        return next(csv.reader([text]), [])
    except csv.Error:  # a quotation that was torn, with more behind it than a cell may hold
        return []


def _append(path: Path, data: bytes) -> None:
    handle = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        while data:  # one call as a rule, so that the lines of two processes do not mix; a full disk takes a part
            data = data[os.write(handle, data) :]
    finally:
        os.close(handle)


def _end_line(path: Path) -> None:
    """Close a line that a kill has torn, so that the next one stands by itself."""
    with path.open("rb") as file:
        torn = file.seek(0, os.SEEK_END) and file.seek(-1, os.SEEK_END) >= 0 and file.read(1) != b"\n"
    if torn:
        _append(path, b"\n")
