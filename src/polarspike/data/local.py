"""Where the files of a data set are, and what is said when they are not there."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from polarspike.data.registry import FOLDER_VARIABLE, Source
from polarspike.errors import DataError


@dataclass(frozen=True)
class Layout:
    """One way in which a data set is distributed.

    Args:
        folder: below the data set's own folder, or "" for that itself.
        files: that must be there, all of them.
    """

    folder: str
    files: Sequence[str]


def cache(name: str) -> Path:
    """The user's own folder for a data set, where a download goes."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "polarspike" / name


def nested(places: Iterable[Path], *inner: str) -> list[Path]:
    """Each place, and behind it the folders of these names in it: what an archive unpacks to, or another library makes."""
    return [folder for place in places for folder in (place, *(place / name for name in inner))]


def locate(name: str, source: Source, layouts: Mapping[str, Layout], how: str) -> tuple[str, Path]:
    """The first layout whose files are all there: its name, and their folder.

    Each layout is looked for in its folder below every place, and in the place itself.

    Args:
        name: of the data set.
        source: where to look.
        layouts: by name, best first.
        how: to get the files, for the message.

    Raises:
        DataError: no layout is whole; one of which a part is there is named, since to look elsewhere would hide it.
    """
    places = source.folders(name, cache(name))
    for place in places:
        for key, layout in layouts.items():
            for folder in dict.fromkeys((place / layout.folder, place)):
                missing = [file for file in layout.files if not (folder / file).is_file()]
                if not missing:
                    return key, folder
                if len(missing) < len(layout.files):
                    absent = " or ".join(missing[:6])
                    raise DataError(
                        f"{name}: expected {len(layout.files)} files in {folder}, but there is no {absent}; "
                        "fetch the archive again"
                    )
    wanted = " or ".join(f"{layout.folder or '.'}/{{{', '.join(layout.files)}}}" for layout in layouts.values())
    raise DataError(
        f"{name}: expected {wanted} below one of: {', '.join(map(str, places))}. {how}, or name the folder by root or as "
        f"${FOLDER_VARIABLE}/{name}"
    )
