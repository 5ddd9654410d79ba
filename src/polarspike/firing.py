"""One step of a neuron on tensors: integrate the input, find the code, hand on what its move is worth.

    A' = A + x,   C' = encode(A'),   y = D(C') - D(C)

All rounding is that of :mod:`polarspike.ops`. Where nobody asks for a gradient a step is walked in cache-sized pieces, and
may take the memory of the one before; where somebody does, every code passes it straight through its rounding.
"""

from __future__ import annotations

import torch
from torch import Tensor

from polarspike.ops import encode, encode_through, is_watched, pieces


def integrate(
    x: Tensor, total: Tensor, step: Tensor, levels: tuple[int, int], gain: Tensor | float = 1.0
) -> tuple[Tensor, Tensor]:
    """The neuron's sum and code: ``A' = A + x``, ``C' = encode(A')`` within ``levels``.

    Walked in cache-sized pieces on a CPU, as :func:`~polarspike.ops.quantize` is, where nothing asks for a gradient.

    Args:
        x: the input of this step, any shape and type.
        total: A, the sum of all input before; at least float32, the shape of ``x``.
        step: s > 0; broadcasts against ``x`` without its batch dimension.
        levels: (N t, P t).
        gain: g, for the gradient alone (:func:`~polarspike.ops.encode_through`).

    Returns:
        ``(A', C')``, in the type of ``total``.
    """
    if is_watched(x, total, step):
        total = total + x
        return total, encode_through(total, step, levels, gain)
    new_total, codes = torch.empty_like(total), torch.empty_like(total)
    for piece, at in pieces(total, step):
        part = torch.add(total[piece], x[piece], out=new_total[piece])
        encode(part, step[at], *levels, out=codes[piece])
    return new_total, codes


def fire(
    x: Tensor,
    total: Tensor,
    codes: Tensor,
    step: Tensor,
    gain: Tensor | float,
    levels: tuple[int, int],
    *,
    reuse: bool = False,
    take: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`integrate` and :func:`emit` of one step in one walk; returns ``(y, A', C')``.

    A long run is spared the cost of new pages: with ``reuse`` the new sum and code take the memory of the old ones; with
    ``take``, too, x is given up, C' takes its memory, and y that of the old code.
    """
    if is_watched(x, total, step, *((gain,) if isinstance(gain, Tensor) else ())):
        new_total, after = integrate(x, total, step, levels, gain)
        return emit(codes, after, step, gain), new_total, after
    if reuse and take and x.dtype == total.dtype and x.stride() == codes.stride():
        for piece, at in pieces(total, step):
            encode(total[piece].add_(x[piece]), step[at], *levels, out=x[piece])
            _emit_into(codes[piece], codes[piece], x[piece], step[at], gain)
        return codes, total, x
    y = torch.empty_like(total)
    new_total, after = (total, codes) if reuse else (torch.empty_like(total), torch.empty_like(codes))
    for piece, at in pieces(total, step):
        part = torch.add(total[piece], x[piece], out=new_total[piece])
        part_codes = encode(part, step[at], *levels)
        _emit_into(y[piece], codes[piece], part_codes, step[at], gain)
        after[piece] = part_codes
    return y, new_total, after


def emit(before: Tensor, after: Tensor, step: Tensor, gain: Tensor | float) -> Tensor:
    """What a neuron hands on when its code moves: ``D(C') - D(C) = s (dP + g dN)``.

    dP and dN are the differences of the parts of the codes above and below zero; for g = 1 that is ``s (C' - C)``.
    Differences of whole numbers are exact, so that a code that moves by c from rest and by c at any later step hands on
    the same number, ``decode(c)``.

    Args:
        before: C.
        after: C', of the same shape.
        step: s > 0; broadcasts against them without their batch dimension.
        gain: g in [0, 1].
    """
    polar = not (isinstance(gain, float) and gain == 1.0)
    if is_watched(before, after, step, *((gain,) if isinstance(gain, Tensor) else ())):
        return _polar_change(before, after, step, gain) if polar else (after - before) * step
    y = torch.empty_like(after)
    for piece, at in pieces(after, step):
        _emit_into(y[piece], before[piece], after[piece], step[at], gain)
    return y


def _emit_into(y: Tensor, before: Tensor, after: Tensor, step: Tensor, gain: Tensor | float) -> None:
    if isinstance(gain, float) and gain == 1.0:
        torch.sub(after, before, out=y).mul_(step.to(y.dtype))
    else:
        step, gain = step.to(y.dtype), gain.to(y.dtype) if isinstance(gain, Tensor) else gain
        below = after.clamp(max=0.0).sub_(before.clamp(max=0.0))
        torch.sub(after, before, out=y).sub_(below).mul_(step)  # y may be the memory of ``before``
        y.add_(below.mul_(step).mul_(gain))


def _polar_change(before: Tensor, after: Tensor, step: Tensor, gain: Tensor | float) -> Tensor:
    below = _below(after) - _below(before)
    values = below * step.to(after.dtype)
    if isinstance(gain, Tensor):
        gain = gain.to(after.dtype)
    return (after - before - below) * step.to(after.dtype) + values * gain


def _below(codes: Tensor) -> Tensor:
    """What of a code is negative; at zero nothing is, nor has it a slope."""
    return torch.where(codes < 0, codes, torch.zeros((), dtype=codes.dtype, device=codes.device))
