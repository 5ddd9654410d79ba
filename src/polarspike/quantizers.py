"""The quantizers that train: of an activation, whose values are codes times a step, and of a layer's weights."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from polarspike import ops
from polarspike.sites import Site
from polarspike.specs import SiteSpec


class PolarityQuantizer(Site):
    """Quantize an activation with negative and positive levels.

        k = clip(floor(x / s + 1/2), -N, P);    q = s k (k >= 0),  g s k (k < 0)

    Gradients are those of :func:`polarspike.ops.quantize`, with step and gain scaled by 1 / sqrt(numel * P), where numel
    counts the elements that share a step in one sample (not in the batch, which differs between processes).

    Shapes: any input (batch, channels, ...); the output has its shape and type.

    Raises:
        CalibrationError: the step has not been set.

    >>> from polarspike.specs import SiteSpec
    >>> quantizer = PolarityQuantizer(SiteSpec(negative=1, positive=3))
    >>> quantizer.set_step(0.5)
    >>> quantizer(torch.tensor([[-2.0, 0.2, 0.3, 9.0]])).tolist()
    [[-0.5, 0.0, 0.5, 1.5]]
    """

    #: False: behave as the float activation that this site replaced (for calibration and for the capture check).
    enabled: bool = True
    #: In training mode: compute the grid that a neuron has after so many timesteps (:mod:`polarspike.training.refinement`).
    timesteps: int = 1

    def forward(self, x: Tensor) -> Tensor:
        if not self.enabled:
            return self.reference(x)
        step, levels = self.grid(x)
        return ops.quantize(x, step, self.gain, levels, self.gradient_scale(x, levels))

    def grid(self, x: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Step, to be broadcast against ``x``, and levels that a forward pass computes with now."""
        step = self.broadcast_step(x)
        return (step if self._factor == 1 else step / self._factor), self._grid_levels

    @property
    def _factor(self) -> int:
        return self.timesteps if self.training else 1

    @property
    def _grid_levels(self) -> tuple[int, int]:
        negative, positive = self.levels
        return negative * self._factor, positive * self._factor

    def spikes(self, x: Tensor) -> Tensor:
        """Unit spikes of the first timestep, ``sum |k|``, 0-d; differentiable (:func:`polarspike.ops.count_spikes`)."""
        scale = self.gradient_scale(x, self._grid_levels)  # of the values in this pass
        return ops.count_spikes(x, self.broadcast_step(x), self.levels, scale)

    def reference(self, x: Tensor) -> Tensor:
        """The float activation: ``min(x, ceiling)`` for x >= 0, ``slope x`` for x < 0."""
        if self.spec.slope == 0.0:
            y = torch.relu(x)
        elif self.spec.slope == 1.0:
            y = x
        else:
            y = torch.nn.functional.leaky_relu(x, self.spec.slope)
        return y if self.spec.ceiling is None else y.clamp(max=self.spec.ceiling)

    @property
    def slope(self) -> float:
        """What the site stands for below zero now: a learned gain; beside a fixed one, the slope of the operator."""
        return float(self.gain) if self.spec.learned_gain else self.spec.slope

    def with_fixed_gain(self, **levels: Any) -> PolarityQuantizer:
        """The quantizer with the same steps, other levels or another gain (fields of its spec), and the gain not learned."""
        fixed = self._as(dataclasses.replace(self.spec, learned_gain=False, **levels))
        fixed.raw_gain = None
        return fixed

    def with_fixed_step(self, step: Tensor) -> PolarityQuantizer:
        """The quantizer with the same levels and gain and this step, which training leaves alone."""
        fixed = self._as(dataclasses.replace(self.spec, learned_step=False))
        fixed.set_step(step)
        return fixed

    def refined(self, factor: int) -> PolarityQuantizer:
        """The quantizer with step s / factor and levels (N factor, P factor); the same range on a finer grid."""
        fine = self._as(self.spec.refined(factor))
        with torch.no_grad():
            # The quotient of the step itself, as PolarityNeuron.settle takes it: that of start and offset rounds apart.
            fine.start = self.step / factor
            fine.offset.copy_(torch.zeros_like(fine.offset))
        return fine

    def _as(self, spec: SiteSpec) -> PolarityQuantizer:
        """A quantizer of this spec with the same step and gain, in the same mode."""
        made = PolarityQuantizer(spec, self.name).adopt(self)
        made.train(self.training)
        return made


class WeightQuantizer(nn.Module):
    """Round the weights of a layer to b bits for each output channel, with a straight-through gradient.

        L = 2^(b-1) - 1;    s_o = max |w_o| / L;    q = s_o clip(floor(w / s_o + 1/2), -L, L)

    ``dyadic`` takes the next power of two above for s_o, which costs up to one bit and makes products with codes, and
    their sums, exact in any order. A parametrization of torch: :func:`polarspike.quantize_weights` sets it on the layers
    of a network. The step follows the weights, so nothing is ever clipped, and every gradient passes.

    Shapes: (outputs, ...) to the same. Source: Jacob et al. 2018, arXiv 1712.05877.

    >>> WeightQuantizer(bits=2)(torch.tensor([[0.2, -0.9, 1.0]])).tolist()
    [[0.0, -1.0, 1.0]]
    """

    def __init__(self, bits: int, output_dim: int = 0, dyadic: bool = False) -> None:
        super().__init__()
        self.bits, self.output_dim, self.dyadic = bits, output_dim, dyadic

    def forward(self, weight: Tensor) -> Tensor:
        largest, step = 2 ** (self.bits - 1) - 1, self.step_of(weight)
        return ops.quantize(weight, step, 1.0, (largest, largest))

    def step_of(self, weight: Tensor) -> Tensor:
        """s_o of each output channel, to be broadcast against the weights."""
        largest = 2 ** (self.bits - 1) - 1
        others = [d for d in range(weight.dim()) if d != self.output_dim]
        peak = weight.detach().abs().amax(dim=others, keepdim=True)
        step: Tensor = torch.where(peak > 0, peak, torch.ones_like(peak)) / largest
        if self.dyadic:
            mantissa, exponent = torch.frexp(step)
            step = torch.ldexp(torch.ones_like(step), exponent - (mantissa == 0.5).to(exponent.dtype))
        return step

    def right_inverse(self, weight: Tensor) -> Tensor:
        """What is kept and trained when a weight is set: itself."""
        return weight
