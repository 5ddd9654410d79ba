"""Laws of a quantizer's input, in groups: mixtures of normal laws, weighted samples, histograms.

A law answers with tails, which keep their digits far out: the survival function ``S(b) = P(x >= b)``, the excess
``L(b) = E max(x - b, 0)`` and the power ``E max(x, 0)^2``; ``mirrored()`` gives the other side. G groups are handled
together: G = 1 is one law for a tensor, G = C one per channel. Everything is float64.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from polarspike.errors import InputError

_ELEMENTS = 1 << 21  # largest intermediate of a mixture: 16 MB of float64


@dataclass(frozen=True)
class NormalMixture:
    """Equal-weight mixture of M normal laws in each of G groups; ``std`` may be 0 (a dead channel is a constant).

    Args:
        mean: (G, M), e.g. the shift of a batch norm.
        std: (G, M), e.g. the magnitude of its scale.

    Raises:
        InputError: the shapes differ or are not (G, M), a value is not finite, or a ``std`` is negative.
    """

    mean: Tensor
    std: Tensor

    def __post_init__(self) -> None:
        object.__setattr__(self, "mean", _table("NormalMixture.mean", self.mean))
        object.__setattr__(self, "std", _table("NormalMixture.std", self.std, like=self.mean))
        if bool((self.std < 0).any()):
            raise InputError(f"NormalMixture.std: expected no negative value, got {self.std.min():g}; pass abs()")

    @property
    def groups(self) -> int:
        """G, the number of laws that are handled together."""
        return self.mean.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the law's tensors live, and so the results."""
        return self.mean.device

    def mirrored(self) -> NormalMixture:
        """The law of -x."""
        return NormalMixture(-self.mean, self.std)

    def survival(self, edge: Tensor, closed: bool = True) -> Tensor:
        """P(x >= edge), or P(x > edge) when not ``closed``; (G, E) -> (G, E)."""
        return self._average(edge, lambda z, _: _upper(z), closed)

    def excess(self, edge: Tensor) -> Tensor:
        """E max(x - edge, 0); (G, E) -> (G, E)."""

        def component(z: Tensor, distance: Tensor) -> Tensor:
            return (self.std.unsqueeze(1) * _density(z) - distance * _upper(z)).clamp_(min=0.0)

        return self._average(edge, component, closed=True)

    def power(self) -> Tensor:
        """E max(x, 0)^2; (G,)."""
        z = self._standardize(-self.mean, closed=True)
        parts = (self.mean.square() + self.std.square()) * _upper(z) + self.mean * self.std * _density(z)
        return parts.clamp_(min=0.0).mean(1)

    def reach(self) -> tuple[Tensor, Tensor]:
        """The smallest scale and the largest magnitude that a step has to deal with; (G,) each."""
        # A normal law far below zero decays above zero on the scale std^2 / |mean|.
        scale = torch.where(self.std > 0, self.std.square() / (self.std + self.mean.abs()), self.mean.abs())
        smallest = torch.where(scale > 0, scale, math.inf).amin(1)
        return smallest, (self.mean.abs() + 6.0 * self.std).amax(1)

    def _average(self, edge: Tensor, of: Callable[[Tensor, Tensor], Tensor], closed: bool) -> Tensor:
        length = max(1, _ELEMENTS // self.mean.numel())
        parts = [edge.new_empty(edge.shape[0], 0)]  # no edges, no columns
        for start in range(0, edge.shape[1], length):
            distance = edge[:, start : start + length].unsqueeze(2) - self.mean.unsqueeze(1)  # (G, E, M)
            parts.append(of(self._standardize(distance, closed), distance).mean(2))
        return torch.cat(parts, dim=1)

    def _standardize(self, distance: Tensor, closed: bool) -> Tensor:
        std = self.std.unsqueeze(1) if distance.dim() == 3 else self.std
        z = distance / std
        if bool((std > 0).all()):
            return z
        # A constant that lies on the edge is 0 / 0: it belongs above a closed edge, below an open one.
        return z.nan_to_num_(nan=-math.inf if closed else math.inf, posinf=math.inf, neginf=-math.inf)


@dataclass(frozen=True)
class Samples:
    """Weighted samples in each of G groups, or the bins of a histogram. Stored sorted, with weights that sum to 1.

    Args:
        values: (G, B), samples or bin centres.
        weights: (G, B), not negative, with a positive sum in every group.
        widths: (G, B) or None: a sample of width w > 0 stands for a uniform law on value -+ w/2 (a bin); 0 for a point.
            Bins must not overlap.

    Raises:
        InputError: wrong shapes, values that are not finite, negative or vanishing weights, overlapping bins.
    """

    values: Tensor
    weights: Tensor
    widths: Tensor | None = None
    _left: Tensor = field(init=False, repr=False)
    _right: Tensor = field(init=False, repr=False)
    _mass: Tensor = field(init=False, repr=False)  # (G, B + 1): weight from sample j on
    _moment: Tensor = field(init=False, repr=False)  # (G, B + 1): weight times value from sample j on

    def __post_init__(self) -> None:
        values, order = _table("Samples.values", self.values).sort(dim=1, stable=True)
        weights = _table("Samples.weights", self.weights, like=values).gather(1, order)
        widths = torch.zeros_like(values) if self.widths is None else _table("Samples.widths", self.widths, like=values)
        widths = widths.gather(1, order)
        total = weights.sum(1, keepdim=True)
        if bool((weights < 0).any()) or bool((total <= 0).any()):
            raise InputError("Samples.weights: expected weights >= 0 with a positive sum in every group; count again")
        weights = weights / total
        left, right = values - widths / 2, values + widths / 2
        if bool((widths < 0).any()) or bool((right[:, :-1] > left[:, 1:]).any()):
            raise InputError("Samples.widths: expected widths >= 0 whose bins do not overlap; pass bins of one grid")
        for name, value in {
            "values": values,
            "weights": weights,
            "widths": widths,
            "_left": left,
            "_right": right,
            "_mass": _tail_sum(weights),
            "_moment": _tail_sum(weights * values),
        }.items():
            object.__setattr__(self, name, value)

    @property
    def groups(self) -> int:
        """G, the number of laws that are handled together."""
        return self.values.shape[0]

    @property
    def device(self) -> torch.device:
        """Where the law's tensors live, and so the results."""
        return self.values.device

    def mirrored(self) -> Samples:
        """The law of -x."""
        return self._mirror

    @cached_property
    def _mirror(self) -> Samples:
        return Samples(-self.values, self.weights, self.widths)  # sorted once, asked for with every step that is tried

    def survival(self, edge: Tensor, closed: bool = True) -> Tensor:
        """P(x >= edge), or P(x > edge) when not ``closed``; (G, E) -> (G, E)."""
        first, weight, cut, width = self._cut(edge, closed)
        return (self._mass.gather(1, first) - weight * cut / width).clamp_(min=0.0)

    def excess(self, edge: Tensor) -> Tensor:
        """E max(x - edge, 0); (G, E) -> (G, E)."""
        first, weight, cut, width = self._cut(edge, closed=True)
        whole = self._moment.gather(1, first) - edge * self._mass.gather(1, first)
        return (whole + weight * cut.square() / (2.0 * width)).clamp_(min=0.0)

    def power(self) -> Tensor:
        """E max(x, 0)^2; (G,)."""
        low, high = self._left.clamp(min=0.0), self._right.clamp(min=0.0)
        width = self._right - self._left
        share = torch.where(width > 0, (high - low) / width, 1.0)
        return (self.weights * share * (low.square() + low * high + high.square()) / 3.0).sum(1)

    def reach(self) -> tuple[Tensor, Tensor]:
        """The smallest scale and the largest magnitude that a step has to deal with; (G,) each."""
        magnitude = torch.where(self.weights > 0, torch.maximum(self._left.abs(), self._right.abs()), 0.0)
        return torch.where(magnitude > 0, magnitude, math.inf).amin(1), magnitude.amax(1)

    def _cut(self, edge: Tensor, closed: bool) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The first bin not wholly below ``edge``, and its weight, length below the edge, and width; (G, E) each."""
        edge = edge.contiguous()
        first = torch.searchsorted(self._right, edge, right=not closed)
        inside = first.clamp(max=self._right.shape[1] - 1)
        left, right = self._left.gather(1, inside), self._right.gather(1, inside)
        cut = torch.minimum(edge, right).sub_(left).clamp_(min=0.0)
        cut = torch.where(first == inside, cut, 0.0)
        width = torch.where(right > left, right - left, 1.0)  # a point is never cut: its length below the edge is 0
        return first, self.weights.gather(1, inside), cut, width


Law = NormalMixture | Samples


def _upper(z: Tensor) -> Tensor:
    return 0.5 * torch.erfc(z * math.sqrt(0.5))


def _density(z: Tensor) -> Tensor:
    return torch.exp(-0.5 * z.square()) * (1.0 / math.sqrt(2.0 * math.pi))


def _tail_sum(weights: Tensor) -> Tensor:
    return torch.nn.functional.pad(weights.flip(1).cumsum(1).flip(1), (0, 1))


def _table(name: str, value: Tensor, like: Tensor | None = None) -> Tensor:
    if value.dim() != 2 or value.numel() == 0 or (like is not None and value.shape != like.shape):
        expected = "(G, M), not empty" if like is None else str(tuple(like.shape))
        raise InputError(f"{name}: expected shape {expected}, got {tuple(value.shape)}; one row is one group")
    value = value.detach().to(torch.float64)
    if not bool(value.isfinite().all()):
        bad = int((~value.isfinite()).sum())
        raise InputError(f"{name}: expected finite values, got {bad} NaN or Inf; check the data they come from")
    return value
