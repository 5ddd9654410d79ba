"""The first timestep in NIR, the neuromorphic intermediate representation (Pedersen et al. 2024, arXiv 2311.14711).

No node of NIR fires several signed spikes, but at T = 1 a site is exactly a bank of thresholds between linear operators:

    k = sum_{j = 1-N}^{P} [x >= (j - 1/2) s]  -  N          each [ ] is a Threshold node's output

    SITE_repeat     N + P copies of every channel           Conv2d 1x1, or Affine
    SITE            Threshold
    SITE_count      counts them, minus N: the code k        negative ones weigh the gain
    SITE_decode     times the step

NIR's thresholds are strict (x > theta), and a code's is not; so theta is the largest float32 below the first x with that
code. Residual sums are edges that meet. Batch norms are folded into the layer in front of them, which rounds anew: a code
next to a threshold may move, and :func:`polarspike.export` counts what that does to the outputs. Convolutions in groups are
written as dense ones.

Metadata "polarspike" of the graph: :mod:`polarspike.exporters.description`, levels, step and gain of each site by name;
"polarspike_sha256": a digest of the graph (:func:`polarspike.exporters.nir_modules.digest_of`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, fx

from polarspike import ops
from polarspike.common import seals
from polarspike.common.inputs import Inputs
from polarspike.errors import ExportError, MissingExtraError
from polarspike.exporters.aten import (
    arguments_of,
    average_windows,
    even_windows,
    leaves_of,
    padding_of,
    place_of,
    shape_of,
    sizes_of,
)
from polarspike.exporters.description import KEY, describe
from polarspike.exporters.marking import marked_program
from polarspike.exporters.nir_modules import digest_of
from polarspike.exporters.rules import RULES
from polarspike.graph.editing import attribute
from polarspike.neurons import PolarityNeuron
from polarspike.spiking import SpikingNetwork

Arguments = Mapping[str, Any]
#: The nodes whose outputs sum to a signal.
Sources = tuple[str, ...]


def graph_of(snn: SpikingNetwork, example: Inputs) -> Any:
    """The network as a ``nir.NIRGraph``.

    Args:
        snn: float32, on the CPU; one input, one output.
        example: inputs of one call.

    Raises:
        MissingExtraError: the package nir is not installed.
        ExportError: an operator that NIR does not have, by name.
    """
    try:
        import nir
    except ImportError as error:
        raise MissingExtraError("nir", "deploy") from error
    program, _ = marked_program(snn, example)
    walk = _Walk(program, snn.sites())
    walk.run()
    graph = nir.NIRGraph(walk.nodes, walk.edges, metadata={KEY: describe(snn)})
    graph.metadata[seals.KEY] = digest_of(graph)
    return graph


def save(graph: Any, path: Path) -> None:
    """Write the graph."""
    import nir

    nir.write(str(path), graph)


class _Walk:
    def __init__(self, program: fx.GraphModule, neurons: Mapping[str, PolarityNeuron]) -> None:
        import nir

        self.nir = nir
        self.program, self.neurons = program, neurons
        self.nodes: dict[str, Any] = {}
        self.edges: list[tuple[str, str]] = []
        self.signals: dict[fx.Node, Sources] = {}
        self.where = ""

    def run(self) -> None:
        for node in self.program.graph.nodes:
            self.where = place_of(node)
            if node.op == "placeholder":
                if self.nodes:
                    raise self.refuse("a second input, which NIR graphs can hold and nirtorch cannot run")
                self.signals[node] = (self.put("input", self.nir.Input(np.array(shape_of(node))), ()),)
            elif node.op == "output":
                leaves = leaves_of(node.args)
                if len(leaves) != 1:
                    raise self.refuse(f"{len(leaves)} outputs; NIR graphs here have one")
                if leaves[0] not in self.signals or len(shape_of(leaves[0])) not in (1, 3):
                    raise self.refuse("an output that is neither vectors nor images")
                sources, shape = self.signals[leaves[0]], shape_of(leaves[0])
                if len(sources) > 1:  # nirtorch reads one edge of an output
                    sources = (self.passed("sum", sources, shape),)
                self.put("output", self.nir.Output(np.array(shape)), sources)
            elif node.op == "call_function":
                self._called(node)

    def _called(self, node: fx.Node) -> None:
        if not isinstance(node.target, torch._ops.OpOverload) or not any(
            leaf in self.signals for leaf in leaves_of((node.args, node.kwargs))
        ):
            return
        name = node.target._schema.name
        rule = _RULES.get(name)
        if rule is None or not isinstance(node.meta.get("val"), Tensor):
            if node.target is torch.ops.aten.sym_size.int:
                return
            if name in _CURVES and (average := _average_behind(node)) is not None:
                raise self.refuse(
                    f"NIR has no node for {name.removeprefix('aten::')} alone: its site stands behind {average}, which "
                    "averages it in front of a synapse. Pool by stride or by a convolution instead, or export as "
                    f"{self.other()}"
                )
            raise self.refuse(
                f"NIR has no node for {name.removeprefix('aten::')}; it holds convolutions, linear layers on vectors, "
                f"average pooling, residual sums and flattening. Export as {self.other()} instead"
            )
        self.signals[node] = rule(self, node, arguments_of(node))

    def other(self) -> str:
        """A format that has rules for all operators of the program, as far as their names tell."""
        called = [node for node in self.program.graph.nodes if isinstance(node.target, torch._ops.OpOverload)]
        names = {node.target._schema.name for node in called if isinstance(node.meta.get("val"), Tensor | list | tuple)}
        return "onnx-int8" if names <= RULES.keys() else "onnx-float"

    def refuse(self, why: str) -> ExportError:
        return ExportError(f"{self.where}: {why}")

    def put(self, name: str, node: Any, sources: Sources) -> str:
        name = name.replace(".", "_")
        while name in self.nodes:
            name += "_"
        if len(set(sources)) != len(sources):
            raise self.refuse("a signal that is added to itself; NIR's edges are a set")
        self.nodes[name] = node
        self.edges += [(source, name) for source in sources]
        return name

    def array(self, operand: Any, missing: Tensor | None = None) -> np.ndarray[Any, Any]:
        """A parameter in float64."""
        if operand is None:
            assert missing is not None
            return cast(np.ndarray[Any, Any], missing.double().numpy())
        tensor: Tensor = attribute(self.program, str(operand.target))
        return cast(np.ndarray[Any, Any], tensor.detach().double().numpy())

    def convolution(
        self, name: str, sources: Sources, space: tuple[int, ...], weight: Any, bias: Any, groups: int
    ) -> str:
        """A 1x1 convolution."""
        node = self.nir.Conv2d(space, _dense(weight, groups), (1, 1), (0, 0), (1, 1), 1, _float32(bias))
        return self.put(name, node, sources)

    def passed(self, name: str, sources: Sources, shape: tuple[int, ...]) -> str:
        """The sum of some edges as one node, which changes nothing."""
        eye = np.eye(shape[0])
        if len(shape) == 3:
            return self.convolution(name, sources, shape[1:], eye[:, :, None, None], np.zeros(shape[0]), 1)
        return self.put(name, _matrix(self, eye, np.zeros(shape[0])), sources)


def _float32(value: Any) -> np.ndarray[Any, Any]:
    return np.ascontiguousarray(value, dtype=np.float32)


def _dense(weight: Any, groups: int) -> np.ndarray[Any, Any]:
    """The weights of a convolution in groups as those of one without: the type check of nir 1.0 counts no groups."""
    outputs, inputs, *kernel = weight.shape
    whole = np.zeros((outputs, inputs * groups, *kernel), dtype=np.float32)
    for group, rows in enumerate(np.split(np.arange(outputs), groups)):
        whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return whole


def thresholds(neuron: PolarityNeuron, code: int) -> Tensor:
    """For each channel (or one for all) the largest float32 whose code is below ``code``: the strict threshold of it.

    Found by asking the encoder itself, from the neighbourhood of ``(code - 1/2) s``.
    """
    step = neuron.step.detach().reshape(-1)
    x = (code - 0.5) * step
    low, high = neuron.levels
    down, up = torch.full_like(x, -torch.inf), torch.full_like(x, torch.inf)
    for _ in range(4):  # the quotient is rounded once, so the first x is next to this one
        x = torch.where(ops.encode(x, step, low, high) >= code, torch.nextafter(x, down), x)
    for _ in range(8):
        following = torch.nextafter(x, up)
        x = torch.where(ops.encode(following, step, low, high) < code, following, x)
    return x


def _site(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    name, shape = given["name"], shape_of(node)
    walk.where = f"site {name!r}"
    neuron, sources = walk.neurons[name], walk.signals[given["x"]]
    if len(shape) not in (1, 3) or (neuron.spec.channels and neuron.spec.channel_dim % (len(shape) + 1) != 1):
        raise walk.refuse(f"a signal (batch, {', '.join(map(str, shape))}); NIR takes images and vectors")
    negative, positive = neuron.levels
    bank, channels = negative + positive, shape[0]
    gain = float(neuron.gain) if negative else 1.0
    # Channel c of the signal is channels c * bank, ..., of the bank.
    rows = torch.stack(
        [thresholds(neuron, code) for code in range(1 - negative, positive + 1)], dim=1
    )  # (C or 1, bank)
    theta = rows.expand(channels, bank).reshape(-1, *[1] * (len(shape) - 1)).expand(-1, *shape[1:])
    worth = np.array([gain if code <= 0 else 1.0 for code in range(1 - negative, positive + 1)])
    step = np.broadcast_to(neuron.step.detach().reshape(-1).numpy(), channels)
    least = np.full(channels, -gain * negative)
    if len(shape) == 3:
        space = shape[1:]
        ones = np.ones((channels * bank, 1, 1, 1))
        walk.convolution(f"{name}_repeat", sources, space, ones, np.zeros(channels * bank), channels)
        walk.put(name, walk.nir.Threshold(_float32(theta)), (_last(walk),))
        counting = np.tile(worth, (channels, 1)).reshape(channels, bank, 1, 1)
        walk.convolution(f"{name}_count", (_last(walk),), space, counting, least, channels)
        made = walk.convolution(
            f"{name}_decode", (_last(walk),), space, step.reshape(-1, 1, 1, 1), np.zeros(channels), channels
        )
        return (made,)
    eye = np.eye(channels)
    walk.put(f"{name}_repeat", _matrix(walk, np.repeat(eye, bank, axis=0), np.zeros(channels * bank)), sources)
    walk.put(name, walk.nir.Threshold(_float32(theta)), (_last(walk),))
    walk.put(f"{name}_count", _matrix(walk, np.kron(eye, worth), least), (_last(walk),))
    return (walk.put(f"{name}_decode", _matrix(walk, np.diag(step), np.zeros(channels)), (_last(walk),)),)


def _last(walk: _Walk) -> str:
    return next(reversed(walk.nodes))


def _matrix(walk: _Walk, weight: Any, bias: Any) -> Any:
    return walk.nir.Affine(_float32(weight), _float32(bias))


def _convolution(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    weight = walk.array(given["weight"])
    if weight.ndim != 4:
        raise walk.refuse("a convolution of other than two dimensions")
    space = shape_of(given["input"])[1:]
    stride, dilation = sizes_of(given["stride"], 2), sizes_of(given["dilation"], 2)
    before, after = padding_of(given["padding"], list(weight.shape[2:]), dilation)
    if before != after:
        raise walk.refuse("a convolution with other padding in front than behind")
    bias = walk.array(given["bias"], torch.zeros(len(weight)))
    made = walk.nir.Conv2d(
        space, _dense(weight, given["groups"]), tuple(stride), tuple(before), tuple(dilation), 1, _float32(bias)
    )
    return (walk.put(_name(node), made, walk.signals[given["input"]]),)


def _linear(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    if len(shape_of(node)) != 1:
        raise walk.refuse("a linear layer on tokens; NIR's linear layers take vectors")
    weight = walk.array(given["weight"])
    bias = walk.array(given["bias"], torch.zeros(len(weight)))
    return (walk.put(_name(node), _matrix(walk, weight, bias), walk.signals[given["input"]]),)


def _batch_norm(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    mean, var = walk.array(given["running_mean"]), walk.array(given["running_var"])
    ones = torch.ones(len(mean))
    factor = walk.array(given["weight"], ones) / np.sqrt(var + given["eps"])
    shift = walk.array(given["bias"], 0 * ones) - mean * factor
    sources, shape = walk.signals[given["input"]], shape_of(node)
    layer = walk.nodes[sources[0]] if len(sources) == 1 else None
    direct = given["input"].target in (torch.ops.aten.conv2d.default, torch.ops.aten.linear.default)
    if direct and len(given["input"].users) == 1 and layer is not None:
        weight, bias = (np.asarray(value, dtype=np.float64) for value in (layer.weight, layer.bias))
        layer.weight = _float32(weight * factor.reshape(-1, *[1] * (weight.ndim - 1)))
        layer.bias = _float32(bias * factor + shift)
        return sources
    if len(shape) == 3:
        return (walk.convolution(_name(node), sources, shape[1:], factor.reshape(-1, 1, 1, 1), shift, len(factor)),)
    return (walk.put(_name(node), _matrix(walk, np.diag(factor), shift), sources),)


def _add(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    left, right = given["self"], given["other"]
    signals = [walk.signals.get(side) for side in (left, right) if isinstance(side, fx.Node)]
    if len(signals) != 2 or None in signals or given["alpha"] != 1 or shape_of(left) != shape_of(right):
        raise walk.refuse("a sum with anything but another signal of the same shape")
    return (*walk.signals[left], *walk.signals[right])


def _pool(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    windows = average_windows(node, given)
    if isinstance(windows, str):
        raise walk.refuse(windows)
    return _average(walk, node, given["self"], *windows)


def _average(walk: _Walk, node: fx.Node, source: fx.Node, kernel: Any, stride: Any, padding: Any) -> Sources:
    made = walk.nir.AvgPool2d(*(np.array(value) for value in (kernel, stride, padding)))
    return (walk.put(_name(node), made, walk.signals[source]),)


def _adaptive(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    before, after = shape_of(given["self"])[1:], shape_of(node)[1:]
    windows = even_windows(before, after)
    if windows is None:
        raise walk.refuse(f"adaptive average pooling from {before} to {after}, whose windows differ in size")
    return _average(walk, node, given["self"], *windows, [0, 0])


def _mean(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    before = shape_of(given["self"])
    axes = sorted(d % (len(before) + 1) for d in given.get("dim") or ())
    if axes != [2, 3]:
        raise walk.refuse("a mean over anything but the whole image")
    pooled = _average(walk, node, given["self"], before[1:], before[1:], [0, 0])
    return pooled if given["keepdim"] else _flattened(walk, node, pooled, (before[0], 1, 1))


def _view(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    source = given.get("self", given.get("input"))
    before, after = shape_of(source), shape_of(node)
    if before == after:
        return walk.signals[source]
    if after != (math.prod(before),):
        raise walk.refuse(f"a layout from {before} to {after}; NIR flattens, and no more")
    return _flattened(walk, node, walk.signals[source], before)


def _flattened(walk: _Walk, node: fx.Node, sources: Sources, before: tuple[int, ...]) -> Sources:
    made = walk.nir.Flatten({"input": np.array(before)}, start_dim=0, end_dim=-1)
    return (walk.put(f"{_name(node)}_flat", made, sources),)


def _same(walk: _Walk, node: fx.Node, given: Arguments) -> Sources:
    return walk.signals[given.get("self", given.get("input"))]


def _average_behind(node: fx.Node) -> str | None:
    """The average that reads a curve's values before its site does."""
    waiting = list(node.users)
    while waiting:
        user = waiting.pop()
        base = str(user.target).split(".")[1] if str(user.target).startswith("aten.") else ""
        if base in _AVERAGES:
            return place_of(user)
        if base in _PASSING:
            waiting += list(user.users)
    return None


def _name(node: fx.Node) -> str:
    place = place_of(node)
    return place.split("'")[1] if place.startswith("module") else node.name


#: A curve that a site holds where it stands in front of a synapse.
_CURVES = frozenset(
    {"aten::relu", "aten::relu_", "aten::leaky_relu", "aten::leaky_relu_", "aten::hardtanh", "aten::clamp"}
)
_AVERAGES = frozenset({"avg_pool2d", "adaptive_avg_pool2d", "mean"})
_PASSING = frozenset({"dropout", "contiguous", "clone", "detach", "alias"})
_RULES: dict[str, Callable[[_Walk, fx.Node, Arguments], Sources]] = {
    "polarspike::site": _site,
    "aten::conv2d": _convolution,
    "aten::linear": _linear,
    "aten::batch_norm": _batch_norm,
    **dict.fromkeys(("aten::add", "aten::add_"), _add),
    "aten::avg_pool2d": _pool,
    "aten::adaptive_avg_pool2d": _adaptive,
    "aten::mean": _mean,
    **dict.fromkeys(("aten::view", "aten::reshape", "aten::flatten", "aten::squeeze"), _view),
    **dict.fromkeys(("aten::dropout", "aten::contiguous", "aten::clone", "aten::detach", "aten::alias"), _same),
}
