"""A lock is held by one at a time, and let go when its process dies."""

from __future__ import annotations

import multiprocessing
import time
from pathlib import Path

from polarspike.common.locks import locked


def hold(path: Path, seconds: float) -> None:
    with locked(path):
        path.with_suffix(".held").touch()
        time.sleep(seconds)


def test_another_process_is_kept_out_until_it_dies(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "a.lock"
    other = multiprocessing.get_context("fork").Process(target=hold, args=(path, 600))
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
