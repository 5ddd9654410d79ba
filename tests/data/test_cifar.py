"""CIFAR's files in both of their formats, whole, damaged and hostile; the fixtures hold a few records in the real layout."""

from __future__ import annotations

import dataclasses
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from polarspike import data
from polarspike.data import cifar
from polarspike.errors import DataError

RECORDS = 6


@pytest.fixture(autouse=True)
def few_records(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_CIFAR_10", "_CIFAR_100"):
        few = dataclasses.replace(getattr(cifar, name), train_records=RECORDS, test_records=RECORDS)
        monkeypatch.setattr(cifar, name, few)
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")


def pixels(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (RECORDS, 3072), dtype=np.uint8)


def ten(folder: Path, *, binary: bool) -> Path:
    inner = folder / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py")
    inner.mkdir(parents=True)
    for index in range(6):
        name = f"data_batch_{index + 1}" if index < 5 else "test_batch"
        labels = [(index + record) % 10 for record in range(RECORDS)]
        if binary:
            rows = [bytes([label]) + row.tobytes() for label, row in zip(labels, pixels(index), strict=True)]
            (inner / f"{name}.bin").write_bytes(b"".join(rows))
        else:  # as Python 2 wrote them: protocol 2, and the keys become bytes
            content = {b"batch_label": b"x", b"labels": labels, b"data": pixels(index), b"filenames": [b"a.png"]}
            (inner / name).write_bytes(pickle.dumps(content, protocol=2))
    return folder


def hundred(folder: Path, *, binary: bool) -> Path:
    inner = folder / ("cifar-100-binary" if binary else "cifar-100-python")
    inner.mkdir(parents=True)
    names = [f"class{i}" for i in range(100)]
    for index, name in enumerate(("train", "test")):
        fine = [(7 * record + index) % 100 for record in range(RECORDS)]
        if binary:
            rows = [bytes([9, label]) + row.tobytes() for label, row in zip(fine, pixels(index), strict=True)]
            (inner / f"{name}.bin").write_bytes(b"".join(rows))
        else:
            content = {b"fine_labels": fine, b"coarse_labels": [9] * RECORDS, b"data": pixels(index)}
            (inner / name).write_bytes(pickle.dumps(content, protocol=2))
    if binary:
        (inner / "fine_label_names.txt").write_text("\n".join(names) + "\n")
    else:
        (inner / "meta").write_bytes(pickle.dumps({b"fine_label_names": [n.encode() for n in names]}, protocol=2))
    return folder


@pytest.mark.parametrize("binary", [True, False])
def test_cifar_10_in_either_format(tmp_path: Path, binary: bool) -> None:
    found = data.load("cifar-10", ten(tmp_path, binary=binary))
    assert (len(found.train), len(found.test), found.image_size, found.in_channels) == (
        5 * RECORDS,
        RECORDS,
        (32, 32),
        3,
    )
    expected = torch.from_numpy(np.concatenate([pixels(index) for index in range(5)])).view(-1, 3, 32, 32)
    assert torch.equal(found.train.images, expected)
    assert found.train.labels[:3].tolist() == [0, 1, 2] and found.test.labels[0] == 5
    assert found.classes[0] == "airplane" and found.augmentation == data.Augmentation(flip=True, shift=4)
    whole = data.load("cifar-10", tmp_path / ("cifar-10-batches-bin" if binary else "cifar-10-batches-py"))
    assert torch.equal(whole.test.images, found.test.images)


@pytest.mark.parametrize("binary", [True, False])
def test_cifar_100_in_either_format(tmp_path: Path, binary: bool) -> None:
    found = data.load("cifar-100", hundred(tmp_path, binary=binary))
    assert (len(found.train), len(found.test), found.num_classes) == (RECORDS, RECORDS, 100)
    assert found.train.labels.tolist() == [0, 7, 14, 21, 28, 35] and found.classes[99] == "class99"
    assert torch.equal(found.test.images.flatten(1), torch.from_numpy(pixels(1)))


def test_missing_files_are_named_with_the_way_to_get_them(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cifar-10: expected cifar-10-batches-bin/.*cifar-10-binary\.tar\.gz"):
        data.load("cifar-10", tmp_path)
    (ten(tmp_path, binary=True) / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"expected 6 files in .*but there is no data_batch_3\.bin"):
        data.load("cifar-10", tmp_path)


def test_truncated_files_are_refused(tmp_path: Path) -> None:
    path = ten(tmp_path, binary=True) / "cifar-10-batches-bin" / "test_batch.bin"
    content = path.read_bytes()
    path.write_bytes(content[:-1])
    with pytest.raises(DataError, match="expected records of 3073 bytes, got 18437 bytes"):
        data.load("cifar-10", tmp_path)
    path.write_bytes(content[:-3073])
    with pytest.raises(DataError, match=f"expected {RECORDS} images, got {RECORDS - 1}"):
        data.load("cifar-10", tmp_path)
    path.write_bytes(content[:-3073] + b"\x0b" + content[-3072:])
    with pytest.raises(DataError, match=r"expected labels 0\.\.9, got 5\.\.11 in the test part"):
        data.load("cifar-10", tmp_path)


def test_a_pickle_runs_nothing(tmp_path: Path) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (Path(tmp_path / "ran"),)  # type: ignore[return-value]

    path = ten(tmp_path, binary=False) / "cifar-10-batches-py" / "data_batch_1"
    whole = path.read_bytes()
    path.write_bytes(pickle.dumps({b"data": Hostile(), b"labels": []}, protocol=2))
    with pytest.raises(DataError, match="no use for"):
        data.load("cifar-10", tmp_path)
    assert not (tmp_path / "ran").exists()
    path.write_bytes(whole[:200])
    with pytest.raises(DataError, match="expected a pickled dictionary of arrays"):
        data.load("cifar-10", tmp_path)
    for wrong in ([1, 2], *({b"data": pixels(0), b"labels": [1, one] * 3} for one in (1.5, "2", True))):
        path.write_bytes(pickle.dumps(wrong, protocol=2))
        with pytest.raises(DataError, match=r"expected a dictionary with data \(N, 3072\) uint8 and labels"):
            data.load("cifar-10", tmp_path)


def test_names_of_classes_are_counted(tmp_path: Path) -> None:
    path = hundred(tmp_path, binary=True) / "cifar-100-binary" / "fine_label_names.txt"
    path.write_text("apple\n")
    with pytest.raises(DataError, match="names of 100 classes, got 1"):
        data.load("cifar-100", tmp_path)
