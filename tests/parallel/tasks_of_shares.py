"""What each process does with weights that are dealt out; what came of it as plain data."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import data, models
from polarspike.parallel import distributed, sharding
from polarspike.runs import RunDirectory
from polarspike.training.course import Course
from polarspike.training_spec import TrainSpec
from tests.parallel.tasks import outcome


def transformer(norm: type[nn.Module] = nn.LayerNorm, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    made = models.create("vit", num_classes=10, in_channels=1, width=16, depth=2, heads=2, patch=4, image_size=8)
    return nn.Sequential(made, nn.Dropout(dropout)) if dropout else made


def adam(epochs: int, **values: Any) -> TrainSpec:
    return TrainSpec(epochs=epochs, optimizer="adamw", learning_rate=2e-3, warmup_epochs=0.5, **values)


def site_gradients(qann: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradients of steps and gains on one batch, of which each process has its rows."""
    course, rows = Course(qann, adam(1, sharded=True)), distributed.own_rows(len(y))
    course.trained.train()
    nn.functional.cross_entropy(course.forward(x[rows]), y[rows]).backward()
    sites = {name: p for name, p in course.trained.named_parameters() if name.endswith(("offset", "raw_gain"))}
    distributed.share_gradients(sites.values())
    return {name: p.grad for name, p in sites.items() if p.grad is not None}


def prepared() -> tuple[ps.QuantizedNetwork, data.ImageDataset]:
    """A calibrated Transformer with learned gains, and a part of the digits."""
    digits = data.load("digits")
    digits = dataclasses.replace(digits, train=digits.train.subset(torch.arange(250)))
    calibration = digits.evaluation(100, "train")
    example, _ = next(iter(calibration))
    qann = ps.quantize(transformer(), ps.QuantSpec(7, 8, gain="learned", signed="all"), example=example)
    ps.calibrate(qann, calibration)
    return qann, digits


def dealt_out(place: Path) -> dict[str, Any]:
    """Train Transformers whose weights are dealt out, and one whose weights are not."""
    start, digits = prepared()
    loader = digits.training(50, augmented=False)
    floating, plain = transformer(), transformer()
    first = next(iter(floating.parameters()))
    curve = ps.fit(floating, loader, adam(2, sharded=True), validate=digits.evaluation(37), progress=False)
    straight = ps.fit(plain, loader, adam(2), progress=False)
    few = [batch for batch, _ in zip(digits.evaluation(20, "train"), range(4), strict=False)]
    parts = sharding._LEAST
    sharding._LEAST = 0  # every layer in a message of its own
    one_by_one = ps.fit(copy.deepcopy(start), few, adam(1, sharded=True), progress=False)
    together = ps.fit(copy.deepcopy(start), few, adam(1), progress=False)
    sharding._LEAST = parts
    of_sites = site_gradients(copy.deepcopy(start), *few[0])
    course = Course(transformer(), adam(1, sharded=True))
    held = [distributed.local(parameter).numel() for parameter in course.trained.parameters()]
    return {
        "float losses": [epoch.loss for epoch in curve.epochs],
        "validation": [epoch.validation_accuracy for epoch in curve.epochs],
        "apart": max(
            float((a - b).detach().abs().max()) for a, b in zip(floating.parameters(), plain.parameters(), strict=True)
        ),
        "straight": [epoch.loss for epoch in straight.epochs],
        "identity": first is next(iter(floating.parameters())) and type(floating) is type(transformer()),
        "part losses": [one_by_one.last.loss, together.last.loss],
        "gradients": {name: gradient.flatten().tolist() for name, gradient in of_sites.items()},
        "held": sum(held),
        "all": sum(parameter.numel() for parameter in course.model.parameters()),
    }


def long_dealt_out(place: Path) -> dict[str, Any]:
    """Train with weights dealt out for some epochs, or go on where ``place`` says that this was stopped."""
    (qann, digits), begun = prepared(), place.exists()
    run = RunDirectory(place, resume=begun)
    spec = adam(3, sharded=True, averaging=0.9, accumulation=2)
    loader, teacher = digits.training(50, augmented=False), transformer()
    history = ps.fit(qann, loader, spec, teacher=teacher, run=run, resume=begun, progress=False)
    tensors, _ = run.read_checkpoint()
    return outcome(qann, history) | {
        "checkpoint": {name: list(value.shape) for name, value in tensors.items()},
        "total": ps.evaluate(ps.convert(qann), digits.evaluation(37)).total,
    }
