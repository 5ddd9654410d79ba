"""The IDX reader: what it reads, and what it says to every kind of damaged file."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import pytest
import torch

from polarspike.data.idx import read_idx, read_labelled_images, write_idx
from polarspike.errors import DataError

PIXELS = bytes(range(12))
IMAGES = struct.pack(">4I", 0x803, 2, 2, 3) + PIXELS  # two images of 2x3 pixels


def put(folder: Path, content: bytes, name: str = "file-idx") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@pytest.mark.parametrize("packed", [False, True])
def test_values_lie_as_the_format_says(tmp_path: Path, packed: bool) -> None:
    # The name says nothing: the content decides whether it is gzip.
    images = read_idx(put(tmp_path, gzip.compress(IMAGES) if packed else IMAGES), dims=3)
    assert images.dtype == torch.uint8
    assert images.tolist() == [[[0, 1, 2], [3, 4, 5]], [[6, 7, 8], [9, 10, 11]]]


@pytest.mark.parametrize("name", ["a-idx3", "a-idx3.gz"])
def test_written_files_read_back_and_depend_on_the_values_alone(tmp_path: Path, name: str) -> None:
    values = torch.randint(256, (5, 3, 4), dtype=torch.uint8)
    write_idx(tmp_path / name, values)
    first = (tmp_path / name).read_bytes()
    write_idx(tmp_path / name, values)
    assert (tmp_path / name).read_bytes() == first
    assert torch.equal(read_idx(tmp_path / name, dims=3), values)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_the_written_header_is_the_known_one(tmp_path: Path) -> None:
    write_idx(tmp_path / "a", torch.tensor([7, 9], dtype=torch.uint8))
    assert (tmp_path / "a").read_bytes() == bytes([0, 0, 8, 1, 0, 0, 0, 2, 7, 9])


@pytest.mark.parametrize("values", [torch.zeros(2), torch.tensor(1, dtype=torch.uint8)])
def test_only_bytes_with_dimensions_are_written(tmp_path: Path, values: torch.Tensor) -> None:
    with pytest.raises(DataError, match="expected a uint8 tensor with dimensions"):
        write_idx(tmp_path / "a", values)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(tmp_path, b"old")

    def fail(*_: object) -> None:
        raise OSError("no space")

    monkeypatch.setattr("os.replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_idx(path, torch.zeros(3, dtype=torch.uint8))
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("file-idx", b"old")]


def many(count: int) -> bytes:
    """An IDX file of labels that gzip cannot make short."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (count,), generator=generator).tolist()
    return struct.pack(">2I", 0x801, count) + bytes(noise)


def damaged(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 0xFF]) + content[at + 1 :]


@pytest.mark.parametrize(
    ("content", "dims", "text"),
    [
        (IMAGES[:-1], 3, "expected 12 bytes for (2, 2, 3), got 11; the file is truncated"),
        (gzip.compress(IMAGES[:-5], mtime=0), 3, "expected 12 bytes for (2, 2, 3), got 7; the file is truncated"),
        (IMAGES + b"x", 3, "expected the file to end after 12 bytes for (2, 2, 3), got more"),
        (IMAGES[:10], 3, "expected an IDX header of 16 bytes, got 10; the file is truncated"),
        (b"", 3, "expected an IDX header of 16 bytes, got 0; the file is truncated"),
        (IMAGES, 1, "with 1 dimensions, magic 0x801, got magic 0x803"),
        (b"these are words, not digits", 3, "with 3 dimensions, magic 0x803, got magic 0x74686573"),
        (struct.pack(">4I", 0x803, 0, 28, 28), 3, "expected at least one value, got the dimensions (0, 28, 28)"),
        (struct.pack(">4I", 0x803, *(2**32 - 1,) * 3) + b"x", 3, "got 1; the file is truncated"),
        (
            gzip.compress(struct.pack(">2I", 0x801, 2**32 - 1), mtime=0),
            1,
            "bytes for (4294967295,), got 0; the file is",
        ),
        (gzip.compress(many(4000), mtime=0)[:-200], 1, "expected a whole gzip file, got a damaged one"),
        (
            damaged(gzip.compress(many(4000), mtime=0), -6),
            1,
            "expected a whole gzip file, got a damaged one (CRC check failed",
        ),
        (damaged(gzip.compress(many(4000), mtime=0), 10), 1, "expected a whole gzip file, got a damaged one"),
        (gzip.compress(many(40), mtime=0) + b"trailing", 1, "expected a whole gzip file, got a damaged one"),
    ],
)
def test_damaged_files_are_named_with_what_was_expected_and_what_came(
    tmp_path: Path, content: bytes, dims: int, text: str
) -> None:
    path = put(tmp_path, content)
    with pytest.raises(DataError) as caught:
        read_idx(path, dims)
    assert str(caught.value).startswith(f"{path}: ")
    assert text in str(caught.value)


def test_a_missing_file_and_a_folder_are_data_errors(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(DataError, match=r"expected a readable IDX file, got: (No such file|Is a directory)"):
            read_idx(path, dims=1)


def test_images_and_labels_belong_together(tmp_path: Path) -> None:
    images = put(tmp_path, IMAGES, "images")
    pixels, labels = read_labelled_images(images, put(tmp_path, struct.pack(">2I", 0x801, 2) + b"\x03\x01", "labels"))
    assert pixels.shape == (2, 1, 2, 3)
    assert labels.dtype == torch.int64 and labels.tolist() == [3, 1]
    other = put(tmp_path, struct.pack(">2I", 0x801, 3) + b"\x03\x01\x02", "other")
    with pytest.raises(DataError) as caught:
        read_labelled_images(images, other)
    assert f"{other}: expected 2 labels, one for each image of {images}, got 3" in str(caught.value)
