"""Operators that stay float, in float32 by their names in ONNX."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from torch import fx

from polarspike.exporters.aten import Arguments, shape_of
from polarspike.exporters.signals import Signal, Sums

if TYPE_CHECKING:
    from polarspike.exporters.lowering import Lowering, Rule


def _relu(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    signal = walk.signals[given["self"]]
    if isinstance(signal, Sums):
        return replace(signal, rectified=True)
    return walk.emitter.floating("Relu", [walk.float(given["self"]).name], shape_of(node))


def _plain(name: str, **attributes: Any) -> Rule:
    def rule(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
        return walk.emitter.floating(name, [walk.float(given["self"]).name], shape_of(node), **attributes)

    return rule


_HARD = {"alpha": 1 / 6, "beta": 0.5}


def _gated(name: str, **attributes: Any) -> Rule:
    """The product of x and f(x)."""

    def rule(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
        x = walk.float(given["self"]).name
        gate = walk.emitter.floating(name, [x], shape_of(node), **attributes)
        return walk.emitter.floating("Mul", [x, gate.name], shape_of(node))

    return rule


def _clamp(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    low = given.get("min", given.get("min_val"))
    high = given.get("max", given.get("max_val"))
    if low is None and high is None:
        low, high = 0.0, 6.0  # relu6
    ends = [-math.inf if low is None else low, math.inf if high is None else high]
    names = [walk.emitter.constant(float(end)) for end in ends]
    return walk.emitter.floating("Clip", [walk.float(given["self"]).name, *names], shape_of(node))


def _leaky(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    slope = walk.emitter.constant(float(given["negative_slope"]))
    return walk.emitter.floating("PRelu", [walk.float(given["self"]).name, slope], shape_of(node))


def _prelu(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    slope = walk.signals[given["weight"]].tensor
    behind = len(shape_of(node)) - 1  # of the channels
    laid = slope.reshape(-1, *(1,) * behind) if slope.numel() > 1 else slope.reshape(())
    return walk.emitter.floating("PRelu", [walk.float(given["self"]).name, walk.emitter.constant(laid)], shape_of(node))


def _elu(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    if given["scale"] != 1 or given["input_scale"] != 1:
        raise walk.emitter.refuse("an ELU with scales, as SELU is")
    return walk.emitter.floating("Elu", [walk.float(given["self"]).name], shape_of(node), alpha=float(given["alpha"]))


def _gelu(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    x = walk.float(given["self"]).name
    return walk.emitter.floating("Gelu", [x], shape_of(node), approximate=given["approximate"])


def _softmax(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    axis = given["dim"] % (len(shape_of(node)) + 1)
    return walk.emitter.floating("Softmax", [walk.float(given["self"]).name], shape_of(node), axis=axis)


def _layer_norm(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    shape = tuple(given["normalized_shape"])
    tensors = [
        walk.signals[given[key]].tensor if given[key] is not None else torch.full(shape, default)
        for key, default in (("weight", 1.0), ("bias", 0.0))
    ]
    names = [walk.float(given["input"]).name, *(walk.emitter.constant(tensor) for tensor in tensors)]
    return walk.emitter.floating(
        "LayerNormalization", names, shape_of(node), axis=-len(shape), epsilon=float(given["eps"])
    )


def _group_norm(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    channels = shape_of(node)[0]
    tensors = [
        walk.signals[given[key]].tensor if given[key] is not None else torch.full((channels,), default)
        for key, default in (("weight", 1.0), ("bias", 0.0))
    ]
    names = [walk.float(given["input"]).name, *(walk.emitter.constant(tensor) for tensor in tensors)]
    options = {"num_groups": given["num_groups"], "epsilon": float(given["eps"])}
    return walk.emitter.floating("GroupNormalization", names, shape_of(node), **options)


RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten::relu", "aten::relu_"), _relu),
    **dict.fromkeys(("aten::leaky_relu", "aten::leaky_relu_"), _leaky),
    "aten::prelu": _prelu,
    **dict.fromkeys(("aten::elu", "aten::elu_"), _elu),
    "aten::gelu": _gelu,
    **dict.fromkeys(("aten::silu", "aten::silu_"), _gated("Sigmoid")),
    **dict.fromkeys(("aten::hardswish", "aten::hardswish_"), _gated("HardSigmoid", **_HARD)),
    "aten::hardsigmoid": _plain("HardSigmoid", **_HARD),
    "aten::sigmoid": _plain("Sigmoid"),
    "aten::tanh": _plain("Tanh"),
    **dict.fromkeys(("aten::clamp", "aten::hardtanh", "aten::hardtanh_", "aten::relu6"), _clamp),
    "aten::softmax": _softmax,
    "aten::layer_norm": _layer_norm,
    "aten::group_norm": _group_norm,
}
