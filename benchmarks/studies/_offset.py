"""The rival of negative levels: unsigned codes from a learned offset, as in LSQ+ (Bhalgat et al. 2020)."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer


class OffsetQuantizer(PolarityQuantizer):
    """q = s clip(floor((x - b) / s + 1/2), 0, P) + b with a learned b; what it adds has no spike, it joins the next bias."""

    def __init__(self, site: PolarityQuantizer, start: float) -> None:
        super().__init__(dataclasses.replace(site.spec, negative=0, positive=sum(site.levels), gain=1.0), site.name)
        self.adopt(site)
        self.shift = nn.Parameter(torch.tensor(start))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - self.shift) + self.shift if self.enabled else self.reference(x)

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x - self.shift)


def with_offsets(qann: QuantizedNetwork) -> None:
    """Replace every site with negative levels, in place; the offset starts so that as many codes lie below zero."""
    for name, site in qann.sites().items():
        if site.spec.negative:
            start = -site.spec.negative * float(site.step.detach())
            qann.network.set_submodule(name, OffsetQuantizer(site, start))
