"""What each site of a calibrated network loses, why, what that does to the output, and what to do about it.

For a site with input x, float function r and decoded codes q, over the calibration batches::

    error  = E (q - r)^2 / E r^2 = rounding + clipping + polarity          (see :mod:`polarspike.statistics.distortion`)
    SNR    = -10 log10(error)  in dB                                       20 dB is 1 % of the signal's power
    effect = |y_site - y_float|^2 / |y_float|^2                            y: the network's output on the first batch

where ``y_site`` is the output with that site quantized and all others float. Errors are what a site does to its own
signal; the effect is how much of it arrives, and names the sites that hurt.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polarspike.analysis.advice import Advice, SiteLaws, advise
from polarspike.analysis.observation import Observed, observe
from polarspike.common.inputs import Inputs, batches_of, float_leaves, to_device
from polarspike.common.modules import apply, device_of, evaluating
from polarspike.common.tables import aligned, fitted
from polarspike.errors import SpecError
from polarspike.information import code_probabilities, entropy
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import QuantSpec
from polarspike.statistics.distortion import Shares, decibels, distortion

WIDTH = 120
_TOP = 5
# An output that is off by more than this share of its power is told to take more levels.
_TOLERABLE = 0.01


@dataclass(frozen=True, kw_only=True)
class SiteDiagnosis(Shares):
    """One site: the parts of its error (see :class:`~polarspike.statistics.distortion.Shares`) and what its codes are like.

    Attributes:
        name: of the site.
        levels: ``(N, P)``.
        gain: of negative spikes.
        smallest: the smallest step, in the units of the signal. largest likewise.
        bits: entropy of the codes; the mean over channels where each has its own step.
        used: share of the levels that occur at all.
        nonzero: share of the codes that are not zero.
        channels: how many there are; 1 where they cannot be told apart.
        dead: the channels that carry no signal in the float network.
        worst: the channel with the lowest signal-to-noise ratio among the others, or None for a single one.
        worst_snr: its ratio in dB; the site's where there is a single channel.
        spread: the largest root mean square of a channel's signal over the smallest that is not zero.
        effect: relative square error of the network's output with only this site quantized; None if not measured.
        advice: what to do.
    """

    name: str
    levels: tuple[int, int]
    gain: float
    smallest: float
    largest: float
    bits: float
    used: float
    nonzero: float
    channels: int
    dead: tuple[int, ...]
    worst: int | None
    worst_snr: float
    spread: float
    effect: float | None
    advice: Advice


@dataclass(frozen=True)
class Diagnosis:
    """What :func:`diagnose` found; ``str(diagnosis)`` is a table with the advice below it.

    Attributes:
        sites: by name, in the order in which a signal meets them.
        batches: how many the statistics come from.
        passes: forward passes of the first batch that the effects took; 0 without effects.
        combined: relative square error of the output with all sites quantized; None without effects.
    """

    sites: Mapping[str, SiteDiagnosis]
    batches: int
    passes: int
    combined: float | None

    @property
    def advised(self) -> dict[str, Advice]:
        """The advice of the sites that need one."""
        return {name: site.advice for name, site in self.sites.items() if site.advice.changes}

    @property
    def hurting(self) -> tuple[SiteDiagnosis, ...]:
        """The five sites of largest effect, the worst first; empty without effects."""
        measured = [site for site in self.sites.values() if site.effect is not None]
        return tuple(sorted(measured, key=lambda site: -(site.effect or 0.0))[:_TOP])

    @property
    def advice(self) -> str:
        """One line for the network."""
        parts = []
        if self.combined is not None and self.combined > 0.0 and self.hurting:
            first = self.hurting[0]
            parts.append(
                f"all sites together put the output off by {_percent(self.combined)} of its power, "
                f"{first.name} alone by {_percent(first.effect or 0.0)}"
            )
        kinds = [
            ", ".join(f"{key}={value!r}" for key, value in sorted(a.changes.items())) for a in self.advised.values()
        ]
        if kinds:
            common = max(dict.fromkeys(kinds), key=kinds.count)
            parts.append(
                f"{len(kinds)} of {len(self.sites)} sites need a change, {kinds.count(common)} of them {common}"
            )
        else:
            least = min((site.snr for site in self.sites.values()), default=math.inf)
            parts.append(f"nothing to change: every site has {least:.1f} dB or more, near the best of its levels")
            if self.combined is not None and self.combined > _TOLERABLE and self.hurting:
                parts.append(f"what is left takes more levels, first at {self.hurting[0].name}")
        return "; ".join(parts)

    def follow(self, spec: QuantSpec) -> QuantSpec:
        """The spec that the network was quantized with, changed at every site as advised; quantize and calibrate with it.

        Patterns of ``spec.overrides`` stay where they still own a site; the sites with advice are overridden by name.
        """
        changed = {
            name: dataclasses.replace(spec.at(name), overrides={}, **advice.changes)
            for name, advice in self.advised.items()
        }
        others = [spec.at(name) for name in self.sites if name not in changed]
        kept = {pattern: local for pattern, local in spec.overrides.items() if any(local is other for other in others)}
        # A spec with nothing left to learn is refused; without negative levels the gain plays no part.
        learns = any(site.levels[0] for name, site in self.sites.items() if name not in changed)
        gain = 1.0 if spec.gain == "learned" and not learns else spec.gain
        return dataclasses.replace(spec, gain=gain, overrides={**changed, **kept})

    def __str__(self) -> str:
        effects = self.combined is not None
        head = [
            "site",
            "levels",
            "SNR dB",
            "round",
            "clip",
            "polar",
            "bits",
            "used",
            "nonzero",
            "dead",
            "worst channel",
        ]
        rows = [head + ["effect"] * effects, *(_row(site) for site in self.sites.values())]
        lines = [
            f"{len(self.sites)} sites, {self.batches} batches; round, clip, polar: square error in % of the signal's power",
            *aligned(rows, WIDTH),
        ]
        if effects:
            lines += fitted(
                f"effect: square error of the output in % of its power with one site quantized at a time ({self.passes} "
                f"passes of the first batch); all sites: {_percent(self.combined or 0.0)}",
                WIDTH,
            )
            hurting = ", ".join(f"{site.name} {_percent(site.effect or 0.0)}" for site in self.hurting)
            lines += fitted(f"largest effects: {hurting}", WIDTH)
        for name, advice in self.advised.items():
            lines += fitted(f"{name}: {advice.text}", WIDTH)
        return "\n".join([*lines, *fitted(f"network: {self.advice}", WIDTH)])


def diagnose(qann: QuantizedNetwork, batches: Iterable[Any] | Tensor, *, effects: bool = True) -> Diagnosis:
    """Find what each site loses by rounding, clipping and missing polarity, and one line of advice for each.

    The errors come from one pass of the float network over the batches (every site then behaves as the activation that
    it replaced), so they do not contain what earlier sites did to the signal. The effects are measured on the first
    batch, one forward pass per site and two more: the float network's, and the one with every site quantized.

    Args:
        qann: a calibrated network; evaluation mode is used and the former mode restored, nothing is changed.
        batches: an iterable of inputs or (inputs, target), or one tensor; those of the calibration, or others.
        effects: measure each site's effect on the output.

    Raises:
        SpecError: not a quantized network.
        CalibrationError: a site has no step, no batch came, or NaN or Inf, with site and batch.
    """
    if not isinstance(qann, QuantizedNetwork):
        raise SpecError(f"diagnose: expected what polarspike.quantize returns, got {type(qann).__name__}")
    sites = qann.sites()
    for site in sites.values():
        site.require_calibrated()
    first: list[Inputs] = []
    with torch.no_grad():
        seen = observe(qann, _keeping_first(batches, first), by_channel=True)
        alone, combined = _effects(qann, sites, first[0]) if effects else ({}, None)
        found = {name: _diagnosis(name, site, seen[name], alone.get(name)) for name, site in sites.items()}
    count = max((observed.batches for observed in seen.values()), default=0)
    return Diagnosis(found, count, len(sites) + 2 if effects else 0, combined)


def _keeping_first(batches: Iterable[Any] | Tensor, first: list[Inputs]) -> Iterator[tuple[Inputs, Any]]:
    for inputs, target in batches_of(batches):
        if not first:
            first.append(inputs)
        yield inputs, target


def _diagnosis(name: str, site: PolarityQuantizer, seen: Observed, effect: float | None) -> SiteDiagnosis:
    spec, step, gain = site.spec, site.step.detach().double().cpu(), float(site.gain)
    law = seen.by_step.law()
    shares = distortion(law, spec.levels, step, gain, spec.slope, spec.ceiling).shares()
    codes = code_probabilities(law, spec.levels, step).mean(0)
    bits = entropy(spec.levels, step, law).mean().item()
    # The least that a code seen once can have; bins and rounding leave crumbs below it.
    once = 0.5 / (seen.by_step.elements * seen.by_step.groups)
    channels = seen.by_channel.law() if seen.by_channel is not None else law
    parts = distortion(channels, spec.levels, step, gain, spec.slope, spec.ceiling)
    ratios, alive = parts.of_groups(), parts.power > 0
    several = channels.groups > 1 and bool(alive.any())
    worst = int(ratios.nan_to_num(nan=-1.0).argmax()) if several else None
    spread = (parts.power[alive].max() / parts.power[alive].min()).sqrt().item() if several else 1.0
    by_channel = channels if seen.by_channel is not None else None
    return SiteDiagnosis(
        **vars(shares),
        name=name,
        levels=spec.levels,
        gain=gain,
        smallest=step.min().item(),
        largest=step.max().item(),
        bits=bits,
        used=(codes > once).double().mean().item(),
        nonzero=1.0 - codes[spec.negative].item(),
        channels=channels.groups,
        dead=tuple(torch.nonzero(~alive).flatten().tolist()),
        worst=worst,
        worst_snr=shares.snr if worst is None else decibels(ratios[worst].item()),
        spread=spread,
        effect=effect,
        advice=advise(SiteLaws(spec, gain, law, by_channel, shares, spread)),
    )


def _effects(
    qann: QuantizedNetwork, sites: Mapping[str, PolarityQuantizer], inputs: Inputs
) -> tuple[dict[str, float], float]:
    """The relative square error of the output with each site quantized alone, and with all of them."""
    inputs = to_device(inputs, device_of(qann))
    with evaluating(qann):
        combined = _signals(apply(qann, inputs))
        with qann.float_activations():
            expected = _signals(apply(qann, inputs))
            alone = {}
            for name, site in sites.items():
                site.enabled = True
                alone[name] = _relative(_signals(apply(qann, inputs)), expected)
                site.enabled = False
    return alone, _relative(combined, expected)


def _signals(output: Any) -> list[Tensor]:
    """The float leaves of an output, in float64."""
    return [leaf.double() for leaf in float_leaves(output)]


def _relative(got: list[Tensor], expected: list[Tensor]) -> float:
    noise = sum(float((a - b).square().sum()) for a, b in zip(got, expected, strict=True))
    power = sum(float(leaf.square().sum()) for leaf in expected)
    return noise / power if power > 0.0 else math.inf if noise > 0.0 else 0.0


def _row(site: SiteDiagnosis) -> list[str]:
    worst = "-" if site.worst is None else f"{site.worst}: {site.worst_snr:.1f} dB"
    row = [site.name, f"({site.levels[0]},{site.levels[1]})", f"{site.snr:.1f}"]
    row += [_percent(part) for part in (site.rounding, site.clipping, site.polarity)]
    row += [f"{site.bits:.2f}", f"{site.used:.0%}", f"{site.nonzero:.0%}", f"{len(site.dead)}/{site.channels}", worst]
    return row if site.effect is None else [*row, _percent(site.effect)]


def _percent(share: float) -> str:
    return f"{100.0 * share:.2g} %" if share < 0.0995 else f"{100.0 * share:.0f} %"
