"""Information and square error of a quantizer under a law of its input, and the step that is best for given levels.

A quantizer with step ``s`` and levels ``(N, P)`` holds the code ``k = clip(floor(x / s + 1/2), -N, P)``: code ``k``
begins at ``(k - 1/2) s``. With the survival function ``S`` and the excess ``L`` of :mod:`polarspike.statistics.laws`::

    P(code >= k) = S((k - 1/2) s)  for k >= 1,    and the mirrored law gives the negative codes;
    H            = - sum_k p_k log2 p_k           (bits; also the mutual information of x and k, a function of x);
    D            = E max(x, 0)^2 - 2 s sum_{k=1..P} L((k - 1/2) s)  +  g^2 (the same of -x with N), 0 for N = 0.

``D`` is the square error ``E (q(x) - r(x))^2`` against ``r(x) = x`` for ``x >= 0`` and ``g x`` below zero (for
``N = 0``: ReLU). It follows by summation by parts from ``(s k)^2 - (s (k-1))^2 = 2 s (k - 1/2) s``. Everything is
float64 and batched over the G groups of the law.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from polarspike.common.checks import is_integer, is_within
from polarspike.errors import InputError
from polarspike.statistics.laws import Law, NormalMixture, Samples

__all__ = [
    "Law",
    "NormalMixture",
    "Samples",
    "best_step",
    "code_probabilities",
    "entropy",
    "square_error",
]

Levels = tuple[int, int]
Objective = Literal["entropy", "mse"]

_CANDIDATES = 96
_REFINEMENTS = 24  # golden sections: the bracket shrinks by 1e-5
_WIDEST = 1e-9  # the smallest candidate relative to the largest


def code_probabilities(law: Law, levels: Levels, step: float | Tensor) -> Tensor:
    """Probability of every code, ordered from -N to P.

    Args:
        law: of the input of the quantizer, G groups.
        levels: ``(N, P)``.
        step: the value of one spike, one number or (G,).

    Returns:
        (G, N + P + 1), float64; rows sum to 1.
    """
    negative, zero, positive = _tails(law, law.mirrored(), _levels(levels), _steps(step, law))
    return torch.cat((negative.flip(1), zero, positive), dim=1)


@overload
def entropy(levels: Levels, step: float, law: None = None) -> float: ...
@overload
def entropy(levels: Levels, step: float | Tensor, law: Law) -> Tensor: ...
def entropy(levels: Levels, step: float | Tensor, law: Law | None = None) -> float | Tensor:
    """Entropy of the code in bits, ``H = - sum_k p_k log2 p_k``.

    Args:
        levels: ``(N, P)``.
        step: in units of the input: in sigmas for the default law.
        law: of the input; None is the standard normal law.

    Returns:
        A float for ``law=None``, else (G,) float64.

    >>> round(entropy(levels=(1, 1), step=0.86), 3)
    1.585
    """
    chosen = _standard() if law is None else law
    bits = _bits(*_tails(chosen, chosen.mirrored(), _levels(levels), _steps(step, chosen)))
    return bits.item() if law is None else bits


@overload
def square_error(levels: Levels, step: float, law: None = None, gain: float = 1.0) -> float: ...
@overload
def square_error(levels: Levels, step: float | Tensor, law: Law, gain: float = 1.0) -> Tensor: ...
def square_error(
    levels: Levels, step: float | Tensor, law: Law | None = None, gain: float = 1.0
) -> float | Tensor:  # fmt: skip
    """Mean square error ``E (q(x) - r(x))^2`` of the decoded code against what the site stands for.

    ``r(x) = x`` for ``x >= 0`` and ``gain x`` for ``x < 0``; with ``N = 0`` it is ReLU, whatever the gain.

    Args:
        levels: ``(N, P)``.
        step: in units of the input, one number or (G,).
        law: of the input; None is the standard normal law.
        gain: the polarity gain, in [0, 1].

    Returns:
        A float for ``law=None``, else (G,) float64; in squared units of the input.
    """
    chosen = _standard() if law is None else law
    error = _error_of(chosen, chosen.mirrored(), _levels(levels), _gain(gain))(_steps(step, chosen))
    return error.item() if law is None else error


@overload
def best_step(levels: Levels, objective: Objective = "entropy", law: None = None, gain: float = 1.0) -> float: ...
@overload
def best_step(levels: Levels, objective: Objective, law: Law, gain: float = 1.0) -> Tensor: ...
def best_step(
    levels: Levels, objective: Objective = "entropy", law: Law | None = None, gain: float = 1.0
) -> float | Tensor:
    """The step of largest entropy or of smallest square error for given levels.

    A log-spaced grid over every scale of the law finds the basin, golden sections refine it. For some laws the entropy
    only grows as the step shrinks to nothing, and so names no step: binary levels ``(0, 1)`` whose input has its median
    at or below zero. The step of smallest square error is returned there.

    Args:
        levels: ``(N, P)``.
        objective: ``"entropy"`` (largest) or ``"mse"`` (smallest square error).
        law: of the input; None is the standard normal law, so the step is in sigmas.
        gain: the polarity gain, in [0, 1]; the entropy does not depend on it.

    Returns:
        A float for ``law=None``, else (G,) float64. It is 0 where every step is as good as any other: a group whose
        reference is zero everywhere, and for the entropy also a group that is constant. The caller decides what to do.

    >>> round(best_step(levels=(2, 2), objective="mse"), 2)
    0.84
    """
    if objective not in ("entropy", "mse"):
        raise InputError(f"best_step: expected objective 'entropy' or 'mse', got {objective!r}")
    chosen, checked = _standard() if law is None else law, _levels(levels)
    mirror, gain = chosen.mirrored(), _gain(gain)
    error = _error_of(chosen, mirror, checked, gain)
    grid = _grid(chosen, checked)
    worst = chosen.power() + (gain**2 * mirror.power() if checked[0] else 0.0)
    if objective == "mse":
        step = _least_error(error, worst, grid)
    else:
        step, bits, interior = _maximize(lambda s: _bits(*_tails(chosen, mirror, checked, s)), grid)
        if not bool(interior.all()):
            step = torch.where(interior, step, _least_error(error, worst, grid))
        step = torch.where(bits > 0.0, step, 0.0)
    return step.item() if law is None else step


def _least_error(error: Callable[[Tensor], Tensor], worst: Tensor, grid: Tensor) -> Tensor:
    step, negative_error, _ = _maximize(lambda s: -error(s), grid)
    # No step beats "always zero" by rounding alone.
    return torch.where(worst + negative_error > 1e-12 * worst, step, 0.0)


def _tails(law: Law, mirror: Law, levels: Levels, step: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Probabilities of the codes -1..-N, of 0 and of 1..P: (G, N), (G, 1), (G, P)."""
    # An input on a boundary belongs to the upper code: edges are closed above zero, open below it.
    negative = _cells(mirror.survival(_edges(step, levels[0]), closed=False))
    positive = _cells(law.survival(_edges(step, levels[1]), closed=True))
    zero = 1.0 - negative.sum(1, keepdim=True) - positive.sum(1, keepdim=True)
    return negative, zero.clamp_(min=0.0), positive


def _bits(negative: Tensor, zero: Tensor, positive: Tensor) -> Tensor:
    away = (negative.sum(1) + positive.sum(1)).clamp_(max=1.0)
    # Near 1 the digits of p_0 are those of 1 - p_0.
    middle = torch.where(away < 0.5, (1.0 - away) * torch.log1p(-away), torch.special.xlogy(zero, zero).squeeze(1))
    tails = torch.special.xlogy(negative, negative).sum(1) + torch.special.xlogy(positive, positive).sum(1)
    nats: Tensor = tails + middle
    return nats / -math.log(2.0) + 0.0  # + 0.0: no negative zero


def _error_of(law: Law, mirror: Law, levels: Levels, gain: float) -> Callable[[Tensor], Tensor]:
    power, mirror_power = law.power(), mirror.power()

    def error(step: Tensor) -> Tensor:
        total = power - 2.0 * step * law.excess(_edges(step, levels[1])).sum(1)
        if levels[0] and gain:
            total = total + gain**2 * (mirror_power - 2.0 * step * mirror.excess(_edges(step, levels[0])).sum(1))
        return total.clamp(min=0.0)

    return error


def _grid(law: Law, levels: Levels) -> Tensor:
    """Candidates of every group, (candidates, G), from far below any useful step to beyond all inputs."""
    smallest, largest = law.reach()
    largest = torch.where(largest > 0, 2.5 * largest, 1.0)
    # 4: at 2^15 levels the best step is still above 1 / levels of the scale.
    low = torch.maximum(smallest.clamp(max=math.inf) / (4.0 * max(levels)), _WIDEST / max(levels) * largest)
    low = torch.minimum(low, 1e-3 * largest)
    place = torch.linspace(0.0, 1.0, _CANDIDATES, dtype=torch.float64, device=low.device).unsqueeze(1)
    return low * torch.pow(largest / low, place)


def _maximize(score: Callable[[Tensor], Tensor], grid: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Best step and score of every group, and whether the best is inside the grid, not at its lower end; (G,) each."""
    scores = torch.stack([score(step) for step in grid])  # (candidates, G); one candidate at a time bounds the memory
    best, index = scores.max(0)
    at = index.unsqueeze(0)
    step = grid.gather(0, at).squeeze(0)
    low = grid.gather(0, (at - 1).clamp(min=0)).squeeze(0).log()
    high = grid.gather(0, (at + 1).clamp(max=len(grid) - 1)).squeeze(0).log()
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    a, b = high - ratio * (high - low), low + ratio * (high - low)
    score_a, score_b = score(a.exp()), score(b.exp())
    for _ in range(_REFINEMENTS):
        left = score_a >= score_b
        low, high = torch.where(left, low, a), torch.where(left, b, high)
        fresh = torch.where(left, high - ratio * (high - low), low + ratio * (high - low))
        score_fresh = score(fresh.exp())
        a, b = torch.where(left, fresh, b), torch.where(left, a, fresh)
        score_a, score_b = torch.where(left, score_fresh, score_b), torch.where(left, score_a, score_fresh)
    for place, value in ((a, score_a), (b, score_b)):
        better = value > best
        step, best = torch.where(better, place.exp(), step), torch.where(better, value, best)
    return step, best, index > 0


def _edges(step: Tensor, count: int) -> Tensor:
    """(k - 1/2) s for k = 1..count; (G, count)."""
    return (torch.arange(1, count + 1, dtype=torch.float64, device=step.device) - 0.5) * step.unsqueeze(1)


def _cells(survival: Tensor) -> Tensor:
    """P(code = k) from P(code >= k) for k = 1..; (G, K) -> (G, K)."""
    beyond = torch.nn.functional.pad(survival[:, 1:], (0, 1))[:, : survival.shape[1]]
    return (survival - beyond).clamp_(min=0.0)


def _standard() -> NormalMixture:
    return NormalMixture(torch.zeros(1, 1, dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64))


def _levels(levels: Levels) -> Levels:
    try:
        negative, positive = levels
    except (TypeError, ValueError):
        raise InputError(f"levels: expected a pair (N, P), got {levels!r}") from None
    if not (is_integer(negative, 0) and is_integer(positive, 1)):
        raise InputError(f"levels: expected integers (N, P) with N >= 0 and P >= 1, got {levels}")
    return negative, positive


def _steps(step: float | Tensor, law: Law) -> Tensor:
    if not isinstance(step, Tensor | int | float):
        raise InputError(f"step: expected one number or a tensor, got {step!r}")
    steps = torch.as_tensor(step, dtype=torch.float64, device=law.device).detach()
    if steps.dim() > 1 or (steps.dim() == 1 and steps.shape[0] not in (1, law.groups)):
        raise InputError(f"step: expected one number or shape ({law.groups},), got {tuple(steps.shape)}")
    if not bool(((steps > 0) & steps.isfinite()).all()):
        raise InputError(f"step: expected positive finite numbers, got {steps.tolist()}; a dead group has no step")
    return steps.expand(law.groups)


def _gain(gain: float) -> float:
    if not is_within(gain, 0.0, 1.0):
        raise InputError(
            f"gain: expected a number in [0, 1], got {gain!r}; give a learned gain's value, float(site.gain)"
        )
    return float(gain)
