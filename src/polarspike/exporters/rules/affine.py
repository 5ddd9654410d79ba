"""Batch norms, sums and factors: they move into the sums that they follow."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import fx

from polarspike.exporters.aten import Arguments, shape_of
from polarspike.exporters.signals import (
    ONE,
    ZERO,
    Analog,
    Codes,
    Constant,
    Normalized,
    Shape,
    Signal,
    Sums,
    Vector,
    array_of,
)

if TYPE_CHECKING:
    from polarspike.exporters.lowering import Lowering, Rule


def _batch_norm(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    mean, var = (array_of(walk.signals[given[key]].tensor) for key in ("running_mean", "running_var"))
    factor = 1 / np.sqrt(var + given["eps"])
    if given["weight"] is not None:
        factor = factor * array_of(walk.signals[given["weight"]].tensor)
    shift = walk.vector(given["bias"]) - mean * factor
    signal = walk.sums(given["input"])
    if signal is not None and signal.plain and (signal.axis == 1 or _only_numbers(signal)):
        scaled = replace(signal, axis=1).times(factor)
        return replace(scaled, bias=scaled.bias + shift).shown(walk.ranges[node])
    dims = len(shape_of(node))
    laid = [walk.emitter.constant(part.reshape(-1, *[1] * (dims - 1))) for part in (factor, shift)]
    made = walk.emitter.floating("Mul", [walk.float(given["input"]).name, laid[0]], shape_of(node))
    made = walk.emitter.floating("Add", [made.name, laid[1]], shape_of(node))
    return _normalized(walk, given["input"], made, factor, shift)


def _only_numbers(sums: Sums) -> bool:
    """No vector along any axis yet, so that any axis will do."""
    weighted = any(term.weighted for term in sums.terms)
    vectors = [part for term in sums.terms for part in (term.scale, term.bias, *(s.step for s in term.sources))]
    return not weighted and all(part.ndim == 0 for part in (*vectors, sums.bias))


def _negated(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    sums = walk.sums(given["self"])
    if sums is not None and not sums.rectified:
        return sums.times(np.array(-1.0))
    return walk.emitter.floating("Mul", [walk.name(given["self"]), walk.emitter.constant(-1.0)], shape_of(node))


def _reversed_sub(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    made: Signal = _add(-1.0)(walk, node, {**given, "self": given["other"], "other": given["self"]})
    return made


def _add(sign: float) -> Rule:
    def rule(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
        left, right = given["self"], given["other"]
        factor = sign * float(given["alpha"])
        parts = [walk.sums(side) if isinstance(side, fx.Node) else None for side in (left, right)]
        one, other = parts
        if one is not None and other is not None and one.plain and other.plain and one.shape == other.shape:
            axes = {part.axis for part in (one, other) if not _only_numbers(part)}
            if len(axes) <= 1:
                axis = axes.pop() if axes else one.axis
                more = other.times(np.array(factor))
                return Sums(one.terms + more.terms, one.bias + more.bias, axis, one.shape)
        for sums, operand, mine, its in ((one, right, 1.0, factor), (other, left, factor, 1.0)):
            constant = _along_channels(walk, operand, sums) if sums is not None and sums.plain else None
            if sums is not None and constant is not None:
                scaled = sums.times(np.array(mine))
                return replace(scaled, bias=scaled.bias + its * constant)
        if factor not in (1.0, -1.0):
            raise walk.emitter.refuse(f"a sum with the factor {factor}; multiply in an operator of its own")
        kind = "Add" if factor == 1.0 else "Sub"
        answer = walk.emitter.floating(kind, [walk.name(left), walk.name(right)], shape_of(node))
        moved = _along(walk, right, 1, shape_of(node))
        return answer if moved is None else _normalized(walk, left, answer, ONE, factor * moved)

    return rule


def _scaled(kind: str) -> Rule:
    def rule(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
        left, right = given["self"], given["other"]
        if given.get("rounding_mode"):
            raise walk.emitter.refuse(f"a division that rounds ({given['rounding_mode']})")
        for side, factor in ((left, right), (right, left)) if kind == "Mul" else ((left, right),):
            sums = walk.sums(side) if isinstance(side, fx.Node) else None
            if sums is None or sums.rectified:
                continue
            constant = _along_channels(walk, factor, sums)
            if constant is None or (constant.ndim and sums.views):
                continue
            constant = constant if kind == "Mul" else 1 / constant
            signal = walk.signals[side]
            if isinstance(signal, Codes) and (constant > 0).all():  # the same codes, of another step
                return replace(signal, step=signal.step * constant, offset=signal.offset * constant)
            return sums.times(constant)
        answer = walk.emitter.floating(kind, [walk.name(left), walk.name(right)], shape_of(node))
        scale = _along(walk, right, 1, shape_of(node))
        if scale is None or not (scale > 0).all():
            return answer
        return _normalized(walk, left, answer, scale if kind == "Mul" else 1 / scale, ZERO)

    return rule


def _normalized(walk: Lowering, source: Any, made: Analog, factor: Vector, shift: Vector) -> Analog:
    """The float value ``made`` of ``factor x + shift``, known as normalized where x is an input, or normalized already."""
    signal = walk.signals.get(source) if isinstance(source, fx.Node) else None
    if not isinstance(signal, Analog) or not (factor > 0).all():
        return made
    before = signal.normalized
    if before is None and signal.name in dict(walk.inputs):
        before = Normalized(signal.name, ONE, ZERO)
    if before is None:
        return made
    return replace(made, normalized=Normalized(before.origin, before.factor * factor, before.shift * factor + shift))


def _along_channels(walk: Lowering, operand: Any, sums: Sums) -> Vector | None:
    return _along(walk, operand, sums.axis, sums.shape)


def _along(walk: Lowering, operand: Any, axis: int, shape: Shape) -> Vector | None:
    """A constant operand as one number, or one per index of ``axis``; None if it is neither."""
    if isinstance(operand, int | float):
        return np.array(float(operand))
    signal = walk.signals.get(operand)
    if not isinstance(signal, Constant):
        return None
    value, dims = array_of(signal.tensor), len(shape) + 1
    if value.size == 1 and value.ndim <= dims:
        return value.reshape(())
    laid = value.reshape([1] * (dims - value.ndim) + list(value.shape)) if value.ndim <= dims else value
    along = [size if d == axis else 1 for d, size in enumerate((1, *shape))]
    return laid.reshape(-1) if list(laid.shape) == along else None


RULES: dict[str, Rule] = {
    "aten::batch_norm": _batch_norm,
    **dict.fromkeys(("aten::add", "aten::add_"), _add(1.0)),
    "aten::neg": _negated,
    "aten::rsub": _reversed_sub,
    "aten::sub": _add(-1.0),
    "aten::mul": _scaled("Mul"),
    "aten::div": _scaled("Div"),
}
