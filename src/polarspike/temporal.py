"""Operators in time: what each must do at every step so that running means come out right.

The running-mean contract: the mean over steps 1..T of an operator's output must equal the operator applied to the mean of
its inputs. A signal x can be carried in two ways, and each follows from the other with the mean of the step before as state:

    step   x[t]                    M[t] = M[t-1] + (x[t] - M[t-1]) / t
    mean   M[t]                    x[t] = M[t] + (t-1) (M[t] - M[t-1])  =  t M[t] - (t-1) M[t-1]

Affine operators keep the contract on steps as well as on means. Any other operator f, of one or several inputs, is applied
to means; on steps that is y[t] = t f(M[t]) - (t-1) f(M[t-1]). A positively homogeneous f (max pooling: f(a x) = a f(x) for
a >= 0) is applied to sums instead: y[t] = f(S[t]) - f(S[t-1]), S[t] = t M[t]; the same numbers without a division, so that
integer multiples of a step stay integer multiples of it.

At t = 1 all of these are f itself. For a repeated input both conversions are exact, so nothing drifts. The state is
explicit, a value that is never altered.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from polarspike import ops
from polarspike.errors import InputError


class SumState(NamedTuple):
    """What a homogeneous operator carries: the sum of its input so far, and its response to it."""

    total: Tensor
    response: Any


def to_mean(step: Any, before: Any, timestep: int, place: str, masked: bool = False) -> Any:
    """M[t] from x[t] and M[t-1], in at least float32; pytrees leaf by leaf, what is no real tensor as it is.

    Args:
        step: x[t].
        before: M[t-1]; None at t = 1.
        timestep: t.
        place: for a message.
        masked: values may stand at minus infinity (the mask of an attention), and stay there: minus infinity less
            minus infinity is no number.

    Raises:
        InputError: another shape than that of the step before.
    """
    if before is None:
        return _map(ops.widen, step)

    def move(mean: Tensor, x: Tensor) -> Tensor:
        require_same_shape(x, mean, place)
        moved = torch.lerp(mean, x.to(mean.dtype), 1.0 / timestep)
        return torch.where(_same_infinity(mean, x), mean, moved) if masked else moved

    return _map(move, before, step)


def to_step(mean: Any, before: Any, timestep: int, masked: bool = False) -> Any:
    """x[t] from M[t] and M[t-1]; None at t = 1. With ``masked`` values may stay at infinity, as in :func:`to_mean`."""
    if before is None:
        return mean

    def move(old: Tensor, new: Tensor) -> Tensor:
        moved = torch.lerp(old, new.to(old.dtype), float(timestep))
        return torch.where(_same_infinity(old, new), old, moved) if masked else moved

    return _map(move, before, mean)


def change_of(mean: Any, before: Any, timestep: int) -> Any:
    """What the sum of a signal moved by without a new step: ``t (M' - M)``."""
    return _map(lambda change: change * timestep, less(mean, before))


def less(value: Any, other: Any) -> Any:
    """``value - other``, and nothing where both are the same infinity."""
    return _map(lambda old, new: torch.where(_same_infinity(old, new), 0.0, new - old), other, value)


def _same_infinity(old: Tensor, new: Tensor) -> Tensor:
    """Where there is no difference to take; two equal numbers have one, through which gradients pass."""
    return (old == new) & new.isinf()


def moved_by(change: Any, before: Any, timestep: int) -> Any:
    """The mean after a change of the sum without a new step: ``M + dS / t``."""
    return _map(lambda old, x: old + x.to(old.dtype) / timestep, before, change)


def widened(value: Any) -> Any:
    """The real tensors of a value in at least float32."""
    return _map(ops.widen, value)


def typed_as(like: Any, value: Any) -> Any:
    """The real tensors of a value in the types of another one."""
    return _map(lambda old, new: new.to(old.dtype), like, value)


def advance_homogeneous(
    function: Callable[[Tensor], Any],
    x: Tensor,
    state: SumState | None,
    place: str,
    *,
    masked: bool = False,
    reuse: bool = False,
) -> tuple[Any, SumState]:
    """One step (or change) of a positively homogeneous operator, by the difference on sums.

    With ``masked`` responses may stay at infinity, and so does their step. With ``reuse`` the new sum takes the memory of
    the old one.

    Raises:
        InputError: another shape than that of the step before.
    """
    require_same_shape(x, None if state is None else state.total, place)
    if state is None:
        total = ops.widen(x.clone() if reuse else x)  # x may be somebody else's
    elif reuse:
        total = state.total.add_(x)
    else:
        total = state.total + x
    response = function(total)

    def move(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(_same_infinity(old, new), new, new - old) if masked else new - old

    change = response if state is None else _map(move, state.response, response)
    return _map(lambda leaf: leaf.to(x.dtype), change), SumState(total, response)


def require_same_shape(x: Tensor, total: Tensor | None, place: str) -> None:
    """Refuse a state of other inputs, which broadcasting could hide.

    Raises:
        InputError: the sum so far has another shape than the input of this step.
    """
    if total is not None and total.shape != x.shape:
        raise InputError(
            f"{place!r}: expected the shape of the state, {tuple(total.shape)}, got {tuple(x.shape)}; "
            "a state belongs to its batch: start a new stream with state=None"
        )


def _map(function: Callable[..., Tensor], *trees: Any) -> Any:
    """A function over the real tensors of one or several like pytrees; other leaves are taken from the last tree."""

    def one(*leaves: Any) -> Any:
        last = leaves[-1]
        return function(*leaves) if isinstance(last, Tensor) and last.is_floating_point() else last

    if all(isinstance(tree, Tensor) for tree in trees):
        return one(*trees)
    return pytree.tree_map(one, *trees)
