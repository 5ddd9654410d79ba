"""Three ways to walk the graph of a spiking network: one timestep, what is still on its way, and T steps at once.

The generated code of the graph runs the first timestep. Every later one is walked here. Between two timesteps a signal is
carried as its step or as its running mean (:mod:`polarspike.temporal`): synapses take steps, which are spikes; operators
that are not affine take means and give means; a site takes either and gives what is asked for. Where a reader wants the
other form, the signal is converted once, and its mean is what the network remembers of it. Who wants what is decided once
for a graph (:mod:`polarspike.spiking.timing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from polarspike.graph.contract import Rule
from polarspike.neurons import CappedNeuron, NeuronState, PolarityNeuron
from polarspike.spiking.timing import Timing
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


@dataclass(frozen=True)
class WalkState:
    """What a network remembers: sites by path; running means and sums by the name of their node."""

    neurons: Mapping[str, NeuronState] = field(default_factory=dict)
    means: Mapping[str, Any] = field(default_factory=dict)
    sums: Mapping[str, SumState] = field(default_factory=dict)


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
