"""Where a network's weights lie for training."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

import polarspike as ps
from polarspike.modules import move_for_training


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
