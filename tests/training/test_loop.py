"""The training loop: its arithmetic and its randomness."""

from __future__ import annotations

import copy
import dataclasses
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import polarspike as ps
from polarspike.errors import RunError, SpecError
from polarspike.runs import RunDirectory
from polarspike.training import fit, training_loss
from polarspike.training.optimization import learning_rate
from polarspike.training.randomness import epoch_seed
from polarspike.training_spec import TrainSpec
from tests.blobs import SPEC, Blobs, X, blobs, equal, network

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
