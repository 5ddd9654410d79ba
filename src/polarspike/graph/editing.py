"""Read and edit a captured graph: its signals, the places of its nodes, one node replaced; knows nothing of quantization."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, TypeVar

from torch import fx, nn

from polarspike.errors import CaptureError
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import is_reserved, meaning_of, reads_size

Kind = TypeVar("Kind", bound=nn.Module)


#: Key in ``GraphModule.meta``: the inputs that hold integers or truth values, which are the same at every timestep.
INTEGERS = "integer_inputs"
#: The same for the inputs that are the same for all samples, by position and by name.
SHARED = "shared_inputs"
#: Key of ``node.meta``: this norm or dropout is off also while the model trains.
SETTLED = "off_in_every_mode"
#: Key of ``graph.meta``: whether the exported program altered a tensor in place.
WRITES = "writes_in_place"


def signals(graph_module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose value depends on the values of a real input: not constants, not sizes, not masks.

    Inputs of integers (token numbers, masks) are the same at every step and no signals; what is looked up by them in an
    embedding is one.
    """
    integers = graph_module.meta.get(INTEGERS, ())
    dependent: set[fx.Node] = set()
    selecting: set[fx.Node] = set()  # depends on the values of an input of integers
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            (selecting if node.target in integers else dependent).add(node)
        elif reads_size(node):
            continue
        elif any(parent in dependent for parent in node.all_input_nodes):
            dependent.add(node)
        elif any(parent in selecting for parent in node.all_input_nodes):
            embedded = meaning_of(graph_module, node) is Meaning.EMBEDDING
            (dependent if embedded else selecting).add(node)
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


def require_names(graph: fx.Graph) -> None:
    """Refuse parts of a model whose names generated code cannot use.

    Raises:
        CaptureError: such a part, by its path.
    """
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and is_reserved(str(node.target)):
            raise CaptureError(
                f"{node.target!r}: a part of the model has a name that Python or torch keeps for itself; rename it"
            )


def attribute(root: nn.Module, path: str) -> Any:
    """What stands at a dotted path of a module tree."""
    *parents, last = path.split(".")
    return getattr(root.get_submodule(".".join(parents)), last)


def free_path(graph_module: fx.GraphModule, path: str) -> str:
    """``path``, or the first of ``path_1``, ``path_2``, ... that no attribute of the module tree has."""
    candidate, count = path, 0
    while _exists(graph_module, candidate):
        count += 1
        candidate = f"{path}_{count}"
    return candidate


def depth_of(graph_module: fx.GraphModule, paths: Collection[str]) -> int:
    """The most calls of these modules that follow each other on a way through the graph."""
    deep: dict[fx.Node, int] = {}
    for node in graph_module.graph.nodes:
        before = max((deep[parent] for parent in node.all_input_nodes), default=0)
        deep[node] = before + (node.op == "call_module" and node.target in paths)
    return max(deep.values(), default=0)


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
    _drop_unread_tensors(graph_module)
    return graph_module


def _drop_unread_tensors(graph_module: fx.GraphModule) -> None:
    """Drop parameters and buffers that no node reads and no called module holds: a new module took them over."""
    nodes = graph_module.graph.nodes
    read = {str(node.target) for node in nodes if node.op == "get_attr"}
    called = {str(node.target) for node in nodes if node.op == "call_module"}
    tensors = [
        *graph_module.named_parameters(remove_duplicate=False),
        *graph_module.named_buffers(remove_duplicate=False),
    ]
    for name, _ in tensors:
        owner, _, leaf = name.rpartition(".")
        parts = owner.split(".")
        held = any(".".join(parts[:count]) in called for count in range(1, len(parts) + 1))
        if not held and name not in read:
            delattr(graph_module.get_submodule(owner), leaf)


def _exists(root: nn.Module, path: str) -> bool:
    part: Any = root
    for name in path.split("."):
        if not hasattr(part, name):
            return False
        part = getattr(part, name)
    return True
