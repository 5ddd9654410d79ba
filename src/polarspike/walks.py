"""Three ways to walk the graph of a spiking network: one timestep, what is still on its way, and T steps at once.

The generated code of the graph runs the first timestep. Every later one is walked here. Between two timesteps a signal is
carried as its step or as its running mean (:mod:`polarspike.temporal`): synapses take steps, which are spikes; operators
that are not affine take means and give means; a site takes either and gives what is asked for. Where a reader wants the
other form, the signal is converted once, and its mean is what the network remembers of it. Who wants what is decided once
for a graph (:func:`timing_of`).
"""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from polarspike.contract import Rule, rules_of
from polarspike.graph import attribute, signals
from polarspike.layers import additive_mask, blocking_mask, causal_mask
from polarspike.neurons import CappedNeuron, NeuronState, PolarityNeuron
from polarspike.operator_table import Meaning
from polarspike.operators import describe_target, meaning_of, moving, place_of
from polarspike.temporal import (
    SumState,
    advance_homogeneous,
    change_of,
    less,
    moved_by,
    to_mean,
    to_step,
    typed_as,
    widened,
)

_SYNAPTIC = (Meaning.CONVOLUTION, Meaning.LINEAR, Meaning.MATMUL)
# Views that show every element once, and operators that split into disjoint views.
_VIEWS = frozenset({"Identity", "Flatten", "Unflatten", "reshape", "view", "flatten", "unflatten", "transpose", "permute",
                    "contiguous", "squeeze", "unsqueeze", "getitem"})  # fmt: skip
_SPLITS = frozenset({"unbind", "chunk", "split", "split_with_sizes"})
# Operators whose result is always new memory.
_FRESH = (
    *_SYNAPTIC,
    Meaning.NORM,
    Meaning.NORMALIZATION,
    Meaning.ACTIVATION,
    Meaning.SOFTMAX,
    Meaning.ADD,
    Meaning.SCALE,
)


@dataclass(frozen=True)
class Timing:
    """How one signal is made and carried.

    Attributes:
        rule: of its operator; None for a site or an input.
        takes_mean: the operator reads running means.
        is_mean: what it makes is a running mean.
        wants_step: some reader takes it as a step; wants_mean likewise.
        masked: it may hold minus infinity.
        place: for a message.
    """

    rule: Rule | None
    takes_mean: bool
    is_mean: bool
    wants_step: bool
    wants_mean: bool
    masked: bool
    place: str


@dataclass(frozen=True)
class WalkState:
    """What a network remembers: sites by path; running means and sums by the name of their node."""

    neurons: Mapping[str, NeuronState] = field(default_factory=dict)
    means: Mapping[str, Any] = field(default_factory=dict)
    sums: Mapping[str, SumState] = field(default_factory=dict)


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
    sites = {node for node in dependent if _is_site(network, node)}
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
        asked = {_wants_mean(user, rules, flexible, is_mean, sites, node) for user in node.users}
        found[node.name] = Timing(
            rule=rule,
            takes_mean=takes,
            is_mean=is_mean[node],
            wants_step=False in asked,
            wants_mean=True in asked,
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


def let_overwrite(network: fx.GraphModule) -> None:
    """Tell the sites whose input nobody else reads, and which is no view of anything, that they may write there."""
    for node in network.graph.nodes:
        if _is_site(network, node):
            (parent,) = node.all_input_nodes
            site: PolarityNeuron = network.get_submodule(str(node.target))  # type: ignore[assignment]
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


def _is_site(network: fx.GraphModule, node: fx.Node) -> bool:
    return node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), PolarityNeuron)


def _masked(network: fx.GraphModule, rules: Mapping[fx.Node, Rule], dependent: set[fx.Node]) -> set[fx.Node]:
    """The signals that may hold minus infinity: behind one that the graph writes, or a mask in front of a softmax."""
    inputs = {node for node in dependent if node.op == "placeholder"}
    found = inputs if len(inputs) > 1 else set()  # one of several may be a mask to add
    passed = (Meaning.RESHAPE, Meaning.SCALE, Meaning.ADD, Meaning.SELECT, Meaning.DROPOUT)
    for node in network.graph.nodes:
        if _holds_infinity(network, node) or (
            not _is_site(network, node) and not found.isdisjoint(node.all_input_nodes)
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


class Advance(fx.Interpreter):
    """Walk one timestep; :meth:`state` is what it leaves, and the answer is the running mean of the output.

    With ``reuse`` the state before is given up: sums and codes of sites take its memory.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        timing: Mapping[str, Timing],
        before: WalkState,
        timestep: int,
        reuse: bool = False,
    ) -> None:
        super().__init__(network)
        self.extra_traceback = False  # an error says by itself where it was found
        self.reuse = reuse
        self.timing = timing
        self.before = before
        self.timestep = timestep
        self.neurons: dict[str, NeuronState] = {}
        self.means: dict[str, Any] = {}
        self.sums: dict[str, SumState] = {}
        self.converted: dict[fx.Node, Any] = {}

    def state(self) -> WalkState:
        """The state after this walk."""
        return WalkState(self.neurons, self.means, self.sums)

    def run_node(self, n: fx.Node) -> Any:
        timing = self.timing.get(n.name)
        if n.op == "output":
            return fx.node.map_arg(n.args[0], lambda parent: self._carried(parent, True))
        if timing is None or n.op == "placeholder":
            value = super().run_node(n)
        elif timing.rule is None and n.op == "call_module":
            value = self._fire(n, timing)
        elif timing.rule is Rule.HOMOGENEOUS:
            value = self._respond(n, timing)
        else:
            value = self._apply(n, timing)
        for dead in self.user_to_last_uses.get(n, ()):
            self.converted.pop(dead, None)
        return value

    def _carried(self, node: fx.Node, mean: bool) -> Any:
        """The value of a node in the form that a reader wants; converted at most once."""
        timing = self.timing.get(node.name)
        if timing is not None and timing.rule is None and node.op == "call_module":
            return self._from_site(node, timing, mean)
        if timing is None or timing.is_mean == mean:
            return self.env[node]
        if node not in self.converted:
            self.converted[node] = self._convert(node.name, timing, self.env[node])
        return self.converted[node]

    def _convert(self, name: str, timing: Timing, value: Any) -> Any:
        before = self.before.means.get(name)
        if timing.is_mean:
            self.means[name] = widened(value)
            return typed_as(value, to_step(self.means[name], before, self.timestep, timing.masked))
        if timing.rule is Rule.HOMOGENEOUS:  # by its sum, so that what is never negative does not become so by rounding
            self.means[name] = pytree.tree_map(lambda response: response / self.timestep, self.sums[name].response)
        else:
            self.means[name] = to_mean(value, before, self.timestep, timing.place, timing.masked)
        return typed_as(value, self.means[name])  # as the quantized network hands it on, also under autocast

    def _from_site(self, node: fx.Node, timing: Timing, mean: bool) -> Any:
        """What a site hands on: its step is in the environment, unless means alone are wanted."""
        if mean != timing.wants_step:  # the form that was made first
            return self.env[node]
        if node not in self.converted:
            module = self.fetch_attr(str(node.target))
            average = module.average(self.neurons[str(node.target)], self.timestep)
            self.converted[node] = average.to(self.env[node].dtype)
        return self.converted[node]

    def _fire(self, node: fx.Node, timing: Timing) -> Tensor:
        path = str(node.target)
        module: PolarityNeuron = self.fetch_attr(path)
        before = self.before.neurons.get(path)
        (parent,) = node.all_input_nodes
        x = self._carried(parent, timing.takes_mean)
        if timing.wants_step and not timing.takes_mean:
            y, self.neurons[path] = module.advance(x, before, self.timestep, reuse=self.reuse)
            return y
        take = module.meet if timing.takes_mean else module.integrate
        after = self.neurons[path] = take(x, before, self.timestep)
        made = module.emitted(before, after) if timing.wants_step else module.average(after, self.timestep)
        return made.to(x.dtype)

    def _respond(self, node: fx.Node, timing: Timing) -> Any:
        parent = next(parent for parent in node.all_input_nodes if parent.name in self.timing)
        x = self._carried(parent, False)
        with torch.autocast(x.device.type, enabled=False):  # sums grow, and half precision has no digits for them
            y, self.sums[node.name] = advance_homogeneous(
                lambda total: self._call(node, {parent: total}),
                x,
                self.before.sums.get(node.name),
                timing.place,
                masked=timing.masked,
                reuse=self.reuse,
            )
        return y

    def _apply(self, node: fx.Node, timing: Timing) -> Any:
        return self._call(node, {parent: self._carried(parent, timing.takes_mean) for parent in self._signals(node)})

    def _signals(self, node: fx.Node) -> list[fx.Node]:
        return [parent for parent in node.all_input_nodes if parent.name in self.timing]

    def _call(self, node: fx.Node, given: Mapping[fx.Node, Any]) -> Any:
        """What a node computes with these values of its signals."""
        args, kwargs = fx.node.map_arg(
            (node.args, node.kwargs), lambda parent: given[parent] if parent in given else self.env[parent]
        )
        return getattr(self, node.op)(node.target, args, kwargs)


class Drain(Advance):
    """Walk what is still on its way after the last input: steps are changes, and constants are not added again.

    An affine operator on steps answers ``f(change) - f(0)``; ``rest`` keeps the ``f(0)`` of all walks of one drain.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        timing: Mapping[str, Timing],
        before: WalkState,
        timestep: int,
        rest: dict[str, Any],
    ) -> None:
        super().__init__(network, timing, before, timestep)
        self.rest = rest

    def placeholder(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return _zeros(super().placeholder(target, args, kwargs))

    def _convert(self, name: str, timing: Timing, value: Any) -> Any:
        before = self.before.means[name]
        if timing.is_mean:
            self.means[name] = widened(value)
            return typed_as(value, change_of(self.means[name], before, self.timestep))
        self.means[name] = moved_by(value, before, self.timestep)
        return typed_as(value, self.means[name])

    def _respond(self, node: fx.Node, timing: Timing) -> Any:
        change = super()._respond(node, timing)
        # What stays at infinity has not changed.
        return pytree.tree_map(lambda y: y.masked_fill(y.isinf(), 0.0), change) if timing.masked else change

    def _apply(self, node: fx.Node, timing: Timing) -> Any:
        if timing.takes_mean or timing.rule is not Rule.AFFINE:
            return super()._apply(node, timing)
        changes = {parent: self._carried(parent, False) for parent in self._signals(node)}
        if node.name not in self.rest:
            self.rest[node.name] = self._call(node, pytree.tree_map(_zeros, changes))
        return less(self._call(node, changes), self.rest[node.name])


def waiting_in(sites: Mapping[str, CappedNeuron], states: Mapping[str, NeuronState], timestep: int) -> int:
    """How many unit spikes wait in the membranes of these sites."""
    return sum(site.waiting(states[path], timestep) for path, site in sites.items())


class Settle(fx.Interpreter):
    """Walk once in the mean domain: the mean answer after T timesteps."""

    def __init__(self, network: fx.GraphModule, timesteps: int) -> None:
        super().__init__(network)
        self.extra_traceback = False  # an error says by itself where it was found
        self.timesteps = timesteps

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, PolarityNeuron):
            (mean,) = args
            return module.settle(mean, self.timesteps)
        return super().call_module(target, args, kwargs)


def _zeros(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value
