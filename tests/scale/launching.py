"""Start processes as a launcher does, and read what they found."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from polarspike import distributed, processes
from polarspike.errors import PolarspikeError
from tests.scale import tasks, tasks_of_shares

ROOT = Path(__file__).parents[2]
TASKS: dict[str, Callable[[Path], Any]] = {
    task.__name__: task
    for task in (
        *(tasks.train, tasks.long, tasks.own_loader, tasks.shares, tasks.masks, tasks.fail),
        *(tasks_of_shares.dealt_out, tasks_of_shares.long_dealt_out),
    )
}


def main(place: str, *names: str) -> None:
    """One process: do the tasks of these names; rank 0 writes what was found, an error is written by whom it met."""
    torch.set_num_threads(1)
    processes.join()
    folder = Path(place)
    try:
        found = {name: TASKS[name](folder / f"{name}-{distributed.world_size()}") for name in names}
    except PolarspikeError as error:
        (folder / f"error.{distributed.rank()}").write_text(str(error))
        raise SystemExit(2) from None
    if distributed.is_main():
        (folder / f"found-{distributed.world_size()}.json").write_text(json.dumps(found))


def launch(count: int, place: Path, *names: str, command: Sequence[object] = ()) -> list[subprocess.Popen[str]]:
    """Start ``count`` processes of :func:`main`, or of ``python -m polarspike`` with a command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(count):
        environment = {
            **os.environ,
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        }
        code = f"from tests.scale.launching import main; main(*{[str(place), *names]!r})"
        called = ["-m", "polarspike", *map(str, command)] if command else ["-c", code]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if command else {}
        arguments = [sys.executable, "-W", "ignore", *called]
        started.append(subprocess.Popen(arguments, env=environment, cwd=ROOT, text=True, **pipes))  # type: ignore[call-overload]
    return started


def found_by(count: int, place: Path, *names: str) -> dict[str, Any]:
    """What ``count`` processes found, task by task."""
    codes = [process.wait(timeout=300) for process in launch(count, place, *names)]
    assert codes == [0] * count
    found: dict[str, Any] = json.loads((place / f"found-{count}.json").read_text())
    return found


def killed(place: Path, name: str, epochs: int, victim: int) -> None:
    """Start two processes on one task and kill one of them when ``epochs`` epochs are logged, then the other."""
    started = launch(2, place, name)
    log = place / f"{name}-2" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= epochs) and time.monotonic() < deadline:
        time.sleep(0.02)
    started[victim].kill()
    time.sleep(0.2)
    for process in started:
        process.kill()  # what a launcher does with the others
        process.wait()
    assert not (place / "found-2.json").exists()
