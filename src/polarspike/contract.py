"""The running-mean contract of a captured graph: which operators keep it, and how; anything else is refused by name.

The mean over steps 1..T of an operator's output must be the operator applied to the mean of its inputs (docs/theory.md).
Affine operators keep it as they stand, max pooling as a difference on sums, a site as a neuron; dropout is absent from
evaluation. A quantized network is checked when it is made, before any training, and again when it is converted.
"""

from __future__ import annotations

import operator

import torch
from torch import fx
from torch.utils import _pytree as pytree

from polarspike.errors import OperatorError
from polarspike.operators import Meaning, describe_target, meaning_of, place_of, reads_size, unknown

#: Operators whose output over time is the running-mean contract as they stand.
AFFINE = frozenset(
    {
        Meaning.CONVOLUTION,
        Meaning.LINEAR,
        Meaning.NORM,
        Meaning.AVERAGE,
        Meaning.ADD,
        Meaning.SCALE,
        Meaning.CONCATENATE,
        Meaning.RESHAPE,
        Meaning.PAD,
        Meaning.UPSAMPLE,
        Meaning.SIZE,
    }
)

_REPLACED = frozenset({Meaning.ACTIVATION, Meaning.MAX_POOLING, Meaning.DROPOUT})


def require_contract(network: fx.GraphModule, node: fx.Node, dependent: set[fx.Node]) -> Meaning:
    """The meaning of a node that has a rule over time.

    Args:
        network: the graph.
        node: one that calls something.
        dependent: the signals, see :func:`polarspike.graph.signals`.

    Raises:
        OperatorError: it is not in the operator table, or is not affine in the way in which it is called.
    """
    meaning = meaning_of(network, node)
    if meaning is None or (meaning not in AFFINE and meaning not in _REPLACED):
        raise unknown(network, node)
    if node in dependent and not reads_size(node):
        _require_affine(network, node, meaning, dependent)
    if meaning is Meaning.NORM and getattr(network.get_submodule(str(node.target)), "running_mean", None) is None:
        raise OperatorError(
            f"{place_of(node)}: a batch norm without running statistics normalizes each batch by itself, which has no "
            "running mean; use track_running_stats=True"
        )
    return meaning


def _require_affine(network: fx.GraphModule, node: fx.Node, meaning: Meaning, dependent: set[fx.Node]) -> None:
    """Refuse the calls of known operators that are not affine in their signals."""

    def moving(position: int, name: str) -> bool:
        value = node.args[position] if len(node.args) > position else node.kwargs.get(name)
        return any(leaf in dependent for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Node))

    def refuse(problem: str, repair: str) -> OperatorError:
        what = describe_target(network, node)
        return OperatorError(f"{place_of(node)}: {what} {problem}, so it has no rule over time; {repair}")

    function = node.op == "call_function"
    if meaning is Meaning.SIZE:
        raise refuse("of a signal is not affine", "use it on sizes alone")
    if meaning is Meaning.SCALE:
        if moving(1, "other") and (moving(0, "input") or "div" in describe_target(network, node)):
            raise refuse(
                "of two signals, or by a signal, is not affine",
                "scale by a constant or a parameter instead, or add the signals",
            )
        if node.kwargs.get("rounding_mode") is not None:
            raise refuse("with rounding_mode is not affine", "divide without it")
    elif meaning in (Meaning.CONVOLUTION, Meaning.LINEAR) and function and moving(1, "weight"):
        raise refuse("whose weight is a signal is not affine", "use a constant weight")
    elif node.target is operator.getitem and moving(1, ""):
        raise refuse("at a place that a signal names is not affine", "use constant indices")
    elif node.target == "view" and any(isinstance(value, torch.dtype) for value in node.args):
        raise refuse("as another type is not affine", "view as another shape alone")
