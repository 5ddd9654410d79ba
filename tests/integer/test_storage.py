"""A file of an integer network: the same answers, whole or not there, and one clear error for anything else."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

import polarspike as ps
from polarspike import integer
from polarspike.common import seals
from polarspike.errors import CheckpointError
from polarspike.exporters.integer import integer_network
from polarspike.integer.network import DESCRIPTION
from polarspike.integer.storage import KEY, is_integer_network
from tests.networks import calibrated, network, signal


def made(name: str = "attention") -> integer.IntegerNetwork:
    x = signal(name, 8)
    return integer_network(ps.convert(calibrated(network(name), ps.QuantSpec(1, 3), x)), x, [x])


@pytest.mark.parametrize("name", ["branched", "attention"])
def test_what_comes_back_answers_the_same(name: str, tmp_path: Path) -> None:
    first = made(name)
    integer.save(first, tmp_path / "net.integer")
    again = integer.load(tmp_path / "net.integer")
    given = {key: signal(name, 5, seed=3).numpy() for key, _ in first.inputs}
    for (one, a), (other, b) in zip(integer.trace(first, given), integer.trace(again, given), strict=True):
        assert one == other and a.dtype == b.dtype and np.array_equal(a, b)
    assert again.description == first.description and again.sites == dict(first.sites)
    assert is_integer_network(tmp_path / "net.integer")
    assert [path.name for path in tmp_path.iterdir()] == ["net.integer"]


def test_the_same_network_makes_the_same_bytes(tmp_path: Path) -> None:
    """Twelve files: safetensors by itself writes the three entries of the metadata in one of six orders."""
    first = dataclasses.replace(
        made("branched"), description=json.dumps({"note": 'Größe\u0007\n\t"→\U0001f600'}, ensure_ascii=False)
    )
    written = []
    for index in range(12):
        integer.save(first, tmp_path / f"{index}.integer")
        written.append((tmp_path / f"{index}.integer").read_bytes())
    assert len(set(written)) == 1
    again = integer.load(tmp_path / "0.integer")
    integer.save(again, tmp_path / "again.integer")
    assert again.description == first.description and (tmp_path / "again.integer").read_bytes() == written[0]


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot be written"):
        integer.save(made(), tmp_path / "no folder" / "net.integer")
    assert not list(tmp_path.iterdir())


def altered(path: Path, change: Callable[[dict[str, Any], dict[str, Any]], None]) -> None:
    with safe_open(path, framework="numpy") as file:
        metadata = dict(file.metadata())
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    header = json.loads(metadata[KEY])
    change(header, tensors)
    texts = {KEY: json.dumps(header), DESCRIPTION: metadata[DESCRIPTION]}
    save_file(tensors, path, metadata={**texts, seals.KEY: seals.arrays_digest(texts, tensors)})


def other_version(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    header["format"] = 99


def unknown_kind(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    header["instructions"][0][0] = "exec"


def unknown_operator(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    next(made for made in header["instructions"] if made[0] == "float")[3]["operator"] = "Eval"


def dangling(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    header["instructions"][1][1] = ["nobody"]


def no_output(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    header["outputs"][0][0] = "nobody"


def no_instructions(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    del header["instructions"]


def lost_weights(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    tensors.pop(next(name for name in tensors if name.endswith(".weight")))


def short_bias(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    name = next(name for name in tensors if name.endswith(".bias"))
    tensors[name] = tensors[name][:-1]


def float_weights(header: dict[str, Any], tensors: dict[str, Any]) -> None:
    name = next(name for name in tensors if name.endswith(".weight"))
    tensors[name] = tensors[name].astype(np.float32)


CHANGES = (other_version, unknown_kind, unknown_operator, dangling, no_output, no_instructions, lost_weights, short_bias,
           float_weights)  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_damage_is_one_error(change: Callable[[dict[str, Any], dict[str, Any]], None], tmp_path: Path) -> None:
    path = tmp_path / "net.integer"
    integer.save(made(), path)
    altered(path, change)
    with pytest.raises(CheckpointError, match=str(path)) as caught:
        integer.load(path)
    assert "SHA-256" not in str(caught.value)


def test_one_bit_anywhere_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "net.integer"
    integer.save(made("branched"), path)
    whole, generator = path.read_bytes(), np.random.default_rng(0)
    with safe_open(path, framework="numpy") as file:
        (digest,) = (value for name, value in file.metadata().items() if name == seals.KEY)
    for place in [*generator.integers(len(whole), size=40), whole.index(digest.encode()) + 5, len(whole) - 1]:
        bad = bytearray(whole)
        bad[place] ^= 1 << int(generator.integers(8))
        path.write_bytes(bad)
        with pytest.raises(CheckpointError, match=r"cannot be read|is damaged|safetensors file"):
            integer.load(path)


def test_a_file_without_a_digest_as_earlier_versions_wrote_it(tmp_path: Path) -> None:
    path = tmp_path / "net.integer"
    integer.save(made("branched"), path)
    with safe_open(path, framework="numpy") as file:
        texts = {name: value for name, value in file.metadata().items() if name != seals.KEY}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors, path, metadata=texts)
    assert integer.load(path).sites == dict(made("branched").sites)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "net.integer"
    integer.save(made(), path)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"", b"text", whole[100:]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="cannot be read"):
            integer.load(path)
        assert not is_integer_network(path)
    save_file({"x": np.zeros(3)}, path)
    with pytest.raises(CheckpointError, match="another safetensors file"):
        integer.load(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        integer.load(tmp_path / "nothing")


def test_bytes_are_those_of_the_arrays() -> None:
    network_ = made("branched")
    weights = sum(weight.nbytes for weight in network_.weights)
    assert weights < network_.bytes < 3 * weights + 2000
    assert dataclasses.replace(network_, instructions=(), constants={}).bytes == 0
