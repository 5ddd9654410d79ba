"""SpikingJelly's recipes of conversion (``ann2snn``)."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn

from polarspike.baselines.peers.network import PeerNetwork
from polarspike.baselines.peers.packages import imported, pairs
from polarspike.errors import SpecError


def rate_coding(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    mode: str = "Max",
    channel_wise: bool = False,
    half_threshold: bool = False,
    pre_spike_maxpool: bool = False,
) -> PeerNetwork:
    """SpikingJelly's rate coding; ``mode`` is ``"Max"`` or a percentile such as ``"99.9%"``."""
    ann2snn = imported("spikingjelly", "spikingjelly.activation_based.ann2snn")
    recipe = ann2snn.RateCodingRecipe(
        pairs(batches),
        mode=mode,
        channel_wise=channel_wise,
        half_threshold=half_threshold,
        pre_spike_maxpool=pre_spike_maxpool,
    )
    return _converted(ann2snn.Converter(recipe).convert(copy.deepcopy(model).eval()))


def threshold_balancing(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    passes: int = 1,
    images: int | None = None,
    first: int | None = None,
) -> PeerNetwork:
    """SpikingJelly's local threshold balancing: the first so many batches, so many times, in pieces of so many images."""
    ann2snn = imported("spikingjelly", "spikingjelly.activation_based.ann2snn")
    given = pairs(batches)[:first]
    if images is not None:
        given = [(x[at : at + images], y[at : at + images]) for x, y in given for at in range(0, len(x), images)]
    recipe = ann2snn.LocalThresholdBalancingRecipe(given * passes)
    return _converted(ann2snn.Converter(recipe).convert(copy.deepcopy(model).eval()))


def spatio_temporal_approximation(
    model: nn.Module, batches: Iterable[Any], *, time_steps: int = 32, threshold_mode: str = "mse"
) -> PeerNetwork:
    """SpikingJelly's spatio-temporal approximation, with spikes (``mode="spiking_encoder"``).

    Args:
        model: whose attention is called as ``y, _ = attention(...)``; an index is refused.
        batches: for its thresholds.
        time_steps: that its thresholds are chosen for; a spike is worth 1 / time_steps of a range.
        threshold_mode: ``"mse"`` or ``"max"``.
    """
    ann2snn = imported("spikingjelly", "spikingjelly.activation_based.ann2snn")
    functional = imported("spikingjelly", "spikingjelly.activation_based.functional")
    recipe = ann2snn.STATransformerRecipe(
        pairs(batches), time_steps=time_steps, mode="spiking_encoder", threshold_mode=threshold_mode
    )
    snn = ann2snn.Converter(recipe).convert(copy.deepcopy(model).eval())
    functional.set_step_mode(snn, "s")
    neurons = {name: part for name, part in snn.named_modules() if hasattr(part, "v_threshold")}
    if not neurons:
        raise SpecError(
            "spikingjelly: nothing was converted; its recipe spikes behind nn.LayerNorm, nn.GELU and attention"
        )
    worth = {name: _tensor_of(part, "v_threshold") for name, part in neurons.items()}
    return PeerNetwork(snn.eval(), neurons, functional.reset_net, worth=worth, once=True)


def _converted(snn: nn.Module) -> PeerNetwork:
    base = imported("spikingjelly", "spikingjelly.activation_based.neuron").BaseNode
    neurons = {name: part for name, part in snn.named_modules() if isinstance(part, base)}
    if not neurons:
        raise SpecError("spikingjelly: nothing was converted; its recipes replace nn.ReLU modules")
    return PeerNetwork(
        snn.eval(), neurons, imported("spikingjelly", "spikingjelly.activation_based.functional").reset_net
    )


def _tensor_of(part: nn.Module, name: str) -> Tensor:
    value = getattr(part, name)
    assert isinstance(value, Tensor)
    return value
