"""Spiking networks of whole numbers, and the connections that a layer has."""

from typing import Any

import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.spiking import SpikingNetwork


class Graph(nn.Module):
    """A model from parts and a function of (parts, x)."""

    def __init__(self, function: Any, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def stepped(model: nn.Module, example: Any, step: float, **spec: Any) -> ps.QuantizedNetwork:
    """A quantized network whose sites all have this step."""
    qann = ps.quantize(model.eval(), ps.QuantSpec(**spec), example=example)
    for site in qann.sites().values():
        site.set_step(step)
    return qann


def spiking(model: nn.Module, example: Tensor, step: float = 1.0, **spec: Any) -> SpikingNetwork:
    """A spiking network whose sites all have this step; rectified with codes 0..3 unless said otherwise."""
    return ps.convert(stepped(model, example, step, **{"negative": 0, "positive": 3, **spec}))


def integers(*shape: int, low: int = -2, high: int = 4, seed: int = 0) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def fan_out(layer: nn.Module, x: Tensor) -> Tensor:
    """Connections of every input element, from the gradient of a layer whose weights are all one."""
    ones = [nn.Parameter(torch.ones_like(value)) for value in layer.parameters()]
    x = x.detach().clone().requires_grad_()
    out = torch.func.functional_call(layer, dict(zip(dict(layer.named_parameters()), ones, strict=True)), (x,))
    return torch.autograd.grad(out.sum(), x)[0]
