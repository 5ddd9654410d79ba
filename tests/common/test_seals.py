"""Digests in exported files: a file that is not the one that was sealed is never taken for it."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from polarspike.common import seals
from polarspike.errors import ExportError


def sealed(folder: Path, *, beside: bool = False) -> Path:
    path = folder / "net.onnx"
    path.write_bytes(bytes(range(100)) + b"{} of any content")
    if beside:
        (folder / "net.onnx.data").write_bytes(b"weights")
        seals.seal(path, ("net.onnx.data", seals.file_digest(folder / "net.onnx.data")))
    else:
        seals.seal(path)
    assert seals.require_whole(path)
    return path


@pytest.mark.parametrize("beside", [False, True])
def test_no_other_bit_passes(beside: bool, tmp_path: Path) -> None:
    path = sealed(tmp_path, beside=beside)
    whole = path.read_bytes()
    key = whole.rindex(seals.KEY.encode())
    own = range(key - 2, key + len(seals.KEY) + 1)  # without its name a seal is none; the model before it is whole then
    for place in range(len(whole)):
        bad = bytearray(whole)
        bad[place] ^= 1 << place % 7
        path.write_bytes(bad)
        try:
            assert not seals.require_whole(path) and place in own
        except ExportError as error:
            assert str(path) in str(error)


def test_files_that_are_longer_or_shorter_or_of_others(tmp_path: Path) -> None:
    path = sealed(tmp_path)
    whole = path.read_bytes()
    for other in (whole + b"x", whole + whole, whole[1:], whole[:-1], whole[:9] + whole[10:], whole + b"{}"):
        path.write_bytes(other)
        with pytest.raises(ExportError, match=r"the file is damaged: .*export it again"):
            seals.require_whole(path)
    for other in (b"", b"text", whole[:100], bytes(10_000)):
        path.write_bytes(other)
        assert not seals.require_whole(path)


def test_weights_beside_a_model_are_its_own(tmp_path: Path) -> None:
    path = sealed(tmp_path, beside=True)
    (tmp_path / "links").mkdir()
    os.symlink(path, tmp_path / "links" / "other.onnx")
    assert seals.require_whole(tmp_path / "links" / "other.onnx")
    (tmp_path / "net.onnx.data").write_bytes(b"Weights")
    with pytest.raises(ExportError, match=r"net\.onnx\.data: the file is damaged"):
        seals.require_whole(path)
    (tmp_path / "net.onnx.data").unlink()
    with pytest.raises(ExportError, match=r"expected its weights in 'net\.onnx\.data' beside it"):
        seals.require_whole(path)


def test_digests_of_arrays_tell_apart_what_differs() -> None:
    x = np.arange(6, dtype=np.int8)
    seen = [
        seals.arrays_digest(texts, arrays)
        for texts, arrays in [
            ({}, {}),
            ({"a": "bc"}, {}),
            ({"ab": "c"}, {}),
            ({}, {"x": x}),
            ({}, {"y": x}),
            ({}, {"x": x.reshape(2, 3)}),
            ({}, {"x": x.reshape(2, 3).T}),
            ({}, {"x": x.view(np.uint8)}),
            ({}, {"x": x[:3], "y": x[3:]}),
            ({}, {"x": x[:4], "y": x[4:]}),
        ]
    ]
    assert len(set(seen)) == len(seen)
    assert seals.arrays_digest({}, {"y": x[::2], "x": x}) == seals.arrays_digest({}, {"x": x, "y": x[::2].copy()})
