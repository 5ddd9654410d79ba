"""What the overloads of an exported program mean in the operator table: one function for each that needs one.

An overload of the same name as a function or method of the table is that; the others are put together here. What none of
these covers keeps its name, and is refused by it.
"""

from __future__ import annotations

import operator
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import fx
from torch.nn import functional

from polarspike.errors import OperatorError
from polarspike.graph.layers import masked_softmax
from polarspike.graph.operator_table import FUNCTIONS, IN_PLACE, METHODS
from polarspike.graph.operators import place_of

Translation = tuple[str, Any, tuple[Any, ...], dict[str, Any]]

# Overloads that answer (values, indices), and the function of the table that answers the values alone.
_WITH_INDICES = {
    f"{kind}max_pool{dims}d{end}": getattr(functional, f"{kind}max_pool{dims}d")
    for kind, end in (("", "_with_indices"), ("adaptive_", ""))
    for dims in (1, 2, 3)
}
_PLACING = ("device", "layout", "pin_memory", "memory_format", "non_blocking", "copy")
_DUNDER = {
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__xor__": operator.xor,
    "__invert__": operator.invert,
}
# As grid_sample numbers them.
_MODES = ("bilinear", "nearest", "bicubic")
_PADDINGS = ("zeros", "border", "reflection")
_NO_END = sys.maxsize
# Answers (normalized, mean, rate); where nothing may be written in place, batch norms are called so.
_BATCH_NORM = "_native_batch_norm_legit_no_training"


def base_name(node: fx.Node) -> str:
    """The operator of an overload, without namespace; empty for what is none."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")


def translation(node: fx.Node, base: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation | Any:
    """The operator of the table that computes what an overload computes; not a tuple: a value that stands for it."""
    if not base:  # arithmetic of sizes, or one of several answers
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, fx.Node) and base_name(source) in _WITH_INDICES:
            return _value_of_pooling(node, args)
        if isinstance(source, fx.Node) and base_name(source) == _BATCH_NORM and args[1] == 0:
            return args[0]
        return "call_function", node.target, args, kwargs
    if base in _WITH_INDICES:
        return "call_function", _WITH_INDICES[base], args, kwargs
    if base in _SPECIAL:
        return _SPECIAL[base](node, args, kwargs)
    if base in _DUNDER:
        return "call_function", _DUNDER[base], args, kwargs
    kwargs = {name: value for name, value in kwargs.items() if name not in _PLACING}
    for name in (f"torch.{base}", f"F.{base}", f"F.{base.removesuffix('_')}_"):
        if name in FUNCTIONS and (name.endswith("_") == base.endswith("_")):
            return "call_function", FUNCTIONS[name], args, kwargs
    if base in METHODS or base in IN_PLACE:
        return "call_method", base, args, kwargs
    return "call_function", node.target, args, kwargs  # refused by name, with its place


def _batch_norm(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    del node
    x, weight, bias, mean, variance, momentum, eps = args
    return "call_function", torch.batch_norm, (x, weight, bias, mean, variance, False, momentum, eps, False), kwargs


def _value_of_pooling(node: fx.Node, args: tuple[Any, ...]) -> Any:
    if args[1] == 0 or not node.users:  # both answers are taken apart, whoever reads them
        return args[0]
    raise OperatorError(f"{place_of(node)}: max pooling with return_indices=True has no running mean; drop it")


def _size(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    return "call_method", "size", args, kwargs


def _slice(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    defaults: tuple[Any, ...] = (None, 0, None, None, 1)
    source, dim, start, end, step = args + defaults[len(args) :]
    if dim < 0:
        dim += node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    part = slice(start, None if isinstance(end, int) and end >= _NO_END else end, step)
    return "call_function", operator.getitem, (source, (*(slice(None),) * dim, part)), {}


def _index(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    source, places = args
    return "call_function", operator.getitem, (source, tuple(slice(None) if at is None else at for at in places)), {}


def _to(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    kinds = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)]
    before = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    # A network moves and changes its type as a whole: a conversion between real types is left to it.
    if not kinds or kinds[0] == before or (kinds[0].is_floating_point and before.is_floating_point):
        return args[0]
    return "call_method", "to", (args[0], kinds[0]), {}


def _same(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0]


def _clone(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    return "call_function", torch.clone, args[:1], {}


def _embedding(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    weight, ids, *rest = args
    return "call_function", functional.embedding, (ids, weight, *rest[:1]), {}


def _upsample(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    names = [item.name for item in node.target._schema.arguments]  # type: ignore[union-attr]
    named = dict(zip(names, args, strict=False)) | kwargs
    kinds = ("bilinear", "trilinear", "linear", "bicubic", "exact")
    mode = next((kind for kind in kinds if kind in base_name(node)), "nearest").replace("exact", "nearest-exact")
    source = named.get("input", named.get("self"))
    options: dict[str, Any] = {"mode": mode}
    if named.get("output_size") is not None:
        options["size"] = named["output_size"]
    else:
        options["scale_factor"] = named["scale_factors"]
    if "nearest" not in mode:
        options["align_corners"] = named["align_corners"]
    return "call_function", functional.interpolate, (source,), options


def _sampled(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    """Sampling at places; modes come as numbers."""
    del node
    source, grid, mode, padding, align = args
    options = {"mode": _MODES[mode], "padding_mode": _PADDINGS[padding], "align_corners": align}
    return "call_function", functional.grid_sample, (source, grid), options | kwargs


def _grid(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    return "call_function", functional.affine_grid, args, kwargs


def _vector_norm(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    return "call_function", torch.linalg.vector_norm, args, kwargs


def _einsum(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    return "call_function", torch.einsum, (args[0], *args[1]), {}


def _reversed(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    dims = node.meta["val"].dim()
    return "call_function", torch.permute, (args[0], tuple(reversed(range(dims)))), kwargs


def _swapped(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    del node
    return "call_function", torch.transpose, (args[0], -2, -1), kwargs


def _copied(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    target, source = node.args[:2]
    if isinstance(source, fx.Node) and source.meta["val"].dtype != target.meta["val"].dtype:  # type: ignore[union-attr]
        raise OperatorError(
            f"{place_of(node)}: writes {source.meta['val'].dtype} into a tensor of another type; convert it before, by "
            ".to(y.dtype)"
        )
    return "call_method", "expand_as", (args[1], args[0]), kwargs


def _filled(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    if isinstance(args[1], fx.Node):
        return _copied(node, args, kwargs)
    return "call_function", torch.full_like, args, kwargs


_SPECIAL: dict[str, Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any]] = {
    "sym_size": _size,
    "slice": _slice,
    "index": _index,
    "to": _to,
    "_to_copy": _to,
    "alias": _same,
    "lift_fresh": _same,
    "detach": _same,
    "lift_fresh_copy": _clone,
    "clone": _clone,
    "embedding": _embedding,
    "linalg_vector_norm": _vector_norm,
    "einsum": _einsum,
    "grid_sampler": _sampled,
    "affine_grid_generator": _grid,
    _BATCH_NORM: _batch_norm,
    "copy": _copied,
    "zero": lambda node, args, kwargs: ("call_function", torch.zeros_like, args, {}),
    "fill": _filled,
    "numpy_T": _reversed,
    "_safe_softmax": lambda node, args, kwargs: ("call_function", masked_softmax, args[:2], {}),
    **dict.fromkeys(("mT", "mH", "matrix_H", "adjoint"), _swapped),
    **dict.fromkeys(
        (f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "_nearest_exact2d", "linear1d",
                                         "bilinear2d", "trilinear3d", "bicubic2d")), _upsample),
}  # fmt: skip
