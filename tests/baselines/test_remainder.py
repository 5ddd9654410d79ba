"""A comparison does what it can, says what it lacks, and takes no part of a run for a whole one."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from polarspike.baselines.comparison import Comparison
from polarspike.baselines.contest import Contest, lacking_of, rows_of
from polarspike.baselines.remainder import Missing, told
from polarspike.common.locks import locked
from polarspike.errors import CalibrationError, PolarspikeError, RunError, WriteError
from polarspike.runs import RunDirectory

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


def test_a_training_that_diverges_stops_nothing_behind_it(tmp_path: Path) -> None:
    said: list[str] = []
    for _ in range(2):  # the second call does not end at the same place, either
        contest = Contest(DIVERGES, tmp_path, say=said.append)
        with pytest.raises(
            RunError, match=r"^1 of 2 runs failed; .*rivals\.csv.*\n  data digits, .* method lif, .*: fit, "
        ):
            contest.carry_out()
        assert [row["method"] for row in contest.rows()] == ["ann"]
        assert [run["method"] for run in contest.missing()] == ["lif"]
    assert sum("method ann" in line for line in said) == 1 and any(line.startswith("  failed: fit") for line in said)


@pytest.mark.parametrize("error", [RunError("lost"), CalibrationError("no law")])
def test_the_error_of_a_run_is_its_own(tmp_path: Path, error: PolarspikeError) -> None:
    contest = Played(tmp_path, {"polarspike": error})
    with pytest.raises(RunError, match=rf"1 of 3 runs failed[\s\S]*method polarspike, .*: {error}"):
        contest.carry_out()
    assert contest.tried == ["ann", "polarspike", "qcfs"] and len(contest.rows()) == 4
    contest.errors.clear()
    contest.carry_out()
    assert contest.tried[3:] == ["polarspike"] and contest.lacking() == []


def test_what_cannot_be_written_ends_everything_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contest = Played(tmp_path, {"ann": WriteError("full")})
    with pytest.raises(WriteError, match="full"):
        contest.carry_out()
    assert contest.tried == ["ann"]
    (tmp_path / "locks").rename(tmp_path / "kept")
    (tmp_path / "locks").write_text("")
    with pytest.raises(WriteError, match=r"the lock cannot be made .* or give another directory"):
        contest.carry_out()


@pytest.mark.parametrize("stage", ["float", "control", "quantized"])
def test_a_disk_that_is_full_is_no_rate_that_diverges(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    write = RunDirectory.write_checkpoint

    def full(run: RunDirectory, *data: Any) -> None:
        if run.path.name.startswith(stage):
            run._refuse(OSError(28, "No space left on device"))
        write(run, *data)

    monkeypatch.setattr(RunDirectory, "write_checkpoint", full)
    asked = dataclasses.replace(QUICK, methods=("polarspike", "ann"), rates=(0.1, 0.05), direct_rates=(0.2, 0.1))
    said: list[str] = []
    with pytest.raises(WriteError, match="No space left"):
        Contest(asked, tmp_path, say=said.append).carry_out()
    assert len(said) == 1


def test_a_float_network_that_no_rate_trains_is_none(tmp_path: Path) -> None:
    asked = dataclasses.replace(QUICK, methods=("ann",), rates=(1e30, 1e31), direct_rates=(0.2, 0.1))
    with pytest.raises(RunError, match=r"ann: every rate of \(1e\+30, 1e\+31\) fails; give smaller ones"):
        Contest(asked, tmp_path).carry_out()


def test_a_run_that_another_process_does_is_told(tmp_path: Path) -> None:
    contest = Played(tmp_path)
    run = next(run for run in QUICK.runs() if run["method"] == "polarspike")
    with locked(tmp_path / "locks" / f"{'-'.join(map(str, run.values()))}.lock"):
        contest.carry_out()
    assert contest.tried == ["ann", "qcfs"]
    missing, total = lacking_of([contest, contest])
    assert told(missing, total) == [
        "1 of 3 runs is missing: means and verdicts are not final without them.",
        "digits, cnn-4: method polarspike, levels 4, budget epochs, seed 0: held by another process",
    ]
    Played(tmp_path).carry_out()  # which ends meanwhile
    assert told(*lacking_of([contest])) == []


def test_what_is_missing_is_told_by_network_and_reason() -> None:
    runs = dataclasses.replace(QUICK, seeds=(0, 1)).runs()
    missing = [*map(Missing, (runs[0], runs[1], runs[3])), Missing(runs[2], "nan", failed=True)]
    assert told(missing, 6) == [
        "4 of 6 runs are missing: means and verdicts are not final without them.",
        "digits, cnn-4: ann (2 runs), polarspike: not run",
        "digits, cnn-4: method qcfs, levels 4, budget epochs, seed 0: failed: nan",
    ]


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
