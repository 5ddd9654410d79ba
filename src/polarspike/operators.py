"""The operator table: what every operator of a captured graph means, keyed by meaning.

Modules, functions and methods that do the same thing share a :class:`Meaning`; the rule tables of quantization,
conversion and counting are written over meanings, and checkpoints name operators by the names of this table. What is not
in the table is refused by name, never skipped.
"""

from __future__ import annotations

import builtins
import keyword
import operator
import os
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from polarspike.errors import OperatorError


class Meaning(Enum):
    """What an operator does to a signal."""

    CONVOLUTION = "convolution"
    LINEAR = "linear"
    NORM = "batch norm"
    AVERAGE = "average"
    MAX_POOLING = "max pooling"
    ACTIVATION = "activation"
    DROPOUT = "dropout"
    ADD = "add"
    SCALE = "scale"
    CONCATENATE = "concatenate"
    RESHAPE = "reshape"
    PAD = "pad"
    UPSAMPLE = "upsample"
    SIZE = "size"


@dataclass(frozen=True)
class ModuleEntry:
    """One row for a module type: its meaning, and the constructor arguments that rebuild it."""

    meaning: Meaning
    fields: tuple[str, ...]


_CONVOLUTION = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups", "bias",
                "padding_mode")  # fmt: skip
_TRANSPOSED = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "output_padding", "groups", "bias",
               "dilation")  # fmt: skip
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats")
_AVERAGE = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad")
_MAX = ("kernel_size", "stride", "padding", "dilation", "ceil_mode")

MODULES: dict[type[nn.Module], ModuleEntry] = {
    nn.Conv1d: ModuleEntry(Meaning.CONVOLUTION, _CONVOLUTION),
    nn.Conv2d: ModuleEntry(Meaning.CONVOLUTION, _CONVOLUTION),
    nn.Conv3d: ModuleEntry(Meaning.CONVOLUTION, _CONVOLUTION),
    nn.ConvTranspose1d: ModuleEntry(Meaning.CONVOLUTION, _TRANSPOSED),
    nn.ConvTranspose2d: ModuleEntry(Meaning.CONVOLUTION, _TRANSPOSED),
    nn.ConvTranspose3d: ModuleEntry(Meaning.CONVOLUTION, _TRANSPOSED),
    nn.Linear: ModuleEntry(Meaning.LINEAR, ("in_features", "out_features", "bias")),
    nn.BatchNorm1d: ModuleEntry(Meaning.NORM, _NORM),
    nn.BatchNorm2d: ModuleEntry(Meaning.NORM, _NORM),
    nn.BatchNorm3d: ModuleEntry(Meaning.NORM, _NORM),
    nn.SyncBatchNorm: ModuleEntry(Meaning.NORM, _NORM),
    nn.AvgPool1d: ModuleEntry(Meaning.AVERAGE, _AVERAGE),
    nn.AvgPool2d: ModuleEntry(Meaning.AVERAGE, (*_AVERAGE, "divisor_override")),
    nn.AvgPool3d: ModuleEntry(Meaning.AVERAGE, (*_AVERAGE, "divisor_override")),
    nn.AdaptiveAvgPool1d: ModuleEntry(Meaning.AVERAGE, ("output_size",)),
    nn.AdaptiveAvgPool2d: ModuleEntry(Meaning.AVERAGE, ("output_size",)),
    nn.AdaptiveAvgPool3d: ModuleEntry(Meaning.AVERAGE, ("output_size",)),
    nn.MaxPool1d: ModuleEntry(Meaning.MAX_POOLING, _MAX),
    nn.MaxPool2d: ModuleEntry(Meaning.MAX_POOLING, _MAX),
    nn.MaxPool3d: ModuleEntry(Meaning.MAX_POOLING, _MAX),
    nn.AdaptiveMaxPool1d: ModuleEntry(Meaning.MAX_POOLING, ("output_size",)),
    nn.AdaptiveMaxPool2d: ModuleEntry(Meaning.MAX_POOLING, ("output_size",)),
    nn.AdaptiveMaxPool3d: ModuleEntry(Meaning.MAX_POOLING, ("output_size",)),
    nn.ReLU: ModuleEntry(Meaning.ACTIVATION, ()),
    nn.ReLU6: ModuleEntry(Meaning.ACTIVATION, ()),
    nn.LeakyReLU: ModuleEntry(Meaning.ACTIVATION, ("negative_slope",)),
    nn.Dropout: ModuleEntry(Meaning.DROPOUT, ("p",)),
    nn.Dropout1d: ModuleEntry(Meaning.DROPOUT, ("p",)),
    nn.Dropout2d: ModuleEntry(Meaning.DROPOUT, ("p",)),
    nn.Dropout3d: ModuleEntry(Meaning.DROPOUT, ("p",)),
    nn.Identity: ModuleEntry(Meaning.RESHAPE, ()),
    nn.Flatten: ModuleEntry(Meaning.RESHAPE, ("start_dim", "end_dim")),
    nn.Unflatten: ModuleEntry(Meaning.RESHAPE, ("dim", "unflattened_size")),
    nn.PixelShuffle: ModuleEntry(Meaning.RESHAPE, ("upscale_factor",)),
    nn.PixelUnshuffle: ModuleEntry(Meaning.RESHAPE, ("downscale_factor",)),
    nn.ZeroPad2d: ModuleEntry(Meaning.PAD, ("padding",)),
    nn.ConstantPad2d: ModuleEntry(Meaning.PAD, ("padding", "value")),
    nn.ReflectionPad2d: ModuleEntry(Meaning.PAD, ("padding",)),
    nn.ReplicationPad2d: ModuleEntry(Meaning.PAD, ("padding",)),
    nn.Upsample: ModuleEntry(
        Meaning.UPSAMPLE, ("size", "scale_factor", "mode", "align_corners", "recompute_scale_factor")
    ),
}

_OWN = frozenset(vars(nn.Module()))  # what every module object holds: _parameters, training, ...
_TORCH = f"{Path(torch.__file__).parent}{os.sep}"
_NAMESPACES: dict[str, Any] = {"torch": torch, "F": functional, "operator": operator, "builtins": builtins}

_FUNCTION_NAMES: dict[Meaning, str] = {
    Meaning.CONVOLUTION: "F.conv1d F.conv2d F.conv3d torch.conv1d torch.conv2d torch.conv3d",
    Meaning.LINEAR: "F.linear",
    Meaning.AVERAGE: "F.avg_pool1d F.avg_pool2d F.avg_pool3d F.adaptive_avg_pool1d F.adaptive_avg_pool2d "
    "F.adaptive_avg_pool3d torch.mean torch.sum torch.adaptive_avg_pool1d",
    Meaning.MAX_POOLING: "F.max_pool1d F.max_pool2d F.max_pool3d F.adaptive_max_pool1d F.adaptive_max_pool2d "
    "F.adaptive_max_pool3d torch.max_pool1d torch.max_pool2d torch.max_pool3d",
    Meaning.ACTIVATION: "F.relu F.relu_ torch.relu torch.relu_ F.relu6 F.leaky_relu F.leaky_relu_",
    Meaning.DROPOUT: "F.dropout F.dropout1d F.dropout2d F.dropout3d",
    Meaning.ADD: "operator.add operator.iadd torch.add operator.sub operator.isub torch.sub",
    Meaning.SCALE: "operator.mul operator.imul torch.mul operator.truediv operator.itruediv torch.div torch.true_divide "
    "operator.neg torch.neg",
    Meaning.CONCATENATE: "torch.cat torch.concat torch.concatenate torch.stack",
    Meaning.RESHAPE: "torch.flatten torch.reshape torch.permute torch.transpose torch.squeeze torch.unsqueeze torch.chunk "
    "torch.split operator.getitem torch.movedim torch.swapaxes F.pixel_shuffle F.pixel_unshuffle",
    Meaning.PAD: "F.pad",
    Meaning.UPSAMPLE: "F.interpolate",
    Meaning.SIZE: "builtins.getattr operator.floordiv builtins.int",
}
_METHOD_NAMES: dict[Meaning, str] = {
    Meaning.ACTIVATION: "relu relu_",
    Meaning.AVERAGE: "mean sum",
    Meaning.ADD: "add add_ sub sub_",
    Meaning.SCALE: "mul mul_ div div_ neg",
    Meaning.RESHAPE: "view reshape flatten permute transpose contiguous squeeze unsqueeze chunk split expand float",
    Meaning.SIZE: "size dim numel",
}


def _resolve(name: str) -> Callable[..., Any]:
    namespace, _, attribute = name.partition(".")
    function: Callable[..., Any] = getattr(_NAMESPACES[namespace], attribute)
    return function


#: name in a checkpoint -> function, and back with its meaning
FUNCTIONS: dict[str, Callable[..., Any]] = {
    name: _resolve(name) for names in _FUNCTION_NAMES.values() for name in names.split()
}
NAME_OF_FUNCTION: dict[Callable[..., Any], str] = {function: name for name, function in reversed(FUNCTIONS.items())}
_FUNCTION_MEANINGS = {_resolve(name): meaning for meaning, names in _FUNCTION_NAMES.items() for name in names.split()}
METHODS: dict[str, Meaning] = {name: meaning for meaning, names in _METHOD_NAMES.items() for name in names.split()}

#: attributes of a tensor that depend on its shape and type alone
ATTRIBUTES = frozenset({"shape", "ndim", "dtype", "device"})

#: functions and methods that alter their first argument, and what they are without that
IN_PLACE: dict[Callable[..., Any] | str, Callable[..., Any] | str] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
    functional.relu_: functional.relu,
    torch.relu_: torch.relu,
    functional.leaky_relu_: functional.leaky_relu,
    "relu_": "relu",
    "add_": "add",
    "sub_": "sub",
    "mul_": "mul",
    "div_": "div",
}


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
    """What a node does; None for placeholders, constants, the output, and modules that are not in the table."""
    if node.op == "call_module":
        entry = entry_of(graph_module.get_submodule(str(node.target)))
        return entry.meaning if entry else None
    if node.op == "call_function":
        if node.target is getattr and node.args[1] not in ATTRIBUTES:
            return None
        return _FUNCTION_MEANINGS.get(node.target) if callable(node.target) else None
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
    return node.target is getattr or (node.op == "call_method" and METHODS.get(str(node.target)) is Meaning.SIZE)


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
    own = [index for index, line in enumerate(trace) if line.startswith("File ") and _TORCH not in line]
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
    spaces = (space for space, module in _NAMESPACES.items() if getattr(module, own, None) is node.target)
    return name or next((f"{space}.{own}" for space in spaces), own)


def unknown(graph_module: fx.GraphModule, node: fx.Node) -> OperatorError:
    """The error for an operator that is not in the table."""
    return OperatorError(
        f"{place_of(node)}: no rule for {describe_target(graph_module, node)}; "
        f"known are {', '.join(meaning.value for meaning in Meaning)}, and of activations ReLU, ReLU6 and LeakyReLU. "
        "Replace it by one of these and try again"
    )
