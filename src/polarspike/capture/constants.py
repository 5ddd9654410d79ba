"""Fold what does not depend on any input: weight standardization, relative position tables, masks of fixed windows.

A folded value becomes a parameter if parameters that train went into it (a standardized weight then trains as it is), else
a buffer. What depends on the size of an input is left alone: the network takes other sizes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from polarspike.graph.editing import attribute, free_path
from polarspike.graph.operator_table import READ_SIZE, Meaning
from polarspike.graph.operators import describe_target, meaning_of


@torch.no_grad()
def fold_constants(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Replace every subgraph without inputs by its value; in-place operators on such values are carried out in order."""
    graph = graph_module.graph
    values: dict[fx.Node, Any] = {}
    trained: set[fx.Node] = set()
    made: dict[fx.Node, Any] = {}
    for node in list(graph.nodes):
        if _is_constant(graph_module, node, values):
            values[node] = _value(graph_module, node, values)
            if _trains(values[node]) or any(parent in trained for parent in node.all_input_nodes):
                trained.add(node)
            continue
        for parent in node.all_input_nodes:
            if parent in values and parent.op != "get_attr" and parent not in made:
                made[parent] = _keep(graph_module, parent, values[parent], parent in trained)
        node.args, node.kwargs = fx.node.map_arg((node.args, node.kwargs), lambda parent: made.get(parent, parent))
    folded = [node for node in values if node.op != "get_attr"]
    for node in reversed(folded):  # also in-place operators, which nothing reads
        if not node.users:
            graph.erase_node(node)
    return graph_module


def _is_constant(graph_module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> bool:
    if node.op == "get_attr":
        return isinstance(attribute(graph_module, str(node.target)), Tensor)
    if node.op not in ("call_function", "call_method"):
        return False
    meaning = meaning_of(graph_module, node)
    if meaning is None or meaning in (Meaning.RANDOM, Meaning.DROPOUT):
        return False
    parents = node.all_input_nodes
    if _fixed_size(graph_module, node):
        return True
    return (bool(parents) and all(parent in values for parent in parents)) or (
        not parents and meaning in (Meaning.CONSTANT, Meaning.DISCRETE)
    )


def _fixed_size(graph_module: fx.GraphModule, node: fx.Node) -> bool:
    """``x.new_zeros((3, 4))``, with a type that is known: its value does not depend on x."""
    name = describe_target(graph_module, node).rpartition(".")[2]
    rest = pytree.tree_leaves((node.args[1:], node.kwargs))
    like = name in READ_SIZE and name.startswith("new_")
    return like and "dtype" in node.meta and not any(isinstance(leaf, fx.Node) for leaf in rest)


def _value(graph_module: fx.GraphModule, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
    if node.op == "get_attr":
        value = attribute(graph_module, str(node.target))
        altered = any(user.op == "call_method" and str(user.target).endswith("_") for user in node.users)
        return value.clone() if altered else value
    if _fixed_size(graph_module, node):
        source: Any = torch.empty((), dtype=node.meta["dtype"])
        args: tuple[Any, ...] = (source, *node.args[1:])
        kwargs: dict[str, Any] = dict(node.kwargs)
    else:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def _trains(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) and leaf.requires_grad for leaf in pytree.tree_leaves(value))


def _keep(graph_module: fx.GraphModule, node: fx.Node, value: Any, trained: bool) -> Any:
    """The value at this moment as an attribute of the graph module, and the node that reads it."""
    if not isinstance(value, Tensor):  # a number, a shape; a tuple of tensors is left to be computed
        return node if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)) else value
    path = free_path(graph_module, f"folded_{node.name}")
    copy = value.detach().clone()
    if trained and copy.is_floating_point():
        graph_module.register_parameter(path, nn.Parameter(copy))
    else:
        graph_module.register_buffer(path, copy)
    with graph_module.graph.inserting_before(node):
        kept = graph_module.graph.get_attr(path)
    kept.meta = dict(node.meta)
    return kept
