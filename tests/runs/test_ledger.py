"""A table of runs survives a kill, several writers and a change of columns."""

from __future__ import annotations

import csv
import multiprocessing
import os
import time
from pathlib import Path

import pytest
import torch

from polarspike.errors import RunError
from polarspike.runs.ledger import Ledger, as_text


def write(path: Path, first: int) -> None:
    ledger = Ledger(path, ("run", "text"))
    for run in range(first, first + 50):
        ledger.add({"run": run, "text": "x" * 300}, started=time.perf_counter())


def test_a_row_holds_what_was_found_and_under_which_conditions(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "deep" / "table.csv", ("method", "seed", "accuracy"))
    assert ledger.rows() == [] and not ledger.path.exists()
    ledger.add({"method": "a, b", "seed": 0, "accuracy": 93.123456789}, started=time.perf_counter() - 2)
    (row,) = ledger.rows()
    assert (row["method"], row["seed"], row["accuracy"]) == ("a, b", "0", "93.1235")
    assert float(row["seconds"]) >= 2 and row["torch"] == torch.__version__
    assert int(row["threads"]) == torch.get_num_threads()


def test_what_is_missing_is_known_without_reading_numbers(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "table.csv", ("method", "rate", "accuracy"))
    runs = [{"method": "a", "rate": 0.1}, {"method": "a", "rate": 0.05}, {"method": "b", "rate": None}]
    assert ledger.missing(runs) == runs
    ledger.add({"method": "a", "rate": 0.05, "accuracy": 1.0}, started=0.0)
    ledger.add({"method": "b", "rate": None, "accuracy": 1.0}, started=0.0)
    again = Ledger(ledger.path, ("method", "rate", "accuracy"))
    assert again.missing(runs) == runs[:1]
    assert again.missing(runs, lambda row: row["method"] != "b") == [runs[0], runs[2]]  # what is outdated is no row


def test_what_a_run_will_take_is_what_those_like_it_took(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "table.csv", ("network", "levels", "seed"))
    wanted = {"network": "large", "levels": 3, "seed": 1}
    assert ledger.expected_seconds(wanted) is None
    for network, levels, seed, seconds in (("small", 3, 1, 10), ("large", 7, 1, 100), ("large", 3, 0, 200)):
        row = {"network": network, "levels": levels, "seed": seed}
        ledger.add(row, started=time.perf_counter() - seconds)
    for asked, seconds in ((wanted, 200), (wanted | {"levels": 1}, 150), (wanted | {"network": "other"}, 310 / 3)):
        assert ledger.expected_seconds(asked) == pytest.approx(seconds, abs=1)


def test_a_torn_line_is_no_row_and_spoils_no_other(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "table.csv", ("run", "text"))
    ledger.add({"run": 1, "text": "whole"}, started=0.0)
    ledger.add({"run": 2, "text": "torn"}, started=0.0)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-30])
    assert [row["run"] for row in ledger.rows()] == ["1"]
    ledger.add({"run": 3, "text": "next"}, started=0.0)
    assert [row["run"] for row in ledger.rows()] == ["1", "3"]


@pytest.mark.parametrize("cut", range(1, 40))
def test_wherever_a_kill_tears_a_row_it_is_no_row(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path / "table.csv", ("run", "text"))
    ledger.add({"run": 1, "text": "one"}, started=0.0)
    ledger.add({"run": 2, "text": 'quoted, "twice"'}, started=0.0)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-1][: -cut + 1 or None])
    if cut > 1:
        assert [row["run"] for row in ledger.rows()] == ["1"]
        ledger.add({"run": 3, "text": "three"}, started=0.0)
        assert [row["run"] for row in ledger.rows()] == ["1", "3"]


def test_a_run_of_several_rows_counts_with_all_of_them(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path / "table.csv", ("run", "latency"))
    ledger.add({"run": 1, "latency": 1}, {"run": 1, "latency": 2}, started=0.0)
    assert ledger.missing([{"run": 1}]) == []
    lines = ledger.path.read_text().splitlines()
    ledger.path.write_text("\n".join(lines[:-1]) + "\n" + lines[-1][:9])
    assert ledger.missing([{"run": 1}]) == [{"run": 1}]


def test_other_columns_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    Ledger(path, ("a",)).add({"a": 1}, started=0.0)
    with pytest.raises(RunError, match=r"expected the columns b, .* got a, .* another file"):
        Ledger(path, ("b",))
    with pytest.raises(ValueError, match="not in fieldnames"):
        Ledger(path, ("a",)).add({"b": 1}, started=0.0)


def test_two_writers_do_not_mix_their_lines(tmp_path: Path) -> None:
    path = tmp_path / "table.csv"
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=write, args=(path, first)) for first in (0, 100)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert sorted(int(row["run"]) for row in rows) == [*range(50), *range(100, 150)]


@pytest.mark.parametrize("faster", [True, False])
def test_a_file_system_without_hard_links_holds_a_table_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, faster: bool
) -> None:
    ledger = Ledger(tmp_path / "table.csv", ("run",))

    def refused(source: Path, target: Path) -> None:
        if faster:  # another process
            target.write_text(",".join(ledger.columns) + "\n")
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refused)
    ledger.add({"run": 1}, started=0.0)
    assert [row["run"] for row in ledger.rows()] == ["1"] and Ledger(ledger.path, ("run",)).rows() == ledger.rows()
    assert [path.name for path in tmp_path.iterdir()] == ["table.csv"]


def test_a_table_that_cannot_be_written_is_one_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"cannot be written .* or give another file"):
        Ledger(tmp_path / "file" / "table.csv", ("run",)).add({"run": 1}, started=0.0)

    def full(*args: object) -> int:
        raise OSError(28, "No space left on device")

    ledger = Ledger(tmp_path / "table.csv", ("run",))
    ledger.add({"run": 1}, started=0.0)
    monkeypatch.setattr(os, "write", full)
    with pytest.raises(RunError, match=r"table\.csv: the table cannot be written .*No space left"):
        ledger.add({"run": 2}, started=0.0)


@pytest.mark.parametrize(
    ("value", "text"), [(0.1, "0.1"), ("a\nb", "a b"), (1 / 3, "0.333333"), (None, ""), ((0, 3), "(0, 3)"), (7, "7")]
)
def test_as_text(value: object, text: str) -> None:
    assert as_text(value) == text
