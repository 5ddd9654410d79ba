"""The square error of a site split by its cause: rounding, clipping, polarity. Pure functions of the input's law.

A site decodes ``q(x) = s k`` for a code ``k >= 0`` and ``g s k`` below zero, where the float network has
``r(x) = min(x, c)`` for ``x >= 0`` and ``a x`` for ``x < 0`` (slope ``a``, ceiling ``c`` or none). The code before
clipping, ``u = floor(x / s + 1/2)``, cuts the inputs into disjoint parts, whose errors therefore sum to the whole::

    E (q - r)^2 = rounding + above + below + polarity
    rounding    = E (q - r)^2 where -N <= u <= P
    above       = E (q - r)^2 where u > P                clipping: above + below
    below       = E (q - r)^2 where u < -N, for N > 0
    polarity    = E (q - r)^2 where u < 0, for N = 0: negative signal that no code holds
                  for N > 0, what the gain costs: max(0, D(g) - D(a)), with D(g) the error of all x < 0 under gain g;
                  where it costs, the other parts below zero are those of the gain a

so that a gain that differs from the slope is never booked as rounding or clipping. Each side is computed from tails,
with ``e_k = (k - 1/2) s``, survival S, excess L(b) = E max(x - b, 0) and Q(b) = E max(x - b, 0)^2 (shown for c = inf)::

    E (g s k - a x)^2 over x >= 0  =  g^2 2 s sum_k e_k S(e_k) - 2 g a s sum_k (L(e_k) + e_k S(e_k)) + a^2 Q(0)
    the same over x >= b           =  d^2 S(b) - 2 a d L(b) + a^2 Q(b),    b = (K + 1/2) s,  d = g s K - a b

Everything is float64 and batched over the G groups of the law; errors are in squared units of the input.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from polarspike.errors import InputError
from polarspike.statistics.laws import Law, NormalMixture


@dataclass(frozen=True, kw_only=True)
class Shares:
    """What a site loses, as shares of its signal's power, and so comparable between sites.

    Attributes:
        power: E r(x)^2 of the float function, in squared units of the signal; every other figure is divided by it.
        rounding: square error of the inputs whose codes are inside the levels.
        above: of the inputs beyond the most positive code.
        below: of the inputs beyond the most negative code, where there is one.
        polarity: of the negative side, where no code holds it or the gain is not the float function's slope.
        negative: share of the power that is negative.
    """

    power: float
    rounding: float
    above: float
    below: float
    polarity: float
    negative: float

    @property
    def clipping(self) -> float:
        """``above + below``."""
        return self.above + self.below

    @property
    def error(self) -> float:
        """``E (q - r)^2 / E r^2``: the sum of the parts."""
        return self.rounding + self.clipping + self.polarity

    @property
    def snr(self) -> float:
        """Signal-to-noise ratio in dB, ``-10 log10(error)``; infinite where nothing is lost."""
        return decibels(self.error)


@dataclass(frozen=True)
class Distortion:
    """The parts of the square error of G groups; (G,) float64 each, in squared units. See :class:`Shares`."""

    power: Tensor
    rounding: Tensor
    above: Tensor
    below: Tensor
    polarity: Tensor
    negative: Tensor

    @property
    def error(self) -> Tensor:
        """The sum of the parts; (G,)."""
        return self.rounding + self.above + self.below + self.polarity

    def shares(self) -> Shares:
        """Over all groups, each with the same number of elements: the ratio of the means, not the mean of ratios."""
        power = self.power.mean()
        parts = (self.rounding, self.above, self.below, self.polarity, self.negative)
        # 0 / 0 is no loss; noise without a signal is infinite.
        rounding, above, below, polarity, negative = (
            (part.mean() / power).nan_to_num(nan=0.0, posinf=math.inf).item() for part in parts
        )
        return Shares(
            power=power.item(), rounding=rounding, above=above, below=below, polarity=polarity, negative=negative
        )

    def of_groups(self) -> Tensor:
        """``error / power`` of every group, NaN for a group without signal; (G,)."""
        return torch.where(self.power > 0, self.error / self.power, math.nan)


def distortion(
    law: Law,
    levels: tuple[int, int],
    step: Tensor,
    gain: float = 1.0,
    slope: float = 0.0,
    ceiling: float | None = None,
) -> Distortion:
    """Split the square error of a site by its cause; see the top of this module.

    Args:
        law: of the input, G groups.
        levels: ``(N, P)``.
        step: s > 0, 0-d or (G,).
        gain: g in [0, 1]; of no effect for N = 0.
        slope: a in [0, 1], of the float function below zero.
        ceiling: c > 0 of the float function, or None.

    Raises:
        InputError: a step that is not positive and finite, or of the wrong shape.
    """
    step = torch.as_tensor(step, dtype=torch.float64, device=law.device).detach()
    if step.dim() > 1 or (step.dim() == 1 and step.shape[0] not in (1, law.groups)):
        raise InputError(f"distortion.step: expected one number or shape ({law.groups},), got {tuple(step.shape)}")
    if not bool(((step > 0) & step.isfinite()).all()):
        raise InputError(f"distortion.step: expected positive finite numbers, got {step.tolist()}; calibrate the site")
    step = step.expand(law.groups)
    inside, above, power = _Side(law, step, levels[1], closed=True).parts(1.0, 1.0, ceiling)
    if levels[0] == 0 and slope == 0.0:
        none = torch.zeros_like(power)
        return Distortion(power, inside, above, none, none, none)
    left = _Side(law.mirrored(), step, levels[0], closed=False)
    lower, below, negative = left.parts(gain, slope)
    if levels[0] == 0:
        return Distortion(power + negative, inside + lower, above, torch.zeros_like(below), below, negative)
    # With the slope itself as the gain: what rounding and clipping alone would cost.
    ideal_lower, ideal_below, _ = left.parts(slope, slope)
    polarity = (lower + below) - (ideal_lower + ideal_below)
    costs = polarity > 0
    return Distortion(
        power + negative,
        inside + torch.where(costs, ideal_lower, lower),
        above,
        torch.where(costs, ideal_below, below),
        torch.where(costs, polarity, 0.0),
        negative,
    )


def best_gain(
    law: Law, levels: tuple[int, int], step: Tensor, slope: float, weight: Tensor | float = 1.0
) -> float | None:
    """The gain of least square error below zero, for given levels and step; it changes values, and never a code.

        g = a sum_G w E[s k x; x < 0] / sum_G w E[(s k)^2; x < 0],    at most 1

    Code ``k < 0`` begins at ``(k + 1/2) s``, so inside the levels g lies between a / 2 and a (slope ``a``): a / 2 where
    the signal ends right behind where its code begins, a where it is symmetric about the code.

    Args:
        law: of the input, G groups, which share the gain.
        levels: ``(N, P)``.
        step: s > 0, (G,) or 0-d.
        slope: a in [0, 1], of the float function below zero.
        weight: w of a unit of square error in each group, (G,) or one number.

    Returns:
        The gain, or None where no negative code of any weight occurs: every gain is as good.
    """
    if levels[0] == 0:
        return None
    step = torch.as_tensor(step, dtype=torch.float64, device=law.device).expand(law.groups)
    codes, product = _Side(law.mirrored(), step, levels[0], closed=False).moments()
    weight = torch.as_tensor(weight, dtype=torch.float64).to(law.device)
    power = float((weight * codes).sum())
    return min(slope * float((weight * product).sum()) / power, 1.0) if power > 0.0 else None


def decibels(error: float) -> float:
    """``-10 log10(error)``: 20 dB is 1 % of the power; infinite for no error.

    >>> decibels(0.01)
    20.0
    """
    return -10.0 * math.log10(error) if error > 0.0 else math.inf


class _Side:
    """The inputs x >= 0 of a law, quantized with K levels; the tails that every gain and slope shares."""

    def __init__(self, law: Law, step: Tensor, count: int, closed: bool) -> None:
        self.law, self.count = law, count
        self.step = step.unsqueeze(1)  # (G, 1)
        self.edges = (torch.arange(1, count + 1, dtype=step.dtype, device=step.device) - 0.5) * self.step  # (G, K)
        self.survival = law.survival(self.edges, closed)
        self.last = (count + 0.5) * self.step
        self.beyond = self._tails(self.last, closed)

    def parts(self, gain: float, slope: float, ceiling: float | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """The error inside the levels, the error beyond them, and the power of ``slope min(x, ceiling)``; (G,) each."""
        top = gain * self.count * self.step  # the value of the last code
        mean = self._means()
        power = self.law.power().unsqueeze(1)
        survival, excess, square = self.beyond
        miss = top - slope * self.last
        beyond = miss.square() * survival - 2.0 * slope * miss * excess + slope**2 * square
        if ceiling is not None:
            limit = torch.full_like(self.last, ceiling)
            _, over, over_square = self._tails(limit, closed=True)
            mean = torch.where(self.edges <= ceiling, mean - over, ceiling * self.survival)
            power = power - over_square - 2.0 * ceiling * over
            miss = top - slope * ceiling
            surplus = slope**2 * over_square - 2.0 * slope * miss * over  # (top - slope x)^2 - miss^2 over x >= ceiling
            beyond = torch.where(self.last < limit, beyond - surplus, miss.square() * survival)
        codes, product = self._moments(mean)
        whole = gain**2 * codes - 2.0 * gain * slope * product + slope**2 * power
        beyond = beyond.clamp(min=0.0)
        inside = (whole - beyond).clamp(min=0.0)
        return inside.squeeze(1), beyond.squeeze(1), (slope**2 * power).clamp(min=0.0).squeeze(1)

    def moments(self) -> tuple[Tensor, Tensor]:
        """E (s k)^2 and E s k x; (G,) each."""
        codes, product = self._moments(self._means())
        return codes.squeeze(1), product.squeeze(1)

    def _means(self) -> Tensor:
        """E[x; x >= e_k]; (G, K)."""
        return self.law.excess(self.edges) + self.edges * self.survival

    def _moments(self, mean: Tensor) -> tuple[Tensor, Tensor]:
        """E (s k)^2 and E s k y from E[y; x >= e_k]; (G, 1) each."""
        codes = 2.0 * self.step * (self.edges * self.survival).sum(1, keepdim=True)
        return codes, self.step * mean.sum(1, keepdim=True)

    def _tails(self, edge: Tensor, closed: bool) -> tuple[Tensor, Tensor, Tensor]:
        """S, L and Q at one edge of every group; (G, 1) each."""
        return self.law.survival(edge, closed), self.law.excess(edge), _excess_square(self.law, edge).unsqueeze(1)


def _excess_square(law: Law, edge: Tensor) -> Tensor:
    """E max(x - edge, 0)^2; (G, 1) -> (G,)."""
    if isinstance(law, NormalMixture):
        return NormalMixture(law.mean - edge, law.std).power()
    # Not the power of shifted samples: shifting rounds, and bins that touch would overlap by the last digit.
    widths = torch.zeros_like(law.values) if law.widths is None else law.widths
    distance = law.values - edge
    low, high = (distance - widths / 2).clamp(min=0.0), (distance + widths / 2).clamp(min=0.0)
    share = torch.where(widths > 0, (high - low) / widths, 1.0)
    return (law.weights * share * (low.square() + low * high + high.square()) / 3.0).sum(1)
