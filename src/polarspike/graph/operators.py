"""Questions about a node of a captured graph: what it means, where it comes from, how to name it in a message.

The answers come from the operator table (:mod:`polarspike.graph.operator_table`). What is not in the table is refused by
name, never skipped.
"""

from __future__ import annotations

import keyword
import os
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from polarspike.errors import OperatorError
from polarspike.graph.operator_table import (
    ATTRIBUTES,
    FUNCTION_MEANINGS,
    METHODS,
    MODULES,
    NAME_OF_FUNCTION,
    NAMESPACES,
    READ_SIZE,
    RECURRENT,
    Meaning,
    ModuleEntry,
)

_OWN = frozenset(vars(nn.Module()))  # what every module object holds: _parameters, training, ...
_NOT_THE_USERS = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parents[1]}{os.sep}")

# The methods that a subclass, or one object, can replace to compute something else.
_COMPUTING = ("forward", "_conv_forward")


def entry_of(module: nn.Module) -> ModuleEntry | None:
    """The row of a module, also for a subclass that computes exactly what its known base does.

    A subclass with a forward of its own may compute anything, so it has no row and is traced into instead.
    """
    for base in type(module).__mro__:
        if base in MODULES:
            known = all(getattr(type(module), name, None) is getattr(base, name, None) for name in _COMPUTING)
            return MODULES[base] if known and "forward" not in vars(module) else None
    return None


def base_of(module: nn.Module) -> type[nn.Module] | None:
    """The type of the table whose row :func:`entry_of` found."""
    return next((base for base in type(module).__mro__ if base in MODULES), None) if entry_of(module) else None


def meaning_of(graph_module: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """What a node does; None for placeholders, constants, the output, and what is not in the table."""
    if node.op == "call_module":
        module = graph_module.get_submodule(str(node.target))
        entry = entry_of(module)
        return entry.meaning if entry else Meaning.RECURRENT if isinstance(module, RECURRENT) else None
    if node.op == "call_function":
        if node.target is getattr and node.args[1] not in ATTRIBUTES:
            return None
        return FUNCTION_MEANINGS.get(node.target) if callable(node.target) else None
    if node.op == "call_method":
        return METHODS.get(str(node.target))
    return None


def is_reserved(path: str) -> bool:
    """Whether a module path holds a name that Python, or a module of torch, keeps for itself."""

    def taken(part: str, owner: type[nn.Module]) -> bool:
        return keyword.iskeyword(part) or hasattr(owner, part) or part in _OWN

    first, *rest = path.split(".")
    return taken(first, fx.GraphModule) or any(taken(part, nn.Module) for part in rest)


def reads_size(node: fx.Node) -> bool:
    """Whether a node reads the shape or type of a tensor, and so does not depend on its values."""
    if node.target is getattr:
        return True
    if node.op == "call_method":
        return METHODS.get(str(node.target)) is Meaning.SIZE or node.target in READ_SIZE
    return node.op == "call_function" and getattr(node.target, "__name__", "") in READ_SIZE


def argument(node: fx.Node, position: int, name: str, default: Any = None) -> Any:
    """One argument of a call, however it was passed."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def mode_of(node: fx.Node) -> Any:
    """The mode that a norm or a dropout is called with as a function, true while training; None for anything else."""
    meaning = FUNCTION_MEANINGS.get(node.target) if callable(node.target) else None
    if meaning is Meaning.NORM:
        return argument(node, 5, "training", False)
    if meaning is Meaning.DROPOUT:
        return argument(node, 2, "train" if node.target is torch.dropout else "training", True)
    return None


def moving(node: fx.Node, dependent: Collection[fx.Node]) -> list[fx.Node]:
    """The signals among the arguments of a node, each once, in order."""
    leaves = pytree.tree_leaves((node.args, node.kwargs))
    return list(dict.fromkeys(leaf for leaf in leaves if isinstance(leaf, fx.Node) and leaf in dependent))


def is_moving(value: object, dependent: Collection[fx.Node]) -> bool:
    """Whether an argument holds a signal."""
    return any(leaf in dependent for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Node))


def place_of(node: fx.Node) -> str:
    """Where a node comes from, for a message: module path, and source line where torch knows it."""
    stack = node.meta.get("nn_module_stack") or {}
    path = str(node.target) if node.op == "call_module" else ""
    if not path and stack:
        last = list(stack.values())[-1]
        path = last[0] if isinstance(last, tuple) else str(last)
    where = f"module {path!r}" if path else "the model's own forward"
    where += f", node {node.name!r}"
    trace = [line.strip() for line in (node.stack_trace or "").splitlines() if line.strip()]
    own = [
        index
        for index, line in enumerate(trace)
        if line.startswith("File ") and not any(place in line for place in _NOT_THE_USERS)
    ]
    if own:
        where += f" [{' -> '.join(trace[own[-1] : own[-1] + 2])}]"
    return where


def describe_target(graph_module: fx.GraphModule, node: fx.Node) -> str:
    """What a node calls, for a message: ``nn.GELU``, ``torch.sin``, ``Tensor.clamp``."""
    if node.op == "call_module":
        return type(graph_module.get_submodule(str(node.target))).__name__
    if node.op == "call_method":
        return f"Tensor.{node.target}"
    if node.target is getattr:
        return f"Tensor.{node.args[1]}"
    name = NAME_OF_FUNCTION.get(node.target) if callable(node.target) else None
    own = str(getattr(node.target, "__name__", node.target))
    spaces = (space for space, module in NAMESPACES.items() if getattr(module, own, None) is node.target)
    return name or next((f"{space}.{own}" for space in spaces), own)


def unknown(graph_module: fx.GraphModule, node: fx.Node) -> OperatorError:
    """The error for an operator that is not in the table, or that has no meaning over time."""
    what = f"{place_of(node)}: no rule for {describe_target(graph_module, node)}"
    meaning = meaning_of(graph_module, node)
    if meaning is Meaning.RECURRENT:
        return OperatorError(
            f"{what}: a recurrent layer has a state of its own over its sequence, which the running mean of a static "
            "input does not carry; replace it by a convolution over time or by attention, or convert what surrounds it"
        )
    if meaning is Meaning.RANDOM:
        return OperatorError(
            f"{what}: it stays random in evaluation mode, so no two runs agree; draw the numbers outside of forward and "
            "keep them as a buffer, or use nn.Dropout"
        )
    return OperatorError(
        f"{what}; the operator table holds {', '.join(kind.value for kind in Meaning if kind not in _REFUSED)}. "
        "Write it with operators of the table, or move it out of the model"
    )


_REFUSED = (Meaning.RECURRENT, Meaning.RANDOM, Meaning.DISCRETE)
