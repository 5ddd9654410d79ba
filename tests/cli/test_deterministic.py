"""Deterministic algorithms while a command runs, and no longer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from polarspike.cli.deterministic import deterministic
from polarspike.errors import RunError
from tests.cli.running import Call


def test_torch_is_told_for_the_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ
    with pytest.raises(RunError), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled() and os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
        raise RunError("any")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_training_runs_so(call: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bool] = []
    work = "polarspike.cli.experiments._work"
    monkeypatch.setattr(work, lambda *_: seen.append(torch.are_deterministic_algorithms_enabled()) or 0)
    asked = ["train", "--data", "digits", "--model", "mlp", "--run"]
    assert call(*asked, tmp_path / "a", "--deterministic")[0] == call(*asked, tmp_path / "b")[0] == 0
    assert seen == [True, False]


def test_a_rehearsal_is_of_one_process(call: Call, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    code, _, err = call("train", "demo", "--rehearse")
    assert code == 2 and "expected one process" in err
