"""A table of finished runs as a CSV file: a long comparison goes on where it stopped, and several processes share it.

The rows of a run are written in one piece when it has ended, behind those that are there, with the run's seconds, the date,
the version of torch, the number of threads, how many rows the run has, and a mark at the end of each. What a kill has torn
lacks the mark, and a run counts only with all of its rows.
"""

from __future__ import annotations

import contextlib
import csv
import datetime
import io
import itertools
import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from polarspike.common.files import replacing
from polarspike.errors import RunError

#: Said of a run whose best setting is the last of those that were searched in its direction: a better one may lie beyond.
AT_THE_EDGE = "at the edge of the search"
_END = "."
_CONDITIONS = ("seconds", "date", "torch", "threads", "rows", "end")


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
            with self.path.open(newline="", encoding="utf-8") as file:
                there = tuple(next(csv.reader(file), ()))
            if there != self.columns:
                raise RunError(
                    f"{self.path}: expected the columns {', '.join(self.columns)}, got {', '.join(there) or 'none'}; "
                    "it was written for something else; give another file"
                )

    def rows(self) -> list[dict[str, str]]:
        """All whole rows as they are written."""
        if not self.path.exists():
            return []
        # Line by line, so that a torn quotation mark cannot swallow the rows behind it.
        lines = self.path.read_text(encoding="utf-8").splitlines()[1:]
        found = []
        for line in lines:
            cells = next(csv.reader([line]), [])
            if len(cells) == len(self.columns) and cells[-1] == _END:
                found.append(dict(zip(self.columns, cells, strict=True)))
        return found

    def add(self, *rows: Mapping[str, Any], started: float) -> None:
        """Append the rows of a run that began at ``started`` (:func:`time.perf_counter`), all of them in one piece.

        Raises:
            RunError: the file cannot be written.
        """
        conditions = (
            time.perf_counter() - started,
            datetime.date.today().isoformat(),
            torch.__version__,
            torch.get_num_threads(),
            len(rows),
            _END,
        )
        lines = b"".join(self._line({**row, **dict(zip(_CONDITIONS, conditions, strict=True))}) for row in rows)
        try:
            if not self.path.exists():
                self._begin()
            _end_line(self.path)
            _append(self.path, lines)
        except OSError as error:
            raise RunError(
                f"{self.path}: the table cannot be written ({error}); check permissions and free space, or give another file"
            ) from error

    def missing(
        self, runs: Iterable[Mapping[str, Any]], current: Callable[[Mapping[str, str]], bool] = lambda row: True
    ) -> list[dict[str, Any]]:
        """The runs that do not have all of their rows; a row that is not ``current`` is none."""
        rows = [(row, frozenset(row.items())) for row in self.rows()]

        def whole(run: Mapping[str, Any]) -> bool:
            wanted = {(key, as_text(value)) for key, value in run.items()}
            found = Counter(int(row["rows"]) for row, items in rows if wanted <= items and current(row))
            return any(there >= count for count, there in found.items())

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
