"""Files are written whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from polarspike.common.files import replacing


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


@pytest.mark.skipif(os.name != "posix", reason="modes of POSIX")
@pytest.mark.parametrize(("umask", "new"), [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_who_may_read_and_write_a_file_is_the_choice_of_the_user(tmp_path: Path, umask: int, new: int) -> None:
    target, before = tmp_path / "a.bin", os.umask(umask)
    try:
        for former in (None, 0o640, 0o600, 0o664, 0o444):
            if former is not None:
                target.chmod(former)
            with replacing(target) as partial:
                assert former is None or partial.stat().st_mode & 0o177 & ~former == 0  # not even for a moment
                partial.write_bytes(b"x")
            assert target.stat().st_mode & 0o777 == (new if former is None else former)
    finally:
        os.umask(before)


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
