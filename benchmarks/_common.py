"""What every benchmark prints beside its figures: versions, cores, date, seed; and how results are kept."""

from __future__ import annotations

import datetime
import json
import os
import platform
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

import polarspike
from polarspike import data
from polarspike.baselines.peers import version
from polarspike.errors import MissingExtraError

RESULTS = Path(__file__).parent / "results"


def conditions(seed: int) -> dict[str, Any]:
    """Under what conditions figures were taken."""
    return {
        "command": " ".join(["python", *sys.argv]),
        "date": datetime.date.today().isoformat(),
        "seed": seed,
        "polarspike": polarspike.__version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
    }


def require(package: str) -> str:
    """The version of another tool, or the end of the command in one line, before any work."""
    try:
        return version(package)
    except MissingExtraError as error:
        raise SystemExit(str(error)) from None


def load_images(name: str) -> data.ImageDataset:
    """A data set of images in memory, which the registry does not promise of a name: others stay on disk."""
    found = data.load(name)
    if not isinstance(found, data.ImageDataset):
        raise SystemExit(f"expected a data set in memory, got {name!r}, whose pictures stay on disk")
    return found


def kept(name: str) -> dict[str, Any]:
    """The ``results`` of ``benchmarks/results/<name>.json``; none where there is no such file."""
    file = RESULTS / f"{name}.json"
    found: dict[str, Any] = json.loads(file.read_text())["results"] if file.is_file() else {}
    return found


def keep(name: str, found: dict[str, Any]) -> None:
    """Write a result to ``benchmarks/results/<name>.json``."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n")


def interleaved(actions: dict[str, Any], rounds: int, warm_up: int = 1) -> dict[str, dict[str, list[float]]]:
    """Run actions in turn, round by round, in one process: wall and CPU seconds of each."""
    times: dict[str, dict[str, list[float]]] = {name: {"wall": [], "cpu": []} for name in actions}
    for index in range(warm_up + rounds):
        for name, action in actions.items():
            wall, cpu = time.perf_counter(), time.process_time()
            action()
            if index >= warm_up:
                times[name]["wall"].append(time.perf_counter() - wall)
                times[name]["cpu"].append(time.process_time() - cpu)
    return times


def ratios(first: list[float], second: list[float]) -> dict[str, float]:
    """Ratio first / second, pair by pair: median, least and largest; and the ratio of the least times."""
    pairs = [a / b for a, b in zip(first, second, strict=True)]
    return {"median": median(pairs), "low": min(pairs), "high": max(pairs), "of_minima": min(first) / min(second)}
