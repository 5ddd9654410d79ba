"""``polarspike run``: pictures through exported files, without torch, and one line for every wrong input."""

from __future__ import annotations

import csv
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import polarspike as ps
from polarspike import cli, seals
from tests.networks import calibrated

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
Image = pytest.importorskip("PIL.Image")

Call = Callable[..., tuple[int, str, str]]
NOTES = {"normalization": {"mean": [0.3, 0.4, 0.2], "std": [0.25, 0.3, 0.2]}, "classes": ["cat", "dog", "owl"]}
GREY_NOTES = {"normalization": {"mean": [0.4], "std": [0.3]}, "classes": ["zero", "one"]}


def spiking(channels: int, classes: int) -> ps.SpikingNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(channels, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 8, classes))
    return ps.convert(calibrated(model.eval(), ps.QuantSpec(0, 7), torch.randn(16, channels, 8, 10)))


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with exported files of networks of colour and of grey pictures of 8 x 10 pixels."""
    folder = tmp_path_factory.mktemp("exported")
    colour, grey = spiking(3, 3), spiking(1, 2)
    x = torch.randn(16, 3, 8, 10)
    ps.export(colour, folder / "silent.integer", "integer", x)
    colour.notes, grey.notes = NOTES, GREY_NOTES
    ps.export(colour, folder / "net.onnx", "onnx-int8", x)
    ps.export(colour, folder / "net.integer", "integer", x)
    ps.export(grey, folder / "grey.integer", "integer", x[:, :1])
    ps.save(colour, folder / "snn.safetensors")
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Pictures that fit, larger and smaller ones, grey ones, one with transparency, in two folders."""
    generator, folder = np.random.default_rng(0), tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    for name, shape in {
        "fits.png": (8, 10, 3),
        "large.jpg": (40, 30, 3),
        "small.png": (3, 5, 3),
        "thin.PNG": (1, 300, 3),
        "grey.png": (9, 9),
        "more/clear.png": (20, 12, 4),
    }.items():
        Image.fromarray(generator.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)
    (folder / "notes.txt").write_text("no picture")
    return folder


@pytest.fixture
def call(capsys: pytest.CaptureFixture[str]) -> Call:
    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = cli.main(["run", *map(str, arguments)])
        except SystemExit as leave:
            code = int(leave.code or 0)
        out, err = capsys.readouterr()
        return code, out, err

    return run


def unsealed(path: Path) -> Any:
    """A model as earlier versions wrote it, which can be changed."""
    model = onnx.load(path)
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != seals.KEY}
    onnx.helper.set_model_props(model, kept)
    return model


def refused(answer: tuple[int, str, str], why: str) -> None:
    code, out, err = answer
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and why in err, answer


@pytest.mark.parametrize("name", ["net.onnx", "net.integer"])
def test_the_class_is_that_of_the_spiking_network(name: str, files: Path, pictures: Path, call: Call) -> None:
    code, out, err = call(files / name, "--images", pictures / "fits.png")
    assert (code, err) == (0, "")
    path, label, score = out.strip().split("\t")
    pixels = torch.from_numpy(np.array(Image.open(pictures / "fits.png"))).permute(2, 0, 1).float() / 255
    scaling = NOTES["normalization"]
    assert isinstance(scaling, dict)
    mean, std = (torch.tensor(scaling[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        meant = ps.load(files / "snn.safetensors")(((pixels - mean) / std)[None])[0]
    assert path == str(pictures / "fits.png") and label == NOTES["classes"][int(meant.argmax())]  # type: ignore[index]
    assert float(score) == pytest.approx(float(meant.max()), abs=0.1)


def test_both_files_say_the_same_of_all_pictures_in_any_batch(files: Path, pictures: Path, call: Call) -> None:
    first = call(files / "net.onnx", "--images", pictures)
    assert first[0] == 0 and len(first[1].splitlines()) == 6  # folders within, endings of either case, no text
    assert [line.split("\t")[0] for line in first[1].splitlines()] == sorted(
        str(path) for path in pictures.rglob("*") if path.suffix.lower() in (".png", ".jpg")
    )
    for more in (("net.integer",), ("net.onnx", "--batch", 2, "--threads", 1), ("net.integer", "--batch", 1)):
        assert call(files / more[0], "--images", pictures, *more[1:])[:2] == first[:2]


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


def test_lines_go_to_a_table_too(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    code, out, err = call(files / "net.onnx", "--images", pictures, "--output", tmp_path / "out.csv")
    assert code == 0 and err == f"wrote {tmp_path / 'out.csv'}\n"
    with open(tmp_path / "out.csv", newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["picture", "class", "score"]
    assert rows[1:] == [line.split("\t") for line in out.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["net.onnx", "net.integer"])
def test_torch_is_not_loaded(name: str, files: Path, pictures: Path) -> None:
    program = (
        "import sys\n"
        "class No:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.partition('.')[0] in ('torch', 'torchvision', 'onnx'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, No())\n"
        "from polarspike.cli import main\n"
        "code = main(sys.argv[1:])\n"
        "sys.exit(code)"
    )
    command = [sys.executable, "-c", program, "run", str(files / name), "--images", str(pictures)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "") and len(done.stdout.splitlines()) == 6


# What does not fit


def test_files_that_are_not_there_or_damaged(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    refused(call(tmp_path / "none.onnx", "--images", pictures), "there is no such file")
    refused(call(tmp_path, "--images", pictures), "there is no such file")
    for name in ("net.onnx", "net.integer"):
        content = (files / name).read_bytes()
        for part in (content[: len(content) // 2], content[:-9], content[7:], b"", b"text"):
            (tmp_path / name).write_bytes(part)
            sealed = name == "net.onnx" and part in (content[:-9], content[7:])  # its end is there
            why = "the file is damaged" if sealed else "expected an ONNX model or an"
            refused(call(tmp_path / name, "--images", pictures), f"{tmp_path / name}: {why}")
    refused(call(files / "snn.safetensors", "--images", pictures), "expected an ONNX model or an integer network")


def test_damage_that_the_runtime_would_not_notice(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    for name in ("net.onnx", "net.integer"):
        content = (files / name).read_bytes()
        weights = content.index(np.array(1.0, "<f4").tobytes()) if name == "net.onnx" else len(content) - 9
        for place in (weights, content.index(b"step"), content.index(b"cat")):
            bad = bytearray(content)
            bad[place] ^= 1
            (tmp_path / name).write_bytes(bad)
            refused(call(tmp_path / name, "--images", pictures), f"{tmp_path / name}: the file is damaged: ")
    model = onnx.load(files / "net.onnx")
    model.metadata_props.add(key="more", value="x")  # by another program
    onnx.save(model, tmp_path / "net.onnx")
    refused(call(tmp_path / "net.onnx", "--images", pictures), "another program changed it")
    entries = list(model.metadata_props)
    model.ClearField("metadata_props")
    model.metadata_props.extend(entries[::-1])
    model.metadata_props.add(key="long", value="x" * 5000)
    onnx.save(model, tmp_path / "net.onnx")
    refused(call(tmp_path / "net.onnx", "--images", pictures), "another program changed it")


def test_the_runtime_says_nothing_of_its_own(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    content = unsealed(files / "net.onnx").SerializeToString()
    place = content.find(b"constant#1")
    while place >= 0:  # no text, in names of nodes and of values
        (tmp_path / "net.onnx").write_bytes(content[:place] + b"\xee" + content[place + 1 :])
        refused(call(tmp_path / "net.onnx", "--images", pictures / "fits.png"), f"{tmp_path / 'net.onnx'}: ")
        place = content.find(b"constant#1", place + 1)


def test_models_of_others(pictures: Path, tmp_path: Path, call: Call) -> None:
    values = [onnx.helper.make_tensor_value_info(name, 1, ["batch", 3, 8, 10]) for name in "xy"]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["x"], ["y"])], "g", values[:1], values[1:])
    opset = [onnx.helper.make_opsetid("", 21)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10), tmp_path / "relu.onnx")
    refused(call(tmp_path / "relu.onnx", "--images", pictures), "polarspike did not write")


def test_networks_that_do_not_say_how_pictures_are_scaled(files: Path, pictures: Path, call: Call) -> None:
    refused(call(files / "silent.integer", "--images", pictures), "snn.notes['normalization']")


def test_the_advice_of_that_message_is_python(files: Path, pictures: Path, call: Call) -> None:
    assert "}}" not in call(files / "silent.integer", "--images", pictures)[2]


@pytest.mark.parametrize("description", [
    "[]", "{", "null", json.dumps({"format": 1}), json.dumps({"format": 2, "notes": NOTES}),
    json.dumps({"format": 1, "notes": []}),
    json.dumps({"format": 1, "notes": {"normalization": {"mean": [0.5] * 3}}}),
    json.dumps({"format": 1, "notes": {"normalization": {"mean": 0.5, "std": 0.5}}}),
    json.dumps({"format": 1, "notes": {"normalization": {"mean": ["a"] * 3, "std": [1] * 3}}}),
    json.dumps({"format": 1, "notes": {**NOTES, "classes": 3}}),
    json.dumps({"format": 1, "notes": {**NOTES, "classes": "cat"}}),
    json.dumps({"format": 1, "notes": {**NOTES, "classes": ["cat", "dog"]}}),
    json.dumps({"format": 1, "notes": {"normalization": {"mean": [float("nan")] * 3, "std": [1] * 3}}}),
    json.dumps({"format": 1, "notes": {"normalization": {"mean": [0.5] * 3, "std": [float("inf")] * 3}}}),
    json.dumps({"format": 1, "notes": {**NOTES, "crop": True}}),
], ids=range(15))  # fmt: skip
def test_descriptions_that_make_no_sense(
    description: str, files: Path, pictures: Path, tmp_path: Path, call: Call
) -> None:
    model = onnx.load(files / "net.onnx")
    onnx.helper.set_model_props(model, {"polarspike": description})
    onnx.save(model, tmp_path / "net.onnx")
    refused(call(tmp_path / "net.onnx", "--images", pictures), f"{tmp_path / 'net.onnx'}: ")


def test_folders_without_pictures(files: Path, tmp_path: Path, call: Call) -> None:
    refused(call(files / "net.onnx", "--images", tmp_path), "found none")
    refused(call(files / "net.onnx", "--images", tmp_path / "nowhere"), "there is no such folder")
    (tmp_path / "a.png").mkdir()
    refused(call(files / "net.onnx", "--images", tmp_path), "found none")


def test_options_out_of_range(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    refused(call(files / "net.onnx", "--images", pictures, "--batch", 0), "--batch 0")
    refused(call(files / "net.onnx", "--images", pictures, "--threads", -1), "--threads -1")
    nowhere = tmp_path / "nowhere" / "out.csv"
    refused(call(files / "net.onnx", "--images", pictures, "--output", nowhere), "there is no folder")
    assert call(files / "net.onnx")[0] == 2


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


def picture_of(call: Call, model: Path, path: Path) -> str:
    code, out, err = call(model, "--images", path)
    assert (code, err) == (0, ""), (path, err)
    return out.partition("\t")[2]


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


def test_a_table_never_takes_the_place_of_what_is_read(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    model = tmp_path / "net.integer"
    model.write_bytes((files / "net.integer").read_bytes())
    for place in (model, pictures / "grey.png"):
        content = place.read_bytes()
        refused(call(model, "--images", pictures, "--output", place), "this file is read by this very command")
        assert place.read_bytes() == content
    refused(call(model, "--images", pictures, "--output", pictures), "expected a file, this is a folder")


def test_a_table_never_takes_the_place_of_weights(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    model = tmp_path / "net.onnx"
    onnx.save(
        unsealed(files / "net.onnx"), model, save_as_external_data=True, location="net.onnx.data", size_threshold=200
    )
    model = model.rename(tmp_path / "other.onnx")
    content = (tmp_path / "net.onnx.data").read_bytes()
    answer = call(model, "--images", pictures, "--output", tmp_path / "net.onnx.data")
    refused(answer, "keeps its weights in this file")
    assert (tmp_path / "net.onnx.data").read_bytes() == content
    for _ in range(2):  # an old table is no file of weights
        answer = call(model, "--images", pictures, "--output", tmp_path / "net.csv")
        assert answer[0] == 0, answer


def test_names_of_classes_stay_on_their_line(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    model = onnx.load(files / "net.onnx")
    notes = {**NOTES, "classes": ["a\tb", "c\nd", "e\x1b[2J"]}
    onnx.helper.set_model_props(model, {"polarspike": json.dumps({"format": 1, "notes": notes})})
    onnx.save(model, tmp_path / "net.onnx")
    code, out, _ = call(tmp_path / "net.onnx", "--images", pictures)
    rows = [line.split("\t") for line in out.splitlines()]
    assert code == 0 and {len(row) for row in rows} == {3}
    assert {row[1] for row in rows} <= {r"a\tb", r"c\nd", r"e\x1b[2J"}


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


def test_models_that_the_runtime_cannot_run(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    def changed(change: Callable[[Any], None]) -> Path:
        model = unsealed(files / "net.onnx")
        change(model)
        onnx.save(model, tmp_path / "net.onnx")
        return tmp_path / "net.onnx"

    def unknown(model: Any) -> None:
        model.graph.node[3].op_type = "Nope"

    def newer(model: Any) -> None:
        model.opset_import[0].version = 999

    def fixed(model: Any) -> None:
        model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5

    def flat(model: Any) -> None:
        for value in model.graph.input:
            del value.type.tensor_type.shape.dim[3:]

    for change in (unknown, newer, fixed, flat):
        refused(call(changed(change), "--images", pictures / "fits.png"), f"{tmp_path / 'net.onnx'}: ")


def test_more_threads_than_cores_are_not_started(files: Path, pictures: Path, call: Call) -> None:
    assert call(files / "net.onnx", "--images", pictures / "fits.png", "--threads", 100_000)[0] == 0
