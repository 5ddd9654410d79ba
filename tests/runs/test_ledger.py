"""A table of runs survives a kill, several writers and a change of columns."""

from __future__ import annotations

import csv
import multiprocessing
import os
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from polarspike.errors import RunError, WriteError
from polarspike.runs.ledger import Ledger, as_text, require_numbers


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
    with pytest.raises(WriteError, match=r"table\.csv: the table cannot be written .*No space left"):
        ledger.add({"run": 2}, started=0.0)


@pytest.mark.parametrize(
    ("value", "text"), [(0.1, "0.1"), ("a\nb", "a b"), (1 / 3, "0.333333"), (None, ""), ((0, 3), "(0, 3)"), (7, "7")]
)
def test_as_text(value: object, text: str) -> None:
    assert as_text(value) == text


def checked(path: Path) -> Ledger:
    def check(row: Mapping[str, str]) -> None:
        require_numbers(row, ("run",), whole=True, empty=False)
        require_numbers(row, ("accuracy",))

    return Ledger(path, ("run", "accuracy", "text"), check)


@pytest.mark.parametrize(
    ("sound", "damaged", "text"),
    [
        (",91.5,", ",9x.5,", "column accuracy: expected a finite number or nothing, got '9x.5'"),
        (",91.5,", ",nan,", "column accuracy: expected a finite number or nothing, got 'nan'"),
        (",91.5,", ",1e999,", "column accuracy: .* got '1e999'"),
        ("\n2,", "\n6x,", "column run: expected a whole number, got '6x'"),
        ("\n2,", "\n,", "column run: expected a whole number, got ''"),
        ("\n2,", f"\n{'9' * 400},", "column run: expected a whole number, got '999"),  # larger than a float
        (",1,.\n2", ",6x,.\n2", "column rows: expected a whole number, got '6x'"),
        ("2,91.5,b\u00e4r", "2,91.5,b\udce4r", "'utf-8' codec can't decode byte 0xe4"),
    ],
)
def test_a_damaged_row_is_an_error_with_its_line(tmp_path: Path, sound: str, damaged: str, text: str) -> None:
    ledger = checked(tmp_path / "table.csv")
    for run in (1, 2, 3):
        ledger.add(
            {"run": run, "accuracy": 91.5 if run == 2 else None, "text": "b\u00e4r"}, started=time.perf_counter()
        )
    assert [row["accuracy"] for row in ledger.rows()] == ["", "91.5", ""]
    whole = ledger.path.read_text(encoding="utf-8")
    assert whole.count(sound) == 1
    ledger.path.write_bytes(whole.replace(sound, damaged).encode(errors="surrogateescape"))
    line = 2 if "rows" in text else 3
    with pytest.raises(RunError, match=rf"table\.csv, line {line}: {text}.* remove it, and its run is done again"):
        checked(ledger.path).rows()


def test_what_could_not_be_read_again_is_not_written(tmp_path: Path) -> None:
    ledger = checked(tmp_path / "table.csv")
    ledger.add({"run": 1, "accuracy": 1.0}, started=0.0)
    with pytest.raises(
        RunError, match=r"column accuracy: expected a finite number or nothing, got 'nan'; it is not written"
    ):
        ledger.add({"run": 2, "accuracy": 2.0}, {"run": 2, "accuracy": float("nan")}, started=0.0)
    assert [row["run"] for row in ledger.rows()] == ["1"]


@pytest.mark.parametrize("cut", range(2, 60))
def test_a_line_may_be_torn_within_a_character(tmp_path: Path, cut: int) -> None:
    ledger = Ledger(tmp_path / "table.csv", ("run", "text"))
    ledger.add({"run": 1, "text": "\u00e9"}, started=0.0)
    ledger.add({"run": 2, "text": "\u00e9" * 20}, started=0.0)
    ledger.path.write_bytes(ledger.path.read_bytes()[:-cut])
    assert [row["run"] for row in Ledger(ledger.path, ("run", "text")).rows()] == ["1"]
    ledger.add({"run": 3, "text": "next"}, started=0.0)
    assert [row["run"] for row in ledger.rows()] == ["1", "3"]


@pytest.mark.parametrize("cut", [1, 2, 25])  # at the end of a line, before it, and within
def test_rows_of_a_run_that_was_torn_are_none_beside_those_of_its_repetition(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cut: int
) -> None:
    ledger = Ledger(tmp_path / "table.csv", ("run", "latency", "accuracy"))
    runs = [{"run": 1, "latency": latency, "accuracy": 50.0} for latency in (1, 2, 4)]
    ledger.add(*runs, started=time.perf_counter() - 7)
    seconds = ledger.rows()[0]["seconds"]
    *lines, last = ledger.path.read_bytes().splitlines(keepends=True)
    ledger.path.write_bytes(b"".join([*lines, b"" if cut == 1 else last[:-cut]]))
    assert ledger.rows() == [] and ledger.missing([{"run": 1}]) == [{"run": 1}]
    if cut > 1:  # a line that is torn ends its piece, even where the repetition takes as long
        monkeypatch.setattr(time, "perf_counter", lambda: float(seconds))
    ledger.add(*({**run, "accuracy": 60.0} for run in runs), started=0.0)
    assert [(row["latency"], row["accuracy"]) for row in ledger.rows()] == [("1", "60"), ("2", "60"), ("4", "60")]
    ledger.add({"run": 1, "latency": 1, "accuracy": 70.0}, started=0.0)
    assert [[row["accuracy"] for row in rows] for rows in ledger.groups()] == [["60"] * 3, ["70"]]


def test_a_table_that_cannot_be_read_is_one_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"the table cannot be read .* or give another file"):
        Ledger(tmp_path, ("run",))
