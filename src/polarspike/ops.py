"""The arithmetic of codes: encode, decode, and the gradients that training uses.

    encode   k = clip(floor(x / s + 1/2), -N, P)
    decode   q = s k  (k >= 0),   g s k  (k < 0)

This is the only rounding in the library: quantizers, neurons, refinement, verification and exporters all call
:func:`encode`. Comparing with thresholds (k - 1/2) s, multiplying by 1/s, or rounding half to even give other codes at
the boundaries, so nothing else may round. Source of the formulas: the project's reconstruction of polarity multi-spike
mapping (docs/theory.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# Elements per piece of work on a CPU: input, code and output of a piece stay in a core's cache, which makes the
# training-time quantizer about as cheap as a ReLU (benchmarks/training_step.py); larger tensors are walked in pieces.
_PIECE = 1 << 16


def encode(x: Tensor, step: Tensor | float, negative: int, positive: int, *, out: Tensor | None = None) -> Tensor:
    """The code of every element: ``k = clip(floor(x / s + 1/2), -N, P)``.

    Half-precision input is widened to float32 before the division, because bfloat16 misrounds ``x / s + 1/2``.

    Args:
        x: any shape, floating point; NaN stays NaN.
        step: s > 0, in the units of ``x``; broadcasts against ``x``.
        negative: N >= 0.
        positive: P >= 0.
        out: where to write them, of the result's type; ``x`` itself is allowed if it is wide enough.

    Returns:
        Integers as float32 (float64 for float64 input), the shape of ``x``; exact below 2^23,
        from where on a float32 has no room for the 1/2.

    >>> encode(torch.tensor([-0.6, -0.5, 0.0, 0.5, 9.0]), 1.0, 1, 3)
    tensor([-1.,  0.,  0.,  1.,  3.])
    """
    wide = widen(x)
    # Always a tensor beside x: CUDA divides by a number of the CPU through its reciprocal, which is another rounding.
    scaled = torch.div(wide, torch.as_tensor(step, dtype=wide.dtype, device=wide.device), out=out)
    return scaled.add_(0.5).floor_().clamp_(-negative, positive)


def encode_through(x: Tensor, step: Tensor, levels: tuple[int, int], gain: Tensor | float) -> Tensor:
    """:func:`encode`, whose gradient goes straight through the rounding, where one is asked for.

        dk/dx = 1 / s,   dk/ds = -x / s^2    for -(N + 1/2) s <= x < (P + 1/2) s, else 0

    With :func:`decode` behind it these are the gradients of :func:`quantize`. There what x < 0 makes has the slope g, also
    where its code is 0; a code of 0 does not know its sign, so its slope here has the factor g.

    Args:
        x: any shape.
        step: s > 0; broadcasts against ``x``.
        levels: (N, P).
        gain: g of the decoder, of which this has no gradient.
    """
    if not is_watched(x, step):
        return encode(x, step, *levels)
    codes: Tensor = _Encode.apply(x, step, levels, gain.detach() if isinstance(gain, Tensor) else gain)
    return codes


class _Encode(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, levels: tuple[int, int], gain: Tensor | float) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.levels, ctx.gain = levels, gain
        return encode(x, step, *levels)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step = ctx.saved_tensors
        negative, positive = ctx.levels
        part = step.to(grad.dtype)
        scaled, unclipped = _unclipped(x, part, ctx.levels)
        slope = unclipped.eq(unclipped.clamp(-negative, positive)).to(grad.dtype).mul_(grad).div_(part)
        if not (isinstance(ctx.gain, float) and ctx.gain == 1.0):
            slope = torch.where((unclipped == 0) & (scaled < 0), slope * ctx.gain, slope)
        grad_step = slope.mul(scaled).neg_().sum_to_size(part.shape) if ctx.needs_input_grad[1] else None
        return slope.to(x.dtype), None if grad_step is None else grad_step.to(step.dtype), None, None


def decode(codes: Tensor, step: Tensor | float, gain: Tensor | float = 1.0) -> Tensor:
    """The value of every code: ``s k`` for ``k >= 0`` and ``g s k`` for ``k < 0``.

    Args:
        codes: integers in a floating type, any shape.
        step: s > 0; broadcasts against ``codes``.
        gain: g in [0, 1], the value of a negative spike relative to a positive one; exactly ``1.0`` (a Python float)
            saves the distinction.

    Returns:
        The decoded values in the type of ``codes``.

    >>> decode(torch.tensor([-2.0, 0.0, 3.0]), 0.5, 0.5)
    tensor([-0.5000,  0.0000,  1.5000])
    """
    if isinstance(step, Tensor):
        step = step.to(codes.dtype)
    if isinstance(gain, float) and gain == 1.0:
        return codes * step
    if isinstance(gain, Tensor):
        gain = gain.to(codes.dtype)
    values = codes * step
    if is_watched(codes):  # at zero the larger of the two would pass the mean of both slopes
        return torch.where(codes < 0, values * gain, values)
    # With 0 <= g <= 1 the larger of the two is s k where k >= 0 and g s k below; a selection would cost five times this.
    return torch.maximum(values, values * gain)


def quantize(
    x: Tensor, step: Tensor, gain: Tensor | float, levels: tuple[int, int], gradient_scale: float = 1.0
) -> Tensor:
    """``decode(encode(x))`` with the straight-through gradients of learned-step-size quantization.

        dq/dx = 1 (x >= 0) or g (x < 0)                  for -(N + 1/2) s <= x < (P + 1/2) s, else 0
        dq/ds = (1 | g) (k - x / s) inside that range,   P above it, -g N below it; times ``gradient_scale``
        dq/dg = s k for k < 0, else 0;                   times ``gradient_scale``

    "Inside" is decided by codes (a code that clipping left alone), not by the levels' values; the two conventions
    differ in the outer half steps. With N = 0 there is no negative code and the gain plays no part. The value is that
    of ``decode(encode(x))`` bit for bit, cast back to the type of ``x``.

    Args:
        x: any shape; dimension 0 is walked in pieces on a CPU.
        step: s > 0, 0-d or broadcastable against ``x`` without a batch dimension (e.g. (C, 1, 1)).
        gain: g in [0, 1]; a 0-d tensor if it is learned, else a float.
        levels: (N, P).
        gradient_scale: factor on the gradients of step and gain, 1 / sqrt(numel * P) in the source.

    Source: learned step size quantization (Esser et al., 2020), extended here by the negative gain.
    """
    if levels[0] == 0:
        gain = 1.0
    result: Tensor = _Quantize.apply(x, step, gain, levels, gradient_scale)
    return result


def overwrite(x: Tensor, step: Tensor, gain: Tensor | float, levels: tuple[int, int]) -> Tensor:
    """:func:`quantize` in the memory of ``x``, for inference where nobody reads ``x`` again: no new pages are touched."""
    if levels[0] == 0:
        gain = 1.0
    _quantize_into(x, x, step, gain, levels)
    return x


def _quantize_into(out: Tensor, x: Tensor, step: Tensor, gain: Tensor | float, levels: tuple[int, int]) -> None:
    plain = isinstance(gain, float) and gain == 1.0 and x.dtype == _wide_dtype(x)
    for piece, at in pieces(x, step):
        if plain:  # every pass in the output's own memory
            encode(x[piece], step[at], *levels, out=out[piece]).mul_(step[at].to(x.dtype))
        else:
            out[piece] = decode(encode(x[piece], step[at], *levels), step[at], gain)


class _Quantize(torch.autograd.Function):
    """One pass forward, one pass backward, both in cache-sized pieces; only ``x`` is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, step: Tensor, gain: Tensor | float, levels: tuple[int, int], gradient_scale: float
    ) -> Tensor:
        ctx.save_for_backward(x, step, gain if isinstance(gain, Tensor) else None)
        ctx.gain, ctx.levels, ctx.gradient_scale = gain, levels, gradient_scale
        out = torch.empty_like(x)
        _quantize_into(out, x, step, gain, levels)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step, gain_tensor = ctx.saved_tensors
        gain: Tensor | float = gain_tensor if gain_tensor is not None else ctx.gain
        negative, positive = ctx.levels
        polar = not (isinstance(gain, float) and gain == 1.0)
        wide_step = step.to(_wide_dtype(x))
        grad_x = torch.empty_like(x)
        grad_step = torch.zeros_like(wide_step)
        grad_gain = torch.zeros((), dtype=wide_step.dtype, device=x.device)
        for piece, at in pieces(x, wide_step):
            upstream, part = widen(grad[piece]), wide_step[at]
            scaled, unclipped = _unclipped(x[piece], part, ctx.levels)
            codes = unclipped.clamp(-negative, positive)
            # Masks are floats, 0 or 1: comparing into a float tensor and multiplying is vectorized, selecting is not.
            inside = unclipped.eq_(codes)
            if polar:
                if ctx.needs_input_grad[2]:
                    grad_gain += codes.clamp(max=0).mul_(upstream).mul_(part).sum()
                below = torch.lt(scaled, 0.0, out=torch.empty_like(scaled))
                upstream = below.mul_(gain - 1.0).add_(1.0).mul_(upstream)
            grad_x[piece] = upstream * inside
            if ctx.needs_input_grad[1]:
                slope = codes.sub_(scaled.mul_(inside)).mul_(upstream)
                grad_step[at] += slope.sum_to_size(part.shape)
        return (
            grad_x,
            (grad_step * ctx.gradient_scale).to(step.dtype) if ctx.needs_input_grad[1] else None,
            (grad_gain * ctx.gradient_scale).to(gain_tensor.dtype) if ctx.needs_input_grad[2] else None,
            None,
            None,
        )


def count_spikes(x: Tensor, step: Tensor, levels: tuple[int, int], gradient_scale: float = 1.0) -> Tensor:
    """Number of unit spikes ``sum |k|`` of ``k = encode(x)``, with straight-through gradients.

        d|k|/dx = sign(k) / s,   d|k|/ds = -f |x| / s^2    for -(N + 1/2) s <= x < (P + 1/2) s and k != 0, else 0

    Where nothing fires there is nothing to lower.

    Args:
        x: any shape; dimension 0 is walked in pieces on a CPU.
        step: s > 0, 0-d or broadcastable against ``x`` without a batch dimension.
        levels: (N, P).
        gradient_scale: f, on the gradient of the step: the factor that :func:`quantize` is given, or spikes outweigh
            values at the step, but not at the weights.

    Returns:
        0-d, in at least float32.
    """
    result: Tensor = _CountSpikes.apply(x, step, levels, gradient_scale)
    return result


class _CountSpikes(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, step: Tensor, levels: tuple[int, int], gradient_scale: float) -> Tensor:
        ctx.save_for_backward(x, step)
        ctx.levels, ctx.gradient_scale = levels, gradient_scale
        # float64 on the way: float32 stops counting at 2^24.
        total = torch.zeros((), dtype=torch.float64, device=x.device)
        for piece, at in pieces(x, step):
            total += encode(x[piece], step[at], *levels).abs_().sum()
        return total.to(_wide_dtype(x))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, step = ctx.saved_tensors
        negative, positive = ctx.levels
        wide_step = step.to(_wide_dtype(x))
        grad_x = torch.empty_like(x)
        grad_step = torch.zeros_like(wide_step)
        for piece, at in pieces(x, wide_step):
            part = wide_step[at]
            scaled, unclipped = _unclipped(x[piece], part, ctx.levels)
            inside = unclipped.eq(unclipped.clamp(-negative, positive))
            slope = unclipped.sign_().mul_(inside).div_(part)
            grad_x[piece] = slope
            if ctx.needs_input_grad[1]:
                grad_step[at] -= slope.mul_(scaled).sum_to_size(part.shape)
        return (
            grad_x.mul_(grad),
            (grad_step * (grad * ctx.gradient_scale)).to(step.dtype) if ctx.needs_input_grad[1] else None,
            None,
            None,
        )


def is_watched(*values: Tensor) -> bool:
    """Whether a gradient is asked for, which writing into given memory would lose."""
    return torch.is_grad_enabled() and any(value.requires_grad for value in values)


def _unclipped(x: Tensor, step: Tensor, levels: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """``x / s`` and its code before clipping, which a backward pass begins with.

    Both stop one level further out than codes, which changes neither: ``x / s`` may overflow, and 0 * inf is NaN.
    """
    scaled = (widen(x) / step).clamp_(-levels[0] - 1, levels[1] + 1)
    return scaled, (scaled + 0.5).floor_()


def _wide_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def sum_dtype(x: Tensor) -> torch.dtype:
    """float64, which holds sums of many float32 exactly; float32 on a device that has none (Apple's)."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def widen(x: Tensor) -> Tensor:
    """``x`` in at least float32, the type that codes and states are computed in."""
    return x.to(_wide_dtype(x))


_Index = tuple[slice, ...]


def pieces(x: Tensor, step: Tensor) -> Iterator[tuple[_Index, _Index]]:
    """Indices of pieces of ``x`` with about ``_PIECE`` elements, and of the part of a step that broadcasts against each.

    Dimension 0 is cut, and where a single sample is larger than a piece also the dimension that is outermost in its
    memory (pieces are larger where that is short); everything comes at once where pieces do not pay.
    """
    if x.device.type != "cpu" or x.dim() == 0 or x.numel() <= _PIECE or torch.compiler.is_compiling():
        yield (), ()
        return
    sample = x.numel() // x.shape[0]
    if sample <= _PIECE or x.dim() == 1:
        for part in _parts(x.shape[0], _PIECE // sample):
            yield (part,), ()
        return
    outermost = max(range(1, x.dim()), key=lambda dim: (x.shape[dim] > 1, x.stride(dim)))
    before = (slice(None),) * (outermost - 1)
    axis = outermost - x.dim() + step.dim()  # of the step, if it has one there
    shared = axis < 0 or step.shape[axis] == 1
    for row in _parts(x.shape[0], 1):
        for part in _parts(x.shape[outermost], _PIECE * x.shape[outermost] // sample):
            yield (row, *before, part), () if shared else (*(slice(None),) * axis, part)


def _parts(length: int, size: int) -> Iterator[slice]:
    size = max(1, size)
    return (slice(first, first + size) for first in range(0, length, size))
