"""A run that was stopped goes on to the same bits."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import polarspike as ps
from polarspike.errors import CheckpointError, RunError
from polarspike.runs import RunDirectory
from polarspike.training import fit
from polarspike.training import loop as training
from polarspike.training.course import Course
from polarspike.training_spec import TrainSpec
from tests.blobs import SPEC, Blobs, X, blobs, equal, network, without_times


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("images", [0, 30, 48, 130, 191])
def test_a_stopped_run_continues_to_the_same_bits(tmp_path: Path, optimizer: Any, images: int) -> None:
    spec = TrainSpec(epochs=4, optimizer=optimizer, learning_rate=0.02, seed=9, distillation=0.2)
    validation = list(DataLoader(Blobs(), batch_size=16))
    unbroken = network()
    reference = fit(unbroken, blobs(), spec, validate=validation, teacher=network(3))
    with pytest.raises(KeyboardInterrupt):
        run = RunDirectory(tmp_path / "run")
        fit(network(), blobs(stop_after=images), spec, validate=validation, teacher=network(3), run=run)
    again = network(seed=77)  # its own start must not matter once there is a checkpoint
    if images < 48:
        again = network()
    run = RunDirectory(tmp_path / "run", resume=True)
    history = fit(again, blobs(), spec, validate=validation, teacher=network(3), run=run, resume=True)
    assert equal(again, unbroken)
    assert without_times(history) == without_times(reference)
    assert [record["epoch"] for record in run.records()] == [1, 2, 3, 4]
    assert run.records()[-1]["loss"] == reference.last.loss
    assert set(run.records()[0]) == {
        "epoch", "loss", "learning_rate", "train_accuracy", "validation_accuracy", "seconds", "images_per_second",
        "spikes_per_neuron",
    }  # fmt: skip
    # A finished run is loaded, not trained again.
    finished = network(seed=78)
    more = fit(finished, blobs(stop_after=0), spec, teacher=network(3), run=run, resume=True)
    assert equal(finished, unbroken) and more == history and not finished.training


def test_a_checkpoint_of_a_release_with_fewer_fields_continues(tmp_path: Path) -> None:
    unbroken, again = network(), network()
    fit(unbroken, blobs(), SPEC)
    run = RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(again, blobs(stop_after=130), SPEC, run=run)
    tensors, metadata = run.read_checkpoint()
    del metadata["spec"]["accumulation"], metadata["scaler"]
    run.write_checkpoint(tensors, metadata)
    config = run.config
    del config["specs"]["train"]["accumulation"]
    run.config_path.write_text(json.dumps(config))
    again = network()
    fit(again, blobs(), SPEC, run=RunDirectory(tmp_path, resume=True), resume=True)
    assert equal(again, unbroken)
    with pytest.raises(RunError, match="accumulation was 1 and is 2 now"):
        other = dataclasses.replace(SPEC, accumulation=2)
        fit(network(), blobs(), other, run=RunDirectory(tmp_path, resume=True), resume=True)


@pytest.mark.parametrize("images", [0, 30, 130])
def test_average_and_optimizer_of_steps_continue_too(tmp_path: Path, images: int) -> None:
    spec = TrainSpec(epochs=4, learning_rate=0.02, step_rate=0.01, averaging=0.8, activity=0.1, seed=9)
    start = ps.quantize(network().eval(), ps.QuantSpec(negative=1, positive=3, signed="all", gain="learned"), example=X)
    ps.calibrate(start, [X])
    unbroken = copy.deepcopy(start)
    validation = list(DataLoader(Blobs(), batch_size=16))
    reference = fit(unbroken, blobs(), spec, validate=validation)
    # What is validated is what is left: the average, and not the weights of the last step.
    assert reference.last.validation_accuracy == ps.evaluate(unbroken, validation).accuracy[1]
    plain = copy.deepcopy(start)
    fit(plain, blobs(), dataclasses.replace(spec, averaging=0.0))
    assert not equal(plain, unbroken)
    again = copy.deepcopy(start)
    with pytest.raises(KeyboardInterrupt):
        fit(again, blobs(stop_after=images), spec, validate=validation, run=RunDirectory(tmp_path / "run"))
    again = copy.deepcopy(start)
    run = RunDirectory(tmp_path / "run", resume=True)
    history = fit(again, blobs(), spec, validate=validation, run=run, resume=True)
    assert equal(again, unbroken) and without_times(history) == without_times(reference)
    finished = copy.deepcopy(start)
    fit(finished, blobs(stop_after=0), spec, run=run, resume=True)
    assert equal(finished, unbroken)


def test_weights_that_wait_gather_no_momentum() -> None:
    qann = ps.quantize(network().eval(), ps.QuantSpec(0, 3), example=X)
    ps.calibrate(qann, [X])
    course = Course(qann, TrainSpec(step_rate=0.1))
    weights, steps = course.optimizers
    weights.param_groups[0]["lr"] = weights.param_groups[1]["lr"] = 0.0
    qann(X).square().sum().backward()  # type: ignore[no-untyped-call]
    course.move(1)
    assert not weights.state and steps.state


def test_a_stop_between_log_and_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    unbroken = network()
    fit(unbroken, blobs(), SPEC)
    run = RunDirectory(tmp_path)
    write, writes = RunDirectory.write_checkpoint, iter(range(10))

    def stop_at_third(self: RunDirectory, *args: Any) -> None:
        if next(writes) == 2:
            raise KeyboardInterrupt
        write(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunDirectory, "write_checkpoint", stop_at_third)
        fit(network(), blobs(), SPEC, run=run)
    assert [record["epoch"] for record in run.records()] == [1, 2, 3]
    again = network()
    fit(again, blobs(), SPEC, run=RunDirectory(tmp_path, resume=True), resume=True)
    assert equal(again, unbroken) and [record["epoch"] for record in run.records()] == [1, 2, 3, 4]


class Awkward(nn.Module):
    """Tied weights, a strided one, a scalar, a frozen one, and a parameter that never gets a gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 1).to(memory_format=torch.channels_last)
        self.first = nn.Linear(6, 6)
        self.second = nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.tensor(1.5))
        self.frozen = nn.Parameter(torch.ones(6), requires_grad=False)
        self.unused = nn.Parameter(torch.ones(3, 3))
        self.register_buffer("steps", torch.tensor(0))

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        x = self.conv(x.view(-1, 2, 3, 1)).reshape(-1, 6)
        return (self.second(self.first(x * self.frozen).relu()) * self.scale)[:, :3]


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_awkward_modules_continue_too(tmp_path: Path, momentum: float) -> None:
    torch.manual_seed(0)
    start = Awkward()
    unbroken, stopped, again = (copy.deepcopy(start) for _ in range(3))
    spec = TrainSpec(epochs=3, learning_rate=0.02, momentum=momentum)
    fit(unbroken, blobs(), spec)
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, blobs(stop_after=100), spec, run=RunDirectory(tmp_path))
    fit(again, blobs(), spec, run=RunDirectory(tmp_path, resume=True), resume=True)
    assert equal(again, unbroken) and again.second.weight is again.first.weight and int(again.steps) == 12


def train_slowly(path: str) -> None:
    """What the killed process runs: a short epoch, then slower ones, then one that lasts until the kill."""
    loader = blobs()

    class Slower(list[Any]):
        epoch = 0

        def __len__(self) -> int:
            return len(loader)

        def __iter__(self) -> Iterator[Any]:
            self.epoch += 1
            for batch in loader:
                time.sleep(60.0 if self.epoch == KILLED.epochs else 0.01)
                yield batch

    fit(network(), Slower(), KILLED, run=RunDirectory(path), progress=False)


KILLED = TrainSpec(epochs=12, learning_rate=0.05, seed=4)


@pytest.mark.slow
def test_kill_minus_nine(tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    place = tmp_path / "run"
    paths = [str(Path(__file__).parents[2]), str(Path(ps.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    steps = f"torch.set_num_threads({threads}); train_slowly({str(place)!r})"
    code = f"import torch; from tests.training.test_resuming import train_slowly; {steps}"
    with subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.PIPE) as process:
        try:
            while not (place / "training.safetensors").exists() and process.poll() is None:
                time.sleep(0.005)
            time.sleep(random.Random().uniform(0.0, 0.5))  # any moment after the first epoch, another one each time
        finally:
            process.kill()
        assert process.stderr is not None
        errors = process.stderr.read().decode()
    assert process.returncode == -9, errors
    run = RunDirectory(place, resume=True)
    assert 1 <= len(run.records()) < KILLED.epochs
    again, unbroken = network(seed=50), network()
    fit(again, blobs(), KILLED, run=run, resume=True)
    fit(unbroken, blobs(), KILLED)
    assert equal(again, unbroken)
    assert [record["epoch"] for record in run.records()] == list(range(1, 13))


def test_another_training_is_not_continued(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), blobs(stop_after=60), SPEC, run=run)
    with pytest.raises(RunError, match=r"there is a checkpoint; continue it with --resume"):
        fit(network(), blobs(), SPEC, run=run)

    def refused(message: str, model: nn.Module, loader: Any, spec: TrainSpec) -> None:
        before = copy.deepcopy(model)
        with pytest.raises(RunError, match=message):
            fit(model, loader, spec, run=run, resume=True)
        assert equal(model, before)

    faster = TrainSpec(**{**vars(SPEC), "learning_rate": 0.5})
    refused(r"spec\.learning_rate was 0\.05 and is 0\.5 now", network(), blobs(), faster)
    refused(r"steps_per_epoch was 4 and is 3 now", network(), list(blobs())[:3], SPEC)
    tensors, metadata = run.read_checkpoint()
    run.write_checkpoint(tensors, {**metadata, "processes": 2})
    refused(r"processes was 2 and is 1 now", network(), blobs(), SPEC)
    run.write_checkpoint(tensors, metadata)
    refused(r"model\.0\.weight was 'torch.float32 \(8, 6\) decayed' and is .*\(9, 6\)", network(width=9), blobs(), SPEC)
    deeper = nn.Sequential(*network(), nn.Linear(3, 3))
    refused(r"model\.5\.bias was None and is 'torch.float32 \(3,\) trained' now", deeper, blobs(), SPEC)
    frozen = network()
    frozen[0].weight.requires_grad_(False)
    refused(r"model\.0\.weight was .*decayed' and is .*kept'", frozen, blobs(), SPEC)
    wider = nn.Sequential(*[nn.Linear(6, 6) for _ in range(5)], nn.Linear(6, 3))
    refused(r"and \d+ more; resume with the same arguments", wider, blobs(), SPEC)


def test_a_run_stopped_before_its_first_checkpoint_keeps_its_spec(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(network(), blobs(stop_after=5), SPEC, run=RunDirectory(tmp_path))
    with pytest.raises(RunError, match=r"train\.epochs was 4 and is 10 now"):
        fit(network(), blobs(), TrainSpec(), run=RunDirectory(tmp_path, resume=True), resume=True)


def test_a_process_that_does_not_see_the_checkpoint_begins_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = RunDirectory(tmp_path / "run")
    monkeypatch.setattr(training.distributed, "common", lambda there: True)  # the main process's, on another machine
    with pytest.raises(
        CheckpointError, match=r"found none; processes on several machines need a run directory that all"
    ):
        fit(network(), blobs(), SPEC, run=run, resume=True)


def test_a_checkpoint_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    fit(network(), blobs(), SPEC, run=run)
    tensors, metadata = run.read_checkpoint()
    for name, history in (("model.0.weight", metadata["history"]), (None, [{"epoch": 1}])):
        rest = {key: value for key, value in tensors.items() if key != name}
        run.write_checkpoint(rest, {**metadata, "history": history})
        with pytest.raises(CheckpointError, match="do not fit together"):
            fit(network(), blobs(), SPEC, run=run, resume=True)
