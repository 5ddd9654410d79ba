"""A write is all or nothing: what fails or could not be loaded again leaves the old file whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

import polarspike as ps
from polarspike import checkpoint
from polarspike.errors import CheckpointError, SpecError
from tests.checkpoint.saved import Net, X, made


@pytest.mark.parametrize("error", [OSError("No space left on device"), SafetensorError("No space left on device")])
def test_a_failed_write_leaves_the_old_file_whole(
    path: Path, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = path.read_bytes()

    def half(tensors: dict[str, Tensor], partial: Path, metadata: dict[str, str]) -> None:
        save_file(tensors, partial, metadata)
        partial.write_bytes(partial.read_bytes()[:1000])
        raise error

    monkeypatch.setattr(checkpoint, "save_file", half)
    with pytest.raises(
        CheckpointError, match=r"net.safetensors: cannot be written: No space left on device; choose a folder"
    ):
        ps.save(made(Net(6)), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_a_kill_during_the_write_leaves_the_old_file_whole(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = path.read_bytes()

    def killed(tensors: dict[str, Tensor], partial: Path, metadata: dict[str, str]) -> None:
        partial.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(checkpoint, "save_file", killed)
    with pytest.raises(KeyboardInterrupt):
        ps.save(made(Net(6)), path)
    assert path.read_bytes() == before and list(path.parent.iterdir()) == [path]


def test_places_that_cannot_be_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    qann = made()
    for place in (path.parent / "missing" / "net.safetensors", path / "net.safetensors", path.parent):
        with pytest.raises(CheckpointError, match=r"cannot be written: .* choose a folder that exists and is writable"):
            ps.save(qann, place)

    def refused(*_: Any) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("os.open", refused)
    with pytest.raises(CheckpointError, match=r"cannot be written: .*Permission denied"):
        ps.save(qann, path)


def test_only_our_networks_are_saved(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="expected a quantized, spiking or temporal network, got Net"):
        ps.save(Net(), tmp_path / "net.safetensors")  # type: ignore[arg-type]


def test_what_could_not_be_loaded_again_is_not_written(tmp_path: Path) -> None:
    class Masked(nn.Conv2d):
        """Computes what its base does, and holds a buffer that its base does not know."""

        def __init__(self) -> None:
            super().__init__(3, 4, 3)
            self.register_buffer("mask", torch.ones(1))

    qann = ps.quantize(nn.Sequential(Masked(), nn.ReLU()), ps.QuantSpec(), example=X)
    with pytest.raises(CheckpointError, match=r'Unexpected key\(s\) in state_dict: "0.mask"'):
        ps.save(qann, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
