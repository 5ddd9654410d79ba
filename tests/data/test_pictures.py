"""Data sets that stay on disk, from fixtures in their real layouts: folders, shards, annotations; whole and damaged."""

from __future__ import annotations

import dataclasses
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import polarspike as ps
from polarspike import cli, data, distributed, sources
from polarspike.data import imagenet
from polarspike.data.pictures import Files, Shards
from polarspike.data.streamed import StreamedDataset, random_part
from polarspike.errors import DataError, SpecError

pil = pytest.importorskip("PIL.Image")
CLASSES, EACH = 3, 4


@pytest.fixture(autouse=True)
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/nowhere")
    for name in ("imagenet-1k", "tiny-imagenet-200"):
        monkeypatch.setitem(imagenet.COUNTS, name, (CLASSES * EACH, CLASSES * 2))
        monkeypatch.setitem(imagenet.CLASSES, name, CLASSES)
    monkeypatch.setattr(StreamedDataset, "__init__", small_images(StreamedDataset.__init__))


def small_images(init: Callable[..., None]) -> Callable[..., None]:
    """ImageNet at 32 pixels in place of 224, for the tests' sake."""

    def made(self: StreamedDataset, *args: object, **kwargs: object) -> None:
        init(self, *args, **{"size": 32, "resize": 36, **kwargs})

    return made


def jpeg(label: int, size: tuple[int, int] = (60, 48), format: str = "JPEG") -> bytes:
    """A picture whose left half has the red of its label, and whose right half is black."""
    pixels = np.zeros((size[1], size[0], 3), dtype=np.uint8)
    pixels[:, : size[0] // 2, 0] = 80 * (label + 1)
    out = io.BytesIO()
    pil.fromarray(pixels).save(out, format)
    return out.getvalue()


def folders(root: Path) -> Path:
    for part, each in (("train", EACH), ("val", 2)):
        for label in range(CLASSES):
            folder = root / part / f"n0000000{label}"
            folder.mkdir(parents=True)
            for index in range(each):
                (folder / f"n0000000{label}_{index}.JPEG").write_bytes(jpeg(label))
    return root


def shards(root: Path) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    samples = {"train": EACH, "val": 2}
    for part, each in samples.items():
        for number in range(2):  # two shards of a part
            with tarfile.open(root / f"imagenet-{part}-{number:06}.tar", "w") as shard:
                for index in range(CLASSES * each // 2):
                    label = (index + number) % CLASSES
                    key = f"{part}_{number}_{index}"
                    entries = {"jpg": jpeg(label), "cls": str(label).encode()}
                    for suffix, content in entries.items():
                        info = tarfile.TarInfo(f"{key}.{suffix}")
                        info.size = len(content)
                        shard.addfile(info, io.BytesIO(content))
    return root


def tiny(root: Path) -> Path:
    root = root / "tiny-imagenet-200"
    names = [f"n0000000{label}" for label in range(CLASSES)]
    for label, name in enumerate(names):
        folder = root / "train" / name / "images"
        folder.mkdir(parents=True)
        for index in range(EACH):
            (folder / f"{name}_{index}.JPEG").write_bytes(jpeg(label, (64, 64)))
    (root / "wnids.txt").write_text("\n".join(names) + "\n")
    (root / "val" / "images").mkdir(parents=True)
    lines = []
    for index in range(2 * CLASSES):
        (root / "val" / "images" / f"val_{index}.JPEG").write_bytes(jpeg(index % CLASSES, (64, 64)))
        lines.append(f"val_{index}.JPEG\t{names[index % CLASSES]}\t0\t0\t63\t63")
    (root / "val" / "val_annotations.txt").write_text("\n".join(lines) + "\n")
    return root


LAYOUTS = {"folders": ("imagenet-1k", folders), "shards": ("imagenet-1k", shards), "tiny": ("tiny-imagenet-200", tiny)}


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


def test_training_batches_follow_from_the_seed_with_and_without_workers(tmp_path: Path) -> None:
    found = data.load("imagenet-1k", folders(tmp_path))
    drawn = []
    for seed, workers in ((0, 0), (0, 1), (1, 0)):
        torch.manual_seed(seed)
        drawn.append(list(found.training(5, workers=workers)))
    assert len(drawn[0]) == 2  # a smaller last batch is left out
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(drawn[0], drawn[1], strict=True))
    assert not torch.equal(drawn[0][0][0], drawn[2][0][0])
    one, two = (next(iter(found.evaluation(4, "train", images=4, seed=seed)))[1] for seed in (0, 1))
    assert len(one) == 4 and not torch.equal(one, two)


def test_random_parts_lie_inside() -> None:
    generator = torch.Generator().manual_seed(0)
    for width, height in ((500, 375), (40, 400), (400, 40)):
        for _ in range(50):
            left, top, wide, high = random_part(width, height, generator)
            assert left >= 0 and top >= 0 and left + wide <= width + 1e-6 and top + high <= height + 1e-6
            assert wide * high <= width * height + 1e-6


@pytest.mark.parametrize("size", [(1000, 10), (10, 1000), (120, 100), (100, 100), (90, 100)])
def test_where_no_random_part_fits_it_is_the_middle(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    whole = torch.zeros(1, size[1], size[0])
    top, left, high, wide = transforms.RandomResizedCrop.get_params(whole, scale=[9.0, 9.0], ratio=[3 / 4, 4 / 3])
    monkeypatch.setattr("polarspike.data.streamed._TRAIN_AREA", (9.0, 9.0))  # larger than any picture
    found = random_part(*size, torch.Generator())
    assert found == pytest.approx((left, top, wide, high), abs=0.51)  # torchvision cuts at whole pixels


def test_a_picture_smaller_than_the_cut_is_enlarged(tmp_path: Path) -> None:
    root = folders(tmp_path)
    (root / "val" / "n00000000" / "n00000000_0.JPEG").write_bytes(jpeg(0, (20, 11)))
    images, _ = next(iter(data.load("imagenet-1k", root).evaluation(1)))
    assert images.shape == (1, 3, 32, 32) and bool(images.isfinite().all())


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


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_validation_part_is_cut_from_the_training_pictures(layout: str, tmp_path: Path) -> None:
    name, make = LAYOUTS[layout]
    make(tmp_path)
    whole = data.load(name, tmp_path)
    with pytest.raises(
        DataError, match="expected a part among train, test, got 'validation'; split_validation cuts one"
    ):
        whole.evaluation(4, "validation")
    cut = whole.split_validation(0.25)
    assert [cut.count(part) for part in ("train", "validation", "test")] == [9, 3, 6]
    images, labels = next(iter(cut.evaluation(3, "validation")))
    assert sorted(labels.tolist()) == [0, 1, 2]
    red = images[:, 0, cut.image_size[0] // 2, 2] * 0.229 + 0.485
    assert torch.allclose(red * 255, 80 * (labels + 1).float(), atol=4)  # the labels are those of the pictures
    parts = cut.parts()
    kept, moved = ({parts[part].content(i) for i in range(cut.count(part))} for part in ("train", "validation"))
    assert len(kept) == 9 and not kept & moved
    with pytest.raises(DataError, match="was already cut"):
        cut.split_validation(0.25)
    with pytest.raises(SpecError, match="images: expected an integer of at least 1"):
        cut.evaluation(4, images=0)


@pytest.mark.parametrize(("workers", "world"), [(0, 2), (1, 3)])
def test_processes_have_each_picture_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, world: int
) -> None:
    whole = data.load("imagenet-1k", folders(tmp_path))
    assert isinstance(whole, StreamedDataset)
    labels = torch.arange(CLASSES * EACH)  # of their own, so that each tells its picture
    names = tuple(f"picture {label}" for label in labels)
    apart = dataclasses.replace(whole, train=Files(whole.train.paths, labels.tolist()), classes=names)
    train, test = apart.training(5, workers=workers), apart.evaluation(5, "train", workers=workers)
    monkeypatch.setattr(distributed, "world_size", lambda: world)
    portions, own = [], []
    for rank in range(world):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        torch.manual_seed(3)
        portions.append(list(distributed.own_portions(train)))
        own += [label for _, some in test.every(rank, world) for label in some.tolist()]  # type: ignore[attr-defined]
    assert sorted(own) == labels.tolist()
    trained = []
    for batch in zip(*portions, strict=True):
        for rank, ((images, some), size) in enumerate(batch):
            assert size == 5 and len(images) == len(some) == len(range(rank, size, world))
            trained += some.tolist()
    assert len(portions[0]) == 2 and len(trained) == len(set(trained)) == 10  # of 12: a smaller last batch is left out


@pytest.mark.parametrize("layout", LAYOUTS)
def test_calibration_images_are_the_pictures_as_a_folder_of_them_gives_them(layout: str, tmp_path: Path) -> None:
    name, make = LAYOUTS[layout]
    make(tmp_path)
    wanted = sources.Preprocessing((3, 24, 24), crop=0.75)
    found, made = sources.images(name, wanted, 6, root=tmp_path)
    dataset = data.load(name, tmp_path)
    assert made.shape == (3, 24, 24) and made.normalization == dataset.normalization and found.shape == (6, 3, 24, 24)
    loose = tmp_path / "loose"
    loose.mkdir()
    for place in range(6):  # evenly spread
        content, _ = dataset.part("train").content(place * 2)  # type: ignore[union-attr]
        (loose / f"{place}.jpg").write_bytes(content)
    wanted = dataclasses.replace(wanted, normalization=dataset.normalization)
    assert torch.equal(found, sources.images(str(loose), wanted, 6)[0])
    _, usual = sources.images(name, sources.Preprocessing(), 2, root=tmp_path)  # nothing known: as it is evaluated
    assert usual.shape == (3, *dataset.image_size) and usual.crop == dataset.size / dataset.resize  # type: ignore[union-attr]


def test_a_shard_is_a_source_of_images(tmp_path: Path) -> None:
    shards(tmp_path)
    shard = str(tmp_path / "imagenet-train-000001.tar")
    found, _ = sources.images(shard, sources.Preprocessing((3, 32, 32), data.Normalization((0.0,), (1.0,))), 4)
    assert found.shape == (4, 3, 32, 32) and found.max() > 0.2
    with pytest.raises(DataError, match=r"expected the shape of the network's input"):
        sources.images(shard, sources.Preprocessing())
    (tmp_path / "broken.tar").write_bytes(b"no tar")
    with pytest.raises(DataError, match=r"broken\.tar"):
        sources.images(str(tmp_path / "broken.tar"), sources.Preprocessing((3, 8, 8)))


def test_the_command_line_converts_and_evaluates_on_pictures_that_stay_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, file, snn = shards(tmp_path / "shards"), tmp_path / "net.py", str(tmp_path / "snn.safetensors")
    file.write_text(
        "from torch import nn\ndef make():\n    return nn.Sequential(nn.Conv2d(3, 4, 5, 4), nn.ReLU(), nn.Flatten(), "
        f"nn.Linear(100, {CLASSES}))\n"
    )
    given = ["--images", "imagenet-1k", "--root", str(root), "--shape", "3,24,24", "--crop", "0.75"]
    assert cli.main(["convert", f"{file}:make", snn, "--random-weights", *given]) == 0
    out = capsys.readouterr().out
    assert "images of 3x24x24 (imagenet-1k)" in out and "EXACT" in out
    assert cli.main(["evaluate", snn, "--root", str(root), "--timesteps", "1"]) == 0
    # The same cut as in calibration, which is not the data set's own.
    dataset = dataclasses.replace(data.load("imagenet-1k", root), size=24, resize=32)
    network = ps.load(snn)
    right = ps.evaluate(network, dataset.evaluation(10)).correct[1]  # type: ignore[arg-type]
    assert f"{right}/{2 * CLASSES}" in capsys.readouterr().out
