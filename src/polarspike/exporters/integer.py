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

from polarspike.common.inputs import Inputs, as_call, bind
from polarspike.errors import ExportError, InputError
from polarspike.exporters.aten import shape_of
from polarspike.exporters.description import describe
from polarspike.exporters.lowering import Grid, Lowering
from polarspike.exporters.marking import marked_program
from polarspike.exporters.observed import observe
from polarspike.exporters.rules import RULES
from polarspike.exporters.signals import Normalized, Vector
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
    program, _ = marked_program(snn, example)

    parameters = parameters_of(snn.network)
    wanted = {name: shape for name, shape in snn.signature.named(parameters).shapes if name not in snn.signature.shared}

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
    placeholders = (node for node in program.graph.nodes if node.op == "placeholder")
    shapes = {str(node.target): shape_of(node) for node in placeholders if isinstance(node.meta["val"], torch.Tensor)}

    def grid_of(input_: Normalized, seen: tuple[float, float]) -> Grid | None:
        return _grid(input_, seen, shapes[input_.origin], snn.notes)

    lowering = Lowering(program, snn.sites(), ranges, grid_of, RULES)
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


def _grid(
    input_: Normalized, seen: tuple[float, float], shape: tuple[int, ...], notes: Mapping[str, Any]
) -> Grid | None:
    """The grid of bytes of an input: step, offset, and its codes.

    Images of bytes with a known normalization ``x = (p / 255 - mean) / std`` lie on a grid already: step 1 / (255 std),
    and an offset below half a step, because 255 mean is no whole number. What the network itself does to them is part of
    it: ``f x + d`` has the mean ``mean - d std / f`` and the deviation ``std / f``. Where the means of the channels differ,
    all of them need more than 256 codes together, and the grid is that much coarser. Other inputs: the range on the batches
    in 254 steps.
    """
    known = _scaling(notes.get("normalization"))
    if known is not None and len(shape) == 3 and shape[0] == len(known[0]):
        mean, std = known[0] - input_.shift * known[1] / input_.factor, known[1] / input_.factor
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
        shows_zero = ((mean >= 0) & (mean <= 1)).all()  # padding must have a code
        if shows_zero and (low - 1) * largest <= seen[0] and seen[1] <= (low + _BYTE + 1) * largest:
            return step, offset, low, low + _BYTE
        # else the batches are no such images
    lo, hi = min(seen[0], 0.0), max(seen[1], 0.0)
    if not np.isfinite([lo, hi]).all() or hi == lo:
        return None
    step = np.array((hi - lo) / (_BYTE - 1))
    low = int(np.rint(lo / step))
    return step, np.zeros(()), low, low + _BYTE


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
