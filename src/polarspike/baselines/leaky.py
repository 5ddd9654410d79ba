"""The neurons of direct training: they leak, reset, and learn through a surrogate gradient.

    LIF          u[t] = b u[t-1] + I[t];  k = 1 if u >= 1;  u <- 0 where it fired                    b = 1/2
    PLIF         u[t] = u[t-1] + a (I[t] - u[t-1]);  k, reset as LIF;  a = sigmoid(w), learned for each site, from 1/2: what
                 leaks is what the input counts, so that a is learned at T = 1, too                   (Fang et al. 2021)
    ternary      u[t] = b u[t-1] + I[t];  k = sign(u) where |u| >= 1/2;  u <- 0 there;  b = 1/4; the value of a spike is
                 learned for each site                                                                (Guo et al., AAAI 2024)
    integer      u[t] = b u[t-1] + I[t];  k = clip(floor(u + 1/2), 0, D);  u <- u - k;  b = 1/4; a spike is worth 1 / D; the
                 straight-through gradient                                            (Luo et al. 2024; Yao et al. 2025)

The gradient of integer spikes is that of our quantizer, for -1/2 <= u < D + 1/2, where theirs passes for 0 <= u <= D.
The surrogate of a threshold is the derivative of (1/pi) arctan(pi (u - 1)), as is usual for LIF; that of ternary spikes is a
rectangle of width 1 around either threshold. Gradients do not pass through a reset.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from polarspike import ops
from polarspike.specs import SiteSpec
from polarspike.spiking.sequences import SequenceNeuron, SpikeTrain


class LeakyNeuron(SequenceNeuron):
    """LIF with a hard reset; input is measured in thresholds, and a spike is worth 1.

    Args:
        spec, name: as for any site; levels (0, 1).
        leak: b, what remains of the potential after a step.
        learned: 1 - b is a parameter, and the factor of the input as well (PLIF).
    """

    def __init__(self, spec: SiteSpec, name: str = "", leak: float = 0.5, learned: bool = False) -> None:
        super().__init__(spec, name)
        self.leak = leak
        self.raw_decay = nn.Parameter(torch.tensor(math.log((1.0 - leak) / leak))) if learned else None
        self.set_step(1.0)
        self.offset.requires_grad_(False)

    def train_of(self, currents: Tensor) -> SpikeTrain:
        decay = None if self.raw_decay is None else torch.sigmoid(self.raw_decay)
        potential = torch.zeros_like(currents[0])
        spikes = []
        for current in ops.widen(currents):
            charge = current if decay is None else decay * (current - potential)
            potential = (self.leak * potential if decay is None else potential) + charge
            k = self.fire(potential)
            potential = self.reset(potential, k.detach())
            spikes.append(k)
        return SpikeTrain(torch.stack(spikes))

    def fire(self, potential: Tensor) -> Tensor:
        """Signed spikes, with a gradient."""
        spikes: Tensor = _Heaviside.apply(potential - 1.0)
        return spikes

    def reset(self, potential: Tensor, spikes: Tensor) -> Tensor:
        """The potential after these spikes."""
        return potential * (1.0 - spikes.abs())


class TernaryNeuron(LeakyNeuron):
    """Ternary spikes whose value is learned; levels (1, 1)."""

    def __init__(self, spec: SiteSpec, name: str = "", leak: float = 0.25) -> None:
        super().__init__(spec, name, leak)
        self.offset.requires_grad_(True)

    def fire(self, potential: Tensor) -> Tensor:
        spikes: Tensor = _Ternary.apply(potential)
        return spikes


class IntegerNeuron(LeakyNeuron):
    """Integer LIF: up to D spikes a step, each worth 1 / D; levels (0, D). At inference D unit spikes follow each other."""

    def __init__(self, spec: SiteSpec, name: str = "", leak: float = 0.25) -> None:
        super().__init__(spec, name, leak)
        self.set_step(1.0 / spec.positive)

    def fire(self, potential: Tensor) -> Tensor:
        return ops.quantize(potential, torch.ones((), device=potential.device), 1.0, (0, self.levels[1]))

    def reset(self, potential: Tensor, spikes: Tensor) -> Tensor:
        return potential - spikes


class _Heaviside(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, distance: Tensor) -> Tensor:
        ctx.save_for_backward(distance)
        spikes: Tensor = (distance >= 0).to(distance.dtype)
        return spikes

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (distance,) = ctx.saved_tensors
        slope: Tensor = 1.0 / (1.0 + (math.pi * distance).square())
        return grad * slope


class _Ternary(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, potential: Tensor) -> Tensor:
        ctx.save_for_backward(potential)
        return torch.where(potential.abs() >= 0.5, potential.sign(), 0.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (potential,) = ctx.saved_tensors
        return torch.where((potential.abs() - 0.5).abs() < 0.5, grad, 0.0)
