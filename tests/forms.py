"""A network around one form of an operator, and what must hold of it whatever the form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarspike as ps

WIDE = ps.QuantSpec(6, 9)
Form = Callable[[nn.Module, Tensor], Tensor]


class Around(nn.Module):
    """A linear layer, the form in question on (batch, 7, 8), and layers that read it."""

    def __init__(self, form: Form, **held: Any) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.form = form
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.form(self, self.first(x)))).mean(1))


def converted(
    model: nn.Module, example: Any, spec: ps.QuantSpec = WIDE, batch: Any = None
) -> tuple[ps.QuantizedNetwork, ps.SpikingNetwork]:
    qann = ps.quantize(model.eval(), spec, example=example)
    ps.calibrate(qann, [example if batch is None else batch])
    return qann, ps.convert(qann)


def holds_over_time(model: nn.Module, x: Tensor, spec: ps.QuantSpec = WIDE) -> None:
    """Exact at the first timestep; the theorem for varying input; the float activations are the model."""
    qann, snn = converted(model, x, spec)
    with torch.no_grad(), qann.float_activations():
        assert torch.allclose(qann(x), model(x), atol=1e-5)
    assert ps.verify(qann, snn, [x], scope=False).exact
    qann, snn = qann.double(), snn.double()
    frames = torch.randn(3, 4, *x.shape[1:], generator=torch.Generator().manual_seed(3)).double()
    proof = ps.verify(qann, snn, [frames], timesteps=4, time_dim=1)
    assert proof.exact and proof.different == 0, proof


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape, generator=torch.Generator().manual_seed(1)))


def rows(batch: int = 4) -> Tensor:
    return torch.randn(batch, 7, 6, generator=torch.Generator().manual_seed(2))
