"""Walk a spiking network for T steps and tally its operations."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, Literal

import torch
from torch import fx

from polarspike.counting import products
from polarspike.counting.connections import Connections, Links, comparisons_of, of_convolution
from polarspike.counting.counts import OperationCounts
from polarspike.counting.products import Product, product_of
from polarspike.counting.propagation import ADDING_PRODUCTS, added_by, propagate
from polarspike.counting.recording import Recording, label, operand_of
from polarspike.counting.rows import ElementKind, ElementwiseCounts, Kind
from polarspike.counting.streams import Graded, Operand, Spikes, Stream, graded_among, is_static
from polarspike.counting.subtotals import SiteSubtotal, SynapseSubtotal, has_second_scale
from polarspike.graph.contract import Rule
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import meaning_of, moving
from polarspike.neurons import NeuronState, PolarityNeuron

_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_SYNAPTIC = (Meaning.CONVOLUTION, Meaning.LINEAR, Meaning.MATMUL)
_SLOPED = frozenset({"LeakyReLU", "leaky_relu", "PReLU", "prelu"})


class Tally:
    """Rows in the order in which a signal meets them; each is made at the first step and grows with every one.

    Args:
        recording: of the network on the batch.
        timesteps: T. period: after so many of them all starts from rest again.
        images: in the batch. passes: of the float network for the same answers.
        repeated: the input is the same at every step.
        restarts: how often all starts from rest once more (rivals, behind a rehearsal).
        pooled: max pooling acts on sums over time, as by our contract, or on the spikes of each step.
    """

    def __init__(
        self,
        recording: Recording,
        timesteps: int,
        period: int,
        images: int,
        *,
        passes: int = 1,
        repeated: bool = True,
        restarts: int = 0,
        pooled: Literal["sums", "steps"] = "sums",
    ) -> None:
        self.recording = recording
        self.passes, self.repeated = passes, repeated
        self.timesteps = timesteps
        self.span = min(period, timesteps)
        self.later = timesteps - -(-timesteps // period) - restarts  # steps that start from a state
        self.pooled = pooled
        self.images = images
        self.synapses: dict[str, SynapseSubtotal] = {}
        self.elementwise: dict[tuple[str, str], ElementwiseCounts] = {}
        self.sites: dict[str, SiteSubtotal] = {}
        self.scaled: set[str] = set()
        self.operands: dict[fx.Node, Any] = {}
        nodes = [node for node in recording.network.graph.nodes if node in recording.signals]
        self.nodes = [node for node in nodes if node.op not in ("placeholder", "output")]
        self.names = _names(self.nodes)
        self.products = {node: product_of(recording, node) for node in self.nodes}

    def step(self, before: Mapping[str, NeuronState], now: Mapping[str, NeuronState]) -> None:
        """Add one timestep: the states of the sites before it (empty from rest) and after it."""
        self.operands = propagate(self.recording, *self._sent(before, now))
        for node in self.nodes:
            site = self.recording.module(node) if node.op == "call_module" else None
            if isinstance(site, PolarityNeuron):
                self._site(node, site, before, now)
            else:
                self._operator(node, meaning_of(self.recording.network, node))

    def _sent(
        self, before: Mapping[str, NeuronState], now: Mapping[str, NeuronState]
    ) -> tuple[Mapping[str, NeuronState], Mapping[str, NeuronState]]:
        """What operators see of the sites: running codes, or the spikes of the step alone."""
        if self.pooled == "sums" or not before:
            return before, now
        spikes = {name: state.codes - before[name].codes for name, state in now.items()}
        return {}, {name: NeuronState(codes, codes) for name, codes in spikes.items()}

    def result(self) -> OperationCounts:
        """The counts of the steps so far."""
        return OperationCounts(
            self.images,
            self.timesteps,
            tuple(site.row(name, self.images, self.timesteps, self.span) for name, site in self.sites.items()),
            tuple(synapse.row(self.sites, self.timesteps) for synapse in self.synapses.values()),
            tuple(self.elementwise.values()),
            self.passes,
            self.repeated,
        )

    # What each kind of operator adds.

    def _operator(self, node: fx.Node, meaning: Meaning | None) -> None:
        product = self.products[node]
        if product is not None:
            self._product(node, product)
        elif meaning in _SYNAPTIC:
            self._weights(node, meaning)
        elif meaning is Meaning.MAX_POOLING:
            self._max_pooling(node)
        elif self.recording.rules[node] is not Rule.AFFINE:
            self._function(node, meaning)
        elif meaning in (Meaning.AVERAGE, Meaning.UPSAMPLE):
            self._resampling(node, meaning)
        elif meaning is Meaning.ADD:
            self._add(node)
        elif meaning in (Meaning.NORM, Meaning.SCALE):
            self._scale(node)
        elif self.recording.called(node) == "fold":
            self._arrive(node, self.names[node], "average", False, operand_of(node), Connections(1))

    def _site(
        self, node: fx.Node, site: PolarityNeuron, before: Mapping[str, NeuronState], now: Mapping[str, NeuronState]
    ) -> None:
        name = str(node.target)
        if name not in self.sites:
            self.sites[name] = SiteSubtotal(site)
            if has_second_scale(site):
                self.scaled.add(name)
        self.sites[name].fire(name, before[name].codes if name in before else None, now[name].codes)
        self._enter(node, [operand_of(node)])

    def _enter(self, node: fx.Node, signals: Sequence[fx.Node]) -> None:
        """Spikes that end here without a weight: one accumulate each."""
        entering = [signal for signal in signals if isinstance(self.operands[signal], Spikes)]
        if entering:
            connections = sum(map(self.recording.elements, entering))
            streams = [stream for signal in entering for stream in self.operands[signal].streams]
            self._count(
                node, f"{self.names[node]} (input)", "accumulate", False, connections, [Spikes(tuple(streams))],
                [(streams, Connections(1))],
            )  # fmt: skip

    def _weights(self, node: fx.Node, meaning: Meaning | None) -> None:
        kind: Kind = "linear" if meaning is Meaning.LINEAR else "convolution"
        links, biased = self._links(node, meaning)
        self._arrive(node, self.names[node], kind, True, operand_of(node), links)
        if biased:
            self._elementwise(node, "bias", self.recording.elements(node))

    def _links(self, node: fx.Node, meaning: Meaning | None) -> tuple[Connections, bool]:
        args, kwargs = self.recording.arguments(node)
        settings: Any
        if node.op == "call_module":
            settings = self.recording.module(node)
        else:
            given = {**dict(zip(_CONVOLUTION_ARGUMENTS, args, strict=False)), **kwargs}
            weight = given["weight"]
            settings = SimpleNamespace(**{"stride": 1, "padding": 0, "dilation": 1, "groups": 1, "bias": None, **given})
            settings.out_channels = settings.out_features = weight.shape[0]
            settings.kernel_size = tuple(weight.shape[2:])
        biased = settings.bias is not None
        if meaning is Meaning.LINEAR:
            return Connections(settings.out_features), biased
        source, target = self.recording.shape(operand_of(node)), self.recording.shape(node)
        return of_convolution(settings, source, target), biased

    def _product(self, node: fx.Node, product: Product) -> None:
        """A matrix product: of a signal and a constant like a layer, of two signals by the events that meet."""
        left, right = (self.operands.get(factor) for factor in (product.left, product.right))
        arriving: list[tuple[Sequence[Stream], Links]] = []
        reason = None
        if left is None or right is None:
            operand = right if left is None else left
            operands: list[Operand] = [operand]  # type: ignore[list-item]
            if isinstance(operand, Spikes):
                arriving = [(operand.streams, products.with_constant(self.recording, product))]
        else:
            operands = [left, right]
            graded = graded_among(operands)
            if graded is not None:
                reason = graded.reason
            elif self.later:
                reason = "a product of two signals: at T > 1 of their means"
        connections = products.pairs_of(self.recording, product)
        tally = self._count(node, self.names[node], "matmul", True, connections, operands, arriving, reason)
        if tally.reason is None and isinstance(left, Spikes) and isinstance(right, Spikes):
            self._meet(tally, product, left, right)
        if len(operands) == 2:
            self._state(node, moving(node, self.operands))
        self._added(node, product.added)

    def _meet(self, tally: SynapseSubtotal, product: Product, left: Spikes, right: Spikes) -> None:
        """Every event on the left adds the values on the right that it meets and that are not zero."""
        tally.arrive(left.streams, products.facing_right(product, products.nonzero(right)), self.scaled)
        # The right side arrives as values; its events cross connections only where constants wait on the left.
        waiting = torch.full_like(left.streams[0].now, float(left.shifted), dtype=torch.float64)
        tally.arrive(right.streams, products.facing_left(product, waiting), self.scaled)

    def _added(self, node: fx.Node, added: Any) -> None:
        """What ``addmm`` and biases add to a product."""
        if added is None:
            return
        count = self.recording.elements(node)
        operand = self.operands.get(added)
        if operand is None:
            self._elementwise(node, "bias", count)
        elif isinstance(operand, Graded):
            self._elementwise(node, "add", count)
        else:
            self._join(node, [operand])

    def _resampling(self, node: fx.Node, meaning: Meaning | None) -> None:
        links, copies = self.recording.resampling(node)
        if not copies:
            kind: Kind = "average" if meaning is Meaning.AVERAGE else "interpolation"
            self._arrive(node, self.names[node], kind, kind == "interpolation", operand_of(node), links)

    def _max_pooling(self, node: fx.Node) -> None:
        source = operand_of(node)
        pool = self.recording.module(node)
        self._elementwise(
            node, "comparison", comparisons_of(pool, self.recording.shape(source), self.recording.shape(node))
        )
        self._sums(node, [source])
        if isinstance(self.operands[node], Graded):
            self._enter(node, [source])

    def _function(self, node: fx.Node, meaning: Meaning | None) -> None:
        """An operator that is not affine."""
        signals = moving(node, self.operands)
        before, after = sum(map(self.recording.elements, signals)), self.recording.elements(node)
        reduces = meaning is Meaning.REDUCTION
        self._enter(node, signals)
        if self.recording.rules[node] is Rule.HOMOGENEOUS:
            kind: ElementKind = "scale" if self.recording.called(node) in _SLOPED else "comparison"
            self._elementwise(node, kind, max(0, before - after) if reduces else after)
            self._sums(node, signals)
        else:
            kind = "product" if meaning is Meaning.SCALE else "function"
            self._elementwise(node, kind, before if reduces else after)
            self._state(node, signals)

    def _state(self, node: fx.Node, signals: Sequence[fx.Node]) -> None:
        """The difference of means: at every later step each mean moves by a multiplication, and so does each answer."""
        moved = sum(map(self.recording.elements, signals)) + self.recording.elements(node)
        self._elementwise(node, "mean", 0, spiking=self.later * moved)

    def _sums(self, node: fx.Node, signals: Sequence[fx.Node]) -> None:
        """The difference on sums: at every later step an addition for each sum, and a subtraction for each answer."""
        if self.pooled == "steps":
            return
        moved = sum(map(self.recording.elements, signals)) + self.recording.elements(node)
        self._elementwise(node, "add", 0, spiking=self.later * moved)

    def _add(self, node: fx.Node) -> None:
        operands, constants = added_by(self.recording, self.operands, node)
        count = self.recording.elements(node)
        graded = [operand for operand in operands if isinstance(operand, Graded)]
        spikes = [operand for operand in operands if isinstance(operand, Spikes)]
        if graded and spikes:
            self._elementwise(node, "add", (len(graded) + len(constants) - 1) * count)
            self._join(node, spikes)
        elif graded:
            self._elementwise(node, "add", (len(graded) + len(constants) - 1) * count)
        else:
            self._elementwise(node, "add", (len(operands) + len(constants) - 1) * count, spiking=0)

    def _join(self, node: fx.Node, spikes: Sequence[Spikes]) -> None:
        """Spikes that are added to graded values: each event is one accumulate."""
        shape = self.recording.shape(node)
        joined = [operand.through(lambda codes: codes.broadcast_to(shape)) for operand in spikes]
        streams = [stream for operand in joined for stream in operand.streams]
        connections = len(spikes) * shape.numel()
        name = f"{self.names[node]} (sum)" if self.products[node] else self.names[node]
        self._count(node, name, "add", False, connections, joined, [(streams, Connections(1))])

    def _scale(self, node: fx.Node) -> None:
        count = self.recording.elements(node)
        self._elementwise(node, "scale", count, spiking=0 if isinstance(self.operands[node], Spikes) else None)
        if self.recording.called(node) in ADDING_PRODUCTS:
            self._add(node)

    # Rows.

    def _arrive(
        self, node: fx.Node, name: str, kind: Kind, weighted: bool, source: fx.Node, links: Links
    ) -> SynapseSubtotal:
        """One signal that arrives over connections."""
        operand: Operand = self.operands[source]
        connections = links.everywhere(self.recording.shape(source))
        streams = operand.streams if isinstance(operand, Spikes) else ()
        return self._count(node, name, kind, weighted, connections, [operand], [(streams, links)])

    def _count(
        self,
        node: fx.Node,
        name: str,
        kind: Kind,
        weighted: bool,
        connections: int,
        operands: Sequence[Operand],
        arriving: Sequence[tuple[Sequence[Stream], Links]],
        reason: str | None = None,
    ) -> SynapseSubtotal:
        if name not in self.synapses:
            graded = graded_among(operands)
            spikes = [operand for operand in operands if isinstance(operand, Spikes)]
            sources: Collection[str] = frozenset[str]().union(*(operand.sources for operand in spikes))
            reason = reason or (graded.reason if graded else None)
            self.synapses[name] = SynapseSubtotal(
                name=name,
                kind=kind,
                weighted=weighted,
                connections=connections,
                outputs=self.recording.elements(node),
                reason=reason,
                static=is_static(tuple(operands)),
                sources=sources if reason is None else (),
                scaled=len(self.scaled.intersection(sources)),
            )
        for streams, links in arriving:
            self.synapses[name].arrive(streams, links, self.scaled)
        return self.synapses[name]

    def _elementwise(self, node: fx.Node, kind: ElementKind, dense: int, spiking: int | None = None) -> None:
        total = dense * self.timesteps if spiking is None else spiking
        if dense or total:
            self.elementwise[self.names[node], kind] = ElementwiseCounts(self.names[node], kind, dense, total)


def _names(nodes: list[fx.Node]) -> dict[fx.Node, str]:
    """Module paths, names of functions behind the path that calls them, and node names of further uses of a module."""
    names: dict[fx.Node, str] = {}
    taken: set[str] = set()
    for node in nodes:
        path = label(node)
        names[node] = f"{path} ({node.name})" if path in taken else path
        taken.add(names[node])
    return names
