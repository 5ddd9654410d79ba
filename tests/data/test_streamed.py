"""Batches of pictures that stay on disk: random cuts, parts, several processes, and who else reads them."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

import polarspike as ps
from polarspike import cli, data, sources
from polarspike.data.pictures import Files
from polarspike.data.streamed import StreamedDataset, random_part
from polarspike.errors import DataError, SpecError
from polarspike.parallel import distributed
from tests.data.pictures import CLASSES, EACH, LAYOUTS, folders, jpeg, shards

pytestmark = pytest.mark.usefixtures("few_pictures")


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
