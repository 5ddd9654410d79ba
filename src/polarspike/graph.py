"""Read and edit a captured graph: its signals, the places of its nodes, one node replaced; knows nothing of quantization."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import fx, nn

from polarspike.operators import reads_size

Kind = TypeVar("Kind", bound=nn.Module)


def signals(graph_module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose value depends on the values of an input: not constants, not sizes."""
    dependent: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            dependent.add(node)
        elif reads_size(node):
            continue
        elif any(parent in dependent for parent in node.all_input_nodes):
            dependent.add(node)
    return dependent


def scope_of(node: fx.Node) -> str:
    """The path of the module whose forward made a node; empty for the model itself."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    last = list(stack.values())[-1]
    return str(last[0] if isinstance(last, tuple) else last)


def free_path(graph_module: fx.GraphModule, path: str) -> str:
    """``path``, or the first of ``path_1``, ``path_2``, ... that no attribute of the module tree has."""
    candidate, count = path, 0
    while _exists(graph_module, candidate):
        count += 1
        candidate = f"{path}_{count}"
    return candidate


def replace_by_module(graph_module: fx.GraphModule, node: fx.Node, path: str, module: nn.Module) -> fx.Node:
    """Let ``module``, installed at ``path``, compute what ``node`` computed; return the new node.

    The new module gets the node's first argument alone. Whoever calls this recompiles the graph module afterwards.
    """
    graph_module.add_submodule(path, module)
    if node.op == "call_module" and node.target == path:
        return node
    with graph_module.graph.inserting_before(node):
        new = graph_module.graph.call_module(path, (node.args[0] if node.args else node.kwargs["input"],))
    new.meta = dict(node.meta)
    new.stack_trace = node.stack_trace
    node.replace_all_uses_with(new)
    graph_module.graph.erase_node(node)
    return new


def modules_of(graph_module: fx.GraphModule, kind: type[Kind]) -> dict[str, Kind]:
    """The modules of one type that the graph calls, by path, in the order in which a signal meets them."""
    called = {str(node.target): None for node in graph_module.graph.nodes if node.op == "call_module"}
    found = {path: graph_module.get_submodule(path) for path in called}
    return {path: module for path, module in found.items() if isinstance(module, kind)}


def finish(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Drop modules that no node calls any more, check the graph and generate its code."""
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module.delete_all_unused_submodules()
    return graph_module


def _exists(root: nn.Module, path: str) -> bool:
    part: Any = root
    for name in path.split("."):
        if not hasattr(part, name):
            return False
        part = getattr(part, name)
    return True
