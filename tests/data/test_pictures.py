"""Data sets that stay on disk, from fixtures in their real layouts: folders, shards, annotations; whole and damaged."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from polarspike import data
from polarspike.data.pictures import Files, Shards
from polarspike.data.streamed import StreamedDataset
from polarspike.errors import DataError
from tests.data.pictures import CLASSES, EACH, LAYOUTS, folders, jpeg, pil, shards, tiny

pytestmark = pytest.mark.usefixtures("few_pictures")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_gives_pictures_with_their_labels(layout: str, tmp_path: Path) -> None:
    name, make = LAYOUTS[layout]
    make(tmp_path)
    found = data.load(name, tmp_path)
    assert isinstance(found, StreamedDataset) and found.num_classes == CLASSES
    assert (found.count("train"), found.count("test")) == (CLASSES * EACH, 2 * CLASSES)
    images, labels = next(iter(found.evaluation(100)))
    assert images.shape == (2 * CLASSES, 3, *found.image_size)
    red = images[:, 0, found.size // 2, 2] * 0.229 + 0.485  # of the left part, before the normalization
    assert torch.allclose(red * 255, 80 * (labels + 1).float(), atol=4)


@pytest.mark.parametrize("name", ["imagenet-1k", "tiny-imagenet-200"])
def test_missing_files_are_named_with_the_way_to_get_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=rf"{name}: expected .*POLARSPIKE_DATA/{name}"):
        data.load(name, tmp_path)


def test_copies_that_are_not_whole(tmp_path: Path) -> None:
    root = folders(tmp_path / "a")
    (root / "train" / "n00000001" / "n00000001_0.JPEG").unlink()
    with pytest.raises(DataError, match=r"expected 12 pictures in the train part of .*, got 11"):
        data.load("imagenet-1k", root)
    (root / "train" / "n00000009").mkdir()
    with pytest.raises(DataError, match="n00000009"):
        data.load("imagenet-1k", root)
    root = tiny(tmp_path / "b")
    (root / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn99\n")
    with pytest.raises(DataError, match="expected lines of FILE, CLASS"):
        data.load("tiny-imagenet-200", tmp_path / "b")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("ILSVRC2012_img_train.tar", r"got ILSVRC2012_img_train\.tar as image-net\.org has it; unpack it"),
        ("train/n00000000.tar", r"got 1 archives such as n00000000\.tar; unpack each"),
        ("val/ILSVRC2012_val_00000001.JPEG", r"got 1 pictures such as .*; sort them into folders"),
    ],
)
def test_imagenet_as_it_is_handed_out_is_told_apart_from_a_broken_copy(name: str, said: str, tmp_path: Path) -> None:
    root = folders(tmp_path)
    (root / name).write_bytes(b"")
    with pytest.raises(DataError, match=said):
        data.load("imagenet-1k", root)


def test_what_a_mac_leaves_beside_pictures_is_no_picture(tmp_path: Path) -> None:
    root = folders(tmp_path / "a")
    (root / "train" / "n00000000" / "._n00000000_0.JPEG").write_bytes(b"\0")
    (root / "train" / ".AppleDouble").mkdir()
    assert data.load("imagenet-1k", root).count("train") == CLASSES * EACH
    root = shards(tmp_path / "b")
    (root / "._imagenet-train-000000.tar").write_bytes(b"\0")
    assert data.load("imagenet-1k", root).count("train") == CLASSES * EACH


def test_a_validation_picture_that_is_missing_is_noticed_before_training(tmp_path: Path) -> None:
    (tiny(tmp_path) / "val" / "images" / "val_3.JPEG").unlink()
    with pytest.raises(DataError, match=r"val_3\.JPEG: expected this picture, .* \(1 of 6 are not there\)"):
        data.load("tiny-imagenet-200", tmp_path)


def test_damaged_pictures_and_shards_are_named(tmp_path: Path) -> None:
    root = folders(tmp_path / "a")
    path = root / "val" / "n00000000" / "n00000000_0.JPEG"
    path.write_bytes(jpeg(0)[:100])
    found = data.load("imagenet-1k", root)
    for workers in (0, 1):  # a worker's error is one line, too
        with pytest.raises(DataError, match=r"^\S*n00000000_0\.JPEG: expected a picture, got: .*; fetch it again$"):
            list(found.evaluation(8, workers=workers))
    root = shards(tmp_path / "b")
    path = next(root.glob("*train*.tar"))
    content = path.read_bytes()
    path.write_bytes(content[:700])
    with pytest.raises(DataError, match=rf"{path.name}: expected (a whole tar file|.* with a label|pictures)"):
        data.load("imagenet-1k", root)
    path.write_bytes(b"no tar")
    with pytest.raises(DataError, match="expected a whole tar file"):
        data.load("imagenet-1k", root)
    with tarfile.open(path, "w") as shard:
        for name, text in (("a.jpg", jpeg(0)), ("a.cls", b"seven")):
            info = tarfile.TarInfo(name)
            info.size = len(text)
            shard.addfile(info, io.BytesIO(text))
    with pytest.raises(DataError, match=r"a\.cls: expected the number of a class, got b'seven'"):
        data.load("imagenet-1k", root)


def test_labels_in_json(tmp_path: Path) -> None:
    root = shards(tmp_path)
    for path in root.glob("*.tar"):
        with tarfile.open(path) as shard:
            members = [(m.name, shard.extractfile(m).read()) for m in shard]  # type: ignore[union-attr]
        with tarfile.open(path, "w") as shard:
            for name, content in members:
                if name.endswith(".cls"):
                    name, content = name.replace(".cls", ".json"), b'{"label": %s}' % content
                info = tarfile.TarInfo(name)
                info.size = len(content)
                shard.addfile(info, io.BytesIO(content))
    assert data.load("imagenet-1k", root).count("train") == CLASSES * EACH


def shard(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w") as file:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("note", [b'{"caption": "a cat"}', b'{"label": 9}', b"no json"])
def test_a_class_file_stands_above_a_note(tmp_path: Path, note: bytes) -> None:
    members = [("a.jpg", jpeg(0)), ("a.cls", b"2"), ("a.json", note)]
    for order in (members, members[::-1]):
        assert Shards([shard(tmp_path / "a.tar", *order)]).labels.tolist() == [2]


@pytest.mark.parametrize(
    ("second", "text"),
    [
        ("a.jpg", r"expected one picture of a key, got a\.jpg and a\.jpg"),
        ("a.png", r"expected one picture of a key, got a\.jpg and a\.png"),
        ("a.cls", r"expected one cls of a key, got a\.cls and a\.cls"),
    ],
)
def test_members_of_one_key_are_refused(tmp_path: Path, second: str, text: str) -> None:
    path = shard(tmp_path / "a.tar", ("a.jpg", jpeg(0)), ("a.cls", b"0"), (second, b"1"))
    with pytest.raises(DataError, match=text):
        Shards([path])


@pytest.mark.parametrize("label", [b"1.7", b"true", b'"1"', b"null"])
def test_a_label_in_json_is_an_integer(tmp_path: Path, label: bytes) -> None:
    path = shard(tmp_path / "a.tar", ("a.jpg", jpeg(0)), ("a.json", b'{"label": %s}' % label))
    with pytest.raises(DataError, match=r"a\.json: expected the number of a class, got"):
        Shards([path])


def test_annotations_name_every_picture_once(tmp_path: Path) -> None:
    path = tiny(tmp_path) / "val" / "val_annotations.txt"
    path.write_text(path.read_text() + "\n\n")
    assert data.load("tiny-imagenet-200", tmp_path).count("test") == 2 * CLASSES
    path.write_text("val_0.JPEG\tn00000000\n" + path.read_text())
    with pytest.raises(
        DataError, match=r"val_annotations\.txt: expected one line for a picture, got more for val_0\.JPEG"
    ):
        data.load("tiny-imagenet-200", tmp_path)


def test_pictures_of_16_bits_keep_their_grey(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    grey = np.array([[0, 128, 129, 25700, 65535]], dtype=np.uint16)
    pil.fromarray(grey).save(path)
    assert np.asarray(Files([path], [0]).picture(0))[0].tolist() == [[byte] * 3 for byte in (0, 0, 1, 100, 255)]
    pil.fromarray(np.zeros((2, 2), dtype=np.float32)).save(path, "TIFF")
    with pytest.raises(DataError, match=r"a\.png: expected a picture, got: pixels of more than 16 bits \(mode F\)"):
        Files([path], [0]).picture(0)


def test_a_picture_of_too_many_pixels_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(jpeg(0))
    monkeypatch.setattr(pil, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DataError, match=r"a\.png: expected a picture, got: .*decompression bomb"):
        Files([path], [0]).picture(0)
