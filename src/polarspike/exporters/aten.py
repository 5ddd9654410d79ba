"""Questions about a node of an ATen program, for what walks through one."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import fx
from torch.utils import _pytree as pytree

Arguments = Mapping[str, Any]


def arguments_of(node: fx.Node) -> Arguments:
    """All arguments of a call by their names in the operator's schema, defaults included."""
    assert isinstance(node.target, torch._ops.OpOverload)
    wanted = node.target._schema.arguments
    given = {argument.name: argument.default_value for argument in wanted}
    given.update(zip((argument.name for argument in wanted), node.args, strict=False))
    return {**given, **node.kwargs}


def leaves_of(tree: Any) -> list[fx.Node]:
    """The nodes in nested arguments."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, fx.Node)]


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """The sizes of a value without its batch; where that is not in front, its size is that of the example.

    To make an ``int`` of a free size would fix it for the whole program, in which 2 is then as good as the batch.
    """
    sizes = node.meta["val"].shape[1:]
    return tuple(cast(int, size.node.hint) if isinstance(size, torch.SymInt) else size for size in sizes)


def place_of(node: fx.Node) -> str:
    """The module that a node comes from, for messages."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((place[0] for place in reversed(list(stack.values())) if place[0]), "")
    path = path.removeprefix("L['self']").removeprefix(".")
    return f"module {path!r}" if path else f"node {node.name!r}"


def sizes_of(value: Any, dims: int) -> list[int]:
    """A size for each dimension, where one number stands for all."""
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes * dims if len(sizes) == 1 else sizes


def padding_of(given: Any, kernel: Sequence[int], dilation: Sequence[int]) -> list[list[int]]:
    """How much a convolution pads in front and behind; ``given`` may be a word."""
    if given == "valid":
        return [[0] * len(kernel), [0] * len(kernel)]
    if given == "same":
        whole = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
        return [[p // 2 for p in whole], [p - p // 2 for p in whole]]
    sizes = sizes_of(given, len(kernel))
    return [sizes, sizes]


def average_windows(node: fx.Node, given: Arguments) -> tuple[list[int], list[int], list[int]] | str:
    """Kernel, stride and padding of an average pooling; a message where its windows do not all count alike."""
    before, after = shape_of(given["self"])[1:], shape_of(node)[1:]
    kernel, padding = sizes_of(given["kernel_size"], len(after)), sizes_of(given["padding"], len(after))
    stride = sizes_of(given["stride"], len(after)) if given["stride"] else kernel
    inside = tuple((size + 2 * p - k) // s + 1 for size, p, k, s in zip(before, padding, kernel, stride, strict=True))
    if given.get("divisor_override"):
        return "average pooling with divisor_override; leave it out, and multiply the mean by a factor instead"
    if any(padding) and not given["count_include_pad"]:
        return "average pooling that does not count its padding; use count_include_pad=True, or no padding"
    if inside != after:
        return f"average pooling from {before} to {after} whose last windows are cut off; use ceil_mode=False"
    return kernel, stride, padding


def even_windows(before: Sequence[int], after: Sequence[int]) -> tuple[list[int], list[int]] | None:
    """Kernel and stride of an adaptive pooling; None if its windows are not all of one size at one distance.

    Window i of n over a length L runs from floor(i L / n) to ceil((i + 1) L / n).
    """
    kernel, stride = [], []
    for length, count in zip(before, after, strict=True):
        starts = [i * length // count for i in range(count)]
        sizes = {-(-(i + 1) * length // count) - start for i, start in enumerate(starts)}
        steps = {b - a for a, b in itertools.pairwise(starts)} or {length}
        if len(sizes) > 1 or len(steps) > 1:
            return None
        kernel.append(sizes.pop())
        stride.append(steps.pop())
    return kernel, stride
