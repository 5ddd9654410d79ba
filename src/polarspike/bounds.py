"""Steps that stay positive and gains that stay in [0, 1], whatever an optimizer does: functions of what it moves."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from polarspike.ops import widen

# A step never falls below this share of its start, however far an optimizer drives its offset.
_LEAST_SHARE = 2.0**-20

# No step starts below this, so that its least share is still a normal number of float32.
LEAST_START = torch.finfo(torch.float32).tiny / _LEAST_SHARE


def step_from_offset(start: Tensor, offset: Tensor) -> Tensor:
    """A step that stays positive for every finite offset, with slope one where training starts.

        s = start + offset                                       offset >= 0
        s = start (e + (1 - e) exp(u / (1 - e))),  e = 2^-20     u = offset / start < 0

    At ``offset = 0`` the value is ``start`` and ds/d(offset) = 1, so an optimizer moves the step exactly as it would
    move a raw step there; below, the step shrinks ever more slowly and ends at ``start * 2^-20``. It is monotone and
    continuously differentiable. An unconstrained step can become negative in training, and then nothing fires as meant.

    Args:
        start: the calibrated step, at least ``LEAST_START``; any shape.
        offset: the learned displacement, same shape and units.

    Returns:
        The step in at least float32: half precision has neither the range nor the digits for it.

    >>> step_from_offset(torch.tensor(0.5), torch.tensor([0.25, 0.0, -100.0])) > 0
    tensor([True, True, True])
    """
    start, offset = widen(start), widen(offset)
    rest = 1.0 - _LEAST_SHARE
    shrunk = _LEAST_SHARE + rest * torch.exp((offset / start).clamp(max=0.0) / rest)
    # The sum, not start * (1 + offset / start): the quotient of a large offset and a small start overflows.
    return torch.where(offset >= 0, start + offset, start * shrunk)


def bound_gain(raw: Tensor) -> Tensor:
    """The gain ``clip(raw, 0, 1)``, whose gradient also passes beyond a bound where it leads back inside.

    0 <= g <= 1 keeps decoding monotone, without which max pooling and encoding stop commuting. *At* a bound the whole
    gradient passes: what each process or piece of a batch computes is a part of a sum, and only the sum has a direction
    (:func:`polarspike.training.optimization.keep_within` then holds the gain inside).

    >>> bound_gain(torch.tensor([-0.2, 0.3, 1.7]))
    tensor([0.0000, 0.3000, 1.0000])
    """
    result: Tensor = _BoundGain.apply(raw)
    return result


class _BoundGain(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, raw: Tensor) -> Tensor:
        ctx.save_for_backward(raw)
        return raw.clamp(0.0, 1.0)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (raw,) = ctx.saved_tensors
        # Descent moves against the gradient: at the lower bound a positive gradient would lead further out.
        outward = ((raw < 0) & (grad > 0)) | ((raw > 1) & (grad < 0))
        return grad.masked_fill(outward, 0.0)
