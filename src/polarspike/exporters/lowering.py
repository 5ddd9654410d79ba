"""Turn an ATen program with named sites into an integer network: one rule per operator.

A signal is codes, sums that have not fired, or float (:mod:`polarspike.exporters.signals`). Affine operators on codes make
sums; a site makes codes of them; every other operator asks for the float value. What has no rule is refused by name.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from polarspike.exporters.aten import arguments_of, even_windows, leaves_of, padding_of, place_of, shape_of, sizes_of
from polarspike.exporters.emission import Emitter, channel_steps
from polarspike.exporters.observed import Ranges
from polarspike.exporters.signals import Analog, Codes, Constant, Shape, Signal, Sums, Term, Vector, View
from polarspike.graph import attribute
from polarspike.neurons import PolarityNeuron

Arguments = Mapping[str, Any]
_ONE = np.ones(())
_ZERO = np.zeros(())


class Lowering:
    """One walk through a program.

    Args:
        program: of :func:`~polarspike.exporters.marking.marked_program`.
        neurons: of its sites, by name.
        ranges: of its values on the given batches.
        pixels: of each input by name: the step and the offset of its grid, one number or one per channel, and its codes.
    """

    def __init__(
        self,
        program: fx.GraphModule,
        neurons: Mapping[str, PolarityNeuron],
        ranges: Ranges,
        pixels: Mapping[str, tuple[Vector, Vector, int, int]],
    ) -> None:
        self.program, self.neurons, self.ranges, self.pixels = program, neurons, ranges, pixels
        self.emitter = Emitter()
        self.signals: dict[fx.Node, Any] = {}
        self.sites: dict[str, str] = {}
        self.inputs: list[tuple[str, Shape]] = []
        self.outputs: list[tuple[str, Shape]] = []
        self._grids: dict[str, Codes] = {}
        self._floats: dict[fx.Node, Analog] = {}

    def run(self) -> None:
        """Write everything."""
        for node in self.program.graph.nodes:
            self.emitter.where = place_of(node)
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "get_attr":
                self.signals[node] = Constant(attribute(self.program, str(node.target)))
            elif node.op == "output":
                for leaf in leaves_of(node.args):
                    answer = self.emitter.analog(self.signals[leaf], "output")
                    self.outputs.append((answer.name, answer.shape))
            elif node.op == "call_function":
                self.signals[node] = self._called(node)
        # call_module: guards on shapes, which compute nothing

    def _input(self, node: fx.Node) -> None:
        value = node.meta["val"]
        name = self.emitter.free(str(node.target))
        if not value.is_floating_point():
            raise self.emitter.refuse(
                f"input {name!r} holds integers ({value.dtype}); the integer format takes float inputs"
            )
        shape = shape_of(node)
        self.inputs.append((name, shape))
        self.signals[node] = Analog(name, shape, raw=True)

    def _called(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            return self.signals[node.all_input_nodes[0]][node.args[1]]
        if not isinstance(node.target, torch._ops.OpOverload):
            return None  # sizes
        if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            return None
        operands = [self.signals.get(leaf) for leaf in leaves_of((node.args, node.kwargs))]
        if all(part is None or isinstance(part, Constant) for part in operands):
            return self._computed(node)
        name = node.target._schema.name
        rule = _RULES.get(name)
        if rule is None:
            raise self.emitter.refuse(
                f"no rule for {name.removeprefix('aten::')} in whole numbers; there are rules for "
                f"{', '.join(sorted(known.removeprefix('aten::') for known in _RULES))}. Export as onnx-float instead"
            )
        return rule(self, node, arguments_of(node))

    def _computed(self, node: fx.Node) -> Constant:
        """What depends on no input, now; a batch that is not known yet counts as one."""

        def value(leaf: Any) -> Any:
            if not isinstance(leaf, fx.Node):
                return leaf
            signal = self.signals.get(leaf)
            return signal.tensor if isinstance(signal, Constant) else 1

        args, kwargs = torch.utils._pytree.tree_map(value, (node.args, node.kwargs))
        with torch.no_grad():
            return Constant(node.target(*args, **kwargs))  # type: ignore[operator]

    # Operands

    def float(self, node: fx.Node) -> Analog:
        """The float value of a node, written once."""
        if node not in self._floats:
            self._floats[node] = self.emitter.analog(self.signals[node])
        return self._floats[node]

    def name(self, operand: Any) -> str:
        """The name of a float operand: a node's, or a new constant's."""
        if isinstance(operand, fx.Node):
            signal = self.signals[operand]
            return self.emitter.constant(signal.tensor) if isinstance(signal, Constant) else self.float(operand).name
        return self.emitter.constant(float(operand))

    def codes(self, node: fx.Node) -> Codes | None:
        """The operand of a synapse as codes: a site's, or an input's on its grid of bytes; None for other float signals."""
        signal = self.signals[node]
        if isinstance(signal, Codes):
            return signal
        if not (isinstance(signal, Analog) and signal.raw):
            return None
        if signal.name not in self._grids:
            step, offset, low, high = self.pixels[self.inputs[0][0] if len(self.inputs) == 1 else _root(node)]
            axis = 1
            if step.ndim and signal.shape[0] != len(step):
                step, offset = step.max(keepdims=True)[0], _ZERO  # another layout: one grid for all
            self._grids[signal.name] = self.emitter.quantized(
                signal, step, axis, low, high, f"{signal.name}_codes", offset
            )
        return self._grids[signal.name]

    def sums(self, node: fx.Node) -> Sums | None:
        """An operand of an affine operator as sums: codes are a term of their own; None for float signals."""
        signal = self.signals[node]
        if isinstance(signal, Sums):
            if len(signal.terms) == 1:  # what the batches have shown of the whole is what this term can be
                signal = replace(signal, terms=(replace(signal.terms[0], seen=self.ranges[node]),))
            return signal
        if isinstance(signal, Codes):
            term = Term("identity", (signal,), None, {}, _ONE, self.ranges[node])
            return Sums((term,), _ZERO, signal.axis, signal.shape)
        return None


def _root(node: fx.Node) -> str:
    while node.op != "placeholder":
        node = node.all_input_nodes[0]
    return str(node.target)


def _array(tensor: Tensor) -> Vector:
    return tensor.detach().cpu().double().numpy()


# Sites


def _site(walk: Lowering, node: fx.Node, given: Arguments) -> Codes:
    name = given["name"]
    neuron, signal, emitter = walk.neurons[name], walk.signals[given["x"]], walk.emitter
    emitter.where = f"site {name!r}"
    negative, positive = neuron.levels
    gain = float(neuron.gain) if negative else 1.0
    low, factor = (0, 1) if gain == 0.0 else (-negative, _whole(gain, emitter))
    axis = neuron.spec.channel_dim % (len(shape_of(node)) + 1)
    step = _array(neuron.step)
    if isinstance(signal, Codes):
        signal = walk.sums(given["x"])
    if isinstance(signal, Sums):
        signal = walk.sums(given["x"]) or signal
    products = isinstance(signal, Sums) and any(term.operator == "product" for term in signal.terms)
    if isinstance(signal, Sums) and not (
        products and step.ndim
    ):  # no weight can absorb a step per channel of a product
        codes = emitter.fired(signal, channel_steps(signal, step, axis, emitter), low, positive, name)
    else:
        codes = emitter.quantized(emitter.analog(signal), step, axis, low, positive, name)
    walk.sites[name] = codes.name
    return codes if factor == 1 else emitter.stretched(codes, factor, codes.step / factor)


def _whole(gain: float, emitter: Emitter) -> int:
    factor = round(1 / gain)
    if factor < 1 or factor & (factor - 1) or 1 / factor != gain:
        raise emitter.refuse(
            f"a gain of {gain:.4g} is no power of two, so its codes are no whole numbers; use polarspike.snap_gains on the "
            "quantized network, train a little more, and convert again"
        )
    return factor


# Synapses


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
    bias = _bias(walk, given["bias"])
    codes = walk.codes(x)
    if codes is None:
        made = np.zeros(len(weight.tensor)) if bias.ndim == 0 else bias
        names = [walk.float(x).name, walk.emitter.constant(weight.tensor), walk.emitter.constant(made)]
        return walk.emitter.floating("Conv", names, shape_of(node), **options)
    if not codes.uniform and codes.axis != 1:
        raise walk.emitter.refuse("a convolution of steps along another dimension than its channels")
    scaled = _array(weight.tensor)
    groups = given["groups"]

    def per_input(vector: Vector) -> Vector:
        if vector.ndim == 0:
            return vector
        inputs = scaled.shape[1]  # of one group
        rows = vector.reshape(groups, inputs)[np.repeat(np.arange(groups), len(scaled) // groups)]
        return rows.reshape(len(scaled), inputs, *[1] * space)

    shift = (scaled * per_input(codes.offset)).reshape(len(scaled), -1).sum(axis=1)
    term = Term("convolution", (codes,), scaled * per_input(codes.step), options, _ONE, walk.ranges[node])
    return Sums((term,), bias + shift, 1, shape_of(node))


def _linear(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    x, weight = given["input"], walk.signals[given["weight"]]
    if not isinstance(weight, Constant):
        raise walk.emitter.refuse("a linear layer whose weight depends on the input")
    bias = _bias(walk, given["bias"])
    codes, axis = walk.codes(x), len(shape_of(node))
    if codes is None or (not codes.uniform and codes.axis != axis):
        made = walk.emitter.floating(
            "MatMul", [walk.float(x).name, walk.emitter.constant(weight.tensor.T)], shape_of(node)
        )
        if not bias.any():
            return made
        return walk.emitter.floating("Add", [made.name, walk.emitter.constant(bias)], shape_of(node))
    scaled = _array(weight.tensor)
    shift = (scaled * codes.offset).sum(axis=1)
    term = Term("linear", (codes,), scaled * codes.step, {}, _ONE, walk.ranges[node])
    return Sums((term,), bias + shift, axis, shape_of(node))


def _bias(walk: Lowering, node: fx.Node | None) -> Vector:
    return _ZERO if node is None else _array(walk.signals[node].tensor)


def _matmul(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    left = given.get("self", given.get("input"))
    right = given.get("other", given.get("mat2"))
    parts = [walk.signals[side] for side in (left, right)]
    if isinstance(parts[0], Codes) and isinstance(parts[1], Codes) and parts[0].uniform and parts[1].uniform:
        term = Term("product", (parts[0], parts[1]), None, {}, _ONE, walk.ranges[node])
        return Sums((term,), _ZERO, len(shape_of(node)), shape_of(node))
    return walk.emitter.floating("MatMul", [walk.name(left), walk.name(right)], shape_of(node))


# Affine operators


def _batch_norm(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    mean, var = (_array(walk.signals[given[key]].tensor) for key in ("running_mean", "running_var"))
    factor = 1 / np.sqrt(var + given["eps"])
    if given["weight"] is not None:
        factor = factor * _array(walk.signals[given["weight"]].tensor)
    shift = _bias(walk, given["bias"]) - mean * factor
    signal = walk.sums(given["input"])
    if signal is not None and signal.plain and (signal.axis == 1 or _only_numbers(signal)):
        scaled = replace(signal, axis=1).times(factor)
        return _seen(walk, node, replace(scaled, bias=scaled.bias + shift))
    dims = len(shape_of(node))
    laid = [walk.emitter.constant(part.reshape(-1, *[1] * (dims - 1))) for part in (factor, shift)]
    made = walk.emitter.floating("Mul", [walk.float(given["input"]).name, laid[0]], shape_of(node))
    return walk.emitter.floating("Add", [made.name, laid[1]], shape_of(node))


def _seen(walk: Lowering, node: fx.Node, sums: Sums) -> Sums:
    if len(sums.terms) != 1:
        return sums
    return replace(sums, terms=(replace(sums.terms[0], seen=walk.ranges[node]),))


def _only_numbers(sums: Sums) -> bool:
    """No vector along any axis yet, so that any axis will do."""
    weighted = any(term.operator in ("convolution", "linear") for term in sums.terms)
    vectors = [part for term in sums.terms for part in (term.scale, *(s.step for s in term.sources))]
    return not weighted and all(part.ndim == 0 for part in (*vectors, sums.bias))


def _add(sign: float) -> Callable[[Lowering, fx.Node, Arguments], Signal]:
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
        if one is not None and one.plain:
            constant = _along_channels(walk, right, one)
            if constant is not None:
                return replace(one, bias=one.bias + factor * constant)
        if factor not in (1.0, -1.0):
            raise walk.emitter.refuse(f"a sum with the factor {factor}; multiply in an operator of its own")
        kind = "Add" if factor == 1.0 else "Sub"
        return walk.emitter.floating(kind, [walk.name(left), walk.name(right)], shape_of(node))

    return rule


def _scaled(kind: str) -> Callable[[Lowering, fx.Node, Arguments], Signal]:
    def rule(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
        left, right = given["self"], given["other"]
        for side, factor in ((left, right), (right, left)) if kind == "Mul" else ((left, right),):
            sums = walk.sums(side) if isinstance(side, fx.Node) else None
            if sums is None or sums.rectified:
                continue
            constant = _along_channels(walk, factor, sums)
            if constant is not None and (constant.ndim == 0 or not sums.views):
                return sums.times(constant if kind == "Mul" else 1 / constant)
        return walk.emitter.floating(kind, [walk.name(left), walk.name(right)], shape_of(node))

    return rule


def _along_channels(walk: Lowering, operand: Any, sums: Sums) -> Vector | None:
    """A constant operand as one number, or one per channel of ``sums``; None if it is neither."""
    if isinstance(operand, int | float):
        return np.array(float(operand))
    signal = walk.signals.get(operand)
    if not isinstance(signal, Constant):
        return None
    value, dims = _array(signal.tensor), len(sums.shape) + 1
    if value.size == 1 and value.ndim <= dims:
        return value.reshape(())
    laid = value.reshape([1] * (dims - value.ndim) + list(value.shape)) if value.ndim <= dims else value
    along = [size if d == sums.axis else 1 for d, size in enumerate((1, *sums.shape))]
    return laid.reshape(-1) if list(laid.shape) == along else None


# Pooling


def _max_pool(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    signal = walk.signals[given["self"]]
    signal = signal if isinstance(signal, Codes) else walk.float(given["self"])
    space = len(signal.shape) - 1
    kernel, dilation = sizes_of(given["kernel_size"], space), sizes_of(given["dilation"], space)
    stride = sizes_of(given["stride"], space) if given["stride"] else kernel
    before = sizes_of(given["padding"], space)
    shape = shape_of(node)
    # As much behind as the last window reaches: with ceil_mode it may stand out.
    after = [
        (out - 1) * s + d * (k - 1) + 1 - size - p
        for out, s, d, k, size, p in zip(shape[1:], stride, dilation, kernel, signal.shape[1:], before, strict=True)
    ]
    padding = [before, [max(0, extra) for extra in after]]
    attributes = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return walk.emitter.pooled(signal, shape, attributes)


def _average_pool(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    space = len(shape_of(node)) - 1
    kernel = sizes_of(given["kernel_size"], space)
    padding = sizes_of(given["padding"], space)
    if given["ceil_mode"] or given.get("divisor_override") or (any(padding) and not given["count_include_pad"]):
        raise walk.emitter.refuse("average pooling whose windows count differently at the border")
    stride = sizes_of(given["stride"], space) if given["stride"] else kernel
    return _window_mean(walk, node, given["self"], kernel, stride, padding)


def _adaptive_average(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    source, shape = given["self"], shape_of(node)
    before = shape_of(source)
    if all(size == 1 for size in shape[1:]):
        return _mean_over(walk, node, source, list(range(2, len(before) + 1)), True)
    windows = even_windows(before[1:], shape[1:])
    if windows is None:
        raise walk.emitter.refuse(
            f"adaptive average pooling from {before[1:]} to {shape[1:]}, whose windows differ in size"
        )
    return _window_mean(walk, node, source, *windows, [0] * len(windows[0]))


def _window_mean(
    walk: Lowering, node: fx.Node, source: fx.Node, kernel: list[int], stride: list[int], padding: list[int]
) -> Signal:
    signal = walk.signals[source]
    attributes = {"kernel": kernel, "stride": stride, "padding": [padding, padding]}
    if not isinstance(signal, Codes):  # its site is behind it
        return walk.emitter.floating("AveragePool", [walk.float(source).name], shape_of(node), **attributes)
    return walk.emitter.summed(signal, shape_of(node), math.prod(kernel), attributes, signal.axis)


def _mean(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(given["self"])) + 1
    wanted = given["dim"] if given.get("dim") else range(1, dims)
    axes = sorted(d % dims for d in ([wanted] if isinstance(wanted, int) else wanted))
    if 0 in axes:
        raise walk.emitter.refuse("a mean over the batch")
    return _mean_over(walk, node, given["self"], axes, bool(given.get("keepdim")))


def _mean_over(walk: Lowering, node: fx.Node, source: fx.Node, axes: list[int], keepdims: bool) -> Signal:
    signal, shape = walk.signals[source], shape_of(source)
    if isinstance(signal, Codes) and (signal.uniform or signal.axis not in axes):
        count = math.prod(shape[d - 1] for d in axes)
        axis = signal.axis if keepdims else signal.axis - sum(d < signal.axis for d in axes)
        return walk.emitter.summed(
            signal, shape_of(node), count, {"axes": axes, "keepdims": keepdims}, 1 if signal.uniform else axis
        )
    return walk.emitter.floating("ReduceMean", [walk.float(source).name], shape_of(node), axes=axes, keepdims=keepdims)


# Layouts


def _view(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    source = given.get("self", given.get("input"))
    if _symbolic(node) and not _symbolic(source):
        raise walk.emitter.refuse("a layout that makes a batch of something else")
    return _looked(walk, source, ("reshape", shape_of(node)), node)


def _symbolic(node: fx.Node) -> bool:
    return not isinstance(node.meta["val"].shape[0], int)


def _looked(walk: Lowering, source: fx.Node, view: View, node: fx.Node) -> Signal:
    signal = walk.signals[source]
    if str(node.meta["val"].shape[0]) != str(source.meta["val"].shape[0]):
        raise walk.emitter.refuse("a layout in which the first dimension is no longer the batch")
    if isinstance(signal, Sums) and not (signal.plain or signal.views):
        signal = walk.float(source)
    return walk.emitter.viewed(signal, view)


def _transpose(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(node)) + 1
    order = list(range(dims))
    one, other = given["dim0"] % dims, given["dim1"] % dims
    order[one], order[other] = order[other], order[one]
    return _looked(walk, given["self"], ("transpose", tuple(order)), node)


def _permute(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(node)) + 1
    return _looked(walk, given["self"], ("transpose", tuple(d % dims for d in given["dims"])), node)


def _same(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    return walk.signals[given.get("self", given.get("input"))]  # type: ignore[no-any-return]


def _part(walk: Lowering, source: fx.Node, axis: int, start: int, end: int, stride: int = 1) -> Codes | Analog:
    signal = walk.signals[source]
    signal = signal if isinstance(signal, Codes) else walk.float(source)
    length = signal.shape[axis - 1]
    start, end, _ = slice(start, end, stride).indices(length)
    shape = list(signal.shape)
    shape[axis - 1] = len(range(start, end, stride))
    attributes = {"axis": axis, "start": start, "end": end, "stride": stride}
    where_ = (slice(None),) * axis + (slice(start, end, stride),)
    return walk.emitter.rearranged("slice", signal, tuple(shape), attributes, lambda x: x[where_])


def _slice(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(node)) + 1
    axis = given["dim"] % dims
    whole = given["start"] in (None, 0) and (given["end"] is None or given["end"] >= 2**62) and given["step"] == 1
    if axis == 0 and not whole:
        raise walk.emitter.refuse("a part of the batch")
    if whole:
        return walk.signals[given["self"]]  # type: ignore[no-any-return]
    return _part(walk, given["self"], axis, given["start"], given["end"], given["step"])


def _select(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    shape = shape_of(given["self"])
    axis = given["dim"] % (len(shape) + 1)
    if axis == 0:
        raise walk.emitter.refuse("one sample of the batch")
    index = given["index"] % shape[axis - 1]
    part = _part(walk, given["self"], axis, index, index + 1)
    return walk.emitter.viewed(part, ("reshape", shape_of(node)))


def _chunks(walk: Lowering, node: fx.Node, given: Arguments) -> list[Codes | Analog]:
    source = given["self"]
    shape = shape_of(source)
    axis = given["dim"] % (len(shape) + 1)
    lengths = [int(part.shape[axis]) for part in node.meta["val"]]
    ends = np.cumsum(lengths)
    return [_part(walk, source, axis, int(end) - size, int(end)) for end, size in zip(ends, lengths, strict=True)]


def _concatenate(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    axis = given["dim"] % (len(shape_of(node)) + 1)
    if axis == 0:
        raise walk.emitter.refuse("a concatenation of batches")
    signals = [walk.signals[part] for part in given["tensors"]]
    if all(isinstance(signal, Codes) and not signal.wide for signal in signals):
        return walk.emitter.joined(signals, shape_of(node), axis)
    if any(isinstance(signal, Constant) for signal in signals):
        raise walk.emitter.refuse("a concatenation with a constant, as a class token is; use the mean over the tokens")
    name = walk.emitter.free("concatenate")
    names = [walk.float(part).name for part in given["tensors"]]
    walk.emitter._add("concatenate", names, name, {"axis": axis})
    return Analog(name, shape_of(node))


def _pad(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    signal = walk.signals[given["self"]]
    signal = signal if isinstance(signal, Codes) else walk.float(given["self"])
    if given.get("mode", "constant") != "constant" or given.get("value"):
        raise walk.emitter.refuse("padding with anything but zeros")
    space = len(signal.shape) - 1
    pairs = [given["pad"][i : i + 2] for i in range(0, len(given["pad"]), 2)][::-1]
    pairs = [[0, 0]] * (space - len(pairs)) + pairs
    if len(pairs) != space or min(min(pair) for pair in pairs) < 0:
        raise walk.emitter.refuse("padding of the channels, or negative padding")
    attributes = {"padding": [[p[0] for p in pairs], [p[1] for p in pairs]]}
    flat = [size for pair in pairs[::-1] for size in pair]
    return walk.emitter.rearranged(
        "pad", signal, shape_of(node), attributes, lambda x: torch.nn.functional.pad(x, flat, mode="replicate")
    )


# Float operators


def _relu(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    signal = walk.signals[given["self"]]
    if isinstance(signal, Sums):
        return replace(signal, rectified=True)
    return walk.emitter.floating("Relu", [walk.float(given["self"]).name], shape_of(node))


def _plain(name: str, **attributes: Any) -> Callable[[Lowering, fx.Node, Arguments], Signal]:
    def rule(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
        return walk.emitter.floating(name, [walk.float(given["self"]).name], shape_of(node), **attributes)

    return rule


_HARD = {"alpha": 1 / 6, "beta": 0.5}


def _gated(name: str, **attributes: Any) -> Callable[[Lowering, fx.Node, Arguments], Signal]:
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


_RULES: dict[str, Callable[[Lowering, fx.Node, Arguments], Any]] = {
    "polarspike::site": _site,
    **dict.fromkeys(("aten::conv1d", "aten::conv2d"), _convolution),
    "aten::linear": _linear,
    **dict.fromkeys(("aten::matmul", "aten::bmm"), _matmul),
    "aten::batch_norm": _batch_norm,
    **dict.fromkeys(("aten::add", "aten::add_"), _add(1.0)),
    "aten::sub": _add(-1.0),
    "aten::mul": _scaled("Mul"),
    "aten::div": _scaled("Div"),
    **dict.fromkeys(("aten::max_pool1d", "aten::max_pool2d"), _max_pool),
    **dict.fromkeys(("aten::avg_pool1d", "aten::avg_pool2d"), _average_pool),
    **dict.fromkeys(("aten::adaptive_avg_pool1d", "aten::adaptive_avg_pool2d"), _adaptive_average),
    "aten::mean": _mean,
    **dict.fromkeys(
        ("aten::view", "aten::reshape", "aten::flatten", "aten::unflatten", "aten::squeeze", "aten::unsqueeze"), _view
    ),
    "aten::transpose": _transpose,
    "aten::permute": _permute,
    **dict.fromkeys(("aten::dropout", "aten::contiguous", "aten::clone", "aten::detach", "aten::alias"), _same),
    "aten::slice": _slice,
    "aten::select": _select,
    **dict.fromkeys(("aten::chunk", "aten::split", "aten::split_with_sizes"), _chunks),
    "aten::cat": _concatenate,
    **dict.fromkeys(("aten::pad", "aten::constant_pad_nd"), _pad),
    **dict.fromkeys(("aten::relu", "aten::relu_"), _relu),
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
