"""Constants of a program whose batch is not known yet: made for one sample, where that is what every sample gets.

A constant is known for one sample. In a batch of n every tensor that depends on n has one dimension of size ``k n``, k
whole, along which the sample's k entries repeat. Two things keep that true. The graph: a size may only say how large
a constant is, and is a multiple of n, so that no ``n // 3`` is written as what it is in a batch of one. And the values:
whatever else an operator makes of the dimension (a sum, a number for each sample) shows in larger batches.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from polarspike.exporters.aten import arguments_of, leaves_of

#: The constant that a node is, for one sample; None where it is a size.
Known = Callable[[fx.Node], Tensor | None]

#: Arguments that say how large a constant is or how often it repeats; no value of it is computed from them.
_SHAPES = {
    **dict.fromkeys(("aten::expand", "aten::view", "aten::zeros", "aten::ones", "aten::full"), "size"),
    **dict.fromkeys(("aten::new_zeros", "aten::new_ones", "aten::new_full", "aten::broadcast_to"), "size"),
    "aten::reshape": "shape",
    "aten::unflatten": "sizes",
    "aten::repeat": "repeats",
    "aten::repeat_interleave": "repeats",
    "aten::tile": "dims",
}

#: Beyond a batch of one. Sizes cannot become values, so that few are enough: they show what one operator does across
#: samples. A prime, for windows and offsets that two or three samples do not reach.
_BATCHES = (2, 3, 11)


def for_one_sample(node: fx.Node, known: Known) -> Any:
    """What a node makes of constants and sizes in a batch of one: a tensor, or several.

    None where a larger batch would have other values than the same ones for each sample, as ``arange(batch)`` has, or
    where a size is more than a size, as in ``plane * (batch // 3)``.
    """
    leaves = leaves_of((node.args, node.kwargs))
    if not any(known(leaf) is None or _free(leaf) for leaf in leaves):
        return _made(node, known, 1)
    values = pytree.tree_leaves(node.meta["val"])
    sizes = [leaf.meta["val"] for leaf in leaves if known(leaf) is None]
    sizes += [value.shape[d] for value in values for d in _free_of(value)]
    if not only_shapes(node) or any(_times(size) is None for size in sizes):
        return None
    if any(len(_free_of(value)) > 1 for value in values):
        return None  # pairs of samples
    made = _made(node, known, 1)
    for batch in _BATCHES:
        again = pytree.tree_leaves(_made(node, known, batch))
        for value, one, several in zip(values, pytree.tree_leaves(made), again, strict=True):
            if not _same(_repeated(one, _free_of(value), batch), several):
                return None
    return made


def only_shapes(node: fx.Node) -> bool:
    """Whether sizes that depend on the batch are nothing but shapes of what the node makes."""
    given = arguments_of(node)
    shape = _SHAPES.get(node.target._schema.name)  # type: ignore[union-attr]
    values = [leaf for name, value in given.items() if name != shape for leaf in leaves_of(value)]
    return not any(isinstance(leaf.meta.get("val"), torch.SymInt | torch.SymFloat | torch.SymBool) for leaf in values)


def _made(node: fx.Node, known: Known, batch: int) -> Any:
    def value(leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        tensor = known(leaf)
        if tensor is None:
            return (_times(leaf.meta["val"]) or 0) * batch
        return _repeated(tensor, _free(leaf), batch)

    args, kwargs = pytree.tree_map(value, (node.args, node.kwargs))
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _times(size: Any) -> int | None:
    """How many times the batch a size is; None if it is anything else."""
    if not isinstance(size, torch.SymInt):
        return None
    formula = size.node.expr
    if len(formula.free_symbols) != 1:
        return None
    factor = formula / next(iter(formula.free_symbols))
    return int(factor) if factor.is_Integer else None


def _free(node: fx.Node) -> list[int]:
    """The dimensions of a node's tensor whose sizes depend on the batch."""
    return _free_of(node.meta.get("val"))


def _free_of(value: Any) -> list[int]:
    return [d for d, size in enumerate(value.shape) if not isinstance(size, int)] if isinstance(value, Tensor) else []


def _repeated(one: Tensor, dims: list[int], batch: int) -> Tensor:
    """The tensor of one sample for as many as the batch has."""
    return one.repeat([batch if d in dims else 1 for d in range(one.dim())]) if dims else one


def _same(one: Tensor, other: Tensor) -> bool:
    """Equal shapes and values, where NaN equals NaN."""
    if one.shape != other.shape:
        return False
    return bool(((one == other) | (one.isnan() & other.isnan())).all())
