"""Frames of a whole part on disk: made once for each way of making them, mapped into memory afterwards.

A cache is a folder named by a digest of everything that its content depends on: the data set, the part, the spec, and the
place, size and time of every source file. It holds ``frames.npy``, ``labels.npy`` and ``settings.json``, is written
under another name and renamed when it is whole, so that a kill leaves nothing that a later run could take for it. One
process makes a cache while others wait for it; what a killed one left is removed by the next that makes the same.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from polarspike.common.locks import locked
from polarspike.data.events.frames import Frames
from polarspike.data.splits import Split
from polarspike.errors import DataError

#: To be raised whenever readers or frames make something else of the same files.
FORMAT = 1


def stamp(paths: Sequence[Path]) -> list[tuple[str, int, int]]:
    """Place, size and time of every file, so that a changed source is another cache.

    Raises:
        DataError: a file is not there, as where a link leads nowhere.
    """
    folders = {folder: folder.resolve() for folder in {path.parent for path in paths}}
    found = []
    for path in paths:
        try:
            state = path.stat()
        except OSError as error:
            raise DataError(f"{path}: expected a readable file, got: {error.strerror}; unpack it again") from error
        found.append((str(folders[path.parent] / path.name), state.st_size, state.st_mtime_ns))
    return found


def cached(
    folder: Path,
    settings: dict[str, Any],
    samples: int,
    shape: tuple[int, int, int, int],
    make: Callable[[], Iterator[tuple[int, Frames, int]]],
    *,
    what: str,
) -> Split:
    """Frames (N, T * 2, H, W) and labels, from the cache below ``folder`` or made now.

    Args:
        folder: for all caches.
        settings: what the content depends on, plain data.
        samples: N.
        shape: (T, 2, H, W) of one.
        make: yields the place of each sample, its frames (T, 2, H, W) and its label; in any order.
        what: for the progress bar and messages.

    Raises:
        DataError: the folder cannot be written, or the cache that is there is damaged.
    """
    described = json.dumps({"format": FORMAT, **settings}, sort_keys=True)
    place = folder / hashlib.sha256(described.encode()).hexdigest()[:24]
    if place.is_file():
        raise DataError(f"{place}: expected the folder of a cache of {what}, got a file; remove it")
    if not place.is_dir():
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with locked(place.with_name(f".{place.name}.lock")):
                if not place.is_dir():  # else another process has made it meanwhile
                    _make(place, described, samples, shape, make, what)
        except OSError as error:
            raise DataError(
                f"{place.parent}: expected a folder that can be written, for the frames of {what}: {error}"
            ) from error
    try:
        frames = np.load(place / "frames.npy", mmap_mode="c")  # changes would stay in memory
        labels = np.load(place / "labels.npy")
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{place}: the cache of {what} is damaged ({error}); remove this folder") from error
    merged = (samples, shape[0] * shape[1], *shape[2:])
    wanted = (samples, *shape)
    if frames.shape != wanted or labels.shape != (samples,):
        raise DataError(f"{place}: the cache of {what} holds {frames.shape}, expected {wanted}; remove this folder")
    return Split(torch.from_numpy(frames).view(merged), torch.from_numpy(labels))


def _make(
    place: Path,
    described: str,
    samples: int,
    shape: tuple[int, int, int, int],
    make: Callable[[], Iterator[tuple[int, Frames, int]]],
    what: str,
) -> None:
    partial = place.with_name(f".{place.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a maker that was killed: it holds the lock no more
    partial.mkdir()
    try:
        frames = np.lib.format.open_memmap(partial / "frames.npy", mode="w+", dtype=np.uint8, shape=(samples, *shape))
        _reserve(partial / "frames.npy")
        labels = np.zeros(samples, dtype=np.int64)
        bar = tqdm(make(), total=samples, desc=f"frames of {what}", unit="recording", leave=False, disable=None)
        for index, sample, label in bar:
            frames[index], labels[index] = sample, label
        frames.flush()
        del frames
        np.save(partial / "labels.npy", labels)
        (partial / "settings.json").write_text(described, encoding="utf-8")
        partial.rename(place)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _reserve(path: Path) -> None:
    """Take the room of a whole file now: where a mapped one meets the end of the disk, the system ends the process."""
    if hasattr(os, "posix_fallocate"):
        with path.open("r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
