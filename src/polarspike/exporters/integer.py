"""A spiking network in whole numbers: int8 weights, int32 membranes, integer thresholds, codes in and codes out.

The network's first timestep is written as instructions (:mod:`polarspike.integer`), whose meaning a NumPy program defines.
It is a network of its own: weights are rounded to 8 bits for each output channel, inputs to a grid of bytes, and where
branches of a residual sum meet, each is first rounded to a byte. How far it is from the spiking network is measured when it
is written; how far a runtime is from *it* must be nothing (:mod:`polarspike.integer.lattice`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from polarspike.errors import ExportError, InputError
from polarspike.exporters.description import describe
from polarspike.exporters.lowering import Lowering
from polarspike.exporters.marking import marked_program
from polarspike.exporters.observed import Ranges, observe
from polarspike.exporters.signals import Vector
from polarspike.inputs import Inputs, as_call, bind
from polarspike.integer.network import IntegerNetwork
from polarspike.quantized import parameters_of
from polarspike.spiking import SpikingNetwork

_BYTE = 255


def integer_network(snn: SpikingNetwork, example: Inputs, batches: Iterable[Inputs] | None = None) -> IntegerNetwork:
    """The first timestep of a spiking network in whole numbers.

    Args:
        snn: float32, on the CPU; left untouched.
        example: inputs of one call.
        batches: show how large inputs and residual branches become; the example if not given.

    Raises:
        ExportError: an operator, a gain or a layout that whole numbers cannot hold, by name.
    """
    for name, neuron in snn.sites().items():
        if neuron.start.dtype != torch.float32:
            raise ExportError(f"site {name!r}: expected a float32 network, got {neuron.start.dtype}; use snn.float()")
    program, _ = marked_program(snn, example)

    parameters = parameters_of(snn.network)
    wanted = dict(snn.signature.named(parameters).shapes)

    def ordered(inputs: Inputs) -> tuple[Any, ...]:
        given = bind(parameters, *as_call(inputs))
        for name, value in given.items():
            if name in wanted and tuple(value.shape[1:]) != wanted[name]:
                expected = ", ".join(("batch", *map(str, wanted[name])))
                raise InputError(f"input {name!r}: expected ({expected}), as in the example, got {tuple(value.shape)}")
        return tuple(given.values())

    shown = [ordered(example)] if batches is None else map(ordered, batches)
    ranges = observe(program, shown)
    if not ranges:
        raise ExportError(
            "no samples: the batches show nothing of how large signals become; give some that hold samples"
        )
    lowering = Lowering(program, snn.sites(), ranges, _grids(program, ranges, snn.notes))
    lowering.run()
    emitter = lowering.emitter
    return IntegerNetwork(
        tuple(lowering.inputs),
        tuple(lowering.outputs),
        tuple(emitter.instructions),
        emitter.constants,
        lowering.sites,
        describe(snn),
    )


def _grids(
    program: fx.GraphModule, ranges: Ranges, notes: Mapping[str, Any]
) -> dict[str, tuple[Vector, Vector, int, int] | None]:
    """The grid of bytes of each input: step, offset, and its codes.

    Images of bytes with a known normalization ``x = (p / 255 - mean) / std`` lie on a grid already: step 1 / (255 std),
    and an offset below half a step, because 255 mean is no whole number. Where the means of the channels differ, all of
    them need more than 256 codes together, and the grid is that much coarser. Other inputs: the range on the batches in
    254 steps.
    """
    grids: dict[str, tuple[Vector, Vector, int, int] | None] = {}
    for node in program.graph.nodes:
        if node.op != "placeholder" or node not in ranges:
            continue
        value: Tensor = node.meta["val"]
        known = _scaling(notes.get("normalization"))
        if known is not None and value.dim() == 4 and value.shape[1] == len(known[0]):
            mean, std = known
            coarser = max(1.0, (mean.max() + (1 - mean).max()))
            if coarser > 1.0:
                coarser *= (_BYTE + 1) / (_BYTE - 1)  # both ends are rounded
            step = coarser / (_BYTE * std)
            first = -mean / std / step  # the code of a black pixel, no whole number
            offset = np.zeros_like(step) if coarser > 1.0 else (first - np.rint(first)) * step
            low = int(np.rint(first).min())
            if len(step) == 1:
                step, offset = step.reshape(()), offset.reshape(())
            largest = float(step.max())
            if (low - 1) * largest <= ranges[node][0] and ranges[node][1] <= (low + _BYTE + 1) * largest:
                grids[str(node.target)] = (step, offset, low, low + _BYTE)
                continue  # else the batches are no such images
        lo, hi = min(ranges[node][0], 0.0), max(ranges[node][1], 0.0)
        if not np.isfinite([lo, hi]).all() or hi == lo:
            grids[str(node.target)] = None
            continue
        step = np.array((hi - lo) / (_BYTE - 1))
        low = int(np.rint(lo / step))
        grids[str(node.target)] = (step, np.zeros(()), low, low + _BYTE)
    return grids


def _scaling(known: Any) -> tuple[Vector, Vector] | None:
    """Mean and deviation of the channels, from a network's notes."""
    if known is None:
        return None
    try:
        mean, std = (np.array(known[key], dtype=np.float64) for key in ("mean", "std"))
    except (KeyError, TypeError, ValueError, IndexError):
        mean, std = np.zeros(()), np.zeros(())
    if mean.ndim != 1 or mean.shape != std.shape or not ((mean >= 0) & (mean <= 1)).all() or not (std > 0).all():
        raise ExportError(
            f"notes['normalization']: expected {{'mean': [...], 'std': [...]}} in units of a full-scale pixel, from 0 to 1 "
            f"and positive, one of each for each channel, got {known!r}; correct snn.notes, or remove it"
        )
    return mean, std


def as_arrays(network: IntegerNetwork, inputs: Inputs, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Inputs of a spiking network, whose graph has these parameters, as those of its integer network."""
    given = bind(parameters, *as_call(inputs))
    return {
        name: given[name].detach().cpu().numpy() for name, _ in network.inputs if isinstance(given[name], torch.Tensor)
    }
