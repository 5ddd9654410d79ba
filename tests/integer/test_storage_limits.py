"""Files of integer networks that lack a part, and numbers without dimensions."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from polarspike import integer
from polarspike.errors import CheckpointError
from polarspike.integer import Instruction, IntegerNetwork, storage
from polarspike.integer.storage import KEY

ONE = np.ones((), dtype=np.float32)
POOL = {"kernel": [2], "stride": [2], "padding": [[0], [0]], "dilation": [1]}
WINDOW = {"kernel": [1], "stride": [1], "padding": [[0], [0]]}
CONV = {"operator": "convolution", "axis": 1, "stride": [1], "padding": [[0], [0]], "dilation": [1], "groups": 1}
CONV_TENSORS: dict[str, Any] = {
    "weight": np.ones((2, 2, 1), np.int8),
    "bias": np.zeros(2, np.int32),
    "divisor": np.array([1, 3]),
}
COMBINE_TENSORS = {"factor0": np.array(1), "factor1": np.array(2), "bias": np.array(0), "divisor": np.array(3)}


def everything() -> IntegerNetwork:
    """One instruction of each kind."""
    made = (
        Instruction("quantize", ("x",), "q", {}, {"step": ONE}, (-3, 3)),
        Instruction("take", ("q",), "turned", {"axis": 2, "places": [3, 0, 0, 1]}, {}, (-3, 3)),
        Instruction("pad", ("turned",), "padded", {"padding": [[1], [1]]}, {}, (-3, 3)),
        Instruction("max_pool", ("padded",), "pooled", POOL, {}, (-3, 3)),
        Instruction("synapse", ("pooled",), "s", CONV, CONV_TENSORS, (-3, 3)),
        Instruction("averaged", ("s",), "a", {**CONV, "window": WINDOW}, CONV_TENSORS, (0, 3)),
        Instruction("stretch", ("a",), "longer", {"factor": 2}, {}, (0, 6)),
        Instruction("combine", ("longer", "pooled"), "c", {"axis": 1, "dims": 3}, COMBINE_TENSORS, (-3, 3)),
        Instruction("transpose", ("c",), "t", {"permutation": [0, 2, 1]}, {}, (-3, 3)),
        Instruction("product", ("c", "t"), "p", {"factor": 1, "axis": 2}, {"divisor": np.array(3)}, (-3, 3)),
        Instruction("concatenate", ("p", "p"), "both", {"axis": 1}, {}, (-3, 3)),
        Instruction("slice", ("both",), "part", {"axis": 1, "start": 1, "end": 4, "stride": 2}, {}, (-3, 3)),
        Instruction("largest", ("part",), "best", {"axes": [2], "keepdims": True}, {}, (-3, 3)),
        Instruction("window_sum", ("best",), "w", {"axes": [2], "keepdims": False}, {}, (-6, 6)),
        Instruction("shrink", ("w",), "few", {}, {"divisor": np.array(3)}, (-2, 2)),
        Instruction("reshape", ("few",), "r", {"shape": ["batch", 1, 2]}, {}, (-2, 2)),
        Instruction("decode", ("r",), "d", {}, {"step": ONE}),
        Instruction("expand", ("low", "x"), "e", {}),
        Instruction("float", ("d", "e", "high"), "y", {"operator": "Clip"}),
    )
    assert {part.kind for part in made} == set(integer.network.KINDS)
    constants = {"low": np.full((1, 1, 1), -0.5, np.float32), "high": np.array(0.5, np.float32)}
    return IntegerNetwork((("x", (2, 4)),), (("y", (1, 2)),), made, constants, {"site": "q"}, "{}")


def parts(path: Path) -> tuple[dict[str, Any], dict[str, str]]:
    with safe_open(path, framework="numpy") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata())  # noqa: SIM118


def test_every_kind_comes_back(tmp_path: Path) -> None:
    storage.save(everything(), tmp_path / "net")
    again, x = storage.load(tmp_path / "net"), np.random.default_rng(0).normal(size=(3, 2, 4)).astype(np.float32)
    pairs = zip(integer.trace(everything(), {"x": x}), integer.trace(again, {"x": x}), strict=True)
    assert all(one == other and a.dtype == b.dtype and np.array_equal(a, b) for (one, a), (other, b) in pairs)


def test_constants_without_dimensions_come_back_so(tmp_path: Path) -> None:
    storage.save(everything(), tmp_path / "net")
    assert storage.load(tmp_path / "net").constants["high"].shape == ()


TENSORS = [
    (f"{index}.{name}", made.kind) for index, made in enumerate(everything().instructions) for name in made.tensors
]


@pytest.mark.parametrize(("name", "kind"), TENSORS)
def test_each_array_is_missed(name: str, kind: str, tmp_path: Path) -> None:
    storage.save(everything(), tmp_path / "net")
    tensors, metadata = parts(tmp_path / "net")
    del tensors[name]
    save_file(tensors, tmp_path / "net", metadata)
    with pytest.raises(CheckpointError, match="damaged"):
        storage.load(tmp_path / "net")


ATTRIBUTES = [
    (index, key)
    for index, made in enumerate(everything().instructions)
    for key in made.attributes
    if (made.kind, key) != ("product", "factor")  # 1 if not given
]


@pytest.mark.parametrize(("index", "key"), ATTRIBUTES)
def test_each_attribute_is_missed(index: int, key: str, tmp_path: Path) -> None:
    storage.save(everything(), tmp_path / "net")
    tensors, metadata = parts(tmp_path / "net")
    header = json.loads(metadata[KEY])
    del header["instructions"][index][3][key]
    save_file(tensors, tmp_path / "net", {**metadata, KEY: json.dumps(header)})
    with pytest.raises(CheckpointError, match="damaged"):
        storage.load(tmp_path / "net")


@pytest.mark.parametrize("span", [["a", "b"], [5, 1], None], ids=str)
def test_a_range_that_is_none(span: Any, tmp_path: Path) -> None:
    storage.save(everything(), tmp_path / "net")
    tensors, metadata = parts(tmp_path / "net")
    header = json.loads(metadata[KEY])
    header["instructions"][0][4] = span
    save_file(tensors, tmp_path / "net", {**metadata, KEY: json.dumps(header)})
    with pytest.raises(CheckpointError, match="damaged"):
        storage.load(tmp_path / "net")


def test_a_file_that_was_there_survives_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "net").write_text("older")

    def fails(tensors: Any, path: Path, metadata: Any) -> None:
        path.write_text("half")
        raise OSError("no space left")

    monkeypatch.setattr(storage, "save_file", fails)
    with pytest.raises(CheckpointError, match="no space left"):
        storage.save(everything(), tmp_path / "net")
    assert [path.name for path in tmp_path.iterdir()] == ["net"] and (tmp_path / "net").read_text() == "older"
