"""Rewrites of a graph that keep its output: each takes a graph module and returns it.

:func:`standardize` is the list of passes that every captured model goes through, in order.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection
from typing import Any

from torch import fx, nn
from torch.nn import functional
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from polarspike.errors import OperatorError
from polarspike.graph import finish, free_path, replace_by_module, scope_of
from polarspike.operators import IN_PLACE, Meaning, base_of, describe_target, meaning_of, place_of

_STATEFUL = (Meaning.ACTIVATION, Meaning.MAX_POOLING)


def standardize(graph_module: fx.GraphModule) -> fx.GraphModule:
    """One positional input per module, no in-place operators, activations and pooling as modules, each used once."""
    for rewrite in (positional_inputs, remove_in_place, functional_to_module, unshare):
        graph_module = rewrite(graph_module)
    return finish(graph_module)


def positional_inputs(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Let ``module(input=x)`` be ``module(x)``: what takes the module's place may name its input otherwise."""
    for node in graph_module.graph.nodes:
        if node.op == "call_module" and not node.args and len(node.kwargs) == 1:
            node.args, node.kwargs = tuple(node.kwargs.values()), {}
    return graph_module


def remove_in_place(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Give every in-place operator a result of its own, and let later readers of the altered value read that.

    Changes through a view are not followed here; the capture check finds them.

    Raises:
        OperatorError: nobody reads the altered value itself, so that only a view of it could show the change; or a
            result is written into a given tensor.
    """
    graph = graph_module.graph
    order = {node: index for index, node in enumerate(graph.nodes)}
    altering = [node for node in graph.nodes if _is_in_place(graph_module, node)]  # before any flag is cleared
    for node in graph.nodes:
        if node.kwargs.get("out") is not None:
            raise OperatorError(
                f"{place_of(node)}: {describe_target(graph_module, node)} writes into out=; use its result instead"
            )
    for node in altering:
        altered = node.args[0] if node.args else node.kwargs.get("input")
        if isinstance(altered, fx.Node):
            for user in list(altered.users):
                if order[user] > order[node]:
                    user.replace_input_with(altered, node)
        if not node.users:
            raise OperatorError(
                f"{place_of(node)}: {describe_target(graph_module, node)} alters a value in place that is not read "
                "afterwards, except perhaps through a view; write y = f(x) and use y"
            )
        module: Any = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if getattr(module, "inplace", False):
            module.inplace = False
        if node.kwargs.get("inplace") is True:
            node.kwargs = {**node.kwargs, "inplace": False}
        if node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]
    graph.eliminate_dead_code()
    return graph_module


def _is_in_place(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module" and getattr(graph_module.get_submodule(str(node.target)), "inplace", False) is True:
        return True
    return node.kwargs.get("inplace") is True or (node.op != "call_module" and node.target in IN_PLACE)


def functional_to_module(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Turn functional activations, max pooling and dropout into modules, named after their place.

    Raises:
        OperatorError: dropout that stays active in evaluation mode, or pooling that returns indices.
    """
    for node in list(graph_module.graph.nodes):
        meaning = meaning_of(graph_module, node)
        indices = describe_target(graph_module, node).endswith("_with_indices")
        if indices or (meaning is Meaning.MAX_POOLING and _returns_indices(graph_module, node)):
            raise OperatorError(f"{place_of(node)}: max pooling with return_indices=True has no running mean; drop it")
        if node.op == "call_module" or meaning not in (*_STATEFUL, Meaning.DROPOUT):
            continue
        module = _module_for(graph_module, node, meaning)
        label = describe_target(graph_module, node).split(".")[-1].rstrip("_")
        path = free_path(graph_module, ".".join(filter(None, [scope_of(node), label])))
        replace_by_module(graph_module, node, path, module)
    return graph_module


def unshare(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Give each use of a shared activation or pooling module a copy of its own.

    A neuron has state, so one module object may stand at one place only; shared weights stay shared.
    """
    seen: set[str] = set()
    for node in graph_module.graph.nodes:
        if node.op != "call_module" or meaning_of(graph_module, node) not in _STATEFUL:
            continue
        target = str(node.target)
        if target in seen:
            path = free_path(graph_module, target)
            graph_module.add_submodule(path, copy.deepcopy(graph_module.get_submodule(target)))
            node.target = target = path
        seen.add(target)
    return graph_module


def fold_batch_norm(graph_module: fx.GraphModule, vectors: Collection[str]) -> fx.GraphModule:
    """Fold every batch norm that directly follows a convolution or linear layer into it (evaluation mode).

    Outputs agree to rounding only, so fold before calibrating, never between a quantized network and its spiking one.
    A layer or norm that is used more than once, or read by something else in between, is left alone.

    Args:
        graph_module: altered and returned.
        vectors: the linear layers whose output is (batch, features); others are left alone, too.
    """
    uses = Counter(str(node.target) for node in graph_module.graph.nodes if node.op == "call_module")
    for node in list(graph_module.graph.nodes):
        source = node.args[0] if node.args else None
        if (
            meaning_of(graph_module, node) is not Meaning.NORM
            or not isinstance(source, fx.Node)
            or source.op != "call_module"
            or len(source.users) != 1
            or uses[str(source.target)] != 1
            or uses[str(node.target)] != 1
        ):
            continue
        layer, norm = (graph_module.get_submodule(str(part.target)) for part in (source, node))
        if getattr(norm, "running_mean", None) is None:  # it normalizes each batch by itself
            continue
        transposed = isinstance(layer, (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d))
        if transposed and layer.groups != 1:  # torch scales the wrong dimension of these weights
            continue
        if meaning_of(graph_module, source) is Meaning.CONVOLUTION:
            folded: nn.Module = fuse_conv_bn_eval(layer.eval(), norm.eval(), transpose=transposed)  # type: ignore[type-var, arg-type]
        elif base_of(layer) is nn.Linear and isinstance(norm, nn.BatchNorm1d) and str(source.target) in vectors:
            folded = fuse_linear_bn_eval(layer.eval(), norm.eval())  # type: ignore[type-var]
        else:
            continue
        graph_module.add_submodule(str(source.target), folded)
        node.replace_all_uses_with(source)
        graph_module.graph.erase_node(node)
    return finish(graph_module)


def _argument(node: fx.Node, position: int, name: str, default: Any) -> Any:
    if len(node.args) > position:
        return node.args[position]
    return node.kwargs.get(name, default)


def _returns_indices(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module":
        return bool(getattr(graph_module.get_submodule(str(node.target)), "return_indices", False))
    adaptive = "adaptive" in describe_target(graph_module, node)
    return bool(_argument(node, 2 if adaptive else 6, "return_indices", False))


def _module_for(graph_module: fx.GraphModule, node: fx.Node, meaning: Meaning) -> nn.Module:
    if meaning is Meaning.ACTIVATION:
        if node.target is functional.relu6:
            return nn.ReLU6()
        if node.target is functional.leaky_relu:
            return nn.LeakyReLU(_argument(node, 1, "negative_slope", 0.01))
        return nn.ReLU()
    name = describe_target(graph_module, node).split(".")[-1]
    dimensions = name[-2]  # max_pool2d -> 2, dropout2d -> 2
    if meaning is Meaning.DROPOUT:
        if _argument(node, 2, "training", True) is True:
            raise OperatorError(
                f"{place_of(node)}: {describe_target(graph_module, node)} stays random in evaluation mode; "
                "pass training=self.training, or use nn.Dropout"
            )
        kind = {"1": nn.Dropout1d, "2": nn.Dropout2d, "3": nn.Dropout3d}.get(dimensions, nn.Dropout)
        return kind(_argument(node, 1, "p", 0.5))
    if "adaptive" in name:
        adaptive = {"1": nn.AdaptiveMaxPool1d, "2": nn.AdaptiveMaxPool2d, "3": nn.AdaptiveMaxPool3d}[dimensions]
        return adaptive(_argument(node, 1, "output_size", None))
    pool = {"1": nn.MaxPool1d, "2": nn.MaxPool2d, "3": nn.MaxPool3d}[dimensions]
    return pool(
        _argument(node, 1, "kernel_size", None),
        stride=_argument(node, 2, "stride", None) or None,
        padding=_argument(node, 3, "padding", 0),
        dilation=_argument(node, 4, "dilation", 1),
        ceil_mode=_argument(node, 5, "ceil_mode", False),
    )
