"""Read a file of a data set, or say in one line why it cannot be read."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from polarspike.errors import DataError


def bytes_of(path: str | os.PathLike[str]) -> bytes:
    """The content of a file.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise DataError(f"{path}: expected a readable file, got: {error.strerror or error}") from error


def lines_of(path: Path) -> list[str]:
    """The lines of a text file.

    Raises:
        DataError: it cannot be read, or is no text.
    """
    try:
        return path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: expected a text file, got: {error}") from error


def visible(paths: Iterable[Path]) -> list[Path]:
    """In order, without those whose name begins with a dot: a Mac leaves ``._NAME`` beside each file that it copies."""
    return sorted(path for path in paths if not path.name.startswith("."))
