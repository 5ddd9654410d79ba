"""A small network whose forward a test may write itself, and its quantized one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import polarspike as ps

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SPEC = ps.QuantSpec(negative=3, positive=5)
Body = Callable[[Any, Tensor], Any]


class Net(nn.Module):
    def __init__(self, body: Body | None = None) -> None:
        super().__init__()
        self.one, self.norm, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU()
        self.two, self.head = nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 5)
        self.drop = nn.Dropout(0.5)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        if self.body is not None:
            return self.body(self, x)
        return self.score(self.relu(self.two(self.drop(self.relu(self.norm(self.one(x)))))))

    def score(self, x: Tensor) -> Tensor:
        return self.head(x.mean([2, 3]))


def quantize(model: nn.Module, example: Any = X) -> ps.QuantizedNetwork:
    return ps.quantize(model, SPEC, example=example)
