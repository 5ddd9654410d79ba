"""Gains and steps that whole numbers can hold: powers of two."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from polarspike.analysis.observation import observe
from polarspike.bounds import LEAST_START
from polarspike.quantized import QuantizedNetwork, require_calibrated
from polarspike.quantizers import PolarityQuantizer
from polarspike.sites import dyadic_gains
from polarspike.statistics.distortion import distortion
from polarspike.statistics.laws import Law

#: Exponents of steps: down to the least start of a site, and up to where float32 still holds many of them.
_EXPONENTS = (round(math.log2(LEAST_START)), 100)


@torch.no_grad()
def snap_gains(qann: QuantizedNetwork) -> dict[str, tuple[float, float]]:
    """Move every gain to the nearest of 0, 1, 1/2, 1/4, ..., in place, and keep it there.

    With a gain of 2^-m a negative code is worth 2^-m of a positive one, so in units of ``2^-m s`` all values of the site are
    whole numbers, and the network can be exported to integer kernels. Powers are as small as a byte allows:
    ``N + 2^m P <= 255``. A gain that goes to 0 takes the negative levels with it, as :func:`polarspike.prune` does. A little
    more training (:func:`polarspike.fit`) makes up for what moved, with the gains fixed.

    Args:
        qann: calibrated, usually trained with ``gain="learned"``.

    Returns:
        For each site whose gain moved or is no longer learned, what it was and what it is.

    Raises:
        SpecError: not a quantized network.
        CalibrationError: a site has no step.
    """
    require_calibrated("snap_gains", qann)
    moved = {}
    for name, site in qann.sites().items():
        negative, positive = site.levels
        gain = float(site.gain)
        if not negative:
            continue
        kept = gain == 0.0 or math.frexp(gain)[0] == 0.5  # a power of two
        near = (
            gain
            if kept
            else min((0.0, *dyadic_gains(negative, positive)), key=lambda value: (abs(value - gain), value))
        )
        if near == gain and not site.spec.learned_gain:
            continue
        levels = {"negative": 0, "gain": 1.0} if near == 0.0 else {"gain": near}
        qann.network.set_submodule(name, site.with_fixed_gain(**levels))
        moved[name] = (gain, near)
    return moved


@torch.no_grad()
def snap_steps(
    qann: QuantizedNetwork, batches: Iterable[Any] | Tensor | None = None
) -> dict[str, tuple[Tensor, Tensor]]:
    """Move every step to a power of two, in place, and keep it there.

        s -> 2^round(log2 s)                                            without batches: within a factor of sqrt(2)
        s -> argmin E (q - r)^2 over 2^(floor(log2 s) - 1, ..., + 2)    with them: of least square error at its site

    Values of codes are then exact in any arithmetic, and with weights that are whole numbers over a power of two
    (:func:`polarspike.quantize_weights` with ``dyadic=True``) so are sums: no order of summation changes a code. The step of
    a site with a ceiling (ReLU6) stays at most ceiling / P. A step that is a power of two stays as it is.

    Steps are fixed from now on: :func:`polarspike.fit`, :func:`polarspike.distill` and loops of your own move the weights
    alone, which make up for what moved. (A power of two that follows its gradient would jump by a factor of two at a
    time.) :func:`polarspike.calibrate` and :func:`polarspike.allocate` choose steps anew; snap them again afterwards.

    Args:
        qann: calibrated, trained or not.
        batches: inputs or (inputs, target), as for :func:`polarspike.calibrate`: what the square error is taken on.

    Returns:
        For each site whose step moved or is no longer learned, what it was and what it is; 0-d, or (C,).

    Raises:
        SpecError: not a quantized network.
        CalibrationError: a site has no step; no batch came; NaN or Inf, with site and batch.
    """
    require_calibrated("snap_steps", qann)
    laws: dict[str, Law] = {}
    if batches is not None:
        laws = {name: seen.by_step.law() for name, seen in observe(qann, batches).items()}
    moved = {}
    for name, site in qann.sites().items():
        dyadic = site.dyadic
        if dyadic and not site.spec.learned_step:
            continue
        before = site.step.detach().clone()
        after = before if dyadic else _power(site, laws.get(name)).to(before)
        qann.network.set_submodule(name, site.with_fixed_step(after))
        moved[name] = (before, after.clone())
    return moved


def _power(site: PolarityQuantizer, law: Law | None) -> Tensor:
    """The power of two for each step of a site, float64 on the CPU; those that are powers already stay."""
    step = site.step.detach().double().cpu()
    low, high = _EXPONENTS
    if site.spec.ceiling is not None:
        high = math.floor(math.log2(site.spec.ceiling / site.spec.positive))
    mantissa, exponent = torch.frexp(step)  # s = mantissa 2^exponent, 1/2 <= mantissa < 1
    nearest = torch.log2(step).round().clamp(low, high)
    best = _ldexp(nearest)
    if law is not None:
        least = _error(site, law, best)
        for offset in (-2, -1, 0, 1):  # from a quarter of the step to four times it
            power = _ldexp((exponent + offset).clamp(low, high))
            error = _error(site, law, power)
            better = error < least  # never for a channel without a signal: it keeps the nearest
            best, least = torch.where(better, power, best), torch.where(better, error, least)
    return torch.where(mantissa == 0.5, step, best)


def _ldexp(exponent: Tensor) -> Tensor:
    return torch.ldexp(torch.ones_like(exponent, dtype=torch.float64), exponent.to(torch.int32))


def _error(site: PolarityQuantizer, law: Law, step: Tensor) -> Tensor:
    gain = float(site.gain) if site.spec.negative else 1.0
    error = distortion(law, site.levels, step.to(law.device), gain, site.slope, site.spec.ceiling).error
    return error.cpu().view_as(step)
