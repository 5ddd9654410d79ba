"""How every signal of a spiking network's graph is made and carried from timestep to timestep: decided once for a graph."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx
from torch.utils import _pytree as pytree

from polarspike.graph.contract import Rule, rules_of
from polarspike.graph.editing import attribute, signals
from polarspike.graph.layers import additive_mask, blocking_mask, causal_mask
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import meaning_of, moving, place_of
from polarspike.neurons import PolarityNeuron

_SYNAPTIC = (Meaning.CONVOLUTION, Meaning.LINEAR, Meaning.MATMUL)


@dataclass(frozen=True)
class Timing:
    """How one signal is made and carried.

    Attributes:
        rule: of its operator; None for a site or an input.
        takes_mean: the operator reads running means.
        is_mean: what it makes is a running mean.
        wants_step: some reader takes it as a step.
        masked: it may hold minus infinity.
        place: for a message.
    """

    rule: Rule | None
    takes_mean: bool
    is_mean: bool
    wants_step: bool
    masked: bool
    place: str


def timing_of(network: fx.GraphModule) -> dict[str, Timing]:
    """The timing of every signal of a graph by the name of its node."""
    dependent = signals(network)
    rules = rules_of(network, dependent)
    flexible = {
        node for node, rule in rules.items() if rule is Rule.AFFINE and meaning_of(network, node) not in _SYNAPTIC
    }  # affine, and no synapse: works on steps as well as on means
    for_means: set[fx.Node] = set()  # read as means alone
    for node in reversed(list(network.graph.nodes)):
        if node.users and all(
            rules.get(user) is Rule.DIFFERENCE or user.op == "output" or (user in flexible and user in for_means)
            for user in node.users
        ):
            for_means.add(node)
    sites = {node for node in dependent if is_site(network, node)}
    is_mean: dict[fx.Node, bool] = {}
    for node in network.graph.nodes:
        if node in flexible:
            parents = moving(node, dependent)
            made = [is_mean[parent] for parent in parents if parent not in sites]
            is_mean[node] = all(made) if made else node in for_means
        elif node in dependent:
            is_mean[node] = rules.get(node) is Rule.DIFFERENCE
    masked = _masked(network, rules, dependent)
    found: dict[str, Timing] = {}
    for node in network.graph.nodes:
        if node not in dependent or node.op == "output":
            continue
        rule = rules.get(node)
        takes = rule is Rule.DIFFERENCE or (node in flexible and is_mean[node])
        takes |= node in sites and is_mean[moving(node, dependent)[0]]
        found[node.name] = Timing(
            rule=rule,
            takes_mean=takes,
            is_mean=is_mean[node],
            wants_step=not all(_wants_mean(user, rules, flexible, is_mean, sites, node) for user in node.users),
            masked=node in masked,
            place=place_of(node),
        )
    return found


def _wants_mean(
    user: fx.Node,
    rules: Mapping[fx.Node, Rule],
    flexible: set[fx.Node],
    is_mean: Mapping[fx.Node, bool],
    sites: set[fx.Node],
    node: fx.Node,
) -> bool:
    if user.op == "output" or rules.get(user) is Rule.DIFFERENCE:
        return True
    if user in flexible:
        return is_mean[user]
    return user in sites and is_mean[node]


def _masked(network: fx.GraphModule, rules: Mapping[fx.Node, Rule], dependent: set[fx.Node]) -> set[fx.Node]:
    """The signals that may hold minus infinity: behind one that the graph writes, or a mask in front of a softmax."""
    inputs = {node for node in dependent if node.op == "placeholder"}
    given = [node for node in network.graph.nodes if node.op == "placeholder"]  # also integers, which are no signals
    found = inputs if len(given) > 1 else set()  # one of several may be a mask to add
    passed = (Meaning.RESHAPE, Meaning.SCALE, Meaning.ADD, Meaning.SELECT, Meaning.DROPOUT)
    for node in network.graph.nodes:
        if _holds_infinity(network, node) or (
            not is_site(network, node) and not found.isdisjoint(node.all_input_nodes)
        ):
            found.add(node)
        if meaning_of(network, node) is Meaning.SOFTMAX:
            front, way = moving(node, dependent), []
            while front:
                part = front.pop()
                if part in rules and rules[part] is Rule.AFFINE and meaning_of(network, part) in passed:
                    way.append(part)
                    front += moving(part, dependent)
            if any(meaning_of(network, part) in (Meaning.ADD, Meaning.SELECT) for part in way):
                found.update(way)
    return found


def _holds_infinity(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether infinity stands in the arguments of a node, or in the constant that it is."""
    if node.op == "get_attr":
        constant = attribute(network, str(node.target))
        return constant.is_floating_point() and bool(constant.isinf().any())
    if node.op == "call_module":
        filling: Any = getattr(network.get_submodule(str(node.target)), "value", 0.0)  # of padding
        return isinstance(filling, float) and abs(filling) == math.inf
    if node.target in (additive_mask, blocking_mask, causal_mask):
        return True
    return any(
        isinstance(leaf, float) and abs(leaf) == math.inf for leaf in pytree.tree_leaves((node.args, node.kwargs))
    )


def is_site(network: fx.GraphModule, node: fx.Node) -> bool:
    """Whether a node is a site: a neuron of this project."""
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), PolarityNeuron)
