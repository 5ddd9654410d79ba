"""Records in TensorBoard: what its own reader finds, also after a stop and a resumed start."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from polarspike.errors import MissingExtraError
from polarspike.runs import RunDirectory
from polarspike.training import fit
from polarspike.training_spec import TrainSpec


def shown(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """The curves that TensorBoard itself reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    reader = EventAccumulator(str(folder)).Reload()  # type: ignore[no-untyped-call]
    return {
        name: [(point.step, point.value) for point in reader.Scalars(name)]  # type: ignore[no-untyped-call]
        for name in reader.Tags()["scalars"]  # type: ignore[no-untyped-call]
    }


def test_epochs_of_a_stage_are_curves(tmp_path: Path) -> None:
    batches = [(torch.randn(8, 4), torch.arange(8) % 3)]
    run = RunDirectory(tmp_path / "run", tensorboard=True)
    history = fit(nn.Linear(4, 3), batches, TrainSpec(epochs=3), run=run.stage("ann"))
    curves = shown(tmp_path / "run" / "ann" / "tensorboard")
    assert curves["loss"] == [(e.epoch, pytest.approx(e.loss)) for e in history.epochs]
    assert {"learning_rate", "train_accuracy"} <= curves.keys() and "validation_accuracy" not in curves
    assert not (tmp_path / "run" / "tensorboard").exists()  # nothing was recorded there


def test_a_resumed_run_replaces_what_it_repeats(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path, tensorboard=True)
    for epoch in (1, 2, 3):
        run.append({"epoch": epoch, "loss": float(epoch)})
    again = RunDirectory(tmp_path, resume=True, tensorboard=True)
    for epoch in (2, 3):
        again.append({"epoch": epoch, "loss": 10.0 * epoch})
    assert shown(tmp_path / "tensorboard")["loss"] == [(1, 1.0), (2, 20.0), (3, 30.0)]


def test_without_tensorboard_the_extra_is_named_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'polarspike\[track\]'"):
        RunDirectory(tmp_path / "run", tensorboard=True)
    assert not (tmp_path / "run").exists()
