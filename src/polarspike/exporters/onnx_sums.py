"""Synapses whose sums float kernels make of whole numbers in ONNX: exact below 2^24, and of their digits beyond."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polarspike.errors import ExportError
from polarspike.exporters.onnx_writer import FLOAT, INT32, Writer
from polarspike.integer import rounding
from polarspike.integer.lattice import EXACT_IN_FLOAT32
from polarspike.integer.network import Instruction, laid

Array = NDArray[Any]


def begins_and_ends(padding: Any) -> list[int]:
    """Padding as ONNX has it: all beginnings, then all ends."""
    return [*padding[0], *padding[1]]


def conv_attributes(options: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of ``Conv``."""
    return {
        "strides": options["stride"],
        "pads": begins_and_ends(options["padding"]),
        "dilations": options["dilation"],
        "group": options["groups"],
    }


def in_float(writer: Writer, made: Instruction, scale: Array) -> None:
    """By float kernels: whole numbers as float32, exact below 2^24; or scaled weights, where the answer is float."""
    x, options, tensors = made.inputs[0], made.attributes, made.tensors
    fires = made.range is not None
    weight = tensors["weight"]
    bias = tensors["bias"].astype(np.float32)
    exact = fires or not writer.is_bytes(x)
    if not exact:
        weight = weight.astype(np.float32) * laid(scale, 0, weight.ndim)
        bias = bias * scale
    if exact and _largest(writer, made) > EXACT_IN_FLOAT32:
        _by_digits(writer, made, scale)
        return
    values = writer.unfused(x)
    output = made.output if not exact else None
    linear = options["operator"] == "linear"
    given = writer.constant(weight.T if linear else weight, weight.dtype)
    if exact:  # bytes in the file; a runtime makes them float when it loads them
        given = writer.node("Cast", [given], to=FLOAT)
    if not linear:
        sums = writer.node("Conv", [values, given, writer.constant(bias)], output, **conv_attributes(options))
    else:
        product = writer.node("MatMul", [values, given])
        sums = writer.node("Add", [product, writer.constant(bias)], output)
    if fires:
        writer.fired(made, sums, tensors["divisor"], options["axis"])
    elif exact:
        dims = options["axis"] + 1 if linear else weight.ndim
        writer.node("Mul", [sums, writer.constant(laid(scale, options["axis"], dims))], made.output)


def _largest(writer: Writer, made: Instruction) -> float:
    """The largest absolute sum that a synapse could make of the range of its input, with its bias."""
    ends = writer.ranges[made.inputs[0]]
    return rounding.largest_sum(made.tensors["weight"], max(map(abs, ends))) + float(np.abs(made.tensors["bias"]).max())


def _by_digits(writer: Writer, made: Instruction, scale: Array) -> None:
    """Sums beyond float32: one product for each digit of the input, exact in float32, added up in 32-bit integers.

    Digits are those of x = d_0 + b d_1 + ..., 0 <= d_i < b but for the last, which has the sign of x; b is a power of two
    with which the products of one digit stay below 2^24. What fires is cut off where it saturates the neuron, and so is
    exact in float32 again.
    """
    options, tensors, fires = made.attributes, made.tensors, made.range is not None
    weight, linear = tensors["weight"], options["operator"] == "linear"
    base = 2.0 ** math.floor(math.log2(EXACT_IN_FLOAT32 / max(rounding.largest_sum(weight, 1), 1.0)))
    if base < 2:
        raise ExportError(
            f"{made.output}: a sum of {weight[0].size:,} wide codes, too many for float32; take them in parts"
        )
    most = float(max(map(abs, writer.ranges[made.inputs[0]])))
    rest, digits = writer.unfused(made.inputs[0]), []
    while most > base:
        upper = writer.node("Floor", [writer.node("Mul", [rest, writer.constant(1 / base)])])
        digits.append(writer.node("Sub", [rest, writer.node("Mul", [upper, writer.constant(base)])]))
        rest, most = upper, math.ceil(most / base)
    given = writer.node("Cast", [writer.constant(weight.T if linear else weight, weight.dtype)], to=FLOAT)

    def sums_of(digit: str) -> str:
        if linear:
            return writer.node("Cast", [writer.node("MatMul", [digit, given])], to=INT32)
        return writer.node("Cast", [writer.node("Conv", [digit, given], **conv_attributes(options))], to=INT32)

    sums = sums_of(rest)
    for digit in reversed(digits):
        upper = writer.node("Mul", [sums, writer.constant(base, np.int32)])
        sums = writer.node("Add", [upper, sums_of(digit)])
    dims = options["axis"] + 1 if linear else weight.ndim
    sums = writer.node("Add", [sums, writer.constant(laid(tensors["bias"], options["axis"], dims), np.int32)])
    if not fires:
        values = writer.node("Cast", [sums], to=FLOAT)
        writer.node("Mul", [values, writer.constant(laid(scale, options["axis"], dims))], made.output)
        return
    assert made.range is not None
    low, high = (
        laid(tensors["divisor"] * end, options["axis"], dims) for end in (made.range[0] - 1, made.range[1] + 1)
    )
    sums = writer.node("Max", [sums, writer.constant(low, np.int32)])
    sums = writer.node("Min", [sums, writer.constant(high, np.int32)])
    writer.fired(made, writer.node("Cast", [sums], to=FLOAT), tensors["divisor"], options["axis"])
