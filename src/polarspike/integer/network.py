"""The integer network: a list of instructions over whole numbers, and what stays float said by name.

Values are named. A value is either whole numbers with a known range (codes of a site, sums of codes) or float32.
Instructions:

    quantize          float -> codes       clip(rint((x - shift) / step), low, high); no shift but for pixels
                                          with ties "up": clip(floor(x / step + 1/2), low, high)
    synapse           codes -> sums        convolution or linear layer with int8 weights and an int32 bias, then an ending
    averaged          codes -> codes      fire(sums over windows of max(synapse, 0), divisor): ReLU, then the mean
    product           codes, codes -> sums of products (attention), then an ending
    combine           codes, ... -> codes  fire(bias + sum_i factor_i x_i, divisor)
    window_sum        codes -> sums over windows, or over whole dimensions
    stretch           codes -> codes       k >= 0: factor k;  k < 0: k      (a gain of 1 / factor below zero)
    shrink            sums -> sums         floor(x / divisor + 1/2), with an odd divisor: sums of very many in fewer digits
    decode            codes -> float       step x
    expand            constant, any -> float                                the constant once for each sample of the other
    max_pool, largest, reshape, transpose, concatenate, slice, take, pad    of either kind; largest: over whole dimensions;
                                          take: what stands at these places of a dimension
    float             float -> float       one operator of ONNX by name, in float32

An ending says what becomes of the sums: ``fire`` by an odd divisor (:mod:`polarspike.integer.lattice`), or ``scale`` to
float32.
:mod:`polarspike.integer.execution` defines the meaning of each, in NumPy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

#: Under what name files hold the description of the spiking network, and the version of its format.
DESCRIPTION = "polarspike"
DESCRIPTION_FORMAT = 1

KINDS = ("quantize", "synapse", "averaged", "product", "combine", "window_sum", "stretch", "shrink", "decode", "max_pool",
         "largest", "reshape", "transpose", "concatenate", "slice", "take", "pad", "expand", "float")  # fmt: skip


def laid(vector: Array, axis: int, dims: int) -> Array:
    """A vector laid along one of ``dims`` dimensions, or one number as it is, to be broadcast."""
    return vector if vector.ndim == 0 else vector.reshape([-1 if d == axis % dims else 1 for d in range(dims)])


@dataclass(frozen=True)
class Instruction:
    """One operator.

    Args:
        kind: one of ``KINDS``.
        inputs: names of values, or of constants of the network.
        output: the name of what it makes.
        attributes: plain data.
        tensors: its own arrays by name.
        range: the smallest and the largest whole number that it makes; None if it makes float32.
    """

    kind: str
    inputs: tuple[str, ...]
    output: str
    attributes: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Array] = field(default_factory=dict)
    range: tuple[int, int] | None = None


@dataclass(frozen=True)
class IntegerNetwork:
    """One timestep of a spiking network in whole numbers.

    Args:
        inputs: names, and shapes without the batch.
        outputs: names of values, and their shapes without the batch.
        instructions: in an order in which they can run.
        constants: float32 arrays that instructions read by name.
        sites: for each site, the value that holds its codes.
        description: of the spiking network, as JSON (levels, steps, normalization, class names).
    """

    inputs: tuple[tuple[str, tuple[int, ...]], ...]
    outputs: tuple[tuple[str, tuple[int, ...]], ...]
    instructions: tuple[Instruction, ...]
    constants: Mapping[str, Array]
    sites: Mapping[str, str]
    description: str

    @property
    def ranges(self) -> dict[str, tuple[int, int]]:
        """Of every value that is whole numbers."""
        return {made.output: made.range for made in self.instructions if made.range is not None}

    @property
    def weights(self) -> Iterator[Array]:
        """The integer weights of the synapses."""
        return (made.tensors["weight"] for made in self.instructions if made.kind in ("synapse", "averaged"))

    def float_operators(self) -> dict[str, int]:
        """What stays float, by name, and how often."""
        counts: dict[str, int] = {}
        for made in self.instructions:
            if made.kind == "float":
                name = str(made.attributes["operator"])
                counts[name] = counts.get(name, 0) + 1
        return counts

    @property
    def bytes(self) -> int:
        """Of all arrays."""
        arrays = [*self.constants.values(), *(a for made in self.instructions for a in made.tensors.values())]
        return sum(np.asarray(array).nbytes for array in arrays)
