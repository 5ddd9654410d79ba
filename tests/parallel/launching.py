"""Start processes as a launcher does, and read what they found."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import torch

from polarspike.errors import PolarspikeError
from polarspike.parallel import distributed, processes
from polarspike.runs import read_config, read_records
from tests.parallel import tasks, tasks_of_shares

ROOT = Path(__file__).parents[2]
_FIRST_EPOCH_S = 0.3  # less than any first epoch here takes
TASKS: dict[str, Callable[[Path], Any]] = {
    task.__name__: task
    for task in (
        *(tasks.train, tasks.long, tasks.own_loader, tasks.shares, tasks.masks, tasks.fail),
        *(tasks.averaged, tasks.environment),
        *(tasks_of_shares.dealt_out, tasks_of_shares.long_dealt_out),
    )
}
_LOADED = multiprocessing.get_context("forkserver")
_LOADED.set_forkserver_preload(["torch._dynamo", "accelerate", "sklearn.datasets", __name__])


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


def launch(count: int, place: Path, *names: str) -> list[ForkServerProcess]:
    """Start ``count`` processes of :func:`main`, branches of one that has loaded torch: half of a start is that."""
    started = [_LOADED.Process(target=_main_in, args=(one, str(place), *names)) for one in _environments(count)]
    for process in started:
        process.start()
    return started


def launch_command(*command: object, count: int = 2) -> list[subprocess.Popen[str]]:
    """Start ``count`` processes of ``python -m polarspike``."""
    called = [sys.executable, "-W", "ignore", "-m", "polarspike", *map(str, command)]
    path = {"PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
    return [
        subprocess.Popen(
            called, env={**os.environ, **one, **path}, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        for one in _environments(count)
    ]  # fmt: skip


def ended(started: list[ForkServerProcess]) -> list[int | None]:
    """Wait for all; their exit codes, None for one that hung and was ended here."""
    for process in started:
        process.join(timeout=300)
    codes = [process.exitcode for process in started]
    for process in started:  # pytest waits for what still runs when it ends, for ever
        process.kill()
        process.join()
    return codes


def found_by(count: int, place: Path, *names: str) -> dict[str, Any]:
    """What ``count`` processes found, task by task."""
    assert ended(launch(count, place, *names)) == [0] * count
    found: dict[str, Any] = json.loads((place / f"found-{count}.json").read_text())
    return found


def killed(place: Path, name: str, epochs: int, victim: int) -> None:
    """Start two processes on one task; kill one of them within an epoch after ``epochs`` are logged, then the other.

    With 0 epochs this is before there is a checkpoint, most of the time. Which part of an epoch they are left is drawn, so
    that kills fall into steps, logs and checkpoints alike.
    """
    started = launch(2, place, name)
    folder = place / f"{name}-2"
    deadline = time.monotonic() + 120
    while not (begun := _trains(folder, epochs)) and time.monotonic() < deadline:
        time.sleep(0.02)
    time.sleep(random.Random(f"{name} {epochs} {victim}").random() * _seconds_of_an_epoch(folder))
    alive = [process.is_alive() for process in started]
    started[victim].kill()
    time.sleep(0.2)
    for process in started:
        process.kill()  # what a launcher does with the others
        process.join()
    assert begun and all(alive)  # it was stopped in the middle of its work
    assert not (place / "found-2.json").exists()


def _trains(folder: Path, epochs: int) -> bool:
    """Whether so many epochs are logged; of none, whether the first one has begun."""
    if epochs:
        return len(read_records(folder)) >= epochs
    return (folder / "config.json").exists() and "train" in read_config(folder)["specs"]


def _seconds_of_an_epoch(folder: Path) -> float:
    """What the last one took."""
    records = read_records(folder)
    return float(records[-1]["seconds"]) if records else _FIRST_EPOCH_S


def _environments(count: int) -> list[dict[str, str]]:
    """What a launcher tells each process."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        common = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
    return [{**common, "RANK": str(one), "LOCAL_RANK": str(one), "OMP_NUM_THREADS": "1"} for one in range(count)]


def _main_in(environment: dict[str, str], place: str, *names: str) -> None:
    os.environ.update(environment)
    warnings.simplefilter("ignore")
    main(place, *names)
