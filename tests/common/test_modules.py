"""Where a network's weights lie for training, and which cannot be trained at all."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import polarspike as ps
from polarspike.common.modules import move_for_training
from polarspike.errors import SpecError


@pytest.mark.parametrize(("width", "last"), [(4, False), (16, True)])
def test_weights_are_in_the_fast_order_unless_torch_would_not_survive_it(width: int, last: bool) -> None:
    model = ps.models.create("resnet20", num_classes=3, in_channels=1, width=width, blocks=1)
    assert move_for_training(model, "cpu") is model
    weights = [
        module.weight for module in model.modules() if isinstance(module, nn.Conv2d) and module.kernel_size == (3, 3)
    ]
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in weights[1:]) is last
    for _ in range(3):  # in the other order the narrow network ends the process here
        images, labels = torch.randn(64, 1, 14, 14), torch.randint(0, 3, (64,))
        functional.cross_entropy(model(images), labels).backward()
    assert all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters())


def test_weights_of_the_inference_mode_are_named_before_anything_is_trained() -> None:
    x, labels = torch.randn(8, 4), torch.randint(0, 3, (8,))
    with torch.inference_mode():
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    for operation, train in (
        ("fit", lambda network: ps.fit(network, [(x, labels)], ps.TrainSpec(epochs=1))),
        ("distill", lambda network: ps.distill(network, [x], steps=2)),
        ("allocate", lambda network: ps.allocate(network, [x], 10.0, resource="events")),
    ):
        with torch.inference_mode():
            qann = ps.quantize(model, ps.QuantSpec(negative=0, positive=3), example=x)
            ps.calibrate(qann, [x])
        with pytest.raises(SpecError, match=rf"^{operation}: '.+' was made within torch.inference_mode\(\)"):
            train(qann)
        train(copy.deepcopy(qann))  # the way out that the message names
