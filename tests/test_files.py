"""Files are written whole or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from polarspike.files import replacing


def test_a_file_appears_when_the_block_ends_well(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    with replacing(target) as partial:
        assert partial.parent == tmp_path and not target.exists()
        partial.write_bytes(b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]


def test_a_failed_block_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt), replacing(target) as partial:
        partial.write_bytes(b"half of the new")
        raise KeyboardInterrupt
    assert target.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [target]


def test_a_relative_name_stays_in_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with replacing("a.bin") as partial:
        partial.write_bytes(b"x")
    assert (tmp_path / "a.bin").read_bytes() == b"x"


def test_a_folder_that_is_none_is_an_error_before_the_block(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in (tmp_path / "missing" / "a.bin", tmp_path / "file" / "a.bin"):
        with pytest.raises(OSError), replacing(place):
            raise AssertionError("the block must not run")


def test_a_folder_in_the_place_of_the_file_stays(tmp_path: Path) -> None:
    (tmp_path / "a.bin").mkdir()
    with pytest.raises(OSError), replacing(tmp_path / "a.bin") as partial:
        partial.write_bytes(b"x")
    assert [path.name for path in tmp_path.iterdir()] == ["a.bin"]
