"""The first timestep as a plain graph: no state, no spec, nothing but tensor operators.

    k = clip(floor(x / s + 1/2), -N, P)
    y = s k                                 k >= 0, or gain 1
        g s k                               k <  0

These are the operators of :mod:`polarspike.ops` in their order, so that the same runtime gives the same bits.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, fx, nn

from polarspike.common.inputs import Inputs
from polarspike.common.modules import apply
from polarspike.errors import ExportError
from polarspike.graph.editing import finish
from polarspike.neurons import CappedNeuron, PolarityNeuron
from polarspike.spiking import SpikingNetwork


def value_of(x: Tensor, step: Tensor, negative: int, positive: int, gain: float) -> Tensor:
    """The decoded value of the code of ``x``, by plain operators."""
    codes = torch.clamp(torch.floor(x / step + 0.5), -negative, positive)
    values = codes * step
    return values if gain == 1.0 else torch.maximum(values, values * gain)


class FixedSite(nn.Module):
    """A site at its first timestep, with its step as it is now.

    Args:
        neuron: of floating type float32 or float64.
        dim: how many dimensions its signal has.
    """

    step: Tensor

    def __init__(self, neuron: PolarityNeuron, dim: int) -> None:
        super().__init__()
        self.negative, self.positive = neuron.levels
        with torch.no_grad():
            self.gain = float(neuron.gain) if self.negative else 1.0
            like = neuron.step.new_empty((1,) * dim)
            self.register_buffer("step", neuron.broadcast_step(like).clone())

    def forward(self, x: Tensor) -> Tensor:
        """The decoded value of the code of ``x``."""
        return value_of(x, self.step, self.negative, self.positive, self.gain)


def first_timestep(snn: SpikingNetwork, example: Inputs) -> fx.GraphModule:
    """The network at T = 1 as a graph of plain operators, which shares no tensor with ``snn``.

    Args:
        snn: left untouched.
        example: inputs of one call.

    Raises:
        ExportError: neurons that hold spikes back at the first timestep.
    """
    network = copy.deepcopy(snn.network)
    for name, neuron in snn.sites().items():
        if isinstance(neuron, CappedNeuron):
            raise ExportError(
                f"site {name!r}: a neuron of at most {neuron.cap} spikes a step has not answered after one step; convert "
                "without max_spikes_per_step"
            )
    dims = _dimensions(snn, example)
    for name, neuron in snn.sites().items():
        network.add_submodule(name, FixedSite(neuron, dims[name]))
    return finish(network).eval()


def _dimensions(snn: SpikingNetwork, example: Inputs) -> dict[str, int]:
    """How many dimensions the signal of every site has."""
    found: dict[str, int] = {}

    def see(site: str, timestep: int, spikes: Tensor) -> None:
        del timestep
        found[site] = spikes.dim()

    with torch.no_grad(), snn.observe(see):
        apply(snn, example)
    return found
