"""Constants of a program whose batch is not known yet: made for one sample, where that is what every sample gets."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from polarspike.exporters.aten import leaves_of

#: The constant that a node is, for one sample; None where it is a size.
Known = Callable[[fx.Node], Tensor | None]


def for_one_sample(node: fx.Node, known: Known) -> Any:
    """What a node makes of constants and sizes in a batch of one: a tensor, or several.

    None where a batch of two would have other values than the same ones twice, as ``arange(batch)`` has.
    """
    made = _made(node, known, 1)
    if any(known(leaf) is None or any(_free(leaf)) for leaf in leaves_of((node.args, node.kwargs))):
        pairs = zip(_tensors(made), _tensors(_made(node, known, 2)), strict=True)
        if not all(_repeats(one, two) for one, two in pairs):
            return None
    return made


def _made(node: fx.Node, known: Known, batch: int) -> Any:
    def value(leaf: Any) -> Any:
        if not isinstance(leaf, fx.Node):
            return leaf
        tensor = known(leaf)
        if tensor is None:
            return _size(leaf, batch)
        return tensor.repeat([batch if free else 1 for free in _free(leaf)]) if any(_free(leaf)) else tensor

    args, kwargs = torch.utils._pytree.tree_map(value, (node.args, node.kwargs))
    with torch.no_grad():
        return node.target(*args, **kwargs)  # type: ignore[operator]


def _size(node: fx.Node, batch: int) -> Any:
    """A size that depends on the batch, where that is so large."""
    if any(isinstance(part.meta.get("val"), Tensor) for part in node.all_input_nodes):
        return batch
    args = [_size(part, batch) if isinstance(part, fx.Node) else part for part in node.args]
    return node.target(*args)  # type: ignore[operator]


def _free(node: fx.Node) -> list[bool]:
    """For each dimension of a tensor whether its size depends on the batch."""
    value = node.meta.get("val")
    return [not isinstance(size, int) for size in value.shape] if isinstance(value, Tensor) else []


def _repeats(one: Tensor, two: Tensor) -> bool:
    """Whether the second tensor is the first, as often as it takes along each dimension."""
    if one.dim() != two.dim() or any(b % max(a, 1) for a, b in zip(one.shape, two.shape, strict=True)):
        return False
    again = one.repeat([b // max(a, 1) for a, b in zip(one.shape, two.shape, strict=True)])
    return torch.equal(again.nan_to_num(), two.nan_to_num())


def _tensors(made: Any) -> list[Tensor]:
    return [made] if isinstance(made, Tensor) else list(made)
