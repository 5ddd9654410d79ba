"""The integer network in ONNX, so that stock integer kernels run it.

Whole numbers are bytes: a code k is stored as k + z, where z makes the smallest of all codes 0. Every operator of codes
stands between DequantizeLinear and QuantizeLinear nodes whose scales are 1 / q, which runtimes fuse to integer kernels
(``QLinearConv``, ``QGemm``, ``QLinearMatMul``, ``QLinearAdd``). A neuron's largest code is cut off behind QuantizeLinear, on
the bytes: a clip in front of it would leave the convolution in float. What this rests on, tried with ONNX Runtime 1.32:

- Bytes stay small (codes from 0 to N + P), so that pairs of products fit into 16 bits on processors without VNNI, where
  larger bytes times signed weights saturate in silence. Layers whose bytes reach above 129 (the pixels) get weights as
  unsigned bytes, for which there are kernels that do not.
- Sums of sums (behind an average) are whole numbers in float32, exact below 2^24, and so is what a float kernel makes of
  them; where that is more, of their digits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polarspike.errors import MissingExtraError
from polarspike.exporters.onnx_sums import begins_and_ends, conv_attributes, in_float
from polarspike.exporters.onnx_writer import FLOAT, Writer, zero_points
from polarspike.integer.network import Instruction, IntegerNetwork, laid

if TYPE_CHECKING:
    import onnx

__all__ = ["OPSET", "model_of", "zero_points"]

OPSET = 21
_IR = 10
#: The largest byte for which 2 * byte * 127 fits into 16 bits.
_SAFE_BYTE = 129
Array = NDArray[Any]


def model_of(network: IntegerNetwork, key: str, *, codes: bool = False) -> onnx.ModelProto:
    """The network as a model.

    Args:
        network: to be written.
        key: under which its description goes into the metadata.
        codes: also give the bytes of every site as outputs, named after the site, for comparison.

    Raises:
        MissingExtraError: the package that writes ONNX is not installed.
    """
    try:
        from onnx import TensorProto, helper
    except ImportError as error:
        raise MissingExtraError("onnx", "deploy") from error
    writer = Writer(network)
    for made in network.instructions:
        _WRITERS[made.kind](writer, made)
    outputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in network.outputs
    ]
    if codes:
        for site, name in network.sites.items():
            writer.node("Identity", [name], f"{site}/bytes")
            outputs.append(helper.make_tensor_value_info(f"{site}/bytes", TensorProto.UINT8, None))
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", *shape]) for name, shape in network.inputs
    ]
    graph = helper.make_graph(writer.nodes, "polarspike", inputs, outputs, writer.initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR)
    model.producer_name = "polarspike"
    helper.set_model_props(model, {key: network.description})
    return model


def _quantize(writer: Writer, made: Instruction) -> None:
    step, x = made.tensors["step"], made.inputs[0]
    if "shift" in made.tensors:
        x = writer.node("Sub", [x, writer.constant(made.tensors["shift"])])
    if made.attributes.get("ties") == "up":  # QuantizeLinear rounds half to even
        scaled = writer.node("Div", [x, writer.constant(step)])
        writer.fired(made, writer.node("Floor", [writer.node("Add", [scaled, writer.constant(0.5)])]))
        return
    if step.ndim == 0:
        writer.fired(made, x, step)
        return
    # A step per channel lies behind the batch: (C, 1, ...), or (..., C).
    axis = int(np.argmax(step.shape))
    writer.fired(made, x, step.reshape(-1), axis)


def _average(options: Mapping[str, Any]) -> dict[str, Any]:
    """The attributes of ``AveragePool``."""
    return {
        "kernel_shape": options["kernel"],
        "strides": options["stride"],
        "pads": begins_and_ends(options["padding"]),
        "count_include_pad": 1,
    }


def _synapse(writer: Writer, made: Instruction) -> None:
    x, options, tensors = made.inputs[0], made.attributes, made.tensors
    fires = made.range is not None
    scale = 1.0 / tensors["divisor"] if fires else tensors["scale"]
    convolution = options["operator"] == "convolution"
    integer = writer.is_bytes(x) and (fires or not convolution)
    if not integer:
        in_float(writer, made, scale)
        return
    weight: Array = tensors["weight"]
    unsigned = writer.ranges[x][1] + writer.points[x] > _SAFE_BYTE
    point = 128 if unsigned else 0
    dtype: Any = np.uint8 if unsigned else np.int8
    # Of rows without a bias OpenVINO 2026.4 would take the scales of features, behind a new layout, for those of tokens.
    rows = not convolution and options["axis"] > 1
    plain = rows and not fires and not tensors["bias"].any()
    stored = weight.astype(np.int16) + point
    given = [
        writer.constant(stored.T if plain else stored, dtype),
        writer.constant(scale),
        writer.constant(np.full(len(weight), point), dtype),
    ]
    weights = writer.node("DequantizeLinear", given, axis=int(plain))
    if plain:
        writer.node("MatMul", [writer.dequantized(x), weights], made.output)
        return
    zeros = writer.constant(np.zeros(len(weight)), np.int32)
    bias = writer.node(
        "DequantizeLinear", [writer.constant(tensors["bias"], np.int32), writer.constant(scale), zeros], axis=0
    )
    values = writer.dequantized(x)
    if convolution:
        sums = writer.node("Conv", [values, weights, bias], **conv_attributes(options))
        writer.fired(made, sums)
        return
    # Gemm has integer kernels with a bias, and takes matrices alone. The layout changes behind the dequantization: in front
    # of it, ONNX Runtime would leave one unused.
    if rows:
        values = writer.node("Reshape", [values, writer.constant([-1, weight.shape[1]], np.int64)])
    sums = writer.node("Gemm", [values, weights, bias], None if rows or fires else made.output, transB=1)
    if not rows:
        if fires:
            writer.fired(made, sums)
        return
    shape = writer.constant([-1, *options["shape"]], np.int64)
    if not fires:
        writer.node("Reshape", [sums, shape], made.output)
        return
    name = writer.free("rows")
    writer.points[name] = writer.points[made.output]
    writer.fired(Instruction(made.kind, made.inputs, name, range=made.range), sums)
    writer.node("Reshape", [name, shape], made.output)


def _averaged(writer: Writer, made: Instruction) -> None:
    """By ``ConvInteger``, whose sums are exact however large; behind it float32 holds whole numbers below 2^22."""
    x, options, divisor = made.inputs[0], made.attributes, made.tensors["divisor"]
    assert made.range is not None
    count, (_, high) = math.prod(options["window"]["kernel"]), made.range
    weight, dims = made.tensors["weight"], made.tensors["weight"].ndim
    given = [x, writer.constant(weight.astype(np.int16) + 128, np.uint8), writer.constant(writer.points[x], np.uint8)]
    sums = writer.node("ConvInteger", [*given, writer.constant(128, np.uint8)], **conv_attributes(options))
    sums = writer.node("Add", [sums, writer.constant(laid(made.tensors["bias"], 1, dims), np.int32)])
    # What is larger fires the largest code by itself.
    most = writer.constant(laid(divisor * (high + 1), 1, dims))
    values = writer.node("Min", [writer.node("Relu", [writer.node("Cast", [sums], to=FLOAT)]), most])
    mean = writer.node("AveragePool", [values], **_average(options["window"]))
    whole = writer.node("Round", [writer.node("Mul", [mean, writer.constant(count)])])
    if not (divisor % 2).all():  # QuantizeLinear rounds half to even; of an odd divisor there are no halves
        whole = writer.node("Add", [whole, writer.constant(laid(0.5 * (1 - divisor % 2), 1, dims))])
    writer.fired(made, whole, divisor, 1)


def _shrink(writer: Writer, made: Instruction) -> None:
    divisor = writer.constant(made.tensors["divisor"])
    writer.node("Round", [writer.node("Div", [writer.unfused(made.inputs[0]), divisor])], made.output)


def _product(writer: Writer, made: Instruction) -> None:
    fires = made.range is not None
    scale = made.attributes["factor"] / float(made.tensors["divisor"]) if fires else made.tensors["scale"]
    apart = np.ndim(scale) > 0  # one for each output: behind the product
    values = [writer.dequantized(made.inputs[0], 1.0 if apart else scale), writer.dequantized(made.inputs[1])]
    if not fires:
        sums = writer.node("MatMul", values, None if apart else made.output)
        if apart:  # along the last dimension, where all products have their channels
            writer.node("Mul", [sums, writer.constant(scale)], made.output)
        return
    writer.fired(made, writer.node("MatMul", values))


def _combine(writer: Writer, made: Instruction) -> None:
    """The sum of bytes in units of one divisor.

    Three and more are added from the last to the first, which is codes as they are: OpenVINO 2026.4 joins a convolution, its
    bytes and the sum that adds another convolution's bytes to codes, and leaves its rounding out.
    """
    divisor = made.tensors["divisor"].astype(np.float64)
    axis = made.attributes["axis"]
    parts = []
    for index, name in enumerate(made.inputs):
        factor = made.tensors[f"factor{index}"] / divisor
        parts.append(writer.dequantized(name, factor, axis, made.attributes["dims"]))
    sums, *others = reversed(parts) if len(parts) > 2 else parts
    for part in others:
        sums = writer.node("Add", [sums, part])
    bias = made.tensors["bias"] / divisor
    if np.any(bias):
        sums = writer.node("Add", [sums, writer.constant(laid(bias, axis, made.attributes["dims"]))])
    writer.fired(made, sums)


def _window_sum(writer: Writer, made: Instruction) -> None:
    values = writer.dequantized(made.inputs[0])
    options = made.attributes
    if "axes" in options:
        axes = writer.constant(options["axes"], np.int64)
        writer.node("ReduceSum", [values, axes], made.output, keepdims=int(options["keepdims"]))
        return
    mean = writer.node("AveragePool", [values], **_average(options))
    # Rounded, because a mean times its count need not be whole.
    whole = writer.node("Mul", [mean, writer.constant(math.prod(options["kernel"]))])
    writer.node("Round", [whole], made.output)


def _stretch(writer: Writer, made: Instruction) -> None:
    """The larger of k and ``factor`` k. Of dequantized values OpenVINO 2026.4 makes ``factor`` k, also below zero."""
    values = writer.unfused(made.inputs[0])
    larger = writer.node("Mul", [values, writer.constant(made.attributes["factor"])])
    writer.fired(made, writer.node("Max", [values, larger]))


def _decode(writer: Writer, made: Instruction) -> None:
    writer.node("Mul", [writer.unfused(made.inputs[0]), writer.constant(made.tensors["step"])], made.output)


def _max_pool(writer: Writer, made: Instruction) -> None:
    options = made.attributes
    writer.node(
        "MaxPool",
        list(made.inputs),
        made.output,
        kernel_shape=options["kernel"],
        strides=options["stride"],
        pads=begins_and_ends(options["padding"]),
        dilations=options["dilation"],
    )


def _largest(writer: Writer, made: Instruction) -> None:
    axes = writer.constant(made.attributes["axes"], np.int64)
    writer.node("ReduceMax", [made.inputs[0], axes], made.output, keepdims=int(made.attributes["keepdims"]))


def _take(writer: Writer, made: Instruction) -> None:
    places = writer.constant(made.attributes["places"], np.int64)
    writer.node("Gather", [made.inputs[0], places], made.output, axis=made.attributes["axis"])


def _reshape(writer: Writer, made: Instruction) -> None:
    sizes = [-1 if size == "batch" else size for size in made.attributes["shape"]]
    writer.node("Reshape", [made.inputs[0], writer.constant(sizes, np.int64)], made.output)


def _slice(writer: Writer, made: Instruction) -> None:
    options = made.attributes
    ends = [writer.constant([options[key]], np.int64) for key in ("start", "end", "axis", "stride")]
    writer.node("Slice", [made.inputs[0], *ends], made.output)


def _concatenate(writer: Writer, made: Instruction) -> None:
    names = list(made.inputs)
    if made.range is not None and not writer.is_bytes(made.output):  # sums of codes among them
        names = [writer.dequantized(name) for name in names]
    if writer.is_bytes(made.output):
        point = writer.points[made.output]
        for index, name in enumerate(names):
            if writer.points[name] != point:  # one zero point for all
                values = writer.dequantized(name)
                names[index] = writer.node(
                    "QuantizeLinear", [values, writer.constant(1.0), writer.constant(point, np.uint8)]
                )
    writer.node("Concat", names, made.output, axis=made.attributes["axis"])


def _pad(writer: Writer, made: Instruction) -> None:
    name = made.inputs[0]
    pads = begins_and_ends([[0, 0, *made.attributes["padding"][0]], [0, 0, *made.attributes["padding"][1]]])
    zero = writer.constant(writer.points[name], np.uint8) if writer.is_bytes(name) else writer.constant(0.0)
    writer.node("Pad", [name, writer.constant(pads, np.int64), zero], made.output)


def _expand(writer: Writer, made: Instruction) -> None:
    value, like = made.inputs
    sizes = writer.constant(writer.network.constants[value].shape[1:], np.int64)
    batch = writer.node("Shape", [like], start=0, end=1)
    writer.node("Expand", [value, writer.node("Concat", [batch, sizes], axis=0)], made.output)


def _float(writer: Writer, made: Instruction) -> None:
    options = dict(made.attributes)
    kind = options.pop("operator")
    inputs = list(made.inputs)
    if kind == "ReduceMean":
        inputs.append(writer.constant(options.pop("axes"), np.int64))
        options["keepdims"] = int(options["keepdims"])
    elif kind == "AveragePool":
        options = _average(options)
    elif kind == "Conv":
        options = conv_attributes(options)
    writer.node(kind, inputs, made.output, **options)


_WRITERS: dict[str, Callable[[Writer, Instruction], Any]] = {
    "quantize": _quantize,
    "synapse": _synapse,
    "averaged": _averaged,
    "product": _product,
    "combine": _combine,
    "window_sum": _window_sum,
    "stretch": _stretch,
    "shrink": _shrink,
    "decode": _decode,
    "max_pool": _max_pool,
    "largest": _largest,
    "reshape": _reshape,
    "transpose": lambda writer, made: writer.node(
        "Transpose", list(made.inputs), made.output, perm=made.attributes["permutation"]
    ),
    "concatenate": _concatenate,
    "slice": _slice,
    "take": _take,
    "pad": _pad,
    "expand": _expand,
    "float": _float,
}
