"""Rewrites of a graph that keep its output: each takes a graph module and returns it.

:func:`standardize` is the list of passes that every captured model goes through, in order.
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections import Counter
from collections.abc import Collection
from typing import Any

import torch
from torch import fx, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

from polarspike.capture.attention import expand_attention
from polarspike.capture.constants import fold_constants
from polarspike.capture.modularize import functional_to_module
from polarspike.errors import OperatorError
from polarspike.graph.editing import finish, free_path
from polarspike.graph.operator_table import IN_PLACE, Meaning
from polarspike.graph.operators import argument, base_of, describe_target, meaning_of, place_of


def standardize(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The standard form of a captured graph.

    No checks, no attribute that computes, no constant arithmetic, one positional input per module, no in-place operators,
    attention written out, layers and activations as modules, and every activation module used once.
    """
    for rewrite in (
        remove_checks,
        refuse_renorm,
        spell_out_transposes,
        fold_constants,
        positional_inputs,
        remove_in_place,
        expand_attention,
        functional_to_module,
        unshare,
    ):
        graph_module = rewrite(graph_module)
    graph_module.graph.eliminate_dead_code()
    return finish(graph_module)


def remove_checks(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Drop assertions, which compute nothing; the sizes that they compare are checked by the operators themselves."""
    for node in list(graph_module.graph.nodes):
        if node.target in (torch._assert, torch._check) or (
            node.op == "call_module" and str(node.target) == "_guards_fn"
        ):
            graph_module.graph.erase_node(node)
    graph_module.graph.eliminate_dead_code(is_impure_node=_has_effect)
    return graph_module


def _has_effect(node: fx.Node) -> bool:
    """Whether a node may not be dropped although nobody reads it: it alters something, or is no plain call."""
    name = str(node.target) if node.op == "call_method" else str(getattr(node.target, "__name__", ""))
    altering = name.endswith("_") and not name.endswith("__")
    return (
        node.op in ("placeholder", "output", "call_module") or altering or name in ("setitem", "iadd", "imul", "isub")
    )


def refuse_renorm(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Refuse embeddings that rescale their table while they are read (``max_norm``).

    Raises:
        OperatorError: such a module.
    """
    for node in graph_module.graph.nodes:
        module = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Embedding) and module.max_norm is not None:
            raise OperatorError(
                f"{place_of(node)}: an embedding with max_norm alters its own table whenever it is read; apply the bound to "
                "the weights once, and set max_norm=None"
            )
    return graph_module


def spell_out_transposes(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Let ``x.T`` and ``x.mT`` be calls of operators, which they are; real signals are their own conjugates."""
    calls = {
        "T": (torch.t, ()),
        "H": (torch.t, ()),
        "mT": (torch.transpose, (-2, -1)),
        "mH": (torch.transpose, (-2, -1)),
    }
    for node in graph_module.graph.nodes:
        if node.target is getattr and node.args[1] in calls:
            node.target, dims = calls[node.args[1]]
            node.args = (node.args[0], *dims)
    return graph_module


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
        if isinstance(altered, fx.Node):
            _require_no_alias(graph_module, node, altered, order)
        if not node.users:
            raise OperatorError(
                f"{place_of(node)}: {describe_target(graph_module, node)} alters a value in place that is not read "
                "afterwards, except perhaps through a view; write y = f(x) and use y"
            )
        module: Any = graph_module.get_submodule(str(node.target)) if node.op == "call_module" else None
        if getattr(module, "inplace", False):
            module.inplace = False
        if _inplace_argument(node):
            place = _inplace_position(node)
            node.args = tuple(False if index == place else value for index, value in enumerate(node.args))
            node.kwargs = {name: value for name, value in node.kwargs.items() if name != "inplace"}
        if node.target in IN_PLACE:
            node.target = IN_PLACE[node.target]
            node.op = "call_method" if isinstance(node.target, str) else "call_function"
    graph.eliminate_dead_code()
    return graph_module


#: Operators of a reshape's meaning whose answer has memory of its own, always.
_COPYING = frozenset(
    {"clone", "repeat", "tile", "roll", "flip", "rot90", "gather", "index_select", "repeat_interleave"}
)


def _require_no_alias(graph_module: fx.GraphModule, node: fx.Node, altered: fx.Node, order: dict[fx.Node, int]) -> None:
    """Refuse an in-place change that a view of the same memory would show later."""
    root = altered
    while _may_be_view(graph_module, root) and root.all_input_nodes:
        root = root.all_input_nodes[0]
    group, known = [root], {root, node}
    for member in group:
        for user in member.users:
            if user not in known and user.op != "call_module" and _may_be_view(graph_module, user):
                group.append(user)
                known.add(user)
    for member in group:
        late = [user for user in member.users if order[user] > order[node] and user not in known]
        if late and member is not altered:
            raise OperatorError(
                f"{place_of(node)}: {describe_target(graph_module, node)} alters memory in place that "
                f"{place_of(late[0])} reads afterwards through another view ({member.name!r}); write y = f(x) and use y"
            )


def _may_be_view(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node may answer with memory of what it reads, and not with a copy."""
    name = describe_target(graph_module, node).rpartition(".")[2]
    return meaning_of(graph_module, node) is Meaning.RESHAPE and name not in _COPYING


def _is_in_place(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    if node.op == "call_module" and getattr(graph_module.get_submodule(str(node.target)), "inplace", False) is True:
        return True
    return _inplace_argument(node) or (node.op != "call_module" and node.target in IN_PLACE)


def _inplace_argument(node: fx.Node) -> bool:
    return node.op == "call_function" and argument(node, _inplace_position(node), "inplace", False) is True


def _inplace_position(node: fx.Node) -> int:
    """Where a function takes ``inplace``; far out if it does not."""
    if not inspect.isfunction(node.target):
        return sys.maxsize
    names = list(inspect.signature(node.target).parameters)
    return names.index("inplace") if "inplace" in names else sys.maxsize


def unshare(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Give each use of a shared activation module a copy of its own.

    A neuron has state and a step of its own, so one module object may stand at one place only; shared weights stay shared.
    """
    seen: set[str] = set()
    for node in graph_module.graph.nodes:
        if node.op != "call_module" or meaning_of(graph_module, node) is not Meaning.ACTIVATION:
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
        of_vectors = base_of(layer) is nn.Linear and isinstance(norm, nn.BatchNorm1d) and str(source.target) in vectors
        if not of_vectors and meaning_of(graph_module, source) is not Meaning.CONVOLUTION:
            continue
        graph_module.add_submodule(str(source.target), _folded(layer, norm, transposed))
        node.replace_all_uses_with(source)
        graph_module.graph.erase_node(node)
    return finish(graph_module)


def _folded(layer: Any, norm: Any, transposed: bool) -> nn.Module:
    """A copy of a layer that computes the norm behind it, too; what training moved in either of them it moves there."""
    slopes, offsets = ([part for part in parts if part is not None]
                       for parts in ((layer.weight, norm.weight), (layer.bias, norm.bias)))  # fmt: skip
    for name, constant in (("weight", torch.ones_like), ("bias", torch.zeros_like)):
        if getattr(norm, name) is None:  # torch wants both of a norm behind a linear layer
            setattr(norm, name, nn.Parameter(constant(norm.running_mean), requires_grad=False))
    fused: Any
    if isinstance(layer, nn.Linear):
        fused = fuse_linear_bn_eval(layer.eval(), norm.eval())
    else:
        fused = fuse_conv_bn_eval(layer.eval(), norm.eval(), transpose=transposed)
    # torch asks the layer's own bias alone, and one that it had to make is frozen.
    fused.weight.requires_grad_(any(part.requires_grad for part in slopes))
    fused.bias.requires_grad_(any(part.requires_grad for part in offsets or slopes))
    return fused  # type: ignore[no-any-return]
