"""Images from folders and arrays, as a network wants them."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from polarspike import data, sources
from polarspike.data import Normalization
from polarspike.errors import DataError, MissingExtraError, PolarspikeWarning, SpecError
from polarspike.sources import Preprocessing
from polarspike.sources.preprocessing import IMAGENET, for_channels, parse_normalization, parse_shape
from tests.foreign import Touch, hide


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of one color each, in two folders and two formats, none square."""
    image = pytest.importorskip("PIL.Image")
    for index in range(6):
        folder = tmp_path / "pictures" / "ab"[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        color = (40 * index, 0, 255)
        image.new("RGB", (20, 10 + index), color).save(folder / f"{index}.{'png' if index < 3 else 'jpg'}")
    (tmp_path / "pictures" / "notes.txt").write_text("no picture")
    return tmp_path / "pictures"


def test_a_folder_of_pictures(pictures: Path) -> None:
    wanted = Preprocessing((3, 8, 8), Normalization((0.0,), (1.0,)), 0.875)
    x, made = sources.images(str(pictures), wanted)
    assert x.shape == (6, 3, 8, 8) and x.dtype == torch.float32
    assert made == Preprocessing((3, 8, 8), Normalization((0.0,) * 3, (1.0,) * 3), 0.875)
    assert (x[:, 2] > 0.98).all() and sorted(round(255 * float(v) / 40) for v in x[:, 0, 4, 4]) == list(range(6))
    assert len(sources.images(str(pictures), wanted, 4)[0]) == 4
    grey, _ = sources.images(str(pictures), Preprocessing((1, 8, 8), Normalization((0.5,), (0.5,))))
    assert grey.shape == (6, 1, 8, 8)


def test_pictures_are_scaled_and_cut_in_the_middle(tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    pixels = np.zeros((8, 16, 3), dtype=np.uint8)
    pixels[:, 4:12] = 255  # the middle half is white
    (tmp_path / "one").mkdir()
    image.fromarray(pixels).save(tmp_path / "one" / "x.png")
    plain = Normalization((0.0,), (1.0,))
    x, _ = sources.images(str(tmp_path / "one"), Preprocessing((3, 8, 8), plain))
    assert (x == 1).all()
    x, _ = sources.images(str(tmp_path / "one"), Preprocessing((3, 8, 16), plain, 0.5))
    assert torch.equal(x[0], torch.from_numpy(pixels).permute(2, 0, 1) / 255)  # of that shape already: left alone


@pytest.mark.parametrize("ending", ["npy", "safetensors"])
def test_a_file_of_tensors(tmp_path: Path, ending: str) -> None:
    def write(x: torch.Tensor) -> str:
        path = tmp_path / f"x.{ending}"
        np.save(path, x.numpy()) if ending == "npy" else save_file({"images": x}, path)
        return str(path)

    x = torch.randn(10, 2, 4, 4)
    held, made = sources.images(write(x), Preprocessing(), 5)
    assert torch.equal(held, x[::2]) and made == Preprocessing((2, 4, 4))
    half = Normalization((0.5,), (0.5,))
    held, made = sources.images(write(x.sigmoid()), Preprocessing(), floats=half)
    assert torch.allclose(held, 2 * x.sigmoid() - 1, atol=1e-6) and made.normalization == for_channels(half, 2)
    for shape, floats, says in (((2, 8, 8), None, "floats are not resized"), ((2, 4, 4), half, "for values in 0..1")):
        with pytest.raises(DataError, match=says):
            sources.images(write(x), Preprocessing(shape), floats=floats)
    held, _ = sources.images(write(torch.full((3, 2, 4, 4), 255, dtype=torch.uint8)), Preprocessing((2, 8, 8), half))
    assert held.shape == (3, 2, 8, 8) and (held == 1).all()
    with pytest.warns(
        PolarspikeWarning, match=r"as if normalized .* none is below 0; of values in 0\.\.1 give --normalize"
    ):
        held, _ = sources.images(write(x.sigmoid()), Preprocessing((2, 4, 4), half))
    assert torch.equal(held, x.sigmoid())
    with pytest.raises(DataError, match="NaN"):
        sources.images(write(x / 0), Preprocessing())
    with pytest.raises(DataError, match=r"expected images \(N, C, H, W\), floats or uint8, got torch.float32 of shape"):
        sources.images(write(x[0]), Preprocessing())


def test_a_dataset() -> None:
    digits = data.load("digits")
    x, made = sources.images("digits", Preprocessing(), 20)
    assert x.shape == (20, 1, 8, 8) and made == Preprocessing((1, 8, 8), digits.normalization)
    x, made = sources.images("digits", Preprocessing((3, 16, 16), IMAGENET), 20)
    assert x.shape == (20, 3, 16, 16) and made.normalization == IMAGENET


def test_images_that_cannot_be_had(pictures: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("no image")
    np.save(tmp_path / "objects.npy", np.array([Touch(tmp_path / "witness")]), allow_pickle=True)
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY")
    (tmp_path / "cut.safetensors").write_bytes(b"12")
    save_file({"a": torch.zeros(1), "b": torch.zeros(1)}, tmp_path / "two.safetensors")
    shape = Preprocessing((3, 8, 8), IMAGENET)
    for source, wanted, says in (
        ("digit", shape, "no folder, no file, and no dataset; datasets: .*; did you mean 'digits'"),
        (str(tmp_path / "empty"), shape, "expected pictures .* found none"),
        (
            str(tmp_path / "text.txt"),
            shape,
            "expected a folder of pictures, a .tar shard, or a .npy or .safetensors file",
        ),
        (str(tmp_path / "missing.npy"), shape, "found nothing"),
        (str(tmp_path / "objects.npy"), shape, "without executing it"),
        (str(tmp_path / "cut.npy"), shape, "not a file of one tensor"),
        (str(tmp_path / "cut.safetensors"), shape, "not a file of one tensor"),
        (str(tmp_path / "two.safetensors"), shape, "expected one tensor of images, got 2: a, b"),
        (str(pictures), Preprocessing(normalization=IMAGENET), "give --shape 3,224,224"),
        (str(pictures), Preprocessing((3, 8, 8)), "give --normalize imagenet"),
        (str(pictures), Preprocessing((5, 8, 8), IMAGENET), "pictures have 1 or 3 channels"),
    ):
        with pytest.raises(DataError, match=says):
            sources.images(source, wanted)
    assert not (tmp_path / "witness").exists()
    with pytest.raises(DataError, match="at least 1"):
        sources.images("digits", shape, 0)
    with pytest.raises(DataError, match="is a folder, and root says where a dataset's files are"):
        sources.images(str(pictures), shape, root=tmp_path)
    with pytest.raises(SpecError, match="expected 1 channels like the images, got 3"):
        sources.images("digits", Preprocessing((1, 8, 8), IMAGENET))
    next(pictures.rglob("0.png")).write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"0\.png: expected a picture"):
        sources.images(str(pictures), shape)


def test_pictures_need_pillow(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "PIL")
    with pytest.raises(MissingExtraError, match="'pillow'"):
        sources.images(str(pictures), Preprocessing((3, 8, 8), IMAGENET))


def test_what_the_options_say() -> None:
    assert parse_shape("3,224,224") == parse_shape("3x224x224") == (3, 224, 224)
    assert parse_normalization("imagenet") == IMAGENET
    assert parse_normalization("0.1,0.2;1,2") == Normalization((0.1, 0.2), (1.0, 2.0))
    assert for_channels(parse_normalization("none"), 2) == Normalization((0.0, 0.0), (1.0, 1.0))
    for refused in (lambda: parse_shape("224,224"), lambda: parse_normalization("0.5"), lambda: parse_normalization("1;0"),
                    lambda: Preprocessing((3, 0, 8)), lambda: Preprocessing(crop=0.0)):  # fmt: skip
        with pytest.raises(SpecError, match="expected"):
            refused()
