"""A run belongs to one process, whole, for as long as that lives."""

from __future__ import annotations

import contextlib
import errno
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import polarspike as ps
from polarspike import cli
from polarspike.common import locks
from polarspike.errors import PolarspikeWarning, RunError
from polarspike.runs import RunDirectory, require_free
from polarspike.runs.ownership import LOCK

#: What another process does with a run directory before it says so and sleeps.
OPEN = "from polarspike.runs import RunDirectory\nrun = RunDirectory(sys.argv[1], resume=os.path.exists(sys.argv[1]))"
# Without torch, whose import takes seconds: what a run directory does with its lock.
TAKE = f"from pathlib import Path; from polarspike.common.locks import hold; held = hold(Path(sys.argv[1]) / {LOCK!r})"
# A worker, as a DataLoader starts them, that does not notice the end of its parent.
FORK = f"{OPEN}\nif not os.fork(): print('worker', os.getpid(), flush=True); time.sleep(600)"


def script(does: str) -> list[str]:
    return [sys.executable, "-c", f"import os, sys, time\n{does}\n"]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(Path(ps.__file__).parents[1])}


@contextlib.contextmanager
def other(place: Path, does: str = OPEN) -> Iterator[subprocess.Popen[str]]:
    """Another process that has done this with the run at ``place``, and lives until it is killed."""
    asked = [*script(f"{does}\nprint('there', flush=True); time.sleep(600)"), str(place)]
    with subprocess.Popen(asked, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            said = iter(process.stdout.readline, "")
            next(line for line in said if line == "there\n")
            yield process
        finally:
            process.kill()


def attempt(place: Path) -> str:
    """What another process that wants the run at ``place`` is told; nothing where it may have it."""
    tried = [*script(TAKE), str(place)]
    done = subprocess.run(tried, env=environment(), capture_output=True, text=True, check=False)
    return "" if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def test_a_second_starter_is_refused_until_the_first_is_killed(tmp_path: Path) -> None:
    place = tmp_path / "run"
    with other(place) as first:
        before = (place / "config.json").read_bytes()
        (place / ".log.jsonl.abcd1234.partial").write_text("what the first is writing")
        who = f"this run is being written by process {first.pid} on {platform.node()}, since .*; wait until that has ended"
        for refused in (RunDirectory, require_free):
            with pytest.raises(RunError, match=who):
                refused(place, **({"resume": True} if refused is RunDirectory else {}))
        with pytest.raises(RunError, match="there is a run already"):
            RunDirectory(place)
        assert (place / "config.json").read_bytes() == before
        assert (place / ".log.jsonl.abcd1234.partial").exists()
    assert first.returncode == -9 and (place / LOCK).exists()
    with RunDirectory(place, resume=True) as run:
        assert len(run.config["resumed"]) == 1
    assert [entry.name for entry in place.iterdir()] == ["config.json"]


def test_a_worker_that_outlives_a_killed_run_does_not_keep_it(tmp_path: Path) -> None:
    worker = 0
    try:
        asked = [*script(f"{FORK}\ntime.sleep(600)"), str(tmp_path / "run")]
        with subprocess.Popen(asked, env=environment(), stdout=subprocess.PIPE, text=True) as first:
            assert first.stdout is not None
            worker = int(first.stdout.readline().split()[1])
            with pytest.raises(RunError, match=f"process {first.pid} on"):  # and not by the worker
                RunDirectory(tmp_path / "run", resume=True)
            first.kill()
            first.wait()
            os.kill(worker, 0)  # alive
            RunDirectory(tmp_path / "run", resume=True)
            os.kill(worker, 9)  # else the pipe stays open
            worker = 0
    finally:
        if worker:
            os.kill(worker, 9)


def test_a_fork_that_ends_lets_nothing_go(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    child = os.fork()
    if not child:
        run.close()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0 and (tmp_path / "run" / LOCK).exists()
    assert f"process {os.getpid()} on" in attempt(tmp_path / "run")


def test_one_process_may_open_a_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    first = RunDirectory("run")
    monkeypatch.chdir("/")
    second = RunDirectory(tmp_path / "run", resume=True)
    with pytest.raises(RunError, match=r"line 1"):  # one that fails keeps nothing, though its traceback is kept
        second.log_path.write_text("damage\n")
        RunDirectory(tmp_path / "run", resume=True)
    second.log_path.unlink()
    first.close()
    second.write_json("metrics.json", {})
    with pytest.raises(RunError, match="this one was closed"):
        first.write_json("metrics.json", {})
    with pytest.raises(RunError, match="this one was closed"):
        first.append({"epoch": 1})
    assert f"process {os.getpid()} on" in attempt(tmp_path / "run")
    del second
    assert not (tmp_path / "run" / LOCK).exists() and attempt(tmp_path / "run") == ""


def test_a_directory_that_was_removed_and_made_again_is_another_run(tmp_path: Path) -> None:
    old = RunDirectory(tmp_path / "run")
    for entry in old.path.iterdir():
        entry.unlink()
    new = RunDirectory(tmp_path / "run")
    old.close()
    assert (new.path / LOCK).exists() and f"process {os.getpid()} on" in attempt(new.path)


def test_a_stage_belongs_to_who_has_the_run(tmp_path: Path) -> None:
    place = tmp_path / "run"
    RunDirectory(place).stage("ann")
    with other(place, TAKE), pytest.raises(RunError, match=rf"ann: it is a part of the run {place}, which is being"):
        RunDirectory(place / "ann", resume=True)
    with other(place / "ann"), pytest.raises(RunError, match="run: this run is being written by process"):
        RunDirectory(place, resume=True)
    run = RunDirectory(place, resume=True)
    ann = run.stage("ann")
    assert not (ann.path / LOCK).exists()
    run.close()
    with pytest.raises(RunError, match="this one was closed"):
        ann.append({"epoch": 1})
    assert attempt(place) == ""


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    with pytest.warns(PolarspikeWarning, match="no locks; see to it that no second process"):
        run = RunDirectory(tmp_path)
    run.append({"epoch": 1})
    assert run.records() == [{"epoch": 1}]
    monkeypatch.setattr(locks, "fcntl", None)
    with pytest.warns(PolarspikeWarning, match="no locks"):
        RunDirectory(tmp_path, resume=True)


def test_who_reads_asks_nobody_and_who_writes_is_refused_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "run"

    def work(*_: object, **__: object) -> None:
        raise AssertionError("data were read")

    monkeypatch.setattr("polarspike.cli.experiments.prepare", work)
    RunDirectory(place)
    with other(place, TAKE):
        for command in ("train", "demo"):
            assert cli.main([command, "--run", str(place), "--resume"]) == 2
            assert f"error: {place}: this run is being written by process" in capsys.readouterr().err
        assert cli.main(["report", str(place), "--output", str(tmp_path / "page.html")]) == 2
        assert "being written by" not in capsys.readouterr().err  # it has no results yet, which is another matter


def test_a_closed_run_opens_no_stage(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.close()
    with pytest.raises(RunError, match="this one was closed"):
        run.stage("ann")
    assert not (tmp_path / "run" / "ann").exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_copy_by_fork_does_not_write(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    child = os.fork()
    if child == 0:
        try:
            run.append({"epoch": 1})
        except RunError:
            os._exit(7)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
    run.append({"epoch": 1})
