"""A spiking network taken apart into junctions and the synapses between them, and run event by event.

The graph is walked once per timestep with what is graded (inputs, constants, currents of junctions); spikes travel through
the inboxes.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from polarspike.errors import InputError
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import base_of, meaning_of, moving
from polarspike.neurons import CappedNeuron, HoldingNeuron, PolarityNeuron
from polarspike.proofs.junctions import FrameJunction, GradedJunction, Inbox, Junction, Output
from polarspike.proofs.layouts import columns, less
from polarspike.proofs.stretches import Span, Stretches, double
from polarspike.proofs.units import Comparators, HoldingNeurons, LeakyNeurons, Neurons, Unit, windows_of
from polarspike.spiking.through_time import LeakyPolarityNeuron

# Limits: 5e7 synapses take about 1 GB (index, weight, weight of a negative spike); 2e10 probed values a few minutes.
_MOST_SYNAPSES = 50_000_000
_MOST_PROBES = 20_000_000_000
# Elements per piece of work: 32 MB in float64.
_PIECE = 1 << 22
_SELECTING = (Meaning.RESHAPE, Meaning.CONCATENATE, Meaning.PAD)


@dataclass(frozen=True)
class _Way:
    """How the columns of a unit are found: what is evaluated, and for how many positions at a time."""

    node: fx.Node
    span: Span
    rows: int


class Circuit:
    """The junctions of a network, wired.

    Args:
        network: a spiking network's graph, in its own precision; left untouched.
        doubled: a copy of it in float64 on the CPU.
        frame: one input by placeholder name, for the shapes and the integers.
        batch: the number of samples.
        shared: the inputs that are the same for all of them.
        by_frame: operators work on every frame by itself, as in a network that is trained through time.

    Raises:
        OperatorError: a stretch between junctions is not affine, or joins the samples of a batch.
        InputError: too many synapses, or too much work to find them.
    """

    def __init__(
        self,
        network: fx.GraphModule,
        doubled: fx.GraphModule,
        frame: Mapping[str, Any],
        batch: int,
        shared: Collection[str] = (),
        by_frame: bool = False,
    ) -> None:
        self.network, self.batch, self.by_frame = network, batch, by_frame
        self.stretches = Stretches(doubled, frame, batch, shared)
        self.walker, self.nodes = self.stretches.walker, self.stretches.nodes
        self.result = next(node for node in doubled.graph.nodes if node.op == "output").args[0]
        self.synapses = self.probes = 0
        self.drained = 0
        self.junctions: dict[fx.Node, Junction] = {}
        self.outputs: dict[fx.Node, Output] = {}
        self.reads: dict[Inbox, fx.Node] = {}
        self.ways: dict[Unit, _Way] = {}
        self.injected = dict.fromkeys(frame, 0)
        self._readers: dict[fx.Node, fx.Node] = {}
        self._lay_out()
        self.stretches.require_affine(self._readers)
        for node, junction in self.junctions.items():
            if isinstance(junction, Unit):
                self._survey(node, junction)

    def of_kind(self, *kinds: type[Any]) -> list[Any]:
        """The junctions of some kinds, in the order in which a signal meets them."""
        return [junction for junction in self.junctions.values() if isinstance(junction, kinds)]

    def step(self, frame: Mapping[str, Any], timestep: int) -> None:
        """Take one input."""
        env: dict[fx.Node, Any] = {}
        for node in self.nodes:
            if node.op == "placeholder":
                value = env[node] = frame[str(node.target)]
                if isinstance(value, Tensor) and node in self.stretches.dependent:
                    self.injected[str(node.target)] += int(value.count_nonzero())
        self._walk(env, {}, timestep)

    def drain(self, timestep: int) -> None:
        """Walk on without input until no spike waits anywhere: only changes travel, constants are not added again."""
        neurons = [site for site in self.of_kind(Neurons) if site.cap is not None]
        if not any(site.waits(timestep) for site in neurons):
            return
        rest = self.stretches.rest_of(None)
        still = {node: rest[node] for node in self.nodes if node.op == "placeholder" or self._is_input(node)}
        while any(site.waits(timestep) for site in neurons):
            self._walk(dict(still), rest, timestep)
            self.drained += 1

    def _is_input(self, node: fx.Node) -> bool:
        return self.stretches.is_source(node) and node not in self.junctions

    def _walk(self, env: dict[fx.Node, Any], rest: Mapping[fx.Node, Any], timestep: int) -> None:
        """One walk; from what junctions read, ``rest`` is taken away."""

        def arriving(junction: Junction) -> list[Tensor]:
            found = []
            for inbox in junction.inboxes:
                read = self.reads[inbox]
                value = less(env[read], rest[read]) if rest else env[read]
                found.append(inbox.layout.flat(value))
            return found

        self.walker.env = env
        for node in self.nodes:
            junction = self.junctions.get(node)
            if junction is not None:
                env[node] = junction.step(arriving(junction), timestep)
            elif node not in env:
                env[node] = self.walker.run_node(node)
        for output in self.outputs.values():
            output.step(arriving(output), timestep)

    def answer(self, timesteps: int) -> Any:
        """The running mean of the output, as the network would return it."""

        def mean(leaf: fx.Node) -> Any:
            output = self.outputs.get(leaf)
            if output is None:
                return self.walker.env[leaf]
            return output.inboxes[0].layout.shaped(output.total / timesteps)

        return fx.node.map_arg(self.result, mean)

    def learn(self, unit: Unit, keys: Tensor) -> None:
        """Obtain the columns of those keys of a unit that have none yet, in blocks."""
        missing = keys[~unit.known[keys]]
        if not len(missing):
            return
        way, size = self.ways[unit], len(unit.strong)
        blocks = torch.unique(torch.stack([missing // size, missing % size // way.rows]), dim=1)
        for sample, block in blocks.T.tolist():
            positions = torch.arange(block * way.rows, min(size, (block + 1) * way.rows))
            impulses = torch.zeros(len(positions) + 1, size, dtype=torch.float64)
            impulses[torch.arange(len(positions)), positions] = 1.0
            env = self._probe(unit, impulses, sample)  # the last row stays at rest
            for synapses in unit.synapses:
                found = columns(synapses.inbox.layout.flat(env[self.reads[synapses.inbox]]))
                self.synapses += synapses.store(
                    positions + sample * size, found, unit.strong[positions], unit.weak[positions]
                )
            _refuse(unit.name, self.synapses, _MOST_SYNAPSES, "synapses")
            unit.known[positions + sample * size] = True

    def _lay_out(self) -> None:
        """Find the junctions, in the order in which a signal meets them."""
        for node in self.stretches.nodes:
            if node in self.stretches.sites:
                (source,) = moving(node, self.stretches.dependent)
                self.junctions[node] = self._neurons(node, self._inbox(str(node.target), source, node))
            elif node in self.stretches.graded:
                self.junctions[node] = self._pool(node) or self._graded(node)
        for leaf in dict.fromkeys(pytree.tree_leaves(self.result)):
            if isinstance(leaf, fx.Node) and leaf in self.stretches.dependent:
                self.outputs[leaf] = Output(self._inbox(leaf.name, leaf, leaf))

    def _inbox(self, name: str, source: fx.Node, reader: fx.Node, counts: bool = False) -> Inbox:
        inbox = Inbox(name, self.stretches.layout(source, reader), self.batch, counts)
        self.reads[inbox] = source
        self._readers.setdefault(source, reader)
        return inbox

    def _neurons(self, node: fx.Node, inbox: Inbox) -> Neurons:
        site = self.network.get_submodule(str(node.target))
        assert isinstance(site, PolarityNeuron)
        step: Tensor = double(site.step.detach())
        rest: Tensor = self.stretches.rest()[node]
        if step.dim() and site.spec.channel_dim != -1:
            step = step.view(-1, *(1,) * (rest.dim() - 2))
        strong = inbox.layout.flat(step.expand_as(rest))[0]
        gain = site.gain.detach().double().item() if isinstance(site.gain, Tensor) else site.gain
        if isinstance(site, HoldingNeuron):
            neurons: Neurons = HoldingNeurons(inbox.name, [inbox], site.levels)
        elif isinstance(site, LeakyPolarityNeuron):
            leak = double(site.leak.detach()).item()
            neurons = LeakyNeurons(inbox.name, [inbox], site.levels, leak)
        else:
            cap = site.cap if isinstance(site, CappedNeuron) else None
            neurons = Neurons(inbox.name, [inbox], site.levels, cap)
        neurons.wire(inbox.layout, strong, strong * gain if site.levels[0] else strong, self.learn)
        return neurons

    def _name(self, node: fx.Node) -> str:
        taken = {junction.name for junction in self.junctions.values()}
        path = str(node.target)
        return path if node.op == "call_module" and path not in taken else node.name

    def _graded(self, node: fx.Node) -> GradedJunction:
        rest, name = self.stretches.rest(), self._name(node)
        signals = [part for part in moving(node, self.stretches.dependent) if isinstance(rest[part], Tensor)]

        def function(values: list[Tensor]) -> Any:
            return self.walker.apply(node, dict(zip(signals, values, strict=True)))

        kind = FrameJunction if self.by_frame else GradedJunction
        return kind(name, [self._inbox(name, part, node) for part in signals], function)

    def _pool(self, node: fx.Node) -> Comparators | None:
        """A comparator where every window of a max pooling reads spikes of one value."""
        stretches, rest = self.stretches, self.stretches.rest()
        if node.op != "call_module" or meaning_of(stretches.network, node) is not Meaning.MAX_POOLING:
            return None
        operator: nn.Module = stretches.network.get_submodule(str(node.target))
        (reads,) = moving(node, stretches.dependent)
        layout, answer = stretches.layout(reads, node), stretches.layout(node, node)
        path = [part for part in stretches.span([reads]).nodes if part in stretches.dependent]
        sources = [part for part in path if stretches.is_source(part)]
        units = {part: unit for part in sources if isinstance(unit := self.junctions.get(part), Unit)}
        selecting = all(meaning_of(stretches.network, part) in _SELECTING for part in path if part not in sources)
        if len(units) < len(sources) or not selecting or bool(rest[reads].count_nonzero()):
            return None
        if not (layout.plain and answer.plain):
            return None
        spatial = rest[reads].shape[-int(base_of(operator).__name__[-2]) :]  # type: ignore[union-attr]  # MaxPool2d: 2
        plane = math.prod(spatial)
        _refuse(str(node.target), plane**2, _MOST_SYNAPSES, "pairs of pixels under a max pooling")
        windows = windows_of(operator, spatial)
        # Number all positions of all sources from 1 and send the numbers through; 0 then marks explicit padding.
        count, given = 1, {}
        for part, unit in units.items():
            numbers = torch.arange(count, count + len(unit.strong), dtype=torch.float64)
            given[part] = unit.fired.shaped(numbers.expand(2, -1))
            count += len(unit.strong)
        sent = stretches.probe(stretches.span([reads]), given, 2)[reads]
        origin = layout.flat(sent)[0].long().reshape(-1, plane)[:, windows]
        values = []
        for tables in ([unit.strong for unit in units.values()], [unit.weak for unit in units.values()]):
            table = torch.cat([torch.zeros(1, dtype=torch.float64), *tables])[origin]  # (channels, windows, width)
            most = table.masked_fill(origin == 0, -torch.inf).amax(-1)
            least = table.masked_fill(origin == 0, torch.inf).amin(-1)
            if bool((most > least).any()):
                return None
            values.append(most.clamp(min=0.0))  # a window of nothing but padding never fires
        name = self._name(node)
        pool = Comparators(name, [self._inbox(name, reads, node, counts=True)], windows, plane, self.by_frame)
        pool.wire(answer, values[0], values[1], self.learn)
        return pool

    def _survey(self, start: fx.Node, unit: Unit) -> None:
        """Find what a unit reaches, and estimate its synapses by one column."""
        after = self.stretches.after(start)
        reached = [inbox for inbox, reads in self.reads.items() if reads in after]
        span = self.stretches.span([self.reads[inbox] for inbox in reached], after)
        passed = [node for node in span.nodes if node in after and node is not start]
        unit.connect(reached, any(self.stretches.chosen.intersection(node.all_input_nodes) for node in passed))
        positions, rest = len(unit.strong), self.stretches.rest()
        widths = [rest[node].numel() // 2 for node in span.nodes if isinstance(rest[node], Tensor)]
        self.ways[unit] = _Way(start, span, max(1, _PIECE // max([1, positions, *widths])))
        self.probes += len(unit.known) * sum(widths)
        _refuse(unit.name, self.probes, _MOST_PROBES, "values to probe")
        middle = torch.zeros(unit.fired.shape, dtype=torch.float64)
        middle[tuple(size // 2 for size in unit.fired.shape)] = 1.0
        impulse = unit.fired.flat(middle)
        env = self._probe(unit, torch.cat([impulse, torch.zeros_like(impulse)]), 0)
        fan_out = sum(int(columns(inbox.layout.flat(env[self.reads[inbox]])).count_nonzero()) for inbox in reached)
        _refuse(unit.name, self.synapses + fan_out * len(unit.known), _MOST_SYNAPSES, "synapses")

    def _probe(self, unit: Unit, rows: Tensor, sample: int) -> dict[fx.Node, Any]:
        """The values on the way of a unit, for each row of values of its own; all other sources stay at zero."""
        way = self.ways[unit]
        return self.stretches.probe(way.span, {way.node: unit.fired.shaped(rows)}, len(rows), sample)


def _refuse(name: str, amount: int, most: int, what: str) -> None:
    if amount > most:
        raise InputError(
            f"the event-by-event simulator takes at most {most:,} {what} (it is meant for small networks), and at "
            f"{name!r} this network needs {amount:,}; give smaller images or fewer channels, or compare with the "
            "quantized network instead, which has no limit"
        )
