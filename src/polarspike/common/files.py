"""Write files whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path

#: How the name of a file ends that is not finished; a kill may leave one.
PARTIAL = ".partial"


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside ``path``; it takes the place of ``path`` when the block ends well, and goes otherwise.

    Who may read and write the file stays as it was; of a new one it is what the process gives to its files (the umask).

    Raises:
        OSError: the folder does not exist or cannot be written.
    """
    target = Path(path)
    if not target.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {str(target.parent)!r}")
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}{PARTIAL}")
    mode = _made(partial, target)
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())  # else a power cut after the replacement could leave an empty file
        partial.chmod(mode)
        os.replace(partial, target)
    finally:
        partial.unlink(missing_ok=True)


def _made(partial: Path, target: Path) -> int:
    """Make an empty file that is as private as the one whose place it takes; the mode that it is to end with."""
    former = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
    handle = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666 if former is None else former & 0o666 | 0o600)
    try:
        return stat.S_IMODE(os.fstat(handle).st_mode) if former is None else former & 0o777
    finally:
        os.close(handle)
