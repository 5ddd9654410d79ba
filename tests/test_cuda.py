"""On a GPU: batches are finished there, a training in bfloat16 resumes, what is converted is proved, saved and evaluated.

All of it also runs with the device "cpu", which is how it was written.
"""

from __future__ import annotations

import copy
import dataclasses
import os
from pathlib import Path
from typing import Any

import pytest
import torch

import polarspike as ps
from polarspike import data, models
from polarspike.cli.deterministic import deterministic
from polarspike.common.modules import move_for_training
from polarspike.data import Augmentation
from polarspike.experiments import Recipe
from polarspike.experiments.experiment import carry_out, prepare
from polarspike.runs import RunDirectory
from polarspike.training import loop as training
from polarspike.training_spec import TrainSpec

DEVICE = "cuda"
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when CUDA starts
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
SPEC = TrainSpec(epochs=3, learning_rate=0.02, warmup_epochs=0.5, precision="bf16", averaging=0.9, activity=0.01)


@pytest.fixture(scope="module")
def digits() -> data.ImageDataset:
    found = data.load("digits")
    assert isinstance(found, data.ImageDataset)
    return found


def quantized(digits: data.ImageDataset) -> ps.QuantizedNetwork:
    """A calibrated network with levels of both signs, on the GPU."""
    torch.manual_seed(0)
    ann = models.create("resnet20", num_classes=10, in_channels=1, width=4)
    ann = move_for_training(ann, DEVICE).eval()
    calibration = list(digits.evaluation(100, "train", images=400))
    example = calibration[0][0][:2].to(DEVICE)
    qann = ps.quantize(ann, ps.QuantSpec(2, 6, signed="all", granularity="channel"), example=example)
    ps.calibrate(qann, calibration)
    return qann


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(
    "augment",
    [
        None,
        Augmentation(True, 2, 3),
        Augmentation(flip=True, mixup=0.8, cutmix=1.0),
        Augmentation(flip=True, randaugment=9, erasing=0.5),
    ],
    ids=str,
)
def test_batches_that_are_finished_there_are_the_same(
    digits: data.ImageDataset, augment: Augmentation | None, workers: int
) -> None:
    if augment is not None and (augment.mixes or augment.one_by_one):
        pytest.importorskip("torchvision")
    few, given = digits.train.subset(torch.arange(50)), {"normalization": digits.normalization, "shuffle": True}
    found = []
    for device in (None, DEVICE):
        torch.manual_seed(3)
        loader = data.batches(
            few, 12, augment=augment, classes=10, device=device, workers=workers if device else 0, **given
        )  # fmt: skip
        found.append(list(loader))
    for (x, y), (images, labels) in zip(*found, strict=True):
        assert images.device.type == labels.device.type == DEVICE
        torch.testing.assert_close(images.cpu(), x)  # to rounding of the scaling
        torch.testing.assert_close(labels.cpu(), y)


def test_a_training_in_bfloat16_resumes_to_the_same_weights(
    digits: data.ImageDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = quantized(digits)
    broken, resumed = copy.deepcopy(whole), copy.deepcopy(whole)
    spec = dataclasses.replace(SPEC, distillation=0.5)
    loader = digits.training(200, device=DEVICE)
    beside: dict[str, Any] = {"validate": digits.evaluation(100), "teacher": copy.deepcopy(whole), "progress": False}
    keep = training.keep

    def killed(*given: Any) -> None:
        keep(*given)
        raise KeyboardInterrupt

    with deterministic(True):  # without, a GPU sums in another order from run to run
        history = ps.fit(whole, loader, spec, **beside)
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr(training, "keep", killed)
            ps.fit(broken, loader, spec, run=RunDirectory(tmp_path / "run"), **beside)
        run = RunDirectory(tmp_path / "run", resume=True)
        assert len(run.records()) == 1
        again = ps.fit(resumed, loader, spec, run=run, resume=True, **beside)
    assert history.last.loss < history.epochs[0].loss and history.last.validation_accuracy is not None
    assert [epoch.loss for epoch in again.epochs] == [epoch.loss for epoch in history.epochs]
    for name, value in whole.state_dict().items():
        assert value.device.type == DEVICE and torch.equal(value, resumed.state_dict()[name]), name


def test_what_is_converted_there_is_equal_and_counts_each_image_once(digits: data.ImageDataset, tmp_path: Path) -> None:
    qann = quantized(digits)
    ps.fit(qann, digits.training(200, device=DEVICE), dataclasses.replace(SPEC, epochs=2), progress=False)
    snn = ps.convert(qann)
    batches = list(digits.evaluation(100, images=200))
    proof = ps.verify(qann, snn, batches)
    assert proof.exact, proof.first_difference
    with torch.autocast(DEVICE, dtype=torch.bfloat16):
        proof = ps.verify(qann, snn, batches)
    assert proof.exact, proof.first_difference
    for timesteps in (2, 4):
        proof = ps.verify(copy.deepcopy(qann).double(), copy.deepcopy(snn).double(), _double(batches), timesteps)
        assert proof.exact, proof.first_difference  # without rounding of float32
    table = ps.evaluate(snn, digits.evaluation(100), timesteps=(1, 4))
    assert table.total == 359 and table.correct[1] == ps.evaluate(qann, digits.evaluation(100)).correct[1]
    assert table.firing is not None and table.firing[1].events > 0
    ps.save(snn, tmp_path / "snn.safetensors")
    loaded = ps.load(tmp_path / "snn.safetensors")
    assert isinstance(loaded, ps.SpikingNetwork)
    assert all(torch.equal(value.cpu(), loaded.state_dict()[name]) for name, value in snn.state_dict().items())
    x = batches[0][0]
    # Another device sums in another order, and a code at a boundary may move.
    torch.testing.assert_close(loaded.double()(x.double()), snn.double()(x.double().to(DEVICE)).cpu())


def test_a_recipe_goes_its_whole_way(tmp_path: Path) -> None:
    stage = TrainSpec(epochs=2, warmup_epochs=0.5, precision="bf16")
    recipe = Recipe(
        data="digits", model="cnn", width=8, batch_size=128, ann=stage, qann=stage, validation=0.1, timesteps=(1, 2),
        calibration_images=256, proof_images=64,
    )  # fmt: skip
    outcome = carry_out(prepare(recipe, device=DEVICE), RunDirectory(tmp_path / "run"))
    assert outcome.proofs[0].exact and (tmp_path / "run" / "snn.safetensors").exists()


def _double(batches: list[Any]) -> list[Any]:
    return [(x.double(), y) for x, y in batches]
