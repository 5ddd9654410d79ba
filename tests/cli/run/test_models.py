"""Exported files that are damaged, of other programs or without sense are refused in one line."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.cli.run.asking import NOTES, refused, unsealed
from tests.cli.running import Call

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
pytest.importorskip("PIL.Image")


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
