"""Networks of one site, which sees the input itself or what a batch norm makes of it, and its step."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

import polarspike as ps

X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(4)) * torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1)
Init = Any


class Direct(nn.Module):
    """Its site sees the input itself."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.site, self.scale = activation, nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        return self.site(x * self.scale)


def direct(init: Init, activation: nn.Module | None = None, **more: Any) -> ps.QuantizedNetwork:
    spec = ps.QuantSpec(**{"negative": 2, "positive": 4, "init": init, **more})
    return ps.quantize(Direct(activation or nn.ReLU()), spec, example=X[:2])


def step(qann: ps.QuantizedNetwork, name: str = "site") -> Tensor:
    return qann.sites()[name].step.detach().double()


def normed(init: Init, **more: Any) -> tuple[ps.QuantizedNetwork, nn.BatchNorm2d]:
    norm = nn.BatchNorm2d(3)
    with torch.no_grad():
        norm.weight.copy_(torch.tensor([0.5, -2.0, 1.0]))  # a negative scale is the law of its size
        norm.bias.copy_(torch.tensor([0.1, -1.0, 0.5]))
    model = nn.Sequential(nn.Conv2d(3, 3, 1), norm, nn.ReLU())
    return ps.quantize(model, ps.QuantSpec(positive=4, init=init, **more), example=X[:2]), norm
