"""Convolutions, linear layers and products of two signals: sums of codes, where their operands are codes."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from torch import fx

from polarspike.exporters.aten import Arguments, padding_of, shape_of, sizes_of
from polarspike.exporters.signals import ONE, ZERO, Codes, Constant, Signal, Sums, Term, Vector, array_of

if TYPE_CHECKING:
    from polarspike.exporters.lowering import Lowering, Rule


def _convolution(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    x, weight = given["input"], walk.signals[given["weight"]]
    if not isinstance(weight, Constant):
        raise walk.emitter.refuse("a convolution whose weight depends on the input")
    space = weight.tensor.dim() - 2
    stride, dilation = sizes_of(given["stride"], space), sizes_of(given["dilation"], space)
    kernel = list(weight.tensor.shape[2:])
    options = {
        "stride": stride,
        "padding": padding_of(given["padding"], kernel, dilation),
        "dilation": dilation,
        "groups": given["groups"],
    }
    bias = walk.vector(given["bias"])
    codes = walk.codes(x)
    if codes is None:
        made = np.zeros(len(weight.tensor)) if bias.ndim == 0 else bias
        names = [walk.float(x).name, walk.emitter.constant(weight.tensor), walk.emitter.constant(made)]
        return walk.emitter.floating("Conv", names, shape_of(node), **options)
    if not codes.uniform and codes.axis != 1:
        raise walk.emitter.refuse("a convolution of steps along another dimension than its channels")
    scaled = array_of(weight.tensor)
    groups = given["groups"]

    def per_input(vector: Vector) -> Vector:
        if vector.ndim == 0:
            return vector
        inputs = scaled.shape[1]  # of one group
        rows = vector.reshape(groups, inputs)[np.repeat(np.arange(groups), len(scaled) // groups)]
        return rows.reshape(len(scaled), inputs, *[1] * space)

    shift = (scaled * per_input(codes.offset)).reshape(len(scaled), -1).sum(axis=1)
    weights = scaled * per_input(codes.step)
    term = Term("convolution", (codes,), weights, options, ONE, walk.ranges[node], bias + shift)
    return Sums((term,), ZERO, 1, shape_of(node))


def _linear(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    x, weight = given["input"], walk.signals[given["weight"]]
    if not isinstance(weight, Constant):
        raise walk.emitter.refuse("a linear layer whose weight depends on the input")
    bias = walk.vector(given["bias"])
    codes, axis = walk.codes(x), len(shape_of(node))
    if codes is None or (not codes.uniform and codes.axis != axis):
        made = walk.emitter.floating(
            "MatMul", [walk.float(x).name, walk.emitter.constant(weight.tensor.T)], shape_of(node)
        )
        if not bias.any():
            return made
        return walk.emitter.floating("Add", [made.name, walk.emitter.constant(bias)], shape_of(node))
    scaled = array_of(weight.tensor)
    shift = (scaled * codes.offset).sum(axis=1)
    term = Term("linear", (codes,), scaled * codes.step, {}, ONE, walk.ranges[node], bias + shift)
    return Sums((term,), ZERO, axis, shape_of(node))


def _matmul(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    left = given.get("self", given.get("input"))
    right = given.get("other", given.get("mat2"))
    parts = [walk.signals[side] for side in (left, right)]
    if isinstance(parts[0], Codes) and isinstance(parts[1], Codes) and parts[0].uniform and parts[1].uniform:
        term = Term("product", (parts[0], parts[1]), None, {}, ONE, walk.ranges[node])
        return Sums((term,), ZERO, len(shape_of(node)), shape_of(node))
    return walk.emitter.floating("MatMul", [walk.name(left), walk.name(right)], shape_of(node))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten::conv1d", "aten::conv2d"), _convolution),
    "aten::linear": _linear,
    **dict.fromkeys(("aten::matmul", "aten::bmm"), _matmul),
}
