"""Thresholds of conversion rivals, from what the sites of the float network see.

    max          theta = max x                                               (Diehl et al. 2015)
    percentile   theta = the 99.9 % quantile of x                            (Rueckauer et al. 2017)
    balanced     theta <- theta + 2 mean(relu(x - theta)), batch by batch from theta = 0, where later sites already see
                 activations clipped at theta (Bu, Li and Yu, CVPR 2025); it grows by what the largest activations exceed
                 it on average, so it takes hundreds of small batches to settle

One threshold for each site, or for each channel where its sites have a step per channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from polarspike import ops
from polarspike.analysis.observation import observe
from polarspike.common.inputs import batch_size, batches_of, require_batches, rows_of, to_device
from polarspike.common.modules import apply, device_of, evaluating, hooked
from polarspike.errors import CalibrationError, SpecError
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer

Threshold = Literal["max", "percentile", "balanced"]
_QUANTILE = 0.999


@torch.no_grad()
def set_thresholds(
    qann: QuantizedNetwork, batches: Iterable[Any] | Tensor, strategy: Threshold, *, passes: int = 10, images: int = 25
) -> None:
    """Set the last level of every site, P s, to its threshold, in place.

    Args:
        qann: any quantized network.
        batches: of inputs, or (inputs, target).
        strategy: see above.
        passes: of balancing, over all batches.
        images: of one update of balancing; larger batches are cut.

    Raises:
        SpecError: an unknown strategy.
        CalibrationError: no batch came; NaN or Inf, with site and batch.
    """
    if strategy not in get_args(Threshold):
        raise SpecError(f"threshold: expected one of {', '.join(get_args(Threshold))}, got {strategy!r}")
    if strategy == "balanced":
        found = _balanced(qann, list(batches_of(batches)), passes, images)
    else:
        seen = observe(qann, batches)
        found = {
            name: seen[name].by_step.maximum if strategy == "max" else seen[name].by_step.quantile(_QUANTILE)
            for name in qann.sites()
        }
    for name, site in qann.sites().items():
        threshold = found[name].double().cpu()
        if site.spec.ceiling is not None:  # a neuron saturates at its threshold, and so does what it stands for
            threshold = threshold.clamp(max=site.spec.ceiling)
        alive = torch.isfinite(threshold) & (threshold > 0)
        # What never fires may have any threshold; it is given one like its neighbours'.
        threshold = torch.where(alive, threshold, threshold[alive].median() if bool(alive.any()) else 1.0)
        step = threshold / site.spec.positive
        site.set_step(step if site.spec.channels else step[0])


def _balanced(qann: QuantizedNetwork, batches: list[Any], passes: int, images: int) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    position = 0

    def clip(name: str, site: PolarityQuantizer, x: Tensor) -> Tensor:
        if not bool(torch.isfinite(x).all()):
            raise CalibrationError(
                f"site {name!r}, batch {position}: expected finite values, got NaN or Inf; look for them in this batch, or "
                "in the weights before this site"
            )
        x = ops.widen(torch.relu(x))
        if site.spec.ceiling is not None:
            x = x.clamp(max=site.spec.ceiling)
        per_channel = bool(site.spec.channels)
        dim = site.spec.channel_dim % x.dim()
        rest = [d for d in range(x.dim()) if not per_channel or d != dim]
        shape = [-1 if per_channel and d == dim else 1 for d in range(x.dim())]
        threshold = found.get(name, x.new_zeros(max(1, site.spec.channels)))
        excess = (x - threshold.view(shape)).clamp(min=0).mean(rest).view(-1)
        found[name] = threshold + 2.0 * excess
        return torch.minimum(x, found[name].view(shape))

    def answer(name: str) -> Any:
        return lambda site, inputs, output: clip(name, site, inputs[0]).to(output.dtype)

    device = device_of(qann)
    handles = [site.register_forward_hook(answer(name)) for name, site in qann.sites().items()]
    with hooked(handles), evaluating(qann), qann.float_activations():
        for _ in range(passes):
            for number, (inputs, _) in enumerate(batches):
                position = number
                length = batch_size(inputs, qann.signature.shared)
                for first in range(0, length, images):
                    part = rows_of(inputs, slice(first, first + images), length, qann.signature.shared)
                    apply(qann, to_device(part, device))
    require_batches(len(found) == len(qann.sites()), "thresholds")
    return found
