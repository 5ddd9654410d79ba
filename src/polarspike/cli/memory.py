"""Memory of a process that trains on a CPU: kept, and not given back after every step."""

from __future__ import annotations

import ctypes
import os
from typing import Any

# mallopt(3) of glibc: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD, and the largest values that they take.
_TRIM, _MAP = (-1, 2**31 - 1), (-3, 2**25)
_OWN = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_")


def keep_memory() -> bool:
    """Let the C library keep what torch gives back, so that the next step of a training finds it there.

    Else glibc returns it to the system, and every page of 4 KiB is a fault in every step. Nothing that is computed changes;
    the process keeps the most that it has needed until its end (``benchmarks/kept_memory.py``). Who has told the library
    something else, by an environment variable of its own, is left alone.

    Returns:
        Whether it was told so: not without glibc.
    """
    if any(os.environ.get(name) for name in _OWN) or "glibc.malloc" in os.environ.get("GLIBC_TUNABLES", ""):
        return False
    try:
        library: Any = ctypes.CDLL(None)
        return all(library.mallopt(*setting) == 1 for setting in (_TRIM, _MAP))
    except (AttributeError, OSError, TypeError):  # no such function, or, on Windows, no such library
        return False
