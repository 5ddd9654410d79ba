"""Frames of counts: every event in its bin, its channel and its cell; and the cache that keeps them."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polarspike.data.events import EventStream, FrameSpec, to_frames
from polarspike.data.events.cache import cached
from polarspike.errors import DataError, SpecError


def recording(count: int, seed: int = 0, size: tuple[int, int] = (6, 8)) -> EventStream:
    random = np.random.default_rng(seed)
    t = np.sort(random.integers(0, 1000, count))
    return EventStream.of(
        random.integers(size[1], size=count),
        random.integers(size[0], size=count),
        t,
        random.integers(2, size=count),
        size,
    )


@given(st.integers(1, 200), st.integers(1, 9), st.sampled_from(["time", "count"]))
@settings(max_examples=40, deadline=None)
def test_every_event_is_counted_once(count: int, bins: int, by: str) -> None:
    events = recording(count)
    frames = to_frames(events, FrameSpec(bins=bins, by=by))  # type: ignore[arg-type]
    assert frames.shape == (bins, 2, 6, 8) and int(frames.sum()) == count
    assert int(frames[:, 1].sum()) == int(events.p.sum())
    if by == "count":
        per_bin = frames.sum((1, 2, 3))
        assert per_bin.max() - per_bin.min() <= 1


def test_bins_by_hand() -> None:
    events = EventStream.of([0, 1, 2, 3], [0, 0, 1, 5], [100, 149, 150, 199], [1, 0, 1, 1], (6, 8))
    frames = to_frames(events, FrameSpec(bins=2))
    assert [tuple(place) for place in np.argwhere(frames)] == [(0, 0, 0, 1), (0, 1, 0, 0), (1, 1, 1, 2), (1, 1, 5, 3)]
    smaller = to_frames(events, FrameSpec(bins=1, height=3, width=4))
    assert smaller.shape == (1, 2, 3, 4) and smaller[0, 1, 0].tolist() == [1, 1, 0, 0] and smaller[0, 1, 2, 1] == 1
    first = to_frames(events, FrameSpec(bins=2, duration_us=50))
    assert int(first.sum()) == 2
    assert to_frames(events.between(500, 600), FrameSpec(bins=3)).sum() == 0


def test_counts_saturate() -> None:
    many = EventStream.of([0] * 300, [0] * 300, list(range(300)), [1] * 300, (1, 1))
    assert to_frames(many, FrameSpec(bins=1)).max() == 255


@pytest.mark.parametrize(
    "wrong",
    [{"bins": 0}, {"height": -1}, {"bins": 2.5}, {"width": 3.0}, {"bins": True}, {"by": "hand"}, {"duration_us": -1}],
)
def test_a_spec_is_checked(wrong: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        FrameSpec(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "side"), [({"height": 7}, "height.* at most 6"), ({"width": 9}, "width.* at most 8")]
)
def test_frames_are_no_larger_than_the_sensor(wrong: dict[str, int], side: str) -> None:
    with pytest.raises(SpecError, match=rf"FrameSpec\.{side}, as many as the sensor has, got"):
        to_frames(recording(5), FrameSpec(**wrong))  # type: ignore[arg-type]
    assert to_frames(recording(5), FrameSpec(height=6, width=8)).sum() == 5


def places(folder: Path) -> list[Path]:
    """All folders, hidden ones, too; not the locks."""
    return [path for path in folder.iterdir() if path.is_dir()]


class Maker:
    """Frames of three samples, counting how often they are asked for."""

    def __init__(self, fail_at: int | None = None) -> None:
        self.made, self.fail_at = 0, fail_at

    def __call__(self) -> Iterator[tuple[int, np.ndarray, int]]:
        for index in (0, 2, 1):  # in any order
            if self.made == self.fail_at:
                raise KeyboardInterrupt
            self.made += 1
            yield index, np.full((2, 2, 3, 4), index, dtype=np.uint8), 5 - index


def test_frames_are_made_once_for_each_setting(tmp_path: Path) -> None:
    make = Maker()
    first = cached(tmp_path, {"a": 1}, 3, (2, 2, 3, 4), make, what="test")
    again = cached(tmp_path, {"a": 1}, 3, (2, 2, 3, 4), make, what="test")
    assert make.made == 3 and torch.equal(first.images, again.images) and first.labels.tolist() == [5, 4, 3]
    assert first.images.shape == (3, 4, 3, 4)
    first.images[0] = 9  # stays in memory
    assert int(cached(tmp_path, {"a": 1}, 3, (2, 2, 3, 4), make, what="test").images[0].max()) == 0
    cached(tmp_path, {"a": 2}, 3, (2, 2, 3, 4), make, what="test")
    assert make.made == 6 and len(places(tmp_path)) == 2
    place = next(path for path in places(tmp_path) if json.loads((path / "settings.json").read_text())["a"] == 1)
    (place / "frames.npy").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"the cache of test is damaged .*remove this folder"):
        cached(tmp_path, {"a": 1}, 3, (2, 2, 3, 4), make, what="test")


def test_an_interruption_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, {}, 3, (2, 2, 3, 4), Maker(fail_at=2), what="test")
    assert places(tmp_path) == []
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="expected a folder that can be written"):
        cached(tmp_path / "file", {}, 3, (2, 2, 3, 4), Maker(), what="test")


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system cannot take room in advance")
def test_a_full_disk_is_told_before_a_frame_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int, start: int, length: int) -> None:
        assert start == 0 and length == os.fstat(file).st_size > 3 * 2 * 2 * 3 * 4
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    make = Maker()
    with pytest.raises(DataError, match=r"for the frames of test: .*No space left"):
        cached(tmp_path, {}, 3, (2, 2, 3, 4), make, what="test")
    assert make.made == 0 and places(tmp_path) == []


def test_what_a_killed_maker_left_is_removed(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        cached(tmp_path, {}, 3, (2, 2, 3, 4), Maker(fail_at=2), what="test")
    lock = next(tmp_path.glob("*.lock"))
    left = lock.with_suffix(".partial")
    left.mkdir()
    (left / "frames.npy").write_bytes(bytes(1000))
    made = cached(tmp_path, {}, 3, (2, 2, 3, 4), Maker(), what="test")
    assert not left.exists() and len(places(tmp_path)) == 1 and made.labels.tolist() == [5, 4, 3]


def test_a_second_process_waits_for_the_first(tmp_path: Path) -> None:
    started, go_on = threading.Event(), threading.Event()
    first, second = Maker(), Maker()

    def slow() -> Iterator[tuple[np.ndarray, int]]:
        started.set()
        assert go_on.wait(20)
        yield from first()

    def make(maker: Callable[[], Iterator[tuple[np.ndarray, int]]]) -> torch.Tensor:
        return cached(tmp_path, {}, 3, (2, 2, 3, 4), maker, what="test").images

    with ThreadPoolExecutor(2) as pool:  # a lock of a file keeps threads apart, too
        one = pool.submit(make, slow)
        assert started.wait(20)
        two = pool.submit(make, second)
        time.sleep(0.2)
        assert not two.done()
        go_on.set()
        assert torch.equal(one.result(20), two.result(20))
    assert (first.made, second.made) == (3, 0)


def test_a_file_in_the_place_of_a_cache_is_a_data_error(tmp_path: Path) -> None:
    cached(tmp_path, {}, 3, (2, 2, 3, 4), Maker(), what="test")
    place = places(tmp_path)[0]
    shutil.rmtree(place)
    place.touch()
    with pytest.raises(
        DataError, match=rf"{place.name}: expected the folder of a cache of test, got a file; remove it"
    ):
        cached(tmp_path, {}, 3, (2, 2, 3, 4), Maker(), what="test")
