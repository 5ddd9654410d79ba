"""How ``polarspike run`` reads pictures of every size, mode and name, and that a bad one costs no other."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polarspike as ps
from tests.cli.run.asking import NOTES, picture_of, refused
from tests.cli.running import Call

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
Image = pytest.importorskip("PIL.Image")


def test_pictures_are_scaled_to_their_shorter_side_and_cut_in_the_middle(
    files: Path, tmp_path: Path, call: Call
) -> None:
    wide = np.zeros((16, 40, 3), dtype=np.uint8)
    wide[:, 10:30] = np.random.default_rng(1).integers(0, 256, (16, 20, 3))  # 20 of 40 columns are seen
    Image.fromarray(wide).save(tmp_path / "wide.png")
    Image.fromarray(wide).resize((20, 8), Image.Resampling.BILINEAR).crop((5, 0, 15, 8)).save(tmp_path / "cut.png")
    lines = call(files / "net.integer", "--images", tmp_path)[1].splitlines()
    assert len({line.partition("\t")[2] for line in lines}) == 1 and len(lines) == 2


def test_grey_networks_see_colours_as_grey(files: Path, pictures: Path, call: Call) -> None:
    code, out, _ = call(files / "grey.integer", "--images", pictures)
    assert code == 0 and len(out.splitlines()) == 6
    assert {line.split("\t")[1] for line in out.splitlines()} <= {"zero", "one"}


def test_folders_without_pictures(files: Path, tmp_path: Path, call: Call) -> None:
    refused(call(files / "net.onnx", "--images", tmp_path), "found none")
    refused(call(files / "net.onnx", "--images", tmp_path / "nowhere"), "there is no such folder")
    (tmp_path / "a.png").mkdir()
    refused(call(files / "net.onnx", "--images", tmp_path), "found none")


def test_damaged_pictures(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    content = (pictures / "fits.png").read_bytes()
    for part in (content[: len(content) // 2], content[:40], b"", b"text"):
        (tmp_path / "bad.png").write_bytes(part)
        refused(
            call(files / "net.onnx", "--images", tmp_path / "bad.png"), f"{tmp_path / 'bad.png'}: expected a picture"
        )


def test_a_picture_that_claims_to_be_enormous(files: Path, tmp_path: Path, call: Call) -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30000, 30000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    (tmp_path / "bomb.png").write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    refused(call(files / "net.onnx", "--images", tmp_path / "bomb.png"), "expected a picture")


def test_grey_pictures_of_16_bits_look_like_those_of_8(files: Path, tmp_path: Path, call: Call) -> None:
    pixels: Any = np.random.default_rng(2).integers(0, 256, (8, 10), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels.astype(np.uint16) * 257).save(tmp_path / "b.png")
    lines = call(files / "grey.integer", "--images", tmp_path)[1].splitlines()
    assert lines[0].partition("\t")[2] == lines[1].partition("\t")[2]


def test_one_damaged_picture_costs_no_other(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    folder = tmp_path / "three"
    folder.mkdir()
    for name in ("a.png", "c.png"):
        (folder / name).write_bytes((pictures / "fits.png").read_bytes())
    (folder / "b.png").write_bytes(b"text")
    code, out, err = call(files / "net.onnx", "--images", folder, "--output", tmp_path / "out.csv")
    assert code == 1 and len(out.splitlines()) == 2 and "b.png: expected a picture" in err and "1 of 3" in err
    assert len((tmp_path / "out.csv").read_text().splitlines()) == 3


def test_pictures_are_turned_as_their_camera_says(files: Path, tmp_path: Path, call: Call) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (8, 10, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "upright.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # the camera was held so that the picture's top is on the right
    Image.fromarray(np.rot90(pixels, 1).copy()).save(tmp_path / "turned.png", exif=turned)
    wanted = picture_of(call, files / "net.integer", tmp_path / "upright.png")
    assert picture_of(call, files / "net.integer", tmp_path / "turned.png") == wanted


@pytest.mark.parametrize("model", ["net.integer", "grey.integer"])
def test_pictures_of_all_modes(model: str, files: Path, tmp_path: Path, call: Call) -> None:
    colours = np.random.default_rng(4).integers(0, 256, (6, 3), dtype=np.uint8)
    plain = Image.fromarray(colours[np.random.default_rng(5).integers(0, 6, (8, 10))])
    wanted = {}
    plain.save(tmp_path / "plain.png")
    wanted["plain.png"] = picture_of(call, files / model, tmp_path / "plain.png")
    palette = plain.quantize(6)
    palette.save(tmp_path / "palette.png")
    palette.save(tmp_path / "hidden.png", transparency=bytes([0, 255, 0, 255, 7, 9]))  # the colours stay
    plain.convert("RGBA").save(tmp_path / "alpha.png")
    plain.save(tmp_path / "lossless.bmp")
    for name in ("palette.png", "hidden.png", "alpha.png", "lossless.bmp"):
        assert picture_of(call, files / model, tmp_path / name) == wanted["plain.png"], name
    bits = np.random.default_rng(6).integers(0, 2, (8, 10), dtype=np.uint8) * 255
    Image.fromarray(bits).save(tmp_path / "grey.png")
    Image.fromarray(bits).convert("1").save(tmp_path / "bits.png")
    Image.fromarray(bits.astype(np.int32) * 257).save(tmp_path / "deep.tif")
    Image.merge("LA", [Image.fromarray(bits)] * 2).save(tmp_path / "grey-alpha.png")
    grey = picture_of(call, files / model, tmp_path / "grey.png")
    for name in ("bits.png", "deep.tif", "grey-alpha.png"):
        assert picture_of(call, files / model, tmp_path / name) == grey, name
    Image.fromarray(bits.astype(np.float32)).save(tmp_path / "float.tif")
    refused(call(files / model, "--images", tmp_path / "float.tif"), "pixels of more than 16 bits")


def test_names_that_are_no_text_and_files_that_are_hidden(
    files: Path, pictures: Path, tmp_path: Path, call: Call
) -> None:
    folder, content = tmp_path / "named", (pictures / "fits.png").read_bytes()
    (folder / ".thumbnails").mkdir(parents=True)
    names = ["фото 図.png", "a\tb.png", "c\nd.png", b"\xff.png".decode(errors="surrogateescape")]
    for name in [*names, ".hidden.png", ".thumbnails/e.png"]:
        (folder / name).write_bytes(content)
    (folder / "._photo.png").write_bytes(b"\0\5\26\7")  # as another system leaves them beside each picture
    code, out, err = call(files / "net.integer", "--images", folder, "--output", tmp_path / "out.csv")
    assert (code, err) == (0, f"wrote {tmp_path / 'out.csv'}\n") and len(out.splitlines()) == 4
    assert {line.split("\t")[0].rpartition("/")[2] for line in out.splitlines()} == {
        "фото 図.png", r"a\tb.png", r"c\nd.png", r"\udcff.png"
    }  # fmt: skip


def test_the_share_that_the_cut_keeps_is_in_the_file(files: Path, tmp_path: Path, call: Call) -> None:
    snn = ps.load(files / "snn.safetensors")
    assert isinstance(snn, ps.SpikingNetwork)
    x = torch.randn(16, 3, 8, 10)
    ps.export(snn, tmp_path / "all.integer", "integer", x)
    snn.notes = {**NOTES, "crop": 0.5}
    ps.export(snn, tmp_path / "net.integer", "integer", x)
    pixels = np.random.default_rng(7).integers(0, 256, (16, 20, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "whole.png")
    Image.fromarray(pixels[4:12, 5:15].copy()).save(tmp_path / "middle.png")
    middle = picture_of(call, tmp_path / "all.integer", tmp_path / "middle.png")
    assert picture_of(call, tmp_path / "net.integer", tmp_path / "whole.png") == middle
    for crop in (0, 1.5, "x"):
        snn.notes["crop"] = crop
        ps.export(snn, tmp_path / "odd.integer", "integer", x)
        refused(call(tmp_path / "odd.integer", "--images", tmp_path / "whole.png"), "notes['crop']")
