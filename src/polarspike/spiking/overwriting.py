"""Which sites may write their values over the memory of their input: those whose input nobody else sees."""

from __future__ import annotations

import operator

from torch import fx, nn

from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import describe_target, meaning_of
from polarspike.neurons import PolarityNeuron

# Views that show every element once, and operators that split into disjoint views.
_VIEWS = frozenset({"Identity", "Flatten", "Unflatten", "reshape", "view", "flatten", "unflatten", "transpose", "permute",
                    "contiguous", "squeeze", "unsqueeze", "getitem"})  # fmt: skip
_SPLITS = frozenset({"unbind", "chunk", "split", "split_with_sizes"})
# Operators whose result is always new memory.
_FRESH = (
    Meaning.CONVOLUTION,
    Meaning.LINEAR,
    Meaning.MATMUL,
    Meaning.NORM,
    Meaning.NORMALIZATION,
    Meaning.ACTIVATION,
    Meaning.SOFTMAX,
    Meaning.ADD,
    Meaning.SCALE,
)


def let_overwrite(network: fx.GraphModule) -> None:
    """Tell the sites whose input nobody else reads, and which is no view of anything, that they may write there."""
    for node in network.graph.nodes:
        site = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(site, PolarityNeuron):
            (parent,) = node.all_input_nodes
            site.overwrites = _is_owned(network, parent)
            site.makers = _makers(network, parent) if site.overwrites else ()


def _is_owned(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether the memory of a signal is seen by its only reader alone."""
    if len(node.users) != 1:
        return False
    name = describe_target(network, node).rpartition(".")[2] if node.op.startswith("call") else ""
    if meaning_of(network, node) in _FRESH:
        return name != "einsum"  # with one operand it answers with a view
    if name not in _VIEWS:
        return False
    source = node.all_input_nodes[0]
    if name == "getitem":  # one of the parts of a split: parts are disjoint, and each is taken once
        if describe_target(network, source).rpartition(".")[2] not in _SPLITS:
            return False
        places = [user.args[1] for user in source.users if user.target is operator.getitem]
        # Counted from the front alone: 0 and -2 of two parts are the same.
        apart = len(places) == len(source.users) and all(isinstance(place, int) and place >= 0 for place in places)
        if not apart or len(set(places)) < len(places):
            return False
        source = source.all_input_nodes[0]
    return _is_owned(network, source)


def _makers(network: fx.GraphModule, node: fx.Node) -> tuple[nn.Module, ...]:
    """The modules that hand on the memory of an owned signal: the one that makes it, and the views behind it."""
    found: list[nn.Module] = []
    while True:
        if node.op == "call_module":
            found.append(network.get_submodule(str(node.target)))
        if meaning_of(network, node) in _FRESH:
            return tuple(found)
        node = node.all_input_nodes[0]
