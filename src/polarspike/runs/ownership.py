"""Whose a run is: one process has it, with all its stages, until it lets it go or ends, in whatever way.

The lock is that of the whole run, so that neither a stage that is opened by itself nor the run around it escapes. Its file
is hidden and goes with the lock; a kill leaves it, in nobody's way.
"""

from __future__ import annotations

import contextlib
import os
import warnings
from pathlib import Path

from polarspike.common.locks import Hold, hold
from polarspike.errors import PolarspikeWarning, RunError
from polarspike.parallel import distributed
from polarspike.runs.reading import read_config

LOCK = ".polarspike.lock"


def require_free(path: str | os.PathLike[str]) -> None:
    """Refuse a run that another process has, before the work that comes before its directory is opened; nothing is made.

    Raises:
        RunError: another process has it.
    """
    with distributed.together(), contextlib.suppress(OSError):  # what cannot be opened, its directory explains
        if distributed.is_main() and (_root(Path(path)) / LOCK).is_file():
            own(Path(path))


def own(path: Path) -> Hold | None:
    """The lock of the run at ``path``, held as long as it is kept; None, with a warning, where there are no locks.

    Raises:
        RunError: another process has it.
        OSError: its file cannot be opened.
    """
    root = _root(path)
    try:
        found = hold(root / LOCK)
    except BlockingIOError as error:
        whole = "this run" if root == path.resolve() else f"it is a part of the run {root}, which"
        raise RunError(
            f"{path}: {whole} is being written by {error}; wait until that has ended, or end it, and start again; or give "
            "another directory"
        ) from None
    if found is None:
        warnings.warn(
            f"{root}: this file system has no locks; see to it that no second process writes this run",
            PolarspikeWarning,
            stacklevel=2,
        )
    return found


def _root(path: Path) -> Path:
    """The directory of the whole run that the run at ``path`` is, or is a stage of."""
    path = path.resolve()
    above = path.parent
    return _root(above) if above != path and _is_run(above) else path


def _is_run(path: Path) -> bool:
    try:
        read_config(path)
    except RunError:
        return False
    return True
