"""The training loop: its arithmetic, its refusals, and that a resumed run equals an unbroken one."""

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

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

import polarspike as ps
from polarspike import training
from polarspike.course import Course
from polarspike.errors import CheckpointError, InputError, RunError, SpecError
from polarspike.optimization import learning_rate
from polarspike.randomness import epoch_seed
from polarspike.runs import RunDirectory
from polarspike.specs import TrainSpec
from polarspike.training import fit, training_loss

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
SPEC = TrainSpec(epochs=4, learning_rate=0.05, warmup_epochs=0.5, label_smoothing=0.1)


class Blobs(Dataset[tuple[Tensor, Tensor]]):
    """Three Gaussian classes, augmented by torch's, NumPy's and Python's global generators; may be slow or broken."""

    def __init__(self, pause_s: float = 0.0, stop_after: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.target = torch.arange(48) % 3
        self.points = 0.5 * torch.randn(48, 6, generator=generator) + 2 * nn.functional.one_hot(self.target, 6)
        self.pause_s, self.stop_after = pause_s, stop_after

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.pause_s)
        if self.stop_after is not None:
            self.stop_after -= 1
            if self.stop_after < 0:
                raise KeyboardInterrupt
        noise = torch.randn(6) + random.random() + np.random.rand()
        return self.points[index] + 0.1 * noise, self.target[index]


def blobs(**options: Any) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(Blobs(**options), batch_size=12, shuffle=True)


def network(seed: int = 0, width: int = 8) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3)
        )


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def without_times(history: training.History) -> list[tuple[float | None, ...]]:
    return [(e.epoch, e.loss, e.learning_rate, e.train_accuracy, e.validation_accuracy) for e in history.epochs]


# --- the arithmetic ---------------------------------------------------------------------------------------------------


def test_it_learns_and_reports() -> None:
    model = network()
    validation = list(DataLoader(Blobs(), batch_size=16))
    spec = TrainSpec(**{**vars(SPEC), "learning_rate": 0.2})
    history = fit(model, blobs(), spec, validate=validation)
    assert [e.epoch for e in history.epochs] == [1, 2, 3, 4]
    assert history.last.loss < history.epochs[0].loss and history.last.validation_accuracy > 0.9
    assert history.last.images_per_second == 48 / history.last.seconds
    assert history.last.learning_rate == learning_rate(spec, 15, 4)
    assert not model.training and all(parameter.grad is None for parameter in model.parameters())
    lines = str(history).splitlines()
    assert len(lines) == 5 and lines[4].split()[0] == "4" and f"{history.last.loss:.4f}" in lines[4]


def test_one_step_of_sgd_is_what_the_formula_says() -> None:
    model = nn.Linear(2, 3)
    weight, bias = model.weight.detach().clone(), model.bias.detach().clone()
    x, target = torch.tensor([[1.0, -2.0], [0.5, 3.0]]), torch.tensor([2, 0])
    spec = TrainSpec(epochs=1, learning_rate=0.2, momentum=0.9, weight_decay=0.1, warmup_epochs=0.0)
    history = fit(model, [(x, target)], spec)
    error = (x @ weight.T + bias).softmax(dim=1) - nn.functional.one_hot(target, 3)  # (batch, classes)
    step_w, step_b = error.T @ x / 2 + 0.1 * weight, error.mean(dim=0)  # only the weight decays
    torch.testing.assert_close(model.weight.detach(), weight - 0.2 * 1.9 * step_w)  # Nesterov: g + momentum * g
    torch.testing.assert_close(model.bias.detach(), bias - 0.2 * 1.9 * step_b)
    assert history.last.learning_rate == 0.2 and history.last.validation_accuracy is None
    assert "-" in str(history).splitlines()[1].split()


def test_the_loss_mixes_labels_and_teacher() -> None:
    logits, teacher = torch.randn(5, 4), torch.randn(5, 4)
    target = torch.tensor([0, 1, 2, 3, 0])
    spec = TrainSpec(distillation=0.3, temperature=2.0)
    student, master = (logits / 2).softmax(1), (teacher / 2).softmax(1)
    divergence = (master * (master.log() - student.log())).sum(1).mean()
    labels = -logits.softmax(1).log()[torch.arange(5), target].mean()
    torch.testing.assert_close(training_loss(logits, target, spec, teacher), 0.7 * labels + 0.3 * 4 * divergence)
    assert training_loss(logits.bfloat16(), target, spec).dtype == torch.float32
    shares = torch.rand(5, 4).softmax(1)  # as mixtures have them; smoothing takes from every share
    mixed = -(logits.log_softmax(1) * (0.9 * shares + 0.1 / 4)).sum(1).mean()
    smooth = dataclasses.replace(spec, label_smoothing=0.1)
    torch.testing.assert_close(training_loss(logits, shares, smooth, teacher), 0.7 * mixed + 0.3 * 4 * divergence)


def test_the_teacher_guides_and_stays_as_it_is() -> None:
    spec = TrainSpec(epochs=20, learning_rate=0.1, distillation=1.0, temperature=2.0)
    teacher = network(seed=5)
    fit(teacher, blobs(), TrainSpec(epochs=4, learning_rate=0.05))
    teacher.train()
    teacher[1].eval()
    before, modes = copy.deepcopy(teacher), [module.training for module in teacher.modules()]
    x = torch.randn(24, 6)
    batches = [(x, torch.zeros(24, dtype=torch.int64))]  # labels that the student must not listen to
    student = network(seed=6)
    history = fit(student, batches * 4, spec, teacher=teacher)
    assert equal(teacher, before) and [module.training for module in teacher.modules()] == modes
    assert all(parameter.grad is None for parameter in teacher.parameters())
    agreement = (student(x).argmax(1) == teacher.eval()(x).argmax(1)).float().mean()
    assert history.last.loss < history.epochs[0].loss and agreement > 0.75


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_autocast_runs_the_forward_pass_only(precision: Any, dtype: torch.dtype) -> None:
    seen: list[torch.dtype] = []
    model, teacher = network(), network(1)
    for part in (model, teacher):
        part[4].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    spec = TrainSpec(epochs=1, precision=precision, distillation=0.5)
    fit(model, blobs(), spec, teacher=teacher)
    assert set(seen) == {dtype} and model[0].weight.dtype == torch.float32


def test_the_scale_of_the_loss_is_no_part_of_the_gradient() -> None:
    plain, scaled = network(), network()
    expected = fit(plain, blobs(), SPEC)
    history = fit(scaled, blobs(), dataclasses.replace(SPEC, precision="fp16"))
    # Half precision has three digits; a gradient that kept its scale of 2^16 would leave nothing of the weights.
    assert history.last.loss == pytest.approx(expected.last.loss, rel=0.02)
    for one, other in zip(plain.parameters(), scaled.parameters(), strict=True):
        assert torch.allclose(one, other, atol=0.02)


def test_a_step_with_infinite_gradients_is_left_out_and_the_scale_continues(tmp_path: Path) -> None:
    class Steep(nn.Module):
        """Gradients that the first scale of the loss, 2^16, takes beyond half precision."""

        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.map(x)
            if self.training:
                y.register_hook(lambda grad: (grad.float() * 50.0).to(grad.dtype))
            return y

    spec = TrainSpec(epochs=4, learning_rate=1e-3, precision="fp16", warmup_epochs=0)
    torch.manual_seed(0)
    start = Steep()
    unbroken, again = copy.deepcopy(start), copy.deepcopy(start)
    fit(unbroken, blobs(), spec)
    run = RunDirectory(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        fit(again, blobs(stop_after=130), spec, run=run)
    scale = run.read_checkpoint()[1]["scaler"]["scale"]
    assert scale < 2.0**15
    again = copy.deepcopy(start)
    fit(again, blobs(), spec, run=RunDirectory(tmp_path / "run", resume=True), resume=True)
    assert equal(again, unbroken) and all(bool(p.isfinite().all()) for p in again.parameters())


class Bottomless(nn.Module):
    """An infinite slope, whatever the loss is scaled by."""

    def __init__(self) -> None:
        super().__init__()
        self.map = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.map(x) + (0.0 * self.map.weight.sum()).sqrt()


def test_gradients_that_no_scale_repairs_are_refused() -> None:
    with pytest.raises(RunError, match="however little the loss is scaled"):
        fit(Bottomless(), blobs(), TrainSpec(epochs=20, precision="fp16", warmup_epochs=0))


def test_fp16_leaves_out_sites_that_nothing_reads_and_refuses_half_weights() -> None:
    class Unread(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(6, 3)
            self.unread = ps.quantize(network().eval(), ps.QuantSpec(0, 3), example=X)
            ps.calibrate(self.unread, [X])

        def forward(self, x: Tensor) -> Tensor:
            return self.map(x)

    model = Unread()
    before = model.map.weight.detach().clone()
    fit(model, blobs(), dataclasses.replace(SPEC, precision="fp16", step_rate=0.1))
    assert not torch.equal(model.map.weight, before)
    with pytest.raises(SpecError, match=r"trains float32 weights, got half precision at 'weight'"):
        fit(nn.Linear(6, 3).half(), blobs(), dataclasses.replace(SPEC, precision="fp16"))


def test_several_inputs_are_keywords() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.map = nn.Linear(4, 3)

        def forward(self, *, left: Tensor, right: Tensor) -> Tensor:
            return self.map(torch.cat([left, right], dim=1))

    model = Two()
    before = model.map.weight.detach().clone()
    fit(model, [({"left": torch.randn(5, 2), "right": torch.randn(5, 2)}, torch.arange(5) % 3)], TrainSpec(epochs=1))
    assert not torch.equal(model.map.weight, before)


# --- randomness -------------------------------------------------------------------------------------------------------


def test_global_generators_are_put_back() -> None:
    generator = torch.Generator().manual_seed(3)
    loader = DataLoader(Blobs(), batch_size=12, shuffle=True, generator=generator)

    def draw() -> tuple[float, ...]:
        return torch.rand(1).item(), random.random(), np.random.rand(), torch.rand(1, generator=generator).item()

    def keep() -> tuple[Any, ...]:
        return torch.get_rng_state(), random.getstate(), np.random.get_state(), generator.get_state()

    torch_state, python_state, numpy_state, own_state = keep()
    expected = draw()
    for break_it in (False, True):
        torch.set_rng_state(torch_state)
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        generator.set_state(own_state)
        loader.dataset.stop_after = 20 if break_it else None
        if break_it:
            with pytest.raises(KeyboardInterrupt):
                fit(network(), loader, SPEC)
        else:
            fit(network(), loader, SPEC)
        assert draw() == expected


def test_the_seed_alone_decides() -> None:
    def train(seed: int, before: int, generator: torch.Generator | None = None) -> nn.Module:
        torch.manual_seed(before)
        model = network()
        fit(model, DataLoader(Blobs(), 12, shuffle=True, generator=generator), TrainSpec(epochs=1, seed=seed))
        return model

    assert equal(train(1, 10), train(1, 11)) and not equal(train(1, 10), train(2, 10))
    own = torch.Generator()
    assert equal(train(1, 10, own.manual_seed(7)), train(1, 10, own.manual_seed(8)))
    assert len({epoch_seed(seed, epoch) for seed in range(20) for epoch in range(20)}) == 400
    assert epoch_seed(0, 1) == 6609552101267531453  # another value would change every published run


def test_samplers_with_epochs_are_told() -> None:
    class Sampler:
        told: list[int] = []  # noqa: RUF012

        def set_epoch(self, epoch: int) -> None:
            self.told.append(epoch)

    class Loader(list[Any]):
        sampler = Sampler()

    fit(network(), Loader(blobs()), SPEC)
    assert Sampler.told == [1, 2, 3, 4]


# --- resuming ---------------------------------------------------------------------------------------------------------


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
    paths = [str(Path(__file__).parent), str(Path(training.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    code = f"import torch; torch.set_num_threads({threads}); import test_training as t; t.train_slowly({str(place)!r})"
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


def test_a_checkpoint_that_contradicts_itself_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    fit(network(), blobs(), SPEC, run=run)
    tensors, metadata = run.read_checkpoint()
    for name, history in (("model.0.weight", metadata["history"]), (None, [{"epoch": 1}])):
        rest = {key: value for key, value in tensors.items() if key != name}
        run.write_checkpoint(rest, {**metadata, "history": history})
        with pytest.raises(CheckpointError, match="do not fit together"):
            fit(network(), blobs(), SPEC, run=run, resume=True)


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_contradictory_arguments_are_refused(tmp_path: Path) -> None:
    model = network()
    with pytest.raises(SpecError, match=r"distillation is 0\.0 and a teacher is given"):
        fit(model, blobs(), TrainSpec(distillation=0.0), teacher=network())
    with pytest.raises(SpecError, match=r"distillation is 0\.5 but no teacher"):
        fit(model, blobs(), TrainSpec(distillation=0.5))
    with pytest.raises(SpecError, match="teacher shares modules"):
        fit(model, blobs(), TrainSpec(distillation=0.5), teacher=nn.Sequential(model))
    with pytest.raises(SpecError, match="model is on cpu, its teacher on meta"):
        fit(model, blobs(), TrainSpec(distillation=0.5), teacher=network().to("meta"))
    with pytest.raises(SpecError, match="resume=True needs the run"):
        fit(model, blobs(), SPEC, resume=True)
    with pytest.raises(SpecError, match="nothing can be trained"):
        fit(nn.ReLU(), blobs(), SPEC)
    persistent = DataLoader(Blobs(), 12, num_workers=1, persistent_workers=True)
    with pytest.raises(SpecError, match="persistent_workers=False"):
        fit(model, persistent, SPEC, run=RunDirectory(tmp_path))
    assert equal(model, network())


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Counting(nn.Linear):
        extra: object = {"calls": 3}

        def get_extra_state(self) -> object:
            return self.extra

        def set_extra_state(self, state: object) -> None:
            self.extra = state

    model = Counting(6, 3)
    with pytest.raises(RunError, match=r"not a tensor \(_extra_state: dict\)"):
        fit(model, blobs(), SPEC, run=RunDirectory(tmp_path / "dict"))
    model.extra = torch.tensor([1, 2])
    fit(model, blobs(), SPEC, run=RunDirectory(tmp_path / "tensor"))
    again = Counting(6, 3)
    again.extra = torch.tensor([0, 0])
    fit(again, blobs(), SPEC, run=RunDirectory(tmp_path / "tensor", resume=True), resume=True)
    assert torch.equal(again.extra, torch.tensor([1, 2]))


class Lying(list[Any]):
    def __init__(self, batches: Any, length: int) -> None:
        super().__init__(batches)
        self.length = length

    def __len__(self) -> int:
        return self.length


def test_wrong_loaders_are_named() -> None:
    empty = TensorDataset(torch.zeros(0, 6), torch.zeros(0, dtype=torch.int64))
    for loader in ([], DataLoader(empty, batch_size=4)):
        with pytest.raises(InputError, match="training loader is empty"):
            fit(network(), loader, SPEC)
    with pytest.raises(InputError, match=r"with a length .* got generator"):
        fit(network(), (batch for batch in blobs()), SPEC)
    with pytest.raises(InputError, match="epoch 1: the loader has length 9 but gave 4 batches"):
        fit(network(), Lying(blobs(), 9), SPEC)
    with pytest.raises(InputError, match="epoch 1, step 4: the loader has length 3 but gives more"):
        fit(network(), Lying(blobs(), 3), SPEC)
    with pytest.raises(InputError, match=r"epoch 1, step 1, sample 0: expected a class in 0\.\.2, got 5"):
        fit(network(), [(torch.zeros(2, 6), torch.tensor([5, 0]))], SPEC)
    with pytest.raises(InputError, match="epoch 1, step 1, teacher: expected an output of shape"):
        fit(network(), blobs(), TrainSpec(distillation=0.5), teacher=nn.Flatten(0))


def test_a_loss_that_is_not_finite_stops_training() -> None:
    good = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    bad = (torch.full((4, 6), float("nan")), good[1])
    model = network()
    with pytest.raises(InputError, match="fit, epoch 1, step 2: the inputs hold NaN"):
        fit(model, [good, bad], SPEC)
    assert not model.training
    broken = network()
    broken[4].bias.data[1] = float("inf")
    with pytest.raises(RunError, match=r"epoch 1, step 1: the loss is .*parameter 4\.bias is NaN or infinite"):
        fit(broken, [good], SPEC)
    steep = nn.Linear(6, 3)
    with pytest.raises(RunError, match=r"fit, epoch \d, step \d: the loss is (nan|inf).*lower TrainSpec"):
        fit(steep, [good] * 5, TrainSpec(epochs=5, learning_rate=1e30, warmup_epochs=0.0))


def test_a_broken_last_step_does_not_reach_the_checkpoint(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    model = nn.Linear(6, 3)
    batch = (torch.full((2, 6), 1e30), torch.tensor([0, 1]))
    with torch.no_grad():
        model.weight.zero_()
    with pytest.raises(RunError, match="fit, epoch 1: the parameter weight became NaN or infinite"):
        fit(model, [batch], TrainSpec(epochs=1, learning_rate=1e30, warmup_epochs=0.0), run=run)
    assert not run.checkpoint_path.exists() and run.records() == []


def test_shares_of_classes_are_targets_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    labels = (x[:, 0] > 0).long()
    shares = 0.9 * nn.functional.one_hot(labels, 2).float() + 0.05
    model = nn.Linear(6, 2)
    history = fit(model, [(x, shares)] * 30, TrainSpec(epochs=3, learning_rate=0.5, warmup_epochs=0.0), progress=False)
    assert history.last.train_accuracy > 0.95
    assert ps.evaluate(model, [(x, labels)]).accuracy[1] > 0.95
    with pytest.raises(InputError, match="sum to 1 in every row"):
        fit(model, [(x, 2 * shares)], TrainSpec(epochs=1), progress=False)
    with pytest.raises(InputError, match="expected shares of 2 classes, got 3"):
        fit(model, [(x, torch.full((64, 3), 1 / 3))], TrainSpec(epochs=1), progress=False)
    with pytest.raises(InputError, match="expected class indices"):
        ps.evaluate(model, [(x, shares)])
