"""Affine stretches of a graph in float64: what lies between the junctions of the event-by-event simulator.

A *source* is where values enter a stretch: an input, an embedding of integers, a junction. With every source at zero a
stretch answers f(0), its *rest*; what one spike adds is f(e) - f(0). Where both are minus infinity (the mask of an
attention) nothing is added. That a stretch is affine, in all sources together and in each sample by itself, is tested with
random numbers and never taken from a table.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from polarspike.errors import OperatorError
from polarspike.graph.contract import Rule, is_own, rules_of
from polarspike.graph.editing import signals
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import describe_target, meaning_of, place_of, reads_size
from polarspike.proofs.layouts import Layout, less

_TOLERANCE = 1e-9
_TO_DOUBLE = ("float", "half", "bfloat16")


class Walker(fx.Interpreter):
    """Evaluate chosen nodes of a graph, all in float64."""

    def evaluate(self, nodes: Iterable[fx.Node], given: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        """The values of nodes in the order of the graph; those that are given are not computed."""
        outer, self.env = self.env, dict(given)  # columns are looked up in the middle of a timestep
        try:
            for node in nodes:
                if node not in self.env:
                    self.env[node] = self.run_node(node)
            return self.env
        finally:
            self.env = outer

    def apply(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """One node on these values of its signals, and on the present values of all else that it takes."""
        given = {parent: self.env[parent] for parent in node.all_input_nodes} | dict(values)
        return self.evaluate([node], given)[node]

    def run_node(self, n: fx.Node) -> Any:
        return pytree.tree_map(double, super().run_node(n))

    def fetch_args_kwargs_from_env(self, n: fx.Node) -> Any:
        return pytree.tree_map(_double_type, super().fetch_args_kwargs_from_env(n))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_method("double" if target in _TO_DOUBLE else target, args, kwargs)


@dataclass(frozen=True)
class Span:
    """What is evaluated to find some values: nodes in order, and those among them whose values are given."""

    nodes: list[fx.Node]
    given: list[fx.Node]


class Stretches:
    """The graph between its sources.

    Args:
        network: in float64 on the CPU.
        frame: one input by placeholder name, for shapes and for what is the same at every step.
        batch: the number of samples.
        shared: the inputs that are the same for all of them, also where they have as many rows.

    Attributes:
        nodes: all nodes but the output, in order.
        dependent: the signals.
        sites: the nodes that call a neuron.
        graded: the nodes that call an operator that is not affine, max pooling among them.
        chosen: the values that integer inputs decide without being looked up, as masks are: they differ by sample.
    """

    def __init__(
        self, network: fx.GraphModule, frame: Mapping[str, Any], batch: int, shared: Collection[str] = ()
    ) -> None:
        self.network = network
        self.walker = Walker(network)
        self.nodes: list[fx.Node] = [node for node in network.graph.nodes if node.op != "output"]
        self.dependent = signals(network)
        self.sites = [node for node in self.nodes if is_own(network, node)]
        rules = rules_of(network, self.dependent)
        self.graded = [node for node, rule in rules.items() if rule is not Rule.AFFINE]
        self.frame, self.batch, self.shared = frame, batch, shared
        self._sources = {*self.sites, *self.graded, *filter(self._enters, self.nodes)}
        self.chosen = self._chosen()
        self._rests: dict[int, dict[fx.Node, Any]] = {}
        self._of_three = self.rest_of(3)
        self._layouts = {node: Layout.of(two, self._of_three[node]) for node, two in self.rest().items()}

    def is_source(self, node: fx.Node) -> bool:
        """Whether values enter here."""
        return node.op == "placeholder" or node in self._sources

    def rest(self, sample: int = 0) -> dict[fx.Node, Any]:
        """Every node's value with all sources at zero, for a batch of two copies of one sample's integers."""
        if sample not in self._rests:
            self._rests[sample] = self.rest_of(2, sample)
        return self._rests[sample]

    def rest_of(self, rows: int | None, sample: int = 0) -> dict[fx.Node, Any]:
        """The same for another batch size; None for the batch itself, with each sample's own integers."""
        env: dict[fx.Node, Any] = {}
        outer, self.walker.env = self.walker.env, env
        try:
            for node in self.nodes:
                if node.op == "placeholder":
                    env[node] = self._input(node, rows, sample)
                elif node in self.sites:  # what a neuron would answer is no matter of this module
                    env[node] = torch.zeros_like(env[node.all_input_nodes[0]])
                else:
                    value = self.walker.run_node(node)
                    env[node] = pytree.tree_map(_zeros, value) if node in self._sources else value
        finally:
            self.walker.env = outer
        return env

    def layout(self, node: fx.Node, reader: fx.Node) -> Layout:
        """Where the samples lie in a signal that a junction reads.

        Raises:
            OperatorError: the batch is not one dimension of it.
        """
        found, value = self._layouts[node], self.rest()[node]
        if found is None or not value.is_floating_point():
            what = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
            raise OperatorError(
                f"{place_of(reader)}: expected a float signal with a batch dimension, got {what} for a batch of two; "
                "the simulator follows each sample by itself, so no operator may join or split the batch"
            )
        return found

    def after(self, start: fx.Node) -> set[fx.Node]:
        """The signals that a source reaches through affine operators, itself among them."""
        found = {start}
        for node in self.nodes:
            if node in self.dependent and not self.is_source(node) and found.intersection(node.all_input_nodes):
                found.add(node)
        return found

    def span(self, ends: Collection[fx.Node], moving: Collection[fx.Node] | None = None) -> Span:
        """What must be evaluated for these values, back to the sources; signals that do not move are at rest."""
        found: set[fx.Node] = set()
        moving = self.dependent if moving is None else moving
        todo = list(ends)
        while todo:
            node = todo.pop()
            if node not in found:
                found.add(node)
                todo += [] if self._is_given(node, moving) else node.all_input_nodes
        nodes = [node for node in self.nodes if node in found]
        return Span(nodes, [node for node in nodes if self._is_given(node, moving)])

    def probe(self, span: Span, given: Mapping[fx.Node, Any], rows: int, sample: int = 0) -> dict[fx.Node, Any]:
        """The values of a span for ``rows`` probes of some sources; all others are at rest, with one sample's integers."""
        still = {node: self._repeated(node, rows, sample) for node in span.given if node not in given}
        return self.walker.evaluate(span.nodes, {**still, **given})

    def require_affine(self, readers: Mapping[fx.Node, fx.Node]) -> None:
        """Check with random numbers that what junctions read is affine in all sources, and in each sample by itself.

            f(a + b) - f(0) = (f(a) - f(0)) + (f(b) - f(0))

        Args:
            readers: for every signal that is read, the node that reads it.

        Raises:
            OperatorError: it is not; names the first operator at which it shows.
        """
        generator = torch.Generator().manual_seed(0)

        def random(value: Any) -> Any:
            layout = Layout.of(value[0], value[1])
            if layout is None or not value[0].is_floating_point():
                return value[0]
            a, b = torch.randn(2, *layout.flat(value[0])[0].shape, generator=generator, dtype=torch.float64)
            return layout.shaped(torch.stack([a, b, a + b, torch.zeros_like(a)]))

        given: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if self.is_source(node) and node in self.dependent:
                pairs, tree = pytree.tree_flatten(self.rest()[node])
                leaves = zip(pairs, pytree.tree_leaves(self._of_three[node]), strict=True)
                given[node] = pytree.tree_unflatten([random(pair) for pair in leaves], tree)
        span = self.span(list(readers))
        env = self.probe(span, given, 4)
        if all(self._is_additive(node, env[node]) for node in readers):
            return
        for node in span.nodes:
            if node in self.dependent and not self.is_source(node) and not self._is_additive(node, env[node]):
                raise OperatorError(
                    f"{place_of(node)}: {describe_target(self.network, node)} is not affine in each sample by itself, so "
                    "single spikes cannot travel through it; look for an operator that mixes the samples of a batch, "
                    "or that has the wrong rule over time"
                )

    def _is_additive(self, node: fx.Node, value: Any) -> bool:
        layout = self._layouts[node]
        if layout is None or not value.is_floating_point():
            return not isinstance(value, Tensor) or not value.is_floating_point()
        rows, rest = layout.flat(value), layout.flat(self.rest()[node])[0]
        a, b, both, still = less(rows, rest)
        bound = torch.nan_to_num(rest, posinf=0.0, neginf=0.0).abs() + 1.0
        size = max(map(_largest, (a, b, both)))
        error = torch.maximum((a + b - both).abs(), still.abs())
        overflow = ~error.isfinite() & rest.isfinite()  # which the site there reports
        return bool(((error <= _TOLERANCE * (bound + size)) | overflow).all())

    def _enters(self, node: fx.Node) -> bool:
        """Whether an embedding is looked up by integers of the input: it is an input, then."""
        return (
            node in self.dependent
            and meaning_of(self.network, node) is Meaning.EMBEDDING
            and not any(parent in self.dependent for parent in node.all_input_nodes)
        )

    def _chosen(self) -> set[fx.Node]:
        found: set[fx.Node] = set()
        for node in self.nodes:
            if node in self.dependent or reads_size(node):
                continue
            if (node.op == "placeholder") or found.intersection(node.all_input_nodes):
                found.add(node)
        return found

    def _is_given(self, node: fx.Node, moving: Collection[fx.Node]) -> bool:
        at_rest = node in self.dependent and node not in moving and self._layouts[node] is not None
        return at_rest or self.is_source(node)

    def _repeated(self, node: fx.Node, rows: int, sample: int) -> Any:
        """A value at rest, for another batch size."""
        if node.op == "placeholder":
            return self._input(node, rows, sample)

        def repeat(two: Any, three: Any) -> Any:
            layout = Layout.of(two, three)
            return two if layout is None else layout.shaped(layout.flat(two)[:1].expand(rows, -1))

        return pytree.tree_map(repeat, self.rest(sample)[node], self._of_three[node])

    def _input(self, node: fx.Node, rows: int | None, sample: int) -> Any:
        """An input at rest: zero where it is a signal, one sample's integers otherwise."""
        name = str(node.target)
        value = self.frame[name]
        if not isinstance(value, Tensor):
            return value
        if rows is not None and name not in self.shared and value.dim() and len(value) == self.batch:
            value = value[sample : sample + 1].expand(rows, *value.shape[1:])
        return torch.zeros_like(value) if node in self.dependent else value


def double(value: Any) -> Any:
    """A value in float64 on the CPU; integers and what is no tensor keep their type."""
    if not isinstance(value, Tensor):
        return value
    return value.cpu().double() if value.is_floating_point() else value.cpu()


def _double_type(value: Any) -> Any:
    return torch.float64 if isinstance(value, torch.dtype) and value.is_floating_point else value


def _zeros(value: Any) -> Any:
    return torch.zeros_like(value) if isinstance(value, Tensor) and value.is_floating_point() else value


def _largest(value: Tensor) -> float:
    finite = value[value.isfinite()]
    return float(finite.abs().max()) if len(finite) else 0.0
