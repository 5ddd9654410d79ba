"""Layer-wise reconstruction: refit the weights of a quantized network so that each layer answers as in the float network."""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree
from tqdm import tqdm

from polarspike.common.checks import is_integer
from polarspike.common.inputs import Inputs, as_call, batches_of, bind, require_batches, to_device
from polarspike.common.modules import device_of, evaluating
from polarspike.errors import CalibrationError, SpecError
from polarspike.graph.synaptic import SynapticLayer, add_bias, mark_changed, require_goal, synaptic_layers
from polarspike.quantized import QuantizedNetwork, parameters_of, require_calibrated, require_same_graph
from polarspike.statistics.regression import Sums, regress

_GIB = 2**30
# Of a layer's inputs per output: their products are a square matrix of float64, 170 MB at this size.
_WIDEST = 4608
# Rows of the regression per layer; positions of an image are drawn at random if there are more.
_ROWS = 65_536


@dataclass(frozen=True)
class ReconstructedLayer:
    """One row of a reconstruction.

    Attributes:
        name: of the convolution or linear layer.
        before: root mean square of (output - float output), as a part of the float output's, on all calibration rows.
        after: the same with the new weight.
        note: why the weight was left as it is; empty if it was changed.
    """

    name: str
    before: float
    after: float
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.note or f'error {self.before:.2%} -> {self.after:.2%}'}"


@torch.no_grad()
def reconstruct(
    qann: QuantizedNetwork,
    batches: Iterable[Any] | Tensor,
    *,
    reference: QuantizedNetwork | None = None,
    memory: int = 2 * _GIB,
    progress: bool = False,
) -> tuple[ReconstructedLayer, ...]:
    """Refit every weight and bias, in place and without labels, to the inputs that quantization leaves.

        min over D, b:   sum over rows |(W + D) x + b - y|^2 + lambda tr(G)/K |D|^2

    x is what the layer gets in the quantized network (behind the layers that were refitted before it; patches of a
    convolution), y what it answered in the float network to the same image, G = sum of (x - mean)(x - mean)^T, and K the
    length of x. It is solved exactly, with D = (G + lambda tr(G)/K I)^-1 R, R = sum of (x - mean)(y - Wx)^T. For every
    output channel, lambda is the one of {1e-4 .. 10, infinity} that does best on the last quarter of every batch, fitted
    on the other three; infinity leaves the weight and shifts the bias alone. The fit with that lambda on all rows is kept
    for the channels where the error on all rows falls, so that no layer's error grows.

    Both networks walk through the graph side by side, node by node, so that every node runs once: the signals that are
    still needed are kept for all batches at the same time. As many batches are used as fit into ``memory``; per layer,
    at most 65,536 rows at random positions (a generator of its own, always the same), with a matrix of at most 170 MB for
    each part. Layers with more than 4,608 inputs per output, transposed convolutions, and layers that share weights stay
    as they are.

    Args:
        qann: calibrated; evaluation mode is used and the former mode restored. Its float activations compute something
            else afterwards, and its notes say so: keep a copy if it is to be changed again.
        batches: an iterable of inputs or (inputs, target), or one tensor; read once.
        reference: the network whose float activations are the goal: a copy of ``qann`` from before the first change, which
            is required after a correction or another reconstruction; default: ``qann`` as it is now.
        memory: bytes for the signals of all batches, at least for those of one.
        progress: show a progress bar where standard error is a terminal.

    Returns:
        One row per convolution and linear layer, in the order of the graph.

    Raises:
        CalibrationError: no step has been set, no batch came, or NaN or Inf, with layer; then the network is as it was.
        SpecError: not a quantized network, another network as reference, or none where one is required.

    Source: the regression is that of channel pruning (He, Zhang, Sun: ICCV 2017, section 3.1) with a pull to the old
    weight in place of zero; the choice of lambda is this project's own.
    """
    _check_arguments(qann, reference, memory)
    goal = copy.deepcopy(qann) if reference is None else reference
    layers = {layer.node: layer for layer in synaptic_layers(qann.network)}
    changing = [qann.network.get_submodule(layer.name) for layer in layers.values()]
    with evaluating(qann, goal), goal.float_activations(), _undone_on_error(changing):
        walk = _Walk(qann, goal, share=reference is None)
        walk.start(batches, memory)
        rows = []
        nodes = tqdm(
            qann.network.graph.nodes, desc="reconstruct", unit="node", leave=False, disable=not progress or None
        )
        for node in nodes:
            walk.run(node)
            if node in layers:
                rows.append(_refit(walk, layers[node]))
                if not rows[-1].note:
                    walk.run_again(node)
            walk.release(node)
    mark_changed("reconstruct", qann.notes)
    return tuple(rows)


@contextlib.contextmanager
def _undone_on_error(modules: Iterable[nn.Module]) -> Iterator[None]:
    """An error within this context leaves the weights and biases of these layers as they were."""
    former = [(module, name, copy.deepcopy(getattr(module, name))) for module in modules for name in ("weight", "bias")]
    try:
        yield
    except BaseException:
        for module, name, value in former:
            if value is None:  # there was no bias
                setattr(module, name, None)
            else:
                getattr(module, name).copy_(value)
        raise


class _Walk:
    """Two networks of one graph, and the signals of all batches that are still needed, as (float, quantized) pairs."""

    def __init__(self, qann: QuantizedNetwork, goal: QuantizedNetwork, *, share: bool) -> None:
        self.qann, self.goal, self.share = fx.Interpreter(qann.network), fx.Interpreter(goal.network), share
        self.network = qann.network
        self.device = device_of(qann)
        self.sites = set(qann.sites())
        self.envs: list[dict[fx.Node, tuple[Any, Any]]] = []
        order = {node: index for index, node in enumerate(self.network.graph.nodes)}
        self.last = {node: max((order[user] for user in node.users), default=-1) for node in order}
        self.order = order

    def start(self, batches: Iterable[Any] | Tensor, memory: int) -> None:
        """Take as many batches as their signals fit into memory, at least one."""
        for inputs, _ in batches_of(batches):
            env = self._inputs(to_device(inputs, self.device))
            if not self.envs:
                room = max(1, memory // max(1, self._peak(dict(env))))
            elif len(self.envs) >= room:
                break
            self.envs.append(env)
        require_batches(bool(self.envs), "reconstruct")

    def run(self, node: fx.Node) -> None:
        """Compute one node in both networks, for every batch."""
        for env in self.envs:
            self._compute(node, env)

    def run_again(self, node: fx.Node) -> None:
        """Compute one node of the quantized network, whose module was changed."""
        for env in self.envs:
            env[node] = (env[node][0], self._call(self.qann, node, env, 1))

    def release(self, node: fx.Node) -> None:
        """Forget what no later node reads."""
        for env in self.envs:
            self._forget(node, env)

    def _inputs(self, inputs: Inputs) -> dict[fx.Node, tuple[Any, Any]]:
        args, kwargs = as_call(inputs)
        values = list(bind(parameters_of(self.network), args, kwargs).values())
        places = [node for node in self.network.graph.nodes if node.op == "placeholder"]
        return {node: (value, value) for node, value in zip(places, values, strict=True)}

    def _compute(self, node: fx.Node, env: dict[fx.Node, tuple[Any, Any]]) -> None:
        if node.op in ("placeholder", "output"):
            return
        wanted = self._call(self.goal, node, env, 0)
        same = self.share and node.target not in self.sites
        same = same and all(env[parent][0] is env[parent][1] for parent in node.all_input_nodes)
        env[node] = (wanted, wanted if same else self._call(self.qann, node, env, 1))

    def _call(self, network: fx.Interpreter, node: fx.Node, env: dict[fx.Node, tuple[Any, Any]], side: int) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda parent: env[parent][side])
        return getattr(network, node.op)(node.target, args, kwargs)

    def _forget(self, node: fx.Node, env: dict[fx.Node, tuple[Any, Any]]) -> None:
        for old in (*node.all_input_nodes, node):
            if self.last[old] <= self.order[node]:
                env.pop(old, None)

    def _peak(self, env: dict[fx.Node, tuple[Any, Any]]) -> int:
        """The most bytes that the signals of one batch hold at the same time."""
        most = 0
        for node in self.network.graph.nodes:
            self._compute(node, env)
            leaves = (leaf for leaf in pytree.tree_leaves(list(env.values())) if isinstance(leaf, Tensor))
            storages = {leaf.untyped_storage().data_ptr(): leaf.untyped_storage().nbytes() for leaf in leaves}
            most = max(most, sum(storages.values()))
            self._forget(node, env)
        return most


def _refit(walk: _Walk, layer: SynapticLayer) -> ReconstructedLayer:
    """Refit one layer to the signals that stand in front of it."""
    module: Any = walk.network.get_submodule(layer.name)
    source = layer.node.args[0]
    pairs = [(env[source], env[layer.node]) for env in walk.envs]  # type: ignore[index]
    power = sum(float(y.double().square().mean()) for _, (y, _) in pairs) / len(pairs)
    error = sum(float((y - z).double().square().mean()) for _, (y, z) in pairs) / len(pairs)
    if not math.isfinite(power + error):
        raise CalibrationError(
            f"layer {layer.name!r}: its output is NaN or Inf; look for NaN or Inf in the calibration batches"
        )
    before = (error / power) ** 0.5 if power else 0.0
    if note := _reason(layer, module, all(x is z for (x, z), _ in pairs)):
        return ReconstructedLayer(layer.name, before, before, note)
    groups, outputs = getattr(module, "groups", 1), module.weight.shape[0]
    shape = (groups, module.weight[0].numel(), outputs // groups)
    fitting, held = (Sums.zeros(*shape, module.weight.device) for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    samples = sum(x.shape[0] for (_, x), _ in pairs)
    for index, ((_, x), (y, z)) in enumerate(pairs):
        rows, residuals = _rows(module, x, y - z, max(1, _ROWS // max(1, samples)), generator)
        parts = 4 if x.shape[0] >= 4 else 1  # of a batch too small to be parted, every fourth is held out
        cut = rows.shape[1] - rows.shape[1] // parts if parts > 1 else rows.shape[1] * (index % 4 != 3)
        fitting.update(rows[:, :cut], residuals[:, :cut])
        held.update(rows[:, cut:], residuals[:, cut:])
    slope, shift, old, new = regress(fitting, held)
    module.weight.add_(slope.transpose(1, 2).reshape(module.weight.shape).to(module.weight))
    add_bias(module, shift.flatten())
    scale = math.sqrt(max(power * fitting.rows * outputs, 1e-300))
    return ReconstructedLayer(layer.name, math.sqrt(float(old.sum())) / scale, math.sqrt(float(new.sum())) / scale)


def _reason(layer: SynapticLayer, module: nn.Module, untouched: bool) -> str:
    if untouched:
        return "left alone: its input is not quantized"
    if not layer.alone:
        return "left alone: it is used at several places, or shares its weights"
    if "Transpose" in type(module).__name__:
        return "left alone: a transposed convolution"
    inputs = module.weight[0].numel()  # type: ignore[index]
    return f"left alone: {inputs} inputs per output are more than {_WIDEST}" if inputs > _WIDEST else ""


def _rows(module: Any, x: Tensor, residual: Tensor, most: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs (groups, rows, K) and residuals (groups, rows, O) of a layer at random positions, samples in order.

    Args:
        module: a convolution or linear layer.
        x: its input.
        residual: of the shape of its output.
        most: positions per sample.
        generator: draws the positions, the same for all samples.
    """
    if isinstance(module, nn.Linear):
        x, residual = x.reshape(x.shape[0], -1, x.shape[-1]), residual.reshape(x.shape[0], -1, residual.shape[-1])
        chosen = torch.randperm(x.shape[1], generator=generator)[:most].to(x.device)
        return x[:, chosen].reshape(1, -1, x.shape[-1]), residual[:, chosen].reshape(1, -1, residual.shape[-1])
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    windows = nn.functional.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    for dim, (size, stride, gap) in enumerate(zip(module.kernel_size, module.stride, module.dilation, strict=True)):
        windows = windows.unfold(2 + dim, gap * (size - 1) + 1, stride)[..., ::gap]  # (B, C, places..., offsets...)
    places = residual.shape[2:]
    chosen = torch.randperm(math.prod(places), generator=generator)[:most].to(x.device)
    at: tuple[Any, ...] = (slice(None), slice(None), *torch.unravel_index(chosen, places))
    taken = windows[at]  # (B, C, positions, offsets...)
    groups, batch = module.groups, x.shape[0]
    rows = taken.flatten(3).view(batch, groups, -1, len(chosen), math.prod(module.kernel_size))
    residual = residual.flatten(2)[:, :, chosen].view(batch, groups, -1, len(chosen))
    return (
        rows.permute(1, 0, 3, 2, 4).reshape(groups, batch * len(chosen), -1),
        residual.permute(1, 0, 3, 2).reshape(groups, batch * len(chosen), -1),
    )


def _check_arguments(qann: object, reference: object, memory: int) -> None:
    network = require_calibrated("reconstruct", qann)
    if not is_integer(memory, 1):
        raise SpecError(f"reconstruct: memory: expected a positive number of bytes, got {memory!r}")
    require_goal("reconstruct", network.notes, given=reference is not None)
    require_same_graph("reconstruct", network, reference)
