"""Which files of a folder are pictures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polarspike.decoding import pictures_in
from polarspike.errors import DataError


def test_pictures_are_found_in_all_folders_but_hidden_ones(tmp_path: Path) -> None:
    names = [
        "b.PNG",
        "a/z.jpg",
        "a/deep/c.jpeg",
        ".hidden.png",
        ".trash/d.png",
        "a/notes.txt",
        "a/deep/no.png/inner.png",
    ]
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    (tmp_path / ".dotted-root").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in pictures_in(tmp_path)]
    assert found == ["a/deep/c.jpeg", "a/deep/no.png/inner.png", "a/z.jpg", "b.PNG"]


def test_a_folder_that_vanishes_during_the_search_is_no_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("here", "gone"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "picture.png").touch()
    scandir = os.scandir

    def vanishing(place: str) -> object:
        if Path(place).name == "gone":
            raise FileNotFoundError(2, "No such file or directory", place)
        return scandir(place)

    monkeypatch.setattr(os, "scandir", vanishing)
    with pytest.raises(DataError, match=r"gone: expected a folder of pictures that can be read, got: No such file"):
        pictures_in(tmp_path)
