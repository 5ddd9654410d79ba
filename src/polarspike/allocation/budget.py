"""Levels and step of every site under one budget: events, spikes, joules or bits per inference.

Every site has candidates c = (N, P, s, g), each with a loss and a cost that follow from the law of its input::

    minimize   sum_i L_i(c_i)     L_i = w_i E (q_c(x) - r(x))^2     w: :mod:`polarspike.analysis.sensitivity`
    such that  sum_i C_i(c_i) <= B,    C_i = neurons E[k != 0] (events) | neurons E|k| (spikes)
                                           | spikes x fan-out x price of an accumulate (joules) | neurons H(k) (bits)

For a price lambda of the budget every site takes its own minimum of ``L_i + lambda C_i``; bisection finds the smallest
lambda that the budget allows (Everett's generalized Lagrange multipliers, 1963), and single exchanges spend what it leaves.
A coarser step is a candidate, too: it fires less at the same levels. What is spent is then measured, with every site
quantized, and the budget tightened until the measurement keeps it.

On request a gain of 2^-m is one, too. Codes begin where they did, so it costs nothing (but for the second scale of weights
that joules count) and makes no value finer: it pays where a signal ends inside the cell of a negative code, as behind GELU
and SiLU, which end at -0.17 and -0.28, and the value s k of that code lies beyond.

Losses are of the second order, and too kind to coarse steps. So three choices are made that keep the budget: with all
candidates, with none much coarser than the step of least square error, and with the same levels everywhere; the first two
also with the gains put back, if any moved; and that is taken whose *measured* answers are nearest to the float network's.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor

from polarspike.allocation.candidates import (
    Gains,
    Option,
    Resource,
    candidates,
    cost,
    finer,
    least_loss,
    uniform,
    with_kept_gains,
    within,
)
from polarspike.allocation.meter import Meter
from polarspike.analysis.answers import Answers, Pair, error, float_answers, require_answers
from polarspike.analysis.observation import observe
from polarspike.analysis.sensitivity import sensitivities
from polarspike.common.checks import is_positive
from polarspike.common.modules import evaluating, require_ordinary
from polarspike.common.tables import aligned
from polarspike.energy import CostTable
from polarspike.errors import SpecError
from polarspike.quantized import QuantizedNetwork, require_calibrated, respecify
from polarspike.quantizers import PolarityQuantizer

_ROUNDS = 10
_CLOSE = 0.98  # of the budget
_COARSEST = (math.inf, 1.25)  # steps, as multiples of the step of least square error
_WIDTH = 120


@dataclass(frozen=True)
class AllocatedSite:
    """What one site was given.

    Attributes:
        name: of the site.
        former: its levels before.
        levels: ``(N, P)`` now. gain: of negative spikes, if there are any.
        smallest: the smallest step. largest: the largest one.
        events: measured, per image. spikes likewise.
        bits: entropy of the codes of all its neurons, per image, measured.
        loss: predicted loss of the answer through this site.
    """

    name: str
    former: tuple[int, int]
    levels: tuple[int, int]
    gain: float
    smallest: float
    largest: float
    events: float
    spikes: float
    bits: float
    loss: float


@dataclass(frozen=True)
class Allocation:
    """What :func:`allocate` did; ``str`` is a table.

    Attributes:
        resource: what the budget limits.
        budget: the most of it per image.
        before: what the network needed before, measured. spent: what it needs now, measured.
        error: how far the answers are from the float network's, measured: mean divergence in nats for classes, root mean
            square as a part of the answers for values.
        answers: what was compared.
        sites: by name, in the order in which a signal meets them.
    """

    resource: Resource
    budget: float
    before: float
    spent: float
    error: float
    answers: Answers
    sites: Mapping[str, AllocatedSite]

    def __str__(self) -> str:
        rows: list[tuple[str, ...]] = [("site", "levels", "were", "gain", "step", "events", "spikes", "bits", "loss")]
        for site in self.sites.values():
            steps = f"{site.smallest:.3g}"
            if site.largest != site.smallest:
                steps += f"..{site.largest:.3g}"
            pairs = [f"({low},{high})" for low, high in (site.levels, site.former)]
            gain = f"{site.gain:.2g}" if site.levels[0] else "-"
            counts = [f"{value:,.0f}" for value in (site.events, site.spikes, site.bits)]
            rows.append((site.name, *pairs, gain, steps, *counts, f"{site.loss:.2g}"))
        head = f"{self.resource} per image: {self.before:,.4g} before, {self.spent:,.4g} now, of at most {self.budget:,.4g}"
        unit = "nats" if self.answers == "classes" else "of their size"
        tail = f"answers are {self.error:.2g} {unit} from the float network's"
        return "\n".join([head, *aligned(rows, _WIDTH), tail])


def allocate(
    qann: QuantizedNetwork,
    batches: Iterable[Any] | Tensor,
    budget: float,
    resource: Resource = "spikes",
    *,
    answers: Answers = "values",
    table: CostTable | None = None,
    gains: Gains = "kept",
) -> Allocation:
    """Choose levels and step of every site, in place, so that an inference at T = 1 needs at most ``budget``.

    The levels that a site has are the most it may get: quantize with many. Where it has negative ones, they keep their
    ratio to the positive ones, or go altogether where they do not pay for themselves. Calibrate first; train afterwards,
    if at all: the choice follows from the float network.

    Args:
        qann: calibrated; evaluation mode is used and the former mode restored. On an error it is as it was.
        batches: an iterable of inputs or (inputs, target), or one tensor; read once and kept.
        budget: events, unit spikes, joules or bits per image (mean over the batches). Joules are the arithmetic of
            convention (b) of :mod:`polarspike.energy` at int8, counted on the first batch, with all that does not spike.
        resource: what the budget limits.
        answers: ``"classes"`` where the outputs hold scores of classes, see :mod:`polarspike.analysis.sensitivity`.
        table: prices for joules; 45 nm CMOS unless given.
        gains: ``"kept"``, or ``"dyadic"``: a fixed gain may become 2^-m, for a network that runs one timestep, or with
            holding neurons. It then stays fixed at that, in files and in training, and whole numbers can hold it (as after
            :func:`polarspike.snap_gains`). Learned gains, and those of sites that stand for zero below zero (ReLU), stay.
            More timesteps of polarity neurons refine the grid towards g x below zero, where the float network has x: do not
            ask for it where T grows.

    Raises:
        SpecError: not a quantized network, an argument is out of range, or no choice of levels keeps the budget: what the
            coarsest one needs is named.
        CalibrationError: a site has no step, no batch came, or NaN or Inf, with site and batch.
    """
    require_calibrated("allocate", qann)
    _check(budget, resource, answers, gains)
    if torch.is_inference_mode_enabled():
        raise SpecError("allocate: expected to be called outside of torch.inference_mode(): it needs gradients")
    require_ordinary("allocate", qann)
    with evaluating(qann):
        pairs = float_answers("allocate", qann, batches, answers)
    kept = [inputs for inputs, _ in pairs]
    former = qann.sites()
    laws = {name: seen.by_step.law() for name, seen in observe(qann, kept).items()}
    weights = sensitivities(qann, kept, answers)
    meter = Meter(qann, kept, resource, table)
    options = {
        name: candidates(site, laws[name], weights[name], meter.units(name), resource, meter.second_scale(name), gains)
        for name, site in qann.sites().items()
    }
    try:
        chosen, spent, apart = _best(qann, options, meter, budget, pairs, answers)
    except BaseException:
        for name, site in former.items():
            qann.network.set_submodule(name, site)
        raise
    return Allocation(resource, budget, meter.before, spent, apart, answers, _rows(qann, former, chosen, meter))


def _best(
    qann: QuantizedNetwork,
    options: Mapping[str, list[Option]],
    meter: Meter,
    budget: float,
    pairs: Sequence[Pair],
    answers: Answers,
) -> tuple[dict[str, Option], float, float]:
    """Apply the choice under the budget whose answers are nearest to the float network's: choice, cost, distance."""
    found = []
    for stretch in _COARSEST:
        try:
            chosen, spent = _settle(qann, finer(options, stretch), meter, budget)
        except SpecError:
            if math.isinf(stretch):
                raise  # nothing at all keeps the budget
            continue
        found.append((_error(qann, pairs, answers), chosen, spent))
        plain = with_kept_gains(chosen, options)
        if plain != chosen:
            _apply(qann, plain)
            spent = meter.measure()
            if spent <= budget:
                found.append((_error(qann, pairs, answers), plain, spent))
    for chosen in uniform(options):
        if cost(chosen) > 1.2 * (budget - meter.fixed):
            continue  # far beyond what is allowed: not worth measuring
        _apply(qann, chosen)
        spent = meter.measure()
        if spent <= budget:
            found.append((_error(qann, pairs, answers), chosen, spent))
            break
    apart, chosen, spent = min(found, key=lambda trial: trial[0])
    _apply(qann, chosen)
    meter.see()
    return chosen, spent, apart


def _error(qann: QuantizedNetwork, pairs: Sequence[Pair], answers: Answers) -> float:
    with evaluating(qann):
        return error(qann, pairs, answers)


def _settle(
    qann: QuantizedNetwork, options: Mapping[str, list[Option]], meter: Meter, budget: float
) -> tuple[dict[str, Option], float]:
    """Apply the choice whose measured cost comes closest to the budget from below; the laws only predict it."""
    cheapest = {name: min(site, key=lambda option: option.cost) for name, site in options.items()}
    best: tuple[dict[str, Option], float] | None = None
    allowed, highest = budget - meter.fixed, math.inf
    for _ in range(_ROUNDS):
        chosen = within(options, allowed) or cheapest
        _apply(qann, chosen)
        spent = meter.measure()
        if spent <= budget and (best is None or spent > best[1]):
            best = chosen, spent
        if _CLOSE * budget <= spent <= budget or (spent <= budget and chosen == least_loss(options)):
            break
        suggested = allowed * (budget - meter.fixed) / max(spent - meter.fixed, 1e-300) * 0.995
        if spent > budget:
            if chosen is cheapest:
                break
            # Below the predicted cost of what has just been measured, so that the next choice is another one.
            highest = min(highest, cost(chosen))
            allowed = min(suggested, 0.999 * highest)
        else:
            allowed = suggested if suggested < highest else (allowed + highest) / 2.0
    if best is None:
        _apply(qann, cheapest)
        spent = meter.measure()
        if spent > budget:
            raise SpecError(
                f"allocate: {meter.resource}={budget:g} cannot be kept: with the coarsest levels that these sites may get, "
                f"{spent:.4g} per image were measured; give a larger budget, or a smaller network"
            )
        best = cheapest, spent
    _apply(qann, best[0])
    return best


def _apply(qann: QuantizedNetwork, chosen: Mapping[str, Option]) -> None:
    for name, option in chosen.items():
        respecify(qann, name, option.spec, option.step)


@torch.no_grad()
def _rows(
    qann: QuantizedNetwork, former: Mapping[str, PolarityQuantizer], chosen: Mapping[str, Option], meter: Meter
) -> dict[str, AllocatedSite]:
    rows = {}
    for name, site in qann.sites().items():
        step = site.step.detach()
        rows[name] = AllocatedSite(
            name,
            former[name].levels,
            site.levels,
            float(site.gain),
            float(step.min()),
            float(step.max()),
            *meter.of(name),
            chosen[name].loss,
        )
    return rows


def _check(budget: object, resource: object, answers: object, gains: object) -> None:
    if not is_positive(budget):
        raise SpecError(f"allocate: budget: expected a positive number, got {budget!r}")
    if resource not in get_args(Resource):
        raise SpecError(f"allocate: resource: expected one of {', '.join(get_args(Resource))}, got {resource!r}")
    if gains not in get_args(Gains):
        raise SpecError(f"allocate: gains: expected one of {', '.join(get_args(Gains))}, got {gains!r}")
    require_answers("allocate", answers)
