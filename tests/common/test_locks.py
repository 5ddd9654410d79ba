"""A lock is held by one at a time, and let go when its process dies."""

from __future__ import annotations

import errno
import multiprocessing
import os
import time
from pathlib import Path

import pytest

from polarspike.common import locks
from polarspike.common.locks import hold, locked


def keep(path: Path, seconds: float) -> None:
    with locked(path):
        path.with_suffix(".held").touch()
        time.sleep(seconds)


def test_another_process_is_kept_out_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.lock"
    other = multiprocessing.get_context("fork").Process(target=keep, args=(path, 600))
    other.start()
    while not path.with_suffix(".held").exists():
        time.sleep(0.01)
    with locked(path, wait=False) as held:
        assert not held
    other.kill()
    other.join()
    with locked(path, wait=True) as held:
        assert held
    with locked(path, wait=False) as held:
        assert held


def test_a_file_system_without_locks_keeps_nobody_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(locks.fcntl, "flock", none)
    for wait in (True, False):
        with locked(tmp_path / "a.lock", wait=wait) as held:
            assert held
    assert hold(tmp_path / "b.lock") is None


def meet(path: Path, turns: int) -> None:
    """Take the lock so often, and leave with 1 if another process has it at the same time."""
    inside = path.with_suffix(".inside")
    while turns:
        try:
            held = hold(path)
        except BlockingIOError:
            continue
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))
        inside.unlink()
        del held
        turns -= 1


def test_a_file_that_goes_with_its_lock_lets_no_two_in(tmp_path: Path) -> None:
    others = [
        multiprocessing.get_context("fork").Process(target=meet, args=(tmp_path / "a.lock", 300)) for _ in range(3)
    ]
    for other in others:
        other.start()
    for other in others:
        other.join()
    assert [other.exitcode for other in others] == [0, 0, 0] and not list(tmp_path.iterdir())
