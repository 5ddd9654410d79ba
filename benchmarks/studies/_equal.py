"""A quantizer whose codes are equally probable at the start, whatever that costs: the control of the entropy study."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer


class EqualProbabilityQuantizer(PolarityQuantizer):
    """Code k where the input lies between its k/L and (k+1)/L quantile; its value is learned, from the cell's mean at first.

    The entropy of its codes starts at log2 L, more than any uniform quantizer behind a rectifier can have: half of the
    cells hold nothing but negative inputs, whose rectified value is zero.
    """

    edges: Tensor

    def __init__(self, site: PolarityQuantizer, x: Tensor) -> None:
        super().__init__(site.spec, site.name)
        self.adopt(site)
        levels = sum(site.levels) + 1
        share = torch.arange(1, levels, dtype=torch.float64) / levels
        sorted_x = x.flatten().double().sort().values
        self.register_buffer("edges", sorted_x[(share * len(sorted_x)).long()].float())
        cells = torch.bucketize(x, self.edges, right=True)
        rectified = x.relu()
        self.values = nn.Parameter(torch.stack([rectified[cells == cell].mean() for cell in range(levels)]))

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.reference(x)
        values: Tensor = _Cells.apply(x, self.edges, self.values)
        return values

    def encode(self, x: Tensor) -> Tensor:
        return torch.bucketize(x, self.edges, right=True).to(x.dtype)


class _Cells(torch.autograd.Function):
    """The value of each input's cell; straight through where the rectifier passes and the last value is not far behind."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, edges: Tensor, values: Tensor) -> Tensor:
        cells = torch.bucketize(x, edges, right=True)
        ctx.save_for_backward(x, cells, values)
        return values[cells]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, cells, values = ctx.saved_tensors
        inside = (x >= 0) & (x < 1.5 * values[-1])
        # Scaled as the gradient of a learned step is.
        shared = gradient[0].numel() * max(1, len(values) - 1)
        to_values = torch.zeros_like(values).index_add_(0, cells.flatten(), gradient.flatten()) * shared**-0.5
        return gradient * inside, None, to_values


@torch.no_grad()
def with_equal_probabilities(qann: QuantizedNetwork, images: Tensor) -> None:
    """Replace every site, in place, site by site: each sees what the sites before it make of the images."""
    for name, site in qann.sites().items():
        seen: list[Tensor] = []
        handle = site.register_forward_pre_hook(lambda _, inputs, seen=seen: seen.append(inputs[0]))
        qann(images)
        handle.remove()
        qann.network.set_submodule(name, EqualProbabilityQuantizer(site, seen[0]))
