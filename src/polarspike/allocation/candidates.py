"""What a site may get under a budget, and the choice among all sites for a price of the budget; pure functions of laws.

Every candidate (N, P, s, g) has a loss and a cost, see :mod:`polarspike.allocation.budget`.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from polarspike.information import best_step, code_probabilities
from polarspike.quantizers import PolarityQuantizer
from polarspike.sites import dyadic_gains
from polarspike.specs import SiteSpec
from polarspike.statistics.distortion import best_gain, distortion
from polarspike.statistics.laws import Law

#: What a budget limits.
Resource = Literal["events", "spikes", "joules", "bits"]
#: Whether a site keeps the gain of its negative spikes, or may get a power of two.
Gains = Literal["kept", "dyadic"]

_SIZES = (1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 15, 20, 24, 31, 48, 63, 96, 127, 255)
_STRETCHES = (0.7, 0.8, 0.9, 1.0, 1.1, 1.25, 1.4, 1.6, 1.8, 2.0, 2.3, 2.7, 3.2)  # of the step of least square error


@dataclass(frozen=True, eq=False)  # compared by identity: tensors have no single answer
class Option:
    """Levels, gain and step that a site may get, with the loss of the answer and the cost per image that they predict.

    ``stretch`` is the step over that of least square error; ``kept`` says that the gain is what it was.
    """

    spec: SiteSpec
    step: Tensor
    stretch: float
    kept: bool
    loss: float
    cost: float


@torch.no_grad()
def candidates(
    site: PolarityQuantizer,
    law: Law,
    weight: Tensor,
    units: float,
    resource: Resource,
    second_scale: float = 0.0,
    gains: Gains = "kept",
) -> list[Option]:
    """Every candidate of one site.

    Args:
        site: as it is; its levels are the most.
        law: of its input.
        weight: loss per unit of square error, (G,).
        units: the cost per neuron's event, spike or bit, over all its neurons.
        resource: what costs.
        second_scale: what a gain other than 0 and 1 costs beside that, whatever fires.
        gains: whether a power of two may take the place of a fixed gain.
    """
    spec, present, slope = site.spec, float(site.gain), site.slope
    found = []
    for negative, positive in _levels(spec):
        kept_gain = present if negative else 1.0
        learned = spec.learned_gain and negative > 0
        kept = dataclasses.replace(spec, negative=negative, positive=positive, learned_gain=learned, gain=kept_gain)
        best = best_step((negative, positive), "mse", law, kept_gain)
        best = torch.where(best > 0, best, best[best > 0].median() if bool((best > 0).any()) else 1.0)
        for stretch in _STRETCHES:
            step = best * stretch
            if spec.ceiling is not None:
                step = step.clamp(max=spec.ceiling / positive)
            codes = code_probabilities(law, (negative, positive), step)
            fired = units * float(amount(codes, negative, resource).mean())
            for gain in [kept_gain] if gains == "kept" else _gains(kept, law, step, weight):
                error = distortion(law, (negative, positive), step, gain, slope, spec.ceiling).error
                scaled = negative > 0 and gain not in (0.0, 1.0)
                found.append(
                    Option(
                        kept if gain == kept_gain else dataclasses.replace(kept, gain=gain),
                        (step if spec.channels else step[0]).float(),
                        stretch,
                        gain == kept_gain,
                        float((error.cpu() * weight).sum()),
                        fired + (second_scale if scaled else 0.0),
                    )
                )
    return found


def _gains(spec: SiteSpec, law: Law, step: Tensor, weight: Tensor) -> list[float]:
    """The gain that a site has, and the power of two of least loss at this step if that is better.

    The codes are the same for every gain. A learned gain stays what training made of it; and where the float function is
    zero below zero, least squares would only bring negative codes to nothing, which no negative levels do for less.
    """
    if spec.learned_gain or spec.slope == 0.0:
        return [spec.gain]
    ideal = best_gain(law, spec.levels, step, spec.slope, weight)
    if ideal is None:
        return [spec.gain]
    # The loss is a parabola about the ideal gain: what is nearest is best.
    nearest = min((spec.gain, *dyadic_gains(*spec.levels)), key=lambda gain: abs(gain - ideal))
    return [spec.gain] if nearest == spec.gain else [spec.gain, nearest]


def amount(codes: Tensor, negative: int, resource: Resource) -> Tensor:
    """Events, spikes or bits per neuron from the probabilities of its codes, (G, N + P + 1) -> (G,)."""
    if resource == "events":
        return 1.0 - codes[:, negative]
    if resource == "bits":
        bits: Tensor = -torch.special.xlogy(codes, codes).sum(1) / math.log(2.0)
        return bits
    sizes = (torch.arange(codes.shape[1], dtype=codes.dtype, device=codes.device) - negative).abs()
    spikes: Tensor = (codes * sizes).sum(1)
    return spikes


def _levels(spec: SiteSpec) -> list[tuple[int, int]]:
    """The levels a site may get: not more than it has, negative ones in the same ratio or none."""
    found = []
    for positive in sorted({size for size in _SIZES if size < spec.positive} | {spec.positive}):
        if spec.negative:
            found.append((max(1, round(spec.negative * positive / spec.positive)), positive))
        if spec.negative == 0 or spec.slope < 1.0:
            found.append((0, positive))
    return found


def finer(options: Mapping[str, list[Option]], stretch: float) -> dict[str, list[Option]]:
    """The candidates whose step is stretched by at most ``stretch``."""
    return {name: [option for option in site if option.stretch <= stretch] for name, site in options.items()}


def with_kept_gains(chosen: Mapping[str, Option], options: Mapping[str, list[Option]]) -> dict[str, Option]:
    """The same levels and steps with the gains that were there."""
    return {
        name: next(
            other
            for other in options[name]
            if other.kept and other.spec.levels == option.spec.levels and other.stretch == option.stretch
        )
        for name, option in chosen.items()
    }


def uniform(options: Mapping[str, list[Option]]) -> list[dict[str, Option]]:
    """The same P everywhere (or the most that a site may get), largest P first, at the step of least square error.

    The gains are those that were there.
    """
    plain = {
        name: [option for option in site if option.stretch == 1.0 and option.kept] for name, site in options.items()
    }
    sizes = {option.spec.positive for site in plain.values() for option in site}
    return [
        {
            # Among equal P, with negative levels where a site has any.
            name: max(
                (option for option in site if option.spec.positive <= size),
                key=lambda option: (option.spec.positive, option.spec.negative),
            )
            for name, site in plain.items()
        }
        for size in sorted(sizes, reverse=True)
    ]


def cost(choice: Mapping[str, Option]) -> float:
    """The predicted cost of a choice, per image."""
    return sum(option.cost for option in choice.values())


def least_loss(options: Mapping[str, list[Option]], price: float = 0.0) -> dict[str, Option]:
    """What every site takes if a unit of the budget costs ``price``."""
    return {name: min(site, key=lambda o: (o.loss + price * o.cost, o.cost)) for name, site in options.items()}


def within(options: Mapping[str, list[Option]], allowed: float) -> dict[str, Option] | None:
    """The choice of least loss whose predicted cost is at most ``allowed``; None where there is none."""
    free = least_loss(options)
    if cost(free) <= allowed:
        return free
    if sum(min(option.cost for option in site) for site in options.values()) > allowed:
        return None
    low, high = 0.0, 1e-12
    while cost(least_loss(options, high)) > allowed and high < 1e300:
        low, high = high, high * 10.0
    for _ in range(60):
        middle = (low + high) / 2.0 if low == 0.0 else math.sqrt(low * high)
        low, high = (low, middle) if cost(least_loss(options, middle)) <= allowed else (middle, high)
    chosen = least_loss(options, high)
    return _filled(chosen, options, allowed) if cost(chosen) <= allowed else None


def _filled(chosen: dict[str, Option], options: Mapping[str, list[Option]], allowed: float) -> dict[str, Option]:
    """The choice with what a price leaves unspent spent, too: the best exchange at one site that fits, again and again."""
    while True:
        left = allowed - cost(chosen)
        better = [
            ((former.loss - option.loss) / max(option.cost - former.cost, 1e-300), name, option)
            for name, former in chosen.items()
            for option in options[name]
            if option.loss < former.loss and option.cost - former.cost <= left
        ]
        if not better:
            return chosen
        _, name, option = max(better, key=lambda row: row[0])
        chosen = {**chosen, name: option}
