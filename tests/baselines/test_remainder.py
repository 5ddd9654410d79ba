"""A comparison does what it can, says what it lacks, and takes no part of a run for a whole one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from polarspike.baselines.comparison import Comparison
from polarspike.baselines.contest import Contest, rows_of
from polarspike.errors import PolarspikeError, RunError

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("comparison")]

DIVERGES = Comparison(
    data="digits",
    model="cnn",
    width=4,
    methods=("lif", "ann"),
    trained_steps=(1,),
    latencies=(1,),
    float_epochs=1,
    epochs=1,
    direct_rates=(1e30,),
    limit=128,
)
QUICK = dataclasses.replace(DIVERGES, methods=("ann", "polarspike", "qcfs"), latencies=(1, 2), direct_rates=(0.2,))


class Played(Contest):
    """A contest whose runs cost nothing: two answers each, or the error that is given for a method."""

    def __init__(self, place: Path, errors: dict[str, PolarspikeError] | None = None) -> None:
        super().__init__(QUICK, place)
        self.errors = errors or {}
        self.tried: list[str] = []
        self.right = 50.0

    def _run(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        self.tried.append(run["method"])
        if run["method"] in self.errors:
            raise self.errors[run["method"]]
        return [{"latency": steps, "timesteps": steps, "accuracy": self.right + steps} for steps in (1, 2)]


def test_only_whole_runs_have_rows_and_of_one_that_was_repeated_the_last(tmp_path: Path) -> None:
    contest = Played(tmp_path)
    contest.carry_out()
    table = contest.ledger.path
    kept = table.read_text()
    lines = kept.splitlines(keepends=True)
    (damaged,) = [line for line in lines if ",qcfs," in line and ",51," in line]
    table.write_text("".join(line for line in lines if line != damaged))
    assert [row["method"] for row in contest.rows()] == ["ann", "ann", "polarspike", "polarspike"]
    assert [run["method"] for run in contest.missing()] == ["qcfs"]
    contest.right = 70.0
    contest.carry_out()
    assert [row["accuracy"] for row in contest.rows()] == ["51", "52", "51", "52", "71", "72"]
    newer = "".join(contest.ledger.path.read_text().splitlines(keepends=True)[-2:])
    table.write_text(kept + newer)
    assert [row["accuracy"] for row in rows_of([contest, contest])] == ["51", "52", "51", "52", "71", "72"]
    # Rows of one piece that name two runs are those of none.
    table.write_text(kept.replace(damaged, damaged.replace(",qcfs,", ",qcfz,")))
    assert [run["method"] for run in contest.missing()] == ["qcfs"]


@pytest.mark.parametrize(
    ("sound", "damaged", "text"),
    [
        (",51,", ",nan,", "column accuracy: expected a finite number or nothing, got 'nan'"),
        (",51,", ",5x.5,", "column accuracy: expected a finite number or nothing, got '5x.5'"),
        (",1,1,51,", ",6x,1,51,", "column latency: expected a whole number or nothing, got '6x'"),
        (",1,1,51,", ",,1,51,", "column latency: expected a finite number, got ''"),
        (",1,1,51,", ",1,1,,", "column accuracy: expected a finite number, got ''"),
    ],
)
def test_a_damaged_row_is_an_error_with_its_line(tmp_path: Path, sound: str, damaged: str, text: str) -> None:
    contest = Played(tmp_path)
    contest.carry_out()
    table = contest.ledger.path
    table.write_text(table.read_text().replace(sound, damaged, 1))
    with pytest.raises(RunError, match=rf"rivals\.csv, line 2: {text}"):
        Contest(QUICK, tmp_path).rows()
