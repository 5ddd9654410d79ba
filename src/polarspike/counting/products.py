"""Matrix products, and layers whose weight is a signal: which events meet which values.

Every bilinear operator tells its own connections: sent through it, tensors of ones and zeros give the number of pairs
that meet in each output. For ``A @ B`` with left spikes A (m x k) and right values B (k x n) that is

    additions = sum over j of nonzero(A[:, j]) * nonzero(B[j, :])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from polarspike.counting.connections import ThroughOperator
from polarspike.counting.recording import Recording
from polarspike.counting.streams import Spikes
from polarspike.errors import OperatorError
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import argument, describe_target, meaning_of, place_of

_BARE = ("input", "other", "mat2", "vec")
_ADDING = {"addmm": ("mat1", "mat2"), "baddbmm": ("batch1", "batch2")}
_LAYERS = (Meaning.CONVOLUTION, Meaning.LINEAR)


@dataclass(frozen=True)
class Product:
    """A bilinear operator, without what is only added.

    Attributes:
        run: the operator as a function of its two factors.
        left, right: the factors: nodes, or constants.
        added: a node or a constant that is added to the result, or None.
    """

    run: Callable[[Tensor, Tensor], Tensor]
    left: Any
    right: Any
    added: Any = None


def product_of(recording: Recording, node: fx.Node) -> Product | None:
    """A node as a product of two factors; None for a layer whose weights are constants.

    Raises:
        OperatorError: an einsum of one or of more than two operands.
    """
    meaning = meaning_of(recording.network, node)
    name = recording.called(node)
    if meaning in _LAYERS:
        weight = argument(node, 1, "weight") if node.op == "call_function" else None
        return _layer(recording, node, weight) if weight in recording.signals else None
    if meaning is not Meaning.MATMUL:
        return None
    if name == "einsum":
        return _einsum(recording, node)
    if name in _ADDING:
        left, right = (argument(node, 1 + index, key) for index, key in enumerate(_ADDING[name]))
        return Product(torch.matmul, left, right, argument(node, 0, "input"))
    left, right = [*node.args, *(node.kwargs[key] for key in _BARE if key in node.kwargs)][:2]
    return Product(torch.matmul, left, right)


def _layer(recording: Recording, node: fx.Node, weight: Any) -> Product:
    args, kwargs = recording.arguments(node)
    options = {key: value for key, value in kwargs.items() if key not in ("input", "weight", "bias")}
    function: Any = node.target
    rest = args[3:]
    return Product(
        lambda x, w: function(x, w, None, *rest, **options),
        argument(node, 0, "input"),
        weight,
        argument(node, 2, "bias"),
    )


def _einsum(recording: Recording, node: fx.Node) -> Product:
    equation, *operands = node.args
    if len(operands) == 1 and isinstance(operands[0], (list, tuple)):
        operands = list(operands[0])
    if not isinstance(equation, str) or len(operands) != 2:
        raise OperatorError(
            f"{place_of(node)}: no count for {describe_target(recording.network, node)} of {len(operands)} operands; "
            "write it as products of two operands, and sums or permutations of one with sum and permute"
        )
    return Product(lambda a, b: torch.einsum(equation, a, b), *operands)


def ones_of(recording: Recording, factor: Any, like: Tensor | None = None) -> Tensor:
    """A factor with one at every place."""
    device = "cpu" if like is None else like.device
    return torch.ones(recording.value(factor).shape, dtype=torch.float64, device=device)


def pairs_of(recording: Recording, product: Product) -> int:
    """All connections: the multiplications of a dense pass."""
    ones = (ones_of(recording, factor) for factor in (product.left, product.right))
    return int(product.run(*ones).sum())


def with_constant(recording: Recording, product: Product) -> ThroughOperator:
    """The connections of the one factor that is a signal; every element of the constant counts, like a weight."""
    if product.left in recording.signals:
        return ThroughOperator(lambda x: product.run(x, ones_of(recording, product.right, x)))
    return ThroughOperator(lambda x: product.run(ones_of(recording, product.left, x), x))


def nonzero(operand: Spikes) -> Tensor:
    """Where a sum of streams can be another value than zero: everywhere, once a constant was added."""
    codes = torch.stack([stream.now for stream in operand.streams])
    return torch.ones_like(codes[0], dtype=torch.float64) if operand.shifted else (codes != 0).any(0).double()


def facing_right(product: Product, right: Tensor) -> ThroughOperator:
    """The values on the right, as ones and zeros, that every element on the left meets."""
    return ThroughOperator(lambda left: product.run(left, right))


def facing_left(product: Product, left: Tensor) -> ThroughOperator:
    """The values on the left, as ones and zeros, that every element on the right meets."""
    return ThroughOperator(lambda right: product.run(left, right))
