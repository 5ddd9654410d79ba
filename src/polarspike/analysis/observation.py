"""What the sites of a quantized network see while it runs as the float network: histograms of their inputs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from polarspike.common.inputs import batches_of, require_batches, to_device
from polarspike.common.modules import apply, device_of, evaluating, hooked
from polarspike.errors import CalibrationError, InputError
from polarspike.graph.editing import signals
from polarspike.graph.placement import channel_dim_behind
from polarspike.parallel import distributed
from polarspike.quantized import QuantizedNetwork
from polarspike.statistics.streaming import BINS_OF_CHANNEL, StreamingHistogram

# Bins of a site's channels together, as long as each has the least: 2 MB a site, beside its histogram by step.
_CELLS = 1 << 18
_LEAST_BINS = 256


@dataclass
class Observed:
    """The inputs of one site over all batches.

    Attributes:
        by_step: one group per step of the site: one, or a group per channel.
        by_channel: one group per channel, coarser at a wide site; None where it was not asked for, where a signal has no
            channels (an operand of a product of two signals), and where their number differs between batches.
        batches: how many were seen.
    """

    by_step: StreamingHistogram
    by_channel: StreamingHistogram | None = None
    batches: int = 0


def observe(
    qann: QuantizedNetwork, batches: Iterable[Any] | Tensor, *, by_channel: bool = False
) -> dict[str, Observed]:
    """Run the float network once over the batches and keep the histogram of every site's input.

    Every site behaves as the activation that it replaced. The memory does not grow with the number of batches.

    Args:
        qann: any quantized network, calibrated or not; evaluation mode is used and the former mode restored.
        batches: an iterable of inputs or (inputs, target), or one tensor.
        by_channel: also keep the channels of sites with one step apart.

    Raises:
        CalibrationError: no batch came; an empty one; NaN or Inf, with site and batch.
    """
    sites = qann.sites()
    seen = {name: Observed(StreamingHistogram(max(1, site.spec.channels))) for name, site in sites.items()}
    dims = {name: channel_dim(qann, name) for name in sites}
    device = device_of(qann)
    position = -1

    def watch(name: str, x: Tensor) -> None:
        if x.numel() == 0:
            raise CalibrationError(
                f"site {name!r}, batch {position}: expected at least one sample, got an empty tensor {tuple(x.shape)}: the "
                "batch is empty; leave it out"
            )
        try:
            _update(seen[name], x, dims[name], sites[name].spec.channels > 0, by_channel)
        except InputError as error:
            raise CalibrationError(
                f"site {name!r}, batch {position}: {error}. Look for NaN or Inf in this batch, or in the weights before "
                "this site"
            ) from error

    handles = [
        site.register_forward_pre_hook(lambda module, inputs, name=name: watch(name, inputs[0]))
        for name, site in sites.items()
    ]
    with hooked(handles), evaluating(qann), qann.float_activations():
        for number, (inputs, _) in distributed.own_batches(batches, batches_of):
            position = number
            apply(qann, to_device(inputs, device))
    for name in seen if distributed.world_size() > 1 else ():
        seen[name] = _merged(distributed.gathered(seen[name]))
    require_batches(distributed.summed([position + 1])[0] > 0, "calibration batches")
    return seen


def _merged(parts: list[Observed]) -> Observed:
    """What several processes have seen, together; the same in each."""
    whole = parts[0]
    for other in parts[1:]:
        if other.batches:
            if not whole.batches:
                whole = other
                continue
            whole.by_step.merge(other.by_step)
            if whole.by_channel is not whole.by_step and whole.by_channel is not None and other.by_channel is not None:
                whole.by_channel.merge(other.by_channel)
            whole.batches += other.batches
    return whole


def channel_dim(qann: QuantizedNetwork, name: str) -> int | None:
    """The dimension of a site's channels; None where there is none.

    Where each channel has a step it is the spec's. A site with one step has its channels where a step each would stand.
    """
    site = qann.sites()[name]
    if site.spec.channels:
        return site.spec.channel_dim
    network = qann.network
    nodes = (node for node in network.graph.nodes if node.op == "call_module" and node.target == name)
    return next((channel_dim_behind(network, node, signals(network)) for node in nodes), 1)


def _update(seen: Observed, x: Tensor, dim: int | None, apart: bool, by_channel: bool) -> None:
    """Count one input; ``apart`` says that each channel has its own step."""
    first, seen.batches = seen.batches == 0, seen.batches + 1
    if dim is not None and x.dim() > 1:
        x = x.movedim(dim, 1)
    seen.by_step.update(x)
    if apart:
        seen.by_channel = seen.by_step
        return
    if by_channel and first and dim is not None and x.dim() > 1:
        bins = max(_LEAST_BINS, min(BINS_OF_CHANNEL, _CELLS // (1 << (x.shape[1] - 1).bit_length())))
        seen.by_channel = StreamingHistogram(x.shape[1], bins)
    if seen.by_channel is not None and x.shape[1] != seen.by_channel.groups:
        seen.by_channel = None
    if seen.by_channel is not None:
        seen.by_channel.update(x)
