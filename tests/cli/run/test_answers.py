"""What ``polarspike run`` answers, without torch: a line for each picture, and a table that takes no other file's place."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import polarspike as ps
from tests.cli.run.asking import NOTES, refused, unsealed
from tests.cli.running import Call

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
Image = pytest.importorskip("PIL.Image")


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


def test_options_out_of_range(files: Path, pictures: Path, tmp_path: Path, call: Call) -> None:
    refused(call(files / "net.onnx", "--images", pictures, "--batch", 0), "--batch 0")
    refused(call(files / "net.onnx", "--images", pictures, "--threads", -1), "--threads -1")
    nowhere = tmp_path / "nowhere" / "out.csv"
    refused(call(files / "net.onnx", "--images", pictures, "--output", nowhere), "there is no folder")
    assert call(files / "net.onnx")[0] == 2


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


def test_more_threads_than_cores_are_not_started(files: Path, pictures: Path, call: Call) -> None:
    assert call(files / "net.onnx", "--images", pictures / "fits.png", "--threads", 100_000)[0] == 0
