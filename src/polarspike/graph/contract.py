"""The running-mean contract of a captured graph: by which rule each operator keeps it; what has none is refused by name.

The mean over steps 1..T of an operator's output must be the operator applied to the mean of its inputs (docs/theory.md):

    affine        y[t] = f(x[t])                                  as it stands
    homogeneous   y[t] = f(S[t]) - f(S[t-1]),   S[t] = x[1] + ... + x[t]
    difference    y[t] = t f(M[t]) - (t-1) f(M[t-1]),   M[t] = S[t] / t

The rule belongs to the *call*, not to the operator's name: a product with a constant is affine, a product of two signals
is not. A quantized network is checked when it is made, before any training, and again when it is converted.
"""

from __future__ import annotations

import operator
from collections.abc import Collection
from enum import Enum
from typing import Any

import torch
from torch import fx, nn

from polarspike.errors import OperatorError
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import (
    argument,
    describe_target,
    is_moving,
    meaning_of,
    mode_of,
    moving,
    place_of,
    reads_size,
    unknown,
)


class Rule(Enum):
    """How an operator keeps the running-mean contract."""

    AFFINE = "as it is"
    HOMOGENEOUS = "difference on sums"
    DIFFERENCE = "difference of means"


#: Affine in their first argument, whatever else they take; other arguments must be constants.
_AFFINE = frozenset(
    {
        Meaning.NORM,
        Meaning.AVERAGE,
        Meaning.ADD,
        Meaning.CONCATENATE,
        Meaning.RESHAPE,
        Meaning.PAD,
        Meaning.DROPOUT,
        Meaning.SIZE,
        Meaning.CONSTANT,
        Meaning.EMBEDDING,
    }
)
#: Affine in every single argument, but not in two at once.
_BILINEAR = frozenset({Meaning.CONVOLUTION, Meaning.LINEAR, Meaning.MATMUL, Meaning.SCALE, Meaning.UPSAMPLE})
_NONLINEAR = frozenset({Meaning.NORMALIZATION, Meaning.ACTIVATION, Meaning.SOFTMAX, Meaning.ATTENTION,
                        Meaning.ELEMENTWISE, Meaning.REDUCTION})  # fmt: skip
#: Positively homogeneous: f(a x) = a f(x) for a >= 0, whatever the input.
_HOMOGENEOUS_NAMES = frozenset({"ReLU", "LeakyReLU", "PReLU", "relu", "leaky_relu", "prelu", "abs", "amax", "amin"})


def rule_of(network: fx.GraphModule, node: fx.Node, dependent: Collection[fx.Node]) -> Rule:
    """The rule of a node that calls something.

    Args:
        network: the graph.
        node: one that calls an operator of the table.
        dependent: the signals, see :func:`polarspike.graph.editing.signals`.

    Raises:
        OperatorError: it is not in the operator table, or has no meaning over time: an integer that depends on a signal,
            randomness, a recurrent layer, a batch norm without running statistics.
    """
    meaning = meaning_of(network, node)
    if meaning is None or meaning in (Meaning.RECURRENT, Meaning.RANDOM):
        raise unknown(network, node)
    if node not in dependent or reads_size(node):
        return Rule.AFFINE
    if meaning is Meaning.DISCRETE:
        raise _refused(network, node, "turns a signal into integers or truth values, which have no running mean",
                       "keep signals real (a softmax in place of argmax, a product in place of a comparison), or take "
                       "this step outside of the model, on its output")  # fmt: skip
    if meaning is Meaning.NORM:
        _require_statistics(network, node)
    if meaning in _AFFINE:
        return _affine(network, node, meaning, dependent)
    if meaning is Meaning.SELECT:
        return Rule.AFFINE  # a condition that a signal decides is boolean, and refused where it is made
    if meaning in _BILINEAR:
        return _bilinear(network, node, meaning, dependent)
    if meaning is Meaning.MAX_POOLING or (
        describe_target(network, node).rpartition(".")[2] in _HOMOGENEOUS_NAMES and len(moving(node, dependent)) == 1
    ):
        return Rule.HOMOGENEOUS
    if meaning in _NONLINEAR:
        return Rule.DIFFERENCE
    raise unknown(network, node)


def rules_of(network: fx.GraphModule, dependent: Collection[fx.Node]) -> dict[fx.Node, Rule]:
    """The rules of all nodes that call an operator of the table and depend on a signal; sites are left out."""
    return {
        node: rule_of(network, node, dependent)
        for node in network.graph.nodes
        if node in dependent and node.op not in ("placeholder", "output", "get_attr") and not is_own(network, node)
    }


def is_own(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node calls a module with a rule of its own: a site."""
    return node.op == "call_module" and hasattr(network.get_submodule(str(node.target)), "spec")


def _affine(network: fx.GraphModule, node: fx.Node, meaning: Meaning, dependent: Collection[fx.Node]) -> Rule:
    if meaning is Meaning.SIZE:
        raise _refused(network, node, "of a signal is not affine", "use it on sizes alone")
    if node.target is operator.getitem and is_moving(node.args[1], dependent):
        raise _refused(network, node, "at a place that a signal names has no running mean", "use constant indices")
    if node.target == "view" and any(isinstance(value, torch.dtype) for value in node.args):
        raise _refused(network, node, "as another type is not affine", "view as another shape alone")
    return Rule.AFFINE


def _bilinear(network: fx.GraphModule, node: fx.Node, meaning: Meaning, dependent: Collection[fx.Node]) -> Rule:
    if node.kwargs.get("rounding_mode") is not None:
        return Rule.DIFFERENCE
    if meaning is Meaning.UPSAMPLE and is_moving((node.args[1:], {**node.kwargs, "input": None}), dependent):
        return Rule.DIFFERENCE  # sampled at places that a signal names
    factors = [is_moving(value, dependent) for value in _factors(network, node, meaning)]
    if sum(factors) > 1:
        return Rule.DIFFERENCE
    name = describe_target(network, node).rpartition(".")[2]
    # By a signal; in a + w (b - a) the ends are added, and the weight alone is a factor.
    divides = "div" in name or name in ("addcdiv", "lerp")
    return Rule.DIFFERENCE if divides and factors[-1] else Rule.AFFINE


#: Where the factors of a product stand, by position and name; terms that are only added are left out.
_FACTORS = {
    "addmm": ((1, "mat1"), (2, "mat2")),
    "baddbmm": ((1, "batch1"), (2, "batch2")),
    **dict.fromkeys(("addcmul", "addcdiv"), ((1, "tensor1"), (2, "tensor2"))),
    **dict.fromkeys(("div", "divide", "true_divide", "truediv"), ((0, "input"), (1, "other"))),
}


def _factors(network: fx.GraphModule, node: fx.Node, meaning: Meaning) -> list[Any]:
    """The factors of a product; a divisor comes last, and so does the weight of ``lerp``."""
    name = describe_target(network, node).rpartition(".")[2]
    if name == "einsum":
        equation = argument(node, 0, "equation")
        given = node.args[1:] if isinstance(equation, str) else node.args[::2]  # or operand, its axes, operand, ...
        return list(given[0]) if len(given) == 1 and isinstance(given[0], (list, tuple)) else list(given)
    if name == "lerp":
        ends = (argument(node, 0, "input"), argument(node, 1, "end"))
        return [ends, argument(node, 2, "weight")]
    if name in _FACTORS:
        return [argument(node, position, key) for position, key in _FACTORS[name]]
    values = [*node.args, *(value for key, value in node.kwargs.items() if key not in ("bias", "out"))]
    return values[:2] if meaning in (Meaning.CONVOLUTION, Meaning.LINEAR) else values


def _require_statistics(network: fx.GraphModule, node: fx.Node) -> None:
    if mode_of(node) is True:
        raise OperatorError(
            f"{place_of(node)}: a batch norm that is called with training=True normalizes each batch by itself, which has "
            "no running mean; pass running statistics and training=self.training"
        )
    module: nn.Module | None = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    if module is not None and getattr(module, "running_mean", None) is None:
        raise OperatorError(
            f"{place_of(node)}: a batch norm without running statistics normalizes each batch by itself, which has no "
            "running mean; use track_running_stats=True"
        )


def _refused(network: fx.GraphModule, node: fx.Node, problem: str, repair: str) -> OperatorError:
    what = describe_target(network, node)
    return OperatorError(f"{place_of(node)}: {what} {problem}, so it has no rule over time; {repair}")
