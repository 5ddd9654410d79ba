"""The quantizers of rivals: at T = 1 a plain quantized network *is* the competition.

LSQ    q = s clip(round(x / s), -N, P), a learned step: our quantizer at N = 0 (Esser et al. 2020)
LSQ+   q = s clip(round((x - b) / s), 0, P) + b, a learned offset in place of negative levels (Bhalgat et al. 2020)
PACT   y = clip(x, 0, a);  q = round(y P / a) a / P, a learned clip with dq/da = 1 where x >= a, else 0, and an L2
       penalty on a (Choi et al. 2018)
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from polarspike import ops
from polarspike.errors import SpecError
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec
from polarspike.spiking.sequences import SequenceNeuron, SpikeTrain

# PACT regularizes the clip like the weights; this is TrainSpec's weight decay.
_PACT_PENALTY = 5e-4


class OffsetQuantizer(PolarityQuantizer):
    """Unsigned codes from a learned offset b; what b adds has no spike, it joins the next layer's bias.

    Args:
        site: whose place it takes: its levels in all, step, and name.
        start: where b starts.
    """

    def __init__(self, site: PolarityQuantizer, start: float) -> None:
        spec = dataclasses.replace(site.spec, negative=0, positive=sum(site.levels), gain=1.0, learned_gain=False)
        super().__init__(spec, site.name)
        self.replaced = site.spec
        self.adopt(site)
        self.raw_gain = None
        self.shift = nn.Parameter(torch.tensor(start, device=site.start.device))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - self.shift) + self.shift if self.enabled else self.reference(x)

    def encode(self, x: Tensor) -> Tensor:
        return super().encode(x - self.shift)

    def spikes(self, x: Tensor) -> Tensor:
        return super().spikes(x - self.shift)


class ClippingQuantizer(PolarityQuantizer):
    """PACT: the gradient of the clip a = P s comes from what is clipped alone, and a penalty shrinks it."""

    def __init__(self, site: PolarityQuantizer, penalty: float = _PACT_PENALTY) -> None:
        super().__init__(dataclasses.replace(site.spec, negative=0, gain=1.0, learned_gain=False), site.name)
        self.adopt(site)
        self.raw_gain = None
        self.penalty = penalty

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.reference(x)
        step, levels = self.grid(x)
        clip: Tensor = _Penalized.apply(step * levels[1], self.penalty)
        clipped = torch.minimum(torch.relu(x), clip)
        return clipped + (ops.quantize(x, step, 1.0, levels) - clipped).detach()

    def gradient_scale(self, x: Tensor, levels: tuple[int, int]) -> float:
        return 1.0  # as of the clip above


class OffsetNeuron(SequenceNeuron):
    """The first timestep of :class:`OffsetQuantizer`; it has no later one, because the offset would be added again."""

    def __init__(self, quantizer: OffsetQuantizer) -> None:
        super().__init__(quantizer.spec, quantizer.name)
        self.adopt(quantizer)
        self.shift = nn.Parameter(quantizer.shift.detach().clone())

    def train_of(self, currents: Tensor) -> SpikeTrain:
        if len(currents) > 1:
            raise SpecError(f"site {self.name!r}: LSQ+ is a network of one timestep, got {len(currents)}")
        return SpikeTrain(self.encode(currents[0] - self.shift).unsqueeze(0))

    def decode(self, codes: Tensor) -> Tensor:
        return super().decode(codes) + self.shift


class _Penalized(torch.autograd.Function):
    """The identity, with the gradient of ``penalty / 2 * value^2`` added."""

    @staticmethod
    def forward(ctx: Any, value: Tensor, penalty: float) -> Tensor:
        ctx.save_for_backward(value)
        ctx.penalty = penalty
        return value.view_as(value)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (value,) = ctx.saved_tensors
        return grad + ctx.penalty * value, None


def with_offsets(qann: QuantizedNetwork) -> None:
    """Replace every site with negative levels, in place; the offset starts so that as many codes lie below zero."""
    for name, site in qann.sites().items():
        if site.spec.negative:
            start = -site.spec.negative * float(site.step.detach().mean())
            qann.network.set_submodule(name, OffsetQuantizer(site, start))


def with_offsets_everywhere(qann: QuantizedNetwork) -> None:
    """Replace every site, in place; the offset of a rectified one starts at zero, as LSQ+ is published."""
    with_offsets(qann)
    for name, site in qann.sites().items():
        if not isinstance(site, OffsetQuantizer):
            qann.network.set_submodule(name, OffsetQuantizer(site, 0.0))


def without_offsets(qann: QuantizedNetwork) -> None:
    """Give every site that has an offset its own levels back, in place, as for a new calibration."""
    for name, site in qann.sites().items():
        if isinstance(site, OffsetQuantizer):
            qann.network.set_submodule(name, plain(site, site.replaced))


def with_clips(qann: QuantizedNetwork) -> None:
    """Replace every site by PACT's, in place."""
    for name, site in qann.sites().items():
        qann.network.set_submodule(name, ClippingQuantizer(site))


def plain(site: PolarityQuantizer, spec: SiteSpec | None = None) -> PolarityQuantizer:
    """The ordinary quantizer with a site's step: what a network that trained with :class:`ClippingQuantizer` computes."""
    return PolarityQuantizer(spec or site.spec, site.name).adopt(site)
