"""What files cost beside time: bytes on disk, peak memory of a process that runs them, and its cold start."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarspike.errors import ExportError, MissingExtraError
from polarspike.speed import probe
from polarspike.speed.files import Files
from polarspike.speed.race import Times

_ENOUGH_S = 300


@dataclass(frozen=True)
class Footprint:
    """Of one file.

    Args:
        kind: fp32, int8 or snn.
        size: bytes on disk.
        peak: largest resident memory of a process that loads it and runs one batch, bytes; None where that is not known.
        imports: of which the interpreter and the runtime took before they saw the file.
    """

    kind: str
    size: int
    peak: int | None = None
    imports: int | None = None

    @property
    def own(self) -> int | None:
        """Memory that the file and its run added, bytes."""
        return None if self.peak is None or self.imports is None else self.peak - self.imports

    def row(self, base: Footprint | None) -> dict[str, Any]:
        """Plain numbers, with ratios to the float file."""
        row: dict[str, Any] = {"file": self.kind, "bytes": self.size, "peak_bytes": self.peak, "own_bytes": self.own}
        if base is not None:
            row["x_bytes"] = round(self.size / base.size, 4)
            if self.peak and base.peak and self.own and base.own:
                row |= {"x_peak": round(self.peak / base.peak, 3), "x_own": round(self.own / base.own, 3)}
        return row


def footprint(files: Files, shape: Sequence[int]) -> list[Footprint]:
    """Of every file, on a batch of this shape (N, C, H, W) and with one thread."""
    found = []
    for kind in files.paths:
        memory = _memory(files.paths[kind], shape)
        found.append(Footprint(kind, files.size(kind), memory.get("peak"), memory.get("imports")))
    return found


def cold_start(path: Path, shape: Sequence[int], runs: int = 5) -> tuple[Times, list[str]]:
    """``python -m polarspike run FILE --images one.png``, each in a new process.

    Args:
        path: of the spiking network's file.
        shape: of its images, (C, H, W).
        runs: how many.

    Returns:
        What they took, from start to end; and what of torch they imported, which should be nothing.

    Raises:
        MissingExtraError: Pillow is not installed.
        ExportError: the command failed.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise MissingExtraError("pillow", "vision") from error
    with tempfile.TemporaryDirectory() as folder:
        picture = Path(folder) / "one.png"
        Image.new("L" if shape[0] == 1 else "RGB", (shape[2], shape[1]), 128).save(picture)
        command = ["-m", "polarspike", "run", str(path), "--images", str(picture), "--threads", "1"]
        log = _python(["-X", "importtime", *command]).stderr  # warms the disk's cache, too
        imported = sorted({name for line in log.splitlines() if (name := line.rpartition("|")[2].strip()) == "torch"})
        cpu, wall = [], []
        for _ in range(runs):
            start, before = time.perf_counter(), _children_s()
            _python(command)
            wall.append(time.perf_counter() - start)
            cpu.append(_children_s() - before)
    return Times(tuple(cpu), tuple(wall)), imported


def _memory(path: Path, shape: Sequence[int]) -> dict[str, int]:
    if not Path("/proc/self/status").exists():
        return {}
    done = _python(["-P", probe.__file__, str(path), *map(str, shape)])
    found: dict[str, int] = json.loads(done.stdout)
    return found


def _python(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, check=False, timeout=_ENOUGH_S)
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2]
        raise ExportError(f"python {' '.join(arguments)}: ended with {done.returncode}: {last}")
    return done


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
