"""Put modules where a graph calls functions with parameters: ``F.conv2d(x, self.weight)`` becomes a module.

The module holds the very same parameters, and stands at the path that they came from, or that the model itself called at
this place. So a model that was traced, one that was exported, and one that is written with functions end as the same
graph, with layers that rules, counts and training can address by name.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from polarspike.errors import OperatorError
from polarspike.graph.editing import SETTLED, attribute, free_path, scope_of
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import argument, describe_target, entry_of, meaning_of, mode_of, place_of

# What a builder returns: a module without its tensors, those tensors by name (nodes or None), and the signals it takes.
Built = tuple[nn.Module, dict[str, Any]]
_MADE = frozenset({Meaning.CONVOLUTION, Meaning.LINEAR, Meaning.NORM, Meaning.NORMALIZATION, Meaning.EMBEDDING,
                   Meaning.ACTIVATION, Meaning.MAX_POOLING, Meaning.DROPOUT, Meaning.SOFTMAX})  # fmt: skip

_CLIPPING = ("clamp", "clamp_min", "clip")


def functional_to_module(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Turn functional layers, norms, activations, max pooling and dropout into modules, named after their place.

    A function whose weight is a signal, or that no module expresses, stays a function.

    Raises:
        OperatorError: dropout that stays active in evaluation mode, or pooling that returns indices.
    """
    for node in list(graph_module.graph.nodes):
        meaning = meaning_of(graph_module, node)
        _require_no_indices(graph_module, node, meaning)
        if node.op == "call_module" or (meaning not in _MADE and _label(graph_module, node) not in _CLIPPING):
            continue
        if meaning is Meaning.DROPOUT and node.meta.get(SETTLED):  # a module would be on while the network trains
            node.replace_all_uses_with(argument(node, 0, "input"))
            graph_module.graph.erase_node(node)
            continue
        built = _build(graph_module, node, meaning)
        if built is None:
            continue
        module, tensors = built
        for name, source in tensors.items():
            if source is not None:
                _give(module, name, attribute(graph_module, str(source.target)))
        path = _install(graph_module, node, module, tensors.get("weight"))
        signal = argument(node, 0, "input")
        with graph_module.graph.inserting_before(node):
            new = graph_module.graph.call_module(path, (signal,))
        new.meta = dict(node.meta)
        new.stack_trace = node.stack_trace
        node.replace_all_uses_with(new)
        graph_module.graph.erase_node(node)
    return graph_module


def _build(graph_module: fx.GraphModule, node: fx.Node, meaning: Meaning | None) -> Built | None:
    name = describe_target(graph_module, node).rpartition(".")[2].rstrip("_")
    builder = _BUILDERS.get(name) or (_activation if meaning is Meaning.ACTIVATION else None)
    if builder is None or any(isinstance(value, fx.Node) and value.op != "get_attr" for value in _rest(node)):
        return None
    with torch.device("meta"):
        return builder(graph_module, node)


def _rest(node: fx.Node) -> list[Any]:
    return [*node.args[1:], *(value for key, value in node.kwargs.items() if key != "input")]


def _give(module: nn.Module, name: str, value: Tensor) -> None:
    if name in module._buffers:
        setattr(module, name, value)
    else:
        setattr(module, name, value if isinstance(value, nn.Parameter) else nn.Parameter(value, requires_grad=False))


def _install(graph_module: fx.GraphModule, node: fx.Node, module: nn.Module, weight: fx.Node | None) -> str:
    """Where a module goes: the path of its weight, or the one that the model called here; else a free name there."""
    scope = scope_of(node)
    owners = [scope]
    if weight is not None and str(weight.target).endswith(".weight"):
        owners.insert(0, str(weight.target).removesuffix(".weight"))
    for path in filter(None, owners):
        present = _submodule(graph_module, path)
        if present is None or any(True for _ in present.children()):
            continue
        if _same(present, module):
            return path
        # What a tracer leaves of a module whose parameters alone are read: an empty one that holds them.
        bare = type(present) is nn.Module and {*present._parameters, *present._buffers} <= {
            *module._parameters,
            *module._buffers,
        }
        if (bare or isinstance(present, type(module))) and not _is_called(graph_module, path):
            module.train(present.training)
            graph_module.add_submodule(path, module)
            return path
    label = type(module).__name__.lower() if meaning_of(graph_module, node) in _LAYERS else _label(graph_module, node)
    path = free_path(graph_module, ".".join(filter(None, [scope, label])))
    graph_module.add_submodule(path, module)
    return path


_LAYERS = (Meaning.CONVOLUTION, Meaning.LINEAR, Meaning.NORM, Meaning.NORMALIZATION, Meaning.EMBEDDING)


def _label(graph_module: fx.GraphModule, node: fx.Node) -> str:
    return describe_target(graph_module, node).rpartition(".")[2].rstrip("_")


def _submodule(graph_module: fx.GraphModule, path: str) -> nn.Module | None:
    try:
        return graph_module.get_submodule(path)
    except AttributeError:
        return None


def _is_called(graph_module: fx.GraphModule, path: str) -> bool:
    return any(node.op == "call_module" and node.target == path for node in graph_module.graph.nodes)


def _same(present: nn.Module, module: nn.Module) -> bool:
    """Whether a module of the table already computes this, with the very same tensors."""
    if type(present) is not type(module) or (entry := entry_of(present)) is None:
        return False
    if getattr(present, "return_indices", False):  # the graph reads its values alone
        return False
    mine, theirs = dict(module.named_parameters()), dict(present.named_parameters())
    if mine.keys() != theirs.keys() or any(mine[name] is not theirs[name] for name in mine):
        return False
    return all(_equal(getattr(present, field), getattr(module, field)) for field in entry.fields)


def _equal(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) or isinstance(right, Tensor):
        return left is right
    if isinstance(left, (int, float, bool)) and isinstance(right, (tuple, list)):
        return all(left == item for item in right)
    if isinstance(right, (int, float, bool)) and isinstance(left, (tuple, list)):
        return all(right == item for item in left)
    return bool(
        (list(left) if isinstance(left, tuple) else left) == (list(right) if isinstance(right, tuple) else right)
    )


def _convolution(graph_module: fx.GraphModule, node: fx.Node) -> Built:
    name = _label(graph_module, node)
    weight: Any = argument(node, 1, "weight")
    bias: Any = argument(node, 2, "bias")
    dims, shape = int(name[-2]), attribute(graph_module, str(weight.target)).shape
    transposed = "transpose" in name
    if transposed:
        groups: Any = argument(node, 6, "groups", 1)
        options: dict[str, Any] = {"output_padding": argument(node, 5, "output_padding", 0),
                                   "dilation": argument(node, 7, "dilation", 1)}  # fmt: skip
        channels = (shape[0], shape[1] * groups)
    else:
        groups = argument(node, 6, "groups", 1)
        options = {"dilation": argument(node, 5, "dilation", 1)}
        channels = (shape[1] * groups, shape[0])
    kinds = {1: (nn.Conv1d, nn.ConvTranspose1d), 2: (nn.Conv2d, nn.ConvTranspose2d), 3: (nn.Conv3d, nn.ConvTranspose3d)}
    options |= {"stride": argument(node, 3, "stride", 1), "padding": argument(node, 4, "padding", 0)}
    kind: Any = kinds[dims][transposed]
    module = kind(
        *channels,
        tuple(shape[2:]),
        groups=groups,
        bias=bias is not None,
        **{key: _extent(value, dims) for key, value in options.items()},
    )
    return module, {"weight": weight, "bias": bias}


def _extent(value: Any, dims: int) -> Any:
    """An argument per dimension: one number or a list of one stands for all."""
    if isinstance(value, (list, tuple)):
        return tuple(value) * (dims if len(value) == 1 else 1)
    return value


def _linear(graph_module: fx.GraphModule, node: fx.Node) -> Built | None:
    weight: Any = argument(node, 1, "weight")
    bias: Any = argument(node, 2, "bias")
    shape = attribute(graph_module, str(weight.target)).shape
    if len(shape) != 2:  # one output, without a dimension of its own
        return None
    rows, columns = shape
    return nn.Linear(columns, rows, bias=bias is not None), {"weight": weight, "bias": bias}


def _batch_norm(graph_module: fx.GraphModule, node: fx.Node) -> Built | None:
    # torch.batch_norm(x, weight, bias, mean, var, ...) against F.batch_norm(x, mean, var, weight, bias, ...)
    order = ("weight", "bias", "running_mean", "running_var")
    if node.target is functional.batch_norm:
        order = ("running_mean", "running_var", "weight", "bias")
    given: dict[str, Any] = {name: argument(node, 1 + index, name) for index, name in enumerate(order)}
    if given["running_mean"] is None or mode_of(node) is True:
        return None
    features = attribute(graph_module, str(given["running_mean"].target)).shape[0]
    # torch.export knows the rank; torch.fx does not, and most are of images.
    dims = getattr(node.args[0], "meta", {}).get("dims", 4) if node.args else 4
    norm: Any = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 5: nn.BatchNorm3d}.get(dims, nn.BatchNorm2d)
    owner = _submodule(graph_module, str(given["running_mean"].target).rpartition(".")[0])
    for kind in (nn.BatchNorm1d, nn.BatchNorm3d, nn.SyncBatchNorm):
        if isinstance(owner, kind):
            norm = kind
    module = norm(features, argument(node, 7, "eps", 1e-5), argument(node, 6, "momentum", 0.1),
                  affine=given["weight"] is not None)  # fmt: skip
    module.num_batches_tracked = torch.tensor(0, device="cpu")
    if given["weight"] is not None and given["bias"] is None:
        return None
    return module, given


def _layer_norm(graph_module: fx.GraphModule, node: fx.Node) -> Built | None:
    weight: Any = argument(node, 2, "weight")
    bias: Any = argument(node, 3, "bias")
    if weight is None and bias is not None:  # no module has that
        return None
    shape: Any = argument(node, 1, "normalized_shape")
    module = nn.LayerNorm(list(shape), argument(node, 4, "eps", 1e-5), weight is not None, bias is not None)
    return module, {"weight": weight, "bias": bias}


def _rms_norm(graph_module: fx.GraphModule, node: fx.Node) -> Built:
    weight: Any = argument(node, 2, "weight")
    shape: Any = argument(node, 1, "normalized_shape")
    return nn.RMSNorm(list(shape), argument(node, 3, "eps"), weight is not None), {"weight": weight}


def _group_norm(graph_module: fx.GraphModule, node: fx.Node) -> Built | None:
    weight: Any = argument(node, 2, "weight")
    bias: Any = argument(node, 3, "bias")
    if weight is None or bias is None:
        return None
    channels = attribute(graph_module, str(weight.target)).shape[0]
    module = nn.GroupNorm(argument(node, 1, "num_groups"), channels, argument(node, 4, "eps", 1e-5))
    return module, {"weight": weight, "bias": bias}


def _embedding(graph_module: fx.GraphModule, node: fx.Node) -> Built | None:
    weight: Any = argument(node, 1, "weight")
    if argument(node, 3, "max_norm") is not None or not isinstance(weight, fx.Node):
        return None
    rows, width = attribute(graph_module, str(weight.target)).shape
    padding: Any = argument(node, 2, "padding_idx")
    padding = None if padding is None or padding < 0 else padding
    return nn.Embedding(rows, width, padding, _weight=torch.empty(rows, width)), {"weight": weight}


def _softmax(graph_module: fx.GraphModule, node: fx.Node) -> Built | None:
    dim: Any = argument(node, 1, "dim")
    return None if dim is None else (nn.Softmax(dim), {})


def _dropout(graph_module: fx.GraphModule, node: fx.Node) -> Built:
    name = _label(graph_module, node)
    if mode_of(node) is True:
        raise OperatorError(
            f"{place_of(node)}: {describe_target(graph_module, node)} stays random in evaluation mode; "
            "pass training=self.training, or use nn.Dropout"
        )
    kinds = {"dropout1d": nn.Dropout1d, "dropout2d": nn.Dropout2d, "dropout3d": nn.Dropout3d, "feature_dropout":
             nn.Dropout2d, "alpha_dropout": nn.AlphaDropout}  # fmt: skip
    return kinds.get(name, nn.Dropout)(argument(node, 1, "p", 0.5)), {}


def _max_pooling(graph_module: fx.GraphModule, node: fx.Node) -> Built:
    name = _label(graph_module, node)
    dims = int(name[-2])
    if "adaptive" in name:
        adaptive = {1: nn.AdaptiveMaxPool1d, 2: nn.AdaptiveMaxPool2d, 3: nn.AdaptiveMaxPool3d}[dims]
        return adaptive(argument(node, 1, "output_size")), {}
    pool = {1: nn.MaxPool1d, 2: nn.MaxPool2d, 3: nn.MaxPool3d}[dims]
    return pool(
        _extent(argument(node, 1, "kernel_size"), dims),
        stride=_extent(argument(node, 2, "stride"), dims) or None,
        padding=_extent(argument(node, 3, "padding", 0), dims),
        dilation=_extent(argument(node, 4, "dilation", 1), dims),
        ceil_mode=bool(argument(node, 5, "ceil_mode", False)),
    ), {}


def _activation(graph_module: fx.GraphModule, node: fx.Node) -> Built | None:
    name = _label(graph_module, node)
    plain = {"relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "mish": nn.Mish, "hardswish": nn.Hardswish,
             "hardsigmoid": nn.Hardsigmoid, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh, "selu": nn.SELU,
             "softsign": nn.Softsign, "logsigmoid": nn.LogSigmoid, "tanhshrink": nn.Tanhshrink}  # fmt: skip
    if name in plain:
        return plain[name](), {}
    if name == "leaky_relu":
        return nn.LeakyReLU(argument(node, 1, "negative_slope", 0.01)), {}
    if name == "gelu":
        return nn.GELU(argument(node, 1, "approximate", "none")), {}
    if name == "hardtanh":
        low, high = argument(node, 1, "min_val", -1.0), argument(node, 2, "max_val", 1.0)
        return (nn.ReLU6() if (low, high) == (0, 6) else nn.Hardtanh(low, high)), {}
    if name == "threshold" and argument(node, 1, "threshold") == argument(node, 2, "value") == 0:
        return nn.ReLU(), {}
    if name in ("elu", "celu") and len(node.args) <= 2:
        return (nn.ELU if name == "elu" else nn.CELU)(argument(node, 1, "alpha", 1.0)), {}
    weight: Any = argument(node, 1, "weight")
    if name == "prelu" and isinstance(weight, fx.Node):
        return nn.PReLU(attribute(graph_module, str(weight.target)).numel()), {"weight": weight}
    return None


def _clip(graph_module: fx.GraphModule, node: fx.Node) -> Built | None:
    """A rectifier that is written as clipping."""
    low, high = argument(node, 1, "min"), argument(node, 2, "max")
    if not isinstance(low, (int, float)) or low != 0 or isinstance(high, fx.Node):
        return None
    if high is None or high == math.inf:
        return nn.ReLU(), {}
    return (nn.ReLU6() if high == 6 else nn.Hardtanh(0.0, float(high)), {}) if high > 0 else None


def _require_no_indices(graph_module: fx.GraphModule, node: fx.Node, meaning: Meaning | None) -> None:
    name = describe_target(graph_module, node) if node.op.startswith("call") else ""
    asked: Any = False
    if meaning is Meaning.MAX_POOLING:
        if node.op == "call_module":
            asked = getattr(graph_module.get_submodule(str(node.target)), "return_indices", False)
        else:
            asked = argument(node, 2 if "adaptive" in name else 6, "return_indices", False)
    if asked or name.endswith("_with_indices"):
        raise OperatorError(f"{place_of(node)}: max pooling with return_indices=True has no running mean; drop it")


_BUILDERS: dict[str, Callable[[fx.GraphModule, fx.Node], Built | None]] = {
    **dict.fromkeys(("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
                    _convolution),
    "linear": _linear,
    "batch_norm": _batch_norm,
    "layer_norm": _layer_norm,
    "rms_norm": _rms_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
    "softmax": _softmax,
    **dict.fromkeys(_CLIPPING, _clip),
    **dict.fromkeys(("dropout", "dropout1d", "dropout2d", "dropout3d", "feature_dropout", "alpha_dropout"), _dropout),
    **dict.fromkeys((f"{kind}max_pool{dims}d" for kind in ("", "adaptive_") for dims in (1, 2, 3)), _max_pooling),
}  # fmt: skip
