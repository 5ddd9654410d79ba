"""What training refuses, in one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import polarspike as ps
from polarspike.errors import InputError, PolarspikeWarning, RunError, SpecError
from polarspike.runs import RunDirectory
from polarspike.training import fit
from polarspike.training_spec import TrainSpec
from tests.blobs import SPEC, Blobs, blobs, equal, network


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
    # One class would be broadcast to all of the model's.
    alike = [(torch.randn(4, 6), torch.zeros(4, dtype=torch.int64))]
    for classes in (1, 4):
        with pytest.raises(InputError, match=f"step 1, teacher: expected 3 classes as the model has, got {classes}"):
            fit(network(), alike, TrainSpec(distillation=0.5), teacher=nn.Linear(6, classes))


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
    with pytest.raises(RunError, match=r"step 1: the teacher answers NaN or infinity.*check its weights"):
        fit(network(), [good], SPEC, teacher=broken)
    steep = nn.Linear(6, 3)
    wild = TrainSpec(epochs=5, learning_rate=1e38, warmup_epochs=0.0)
    with pytest.raises(RunError, match=r"fit, epoch \d, step \d: the loss is (nan|inf).*lower TrainSpec"):
        fit(steep, [good] * 5, wild)


def test_a_loss_that_is_finite_and_absurd_is_told_of_once() -> None:
    torch.manual_seed(0)
    good = (torch.randn(4, 6), torch.tensor([0, 1, 2, 0]))
    wild = TrainSpec(epochs=4, learning_rate=1e5, warmup_epochs=0.0)
    says = r"fit, epoch \d: expected a mean loss of the order of ln\(classes\), got .*: training diverges; stop it"
    with pytest.warns(PolarspikeWarning, match=says) as told:
        history = fit(nn.Linear(6, 3), [good], wild)
    assert len(told) == 1 and sum(epoch.loss > 1e3 for epoch in history.epochs) > 1


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
