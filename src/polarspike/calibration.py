"""Choose the step of every site: from calibration batches, or without data from batch-norm parameters."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from polarspike.analysis.observation import observe
from polarspike.errors import CalibrationError, PolarspikeWarning, SpecError
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import meaning_of
from polarspike.information import Law, NormalMixture, best_step, entropy
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec
from polarspike.statistics.streaming import StreamingHistogram

_PERCENTILE = 0.999
# QCFS starts every layer at lambda = 8 whatever its levels, so that s = 8 / P.
_QCFS_THRESHOLD = 8.0


@dataclass(frozen=True)
class CalibratedSite:
    """One row of a calibration.

    Attributes:
        name: of the site.
        smallest: the smallest step of the site, in the units of its signal.
        largest: the largest one.
        bits: entropy of the codes, the mean over channels.
        dead: channels that never carried a signal (0 for the whole site where it has one step).
    """

    name: str
    smallest: float
    largest: float
    bits: float
    dead: tuple[int, ...]

    def __str__(self) -> str:
        steps = f"{self.smallest:.4g}" if self.smallest == self.largest else f"{self.smallest:.4g}..{self.largest:.4g}"
        return f"{self.name}: step {steps}, {self.bits:.2f} bits" + (f", {len(self.dead)} dead" if self.dead else "")


def calibrate(qann: QuantizedNetwork, batches: Iterable[Any] | Tensor | None) -> tuple[CalibratedSite, ...]:
    """Set the step of every site, in place, by the strategy that its spec names.

    ``entropy`` maximizes the entropy of the codes, ``mse`` minimizes the square error against the float activation (of
    ReLU6 without its ceiling, which then bounds the step),
    ``lsq`` takes 2 mean|r(x)| / sqrt(P), ``percentile`` puts the 99.9 % quantile at the last level (the largest value where
    fewer than one in a thousand are above zero), ``qcfs`` takes 8 / P.
    The statistics are those of the float network (every site behaves as the activation that it replaced), streamed in
    one pass with memory that does not grow with the number of batches.

    Args:
        qann: what :func:`polarspike.quantize` made; evaluation mode is used and the former mode restored.
        batches: an iterable of inputs or (inputs, target); None to use the laws N(beta, gamma^2) that batch norms
            promise, for the strategies ``entropy``, ``mse`` and ``qcfs``.

    Returns:
        One row per site.

    Raises:
        CalibrationError: no batch came; NaN or Inf, with layer and batch; without data, a site that no batch norm feeds.
        SpecError: not a quantized network.

    Warns:
        PolarspikeWarning: a channel that never carries a signal; it keeps a step like its neighbours' and stays alive.
    """
    if not isinstance(qann, QuantizedNetwork):
        raise SpecError(f"calibrate: expected what polarspike.quantize returns, got {type(qann).__name__}")
    sites = qann.sites()
    with torch.no_grad():
        if batches is None:
            laws = {name: law_of_batch_norm(qann, name) for name in sites}
            rows = tuple(_set_step(name, site, laws[name], None) for name, site in sites.items())
        else:
            seen = {name: observed.by_step for name, observed in observe(qann, batches).items()}
            rows = tuple(_set_step(name, site, seen[name].law(), seen[name]) for name, site in sites.items())
    if dead := [f"{row.name} {list(row.dead[:6])}" for row in rows if row.dead]:
        warnings.warn(
            f"channels that never carry a signal, at {len(dead)} sites: {', '.join(dead)}; they were given a step like "
            "their neighbours' and stay trainable",
            PolarspikeWarning,
            stacklevel=2,
        )
    return rows


def _set_step(name: str, site: PolarityQuantizer, law: Law, statistics: StreamingHistogram | None) -> CalibratedSite:
    steps = _steps(name, site, law, statistics).to(torch.float64).cpu()
    alive = torch.isfinite(steps) & (steps > 0)
    # A dead channel keeps a step like its neighbours', so that it works if training revives it.
    steps = torch.where(alive, steps, steps[alive].median() if bool(alive.any()) else torch.ones(()).double())
    dead = tuple(torch.nonzero(~alive).flatten().tolist())
    if site.spec.ceiling is not None:
        steps = steps.clamp(max=site.spec.ceiling / site.spec.positive)
    site.set_step(steps if site.spec.channels else steps[0])
    bits = entropy(site.levels, steps.to(law.device), law)
    return CalibratedSite(name, float(steps.min()), float(steps.max()), float(bits.mean()), dead)


def _steps(name: str, site: PolarityQuantizer, law: Law, statistics: StreamingHistogram | None) -> Tensor:
    spec = site.spec
    gain = float(site.gain) if spec.negative else 0.0  # as it is now: a learned one has left where it started
    if spec.init in ("entropy", "mse"):
        return best_step(site.levels, spec.init, law, gain)
    if spec.init == "qcfs":
        return torch.full((max(1, spec.channels),), _QCFS_THRESHOLD / spec.positive)
    if statistics is None:
        raise CalibrationError(
            f"site {name!r}: init={spec.init!r} needs data; give calibration batches, or init='entropy' or 'mse'"
        )
    if spec.init == "lsq":
        return 2.0 * statistics.mean_magnitude(gain) / math.sqrt(spec.positive)
    step = _at_last_level(spec, statistics.quantile(1.0 - _PERCENTILE), statistics.quantile(_PERCENTILE))
    # A signal that is rarer than the percentile is not a dead one: its largest value tells its scale.
    return torch.where(step > 0, step, _at_last_level(spec, statistics.minimum, statistics.maximum))


def _at_last_level(spec: SiteSpec, low: Tensor, high: Tensor) -> Tensor:
    """The step that puts ``low`` and ``high``, whichever is further out, at a last level; (G,) each."""
    above = high / spec.positive
    return torch.maximum(above, -low / spec.negative) if spec.negative else above


def law_of_batch_norm(qann: QuantizedNetwork, name: str) -> NormalMixture:
    """The law of a site that a batch norm feeds: N(beta, gamma^2) per channel, a mixture of them for one step.

    Raises:
        CalibrationError: no batch norm with learned scale and shift feeds the site directly.
    """
    node = next(node for node in qann.network.graph.nodes if node.op == "call_module" and node.target == name)
    source = node.args[0]
    norm: nn.Module | None = None
    if isinstance(source, fx.Node) and meaning_of(qann.network, source) is Meaning.NORM:
        norm = qann.network.get_submodule(str(source.target))
    weight, bias = getattr(norm, "weight", None), getattr(norm, "bias", None)
    if not isinstance(weight, Tensor) or not isinstance(bias, Tensor):
        raise CalibrationError(
            f"site {name!r}: no batch norm with learned scale feeds it directly, so it has no law without data "
            "(a residual sum, or a layer without batch norm); give calibration batches"
        )
    shape = (-1, 1) if qann.sites()[name].spec.channels else (1, -1)
    return NormalMixture(bias.detach().double().view(shape), weight.detach().abs().double().view(shape))
