"""The second proof: an event-by-event simulator that expands every code into unit spikes and only adds weights.

    a unit integrates   v += sum of the synaptic weights of the spikes that reach it + constant and graded current
    a unit fires        +1 while v >= s/2 and c < P t,  v -= s;      -1 while v < -s/2 and c > -N t,  v += s
    a spike is worth    s between codes c and c + 1 with c >= 0,  g s with c < 0;  less that if it takes one back

A spike of site A at position p adds the column of p, the effective weights from p to every position that it reaches,
to the membranes there. Between two sites lie affine operators f only, so the column is the impulse response
f(e_p) - f(0), taken in float64 from the network's own operators and scaled once by the value of a spike; f(0), the
biases, arrives once per timestep. Nothing of the neurons' law, of ``ops.encode`` and ``ops.decode``, or of the
operators in time is called.

Max pooling of spikes is a *comparator*: it counts the spikes at its inputs, and fires unit spikes until its own code is
the largest count in its window. Max pooling of anything else (a convolution's sums, spikes of different value in one
window) is a *graded junction*: what its response changed by is injected as an analog current, as the network's input
is. Injection is the one place that multiplies; :attr:`Simulation.injections` counts it, and :attr:`Simulation.graded`
names the junctions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, fx, nn

from polarspike.errors import InputError, OperatorError, SpecError
from polarspike.graph import signals
from polarspike.inputs import Inputs, as_call, batch_size, tensors_of
from polarspike.junctions import Comparators, GradedPool, Junction, Neurons, Output, Synapses, Unit, windows_of
from polarspike.neurons import PolarityNeuron
from polarspike.operators import Meaning, base_of, meaning_of, place_of
from polarspike.spiking import SpikingNetwork
from polarspike.temporal import HomogeneousDifference

# Limits: 5e7 synapses take about 1 GB (index, weight, weight of a negative spike); 2e10 probed values a few minutes.
_MOST_SYNAPSES = 50_000_000
_MOST_PROBES = 20_000_000_000
# Elements per piece of work: 32 MB in float64.
_PIECE = 1 << 22
_TOLERANCE = 1e-9
_SELECTING = (Meaning.RESHAPE, Meaning.CONCATENATE, Meaning.PAD)


@dataclass(frozen=True)
class Simulation:
    """What the simulator found after T timesteps.

    Attributes:
        timesteps: T.
        codes: C[T] of every site, int64, (batch, ...).
        margins: how far each final membrane is from the nearest boundary at which its code would change, in steps,
            float64, (batch, ...). A network in another precision must agree where this exceeds its rounding.
        output: the running mean of the output, float64.
        spikes: unit spikes that each site emitted, the sum of abs(k[t]) over samples, positions and steps.
        comparator_spikes: the same for each max pooling that works on spikes.
        additions: weights added by the spikes of each site and comparator (spikes times fan-out; a spike of gain zero
            adds none, a comparator's counting is included).
        injections: non-zero graded values injected by each input and graded junction.
    """

    timesteps: int
    codes: Mapping[str, Tensor]
    margins: Mapping[str, Tensor]
    output: Any
    spikes: Mapping[str, int]
    comparator_spikes: Mapping[str, int]
    additions: Mapping[str, int]
    injections: Mapping[str, int]
    graded: tuple[str, ...]


@torch.no_grad()
def simulate(snn: SpikingNetwork, inputs: Sequence[Inputs]) -> Simulation:
    """Run a small spiking network event by event, in float64 on the CPU; the network itself is left untouched.

    Steps and gains are taken as the network holds them, in its own precision. Frames are integrated, whatever the
    network's ``ConvertSpec.reading``: for the reading "frames", simulate each frame by itself.

    Args:
        snn: what :func:`polarspike.convert` made.
        inputs: one input batch per timestep, ``[x] * T`` for a repeated one.

    Raises:
        SpecError: not a spiking network.
        InputError: inputs that do not fit, are not finite or differ in shape between steps; a parameter that is not
            finite; a network of more than 5e7 synapses (positions times fan-out), or 2e10 values to probe for them.
        OperatorError: the operators after a site are not affine per sample.
    """
    if not isinstance(snn, SpikingNetwork):
        raise SpecError(f"simulate: expected what polarspike.convert returns, got {type(snn).__name__}")
    for name, value in snn.state_dict().items():
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(
                f"simulate: expected finite parameters, but {name!r} holds NaN or Inf; load a sound network"
            )
    frames = _checked_frames(snn, inputs)
    circuit = _Circuit(snn, frames[0], batch_size(inputs[0]))
    for timestep, frame in enumerate(frames, start=1):
        circuit.step(frame, timestep)
    return circuit.result(len(frames))


class _Walker(fx.Interpreter):
    """Evaluate chosen nodes of the graph, all in float64."""

    def evaluate(self, nodes: Sequence[fx.Node], given: Mapping[fx.Node, Any]) -> dict[fx.Node, Any]:
        outer, self.env = self.env, dict(given)  # columns are looked up in the middle of a timestep
        for node in nodes:
            if node not in self.env:
                self.env[node] = self.run_node(node)
        found, self.env = self.env, outer
        return found

    def get_attr(self, target: Any, args: Any, kwargs: Any) -> Any:
        return _double(super().get_attr(target, args, kwargs))

    def call_method(self, target: Any, args: Any, kwargs: Any) -> Any:
        return super().call_method("double" if target == "float" else target, args, kwargs)


@dataclass(frozen=True)
class _Way:
    """How the columns of a unit are found: what is evaluated, and for how many positions at a time."""

    node: fx.Node
    span: list[fx.Node]
    rows: int


class _Circuit:
    """The network taken apart: junctions, and the affine stretches between them.

    Args:
        snn: the network.
        frame: one input by placeholder name, for the shapes.
        batch: the number of samples.
    """

    def __init__(self, snn: SpikingNetwork, frame: Mapping[str, Any], batch: int) -> None:
        self.network = copy.deepcopy(snn.network).cpu().double()
        self.walker = _Walker(self.network)
        self.nodes: list[fx.Node] = list(self.network.graph.nodes)
        self.dependent = signals(self.network)
        self.batch = batch
        self.synapses = self.probes = 0
        self.rest: dict[fx.Node, Any] = {}  # every node's value with all sources at zero, for a batch of two
        self.junctions: dict[fx.Node, Junction] = {}
        self.outputs: dict[fx.Node, Output] = {}
        self.reads: dict[Junction, fx.Node] = {}  # the node whose value arrives at a junction
        self.ways: dict[Unit, _Way] = {}
        self.injected = dict.fromkeys(frame, 0)
        self._lay_out(snn, frame)
        for node, junction in self.junctions.items():
            if isinstance(junction, Unit):
                self._survey(node, junction)

    def step(self, frame: Mapping[str, Any], timestep: int) -> None:
        """Walk the graph once with what is graded (inputs, constants, junctions); spikes travel through the inboxes."""
        env: dict[fx.Node, Any] = {}
        self.walker.env = env
        for node in self.nodes[:-1]:
            junction = self.junctions.get(node)
            if node.op == "placeholder":
                value = env[node] = frame[str(node.target)]
                self.injected[str(node.target)] += int(value.count_nonzero()) if isinstance(value, Tensor) else 0
            elif junction is not None:
                env[node] = junction.step(env[self.reads[junction]], timestep)
            else:
                env[node] = self.walker.run_node(node)
        for leaf, output in self.outputs.items():
            output.step(env[leaf], timestep)

    def result(self, timesteps: int) -> Simulation:
        sites = [junction for junction in self.junctions.values() if isinstance(junction, Neurons)]
        pools = [junction for junction in self.junctions.values() if isinstance(junction, Comparators)]
        graded = [junction for junction in self.junctions.values() if isinstance(junction, GradedPool)]

        def mean(leaf: fx.Node) -> Any:
            if leaf not in self.outputs:
                return self.walker.env[leaf]
            return self.outputs[leaf].total / timesteps

        return Simulation(
            timesteps=timesteps,
            codes={site.name: site.shaped(site.codes) for site in sites},
            margins={site.name: site.shaped(site.margin(timesteps)) for site in sites},
            output=fx.node.map_arg(self.nodes[-1].args[0], mean),
            spikes={site.name: site.spikes for site in sites},
            comparator_spikes={pool.name: pool.spikes for pool in pools},
            additions={unit.name: unit.additions for unit in self.ways},
            injections={**self.injected, **{junction.name: junction.injected for junction in graded}},
            graded=tuple(junction.name for junction in graded),
        )

    def learn(self, unit: Unit, positions: Tensor) -> None:
        """Obtain the columns of those positions of a unit that have none yet."""
        unknown = torch.unique(positions[~unit.known[positions]])
        for piece in torch.split(unknown, self.ways[unit].rows):
            impulses = torch.zeros(len(piece) + 1, len(unit.strong), dtype=torch.float64)
            impulses[torch.arange(len(piece)), piece] = 1.0
            env = self._probe(unit, impulses)  # the last row stays at rest
            for synapses in unit.synapses:
                columns = _columns(env[self.reads[synapses.junction]])
                self.synapses += synapses.store(piece, columns, unit.strong, unit.weak)
            _refuse(unit.name, self.synapses, _MOST_SYNAPSES, "synapses")
        unit.known[unknown] = True

    def _lay_out(self, snn: SpikingNetwork, frame: Mapping[str, Any]) -> None:
        """Find the junctions, in the order in which a signal meets them."""
        self.walker.env = self.rest
        for node in self.nodes[:-1]:
            module = self.network.get_submodule(str(node.target)) if node.op == "call_module" else None
            if node.op == "placeholder":
                self.rest[node] = _still(frame[str(node.target)], 2)
            elif isinstance(module, (PolarityNeuron, HomogeneousDifference)):
                reads = node.all_input_nodes[0]
                rest = self._per_sample(node, reads)
                if isinstance(module, PolarityNeuron):
                    site = cast(PolarityNeuron, snn.network.get_submodule(str(node.target)))
                    self.rest[node] = torch.zeros_like(rest)
                    self.junctions[node] = self._neurons(str(node.target), site, rest)
                else:
                    self.rest[node] = torch.zeros_like(module.operator(rest))
                    self.junctions[node] = self._pool(node, reads, module.operator)
                self.reads[self.junctions[node]] = reads
            else:
                self.rest[node] = self.walker.run_node(node)
        for leaf in self.nodes[-1].all_input_nodes:
            if leaf in self.dependent:
                self.outputs[leaf] = Output(leaf.name, self._per_sample(leaf, leaf).shape[1:], self.batch)
                self.reads[self.outputs[leaf]] = leaf

    def _neurons(self, name: str, site: PolarityNeuron, rest: Tensor) -> Neurons:
        step = _double(site.step.detach())
        if step.dim():
            step = step.view(-1, *(1,) * (rest.dim() - 2))
        gain = site.gain.detach().double().item() if isinstance(site.gain, Tensor) else site.gain
        strong = step.expand(rest.shape[1:])
        neurons = Neurons(name, rest.shape[1:], self.batch, site.levels)
        neurons.wire(rest.shape[1:], strong, strong * gain if site.levels[0] else strong, self.learn)
        return neurons

    def _pool(self, node: fx.Node, reads: fx.Node, operator: nn.Module) -> Junction:
        """A comparator where every window reads spikes of one value, else a graded junction."""
        rest = self.rest[reads]
        graded = GradedPool(str(node.target), rest.shape[1:], self.batch, operator)
        path = self._before([reads], self.dependent)
        sources = [part for part in path if self._is_source(part)]
        units = {part: unit for part in sources if isinstance(unit := self.junctions.get(part), Unit)}
        selecting = all(meaning_of(self.network, part) in _SELECTING for part in path if part not in sources)
        if len(units) < len(sources) or not selecting or bool(rest.count_nonzero()):
            return graded
        spatial = rest.shape[-int(base_of(operator).__name__[-2]) :]  # type: ignore[union-attr]  # MaxPool2d: 2
        plane = math.prod(spatial)
        _refuse(graded.name, plane**2, _MOST_SYNAPSES, "pairs of pixels under a max pooling")
        windows = windows_of(operator, spatial)
        # Number all positions of all sources from 1 and send the numbers through; 0 then marks explicit padding.
        count, given = 1, {}
        for part, unit in units.items():
            numbers = torch.arange(count, count + len(unit.strong), dtype=torch.float64)
            given[part] = numbers.view(1, *unit.fired_shape).expand(2, *unit.fired_shape)
            count += len(unit.strong)
        origin = self._evaluate(self._before([reads]), given, 2)[reads][0].long().reshape(-1, plane)[:, windows]
        values = []
        for tables in ([unit.strong for unit in units.values()], [unit.weak for unit in units.values()]):
            table = torch.cat([torch.zeros(1, dtype=torch.float64), *tables])[origin]  # (channels, windows, width)
            most = table.masked_fill(origin == 0, -torch.inf).amax(-1)
            least = table.masked_fill(origin == 0, torch.inf).amin(-1)
            if bool((most > least).any()):
                return graded
            values.append(most.clamp(min=0.0))  # a window of nothing but padding never fires
        pool = Comparators(graded.name, rest.shape[1:], self.batch, windows, plane)
        pool.wire(self.rest[node].shape[1:], values[0], values[1], self.learn)
        return pool

    def _survey(self, start: fx.Node, unit: Unit) -> None:
        """Find what a unit reaches, estimate its synapses by one column, and check that the way there is affine."""
        after = {start}
        for node in self.nodes[:-1]:
            if node in self.dependent and not self._is_source(node) and after.intersection(node.all_input_nodes):
                after.add(node)
        reached = {junction: reads for junction, reads in self.reads.items() if reads in after}
        positions = len(unit.strong)
        unit.synapses = [Synapses(junction, positions) for junction in reached]
        span = self._before(list(reached.values()))
        widths = [self.rest[part].numel() // 2 for part in span if isinstance(self.rest[part], Tensor)]
        self.ways[unit] = _Way(start, span, max(1, _PIECE // max([1, positions, *widths])))
        self.probes += positions * sum(widths)
        _refuse(unit.name, self.probes, _MOST_PROBES, "values to probe")

        random = torch.randn(positions, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        middle = torch.zeros(unit.fired_shape, dtype=torch.float64)
        middle[tuple(size // 2 for size in unit.fired_shape)] = 1.0
        env = self._probe(unit, torch.stack([random, 2 * random, middle.view(-1), torch.zeros_like(random)]))
        fan_out = 0
        for junction, reads in reached.items():
            response, rest = env[reads], self.rest[reads]
            once, twice = response[0] - response[3], response[1] - response[3]
            error = max(float((2 * once - twice).abs().max()), float((response[3] - rest[0]).abs().max()))
            if not error <= _TOLERANCE * (1.0 + float(response.abs().max())):
                raise OperatorError(
                    f"{place_of(start)}: the operators from here to {junction.name!r} are not affine in each sample by "
                    f"itself (error {error:.3g}), so single spikes cannot travel there; look for an operator that "
                    "mixes the samples of a batch"
                )
            fan_out += int(_columns(response[2:]).count_nonzero())
        _refuse(unit.name, self.synapses + fan_out * positions, _MOST_SYNAPSES, "synapses")

    def _probe(self, unit: Unit, rows: Tensor) -> dict[fx.Node, Any]:
        """The values on the way of a unit, for each row of values of its own; all other sources stay at zero."""
        way = self.ways[unit]
        return self._evaluate(way.span, {way.node: rows.view(len(rows), *unit.fired_shape)}, len(rows))

    def _evaluate(self, nodes: list[fx.Node], given: dict[fx.Node, Any], rows: int) -> dict[fx.Node, Any]:
        still = {node: _still(self.rest[node], rows) for node in nodes if self._is_source(node)}
        return self.walker.evaluate(nodes, {**still, **given})

    def _before(self, ends: list[fx.Node], within: set[fx.Node] | None = None) -> list[fx.Node]:
        """The nodes that these values are computed from, back to the sources, in the order of the graph."""
        found: set[fx.Node] = set()
        todo = list(ends)
        while todo:
            node = todo.pop()
            if node not in found and (within is None or node in within):
                found.add(node)
                todo += [] if self._is_source(node) else node.all_input_nodes
        return [node for node in self.nodes if node in found]

    def _is_source(self, node: fx.Node) -> bool:
        return node.op == "placeholder" or node in self.junctions

    def _per_sample(self, node: fx.Node, reads: fx.Node) -> Tensor:
        value = self.rest[reads]
        if not isinstance(value, Tensor) or value.dim() == 0 or len(value) != 2 or not value.is_floating_point():
            raise OperatorError(
                f"{place_of(node)}: expected a float signal (batch, ...), got "
                f"{tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__} for a batch of two; "
                "the simulator follows each sample by itself, so no operator may join or split the batch"
            )
        return value


def _columns(response: Tensor) -> Tensor:
    """f(e) - f(0), flat, from rows of f(e) and a last row of f(0); what is rounding of f(0) is no synapse."""
    flat = response.reshape(len(response), -1)
    difference = flat[:-1] - flat[-1]
    return difference.masked_fill_(difference.abs() <= 4 * torch.finfo(torch.float64).eps * flat[-1].abs(), 0.0)


def _refuse(name: str, amount: int, most: int, what: str) -> None:
    if amount > most:
        raise InputError(
            f"the event-by-event simulator takes at most {most:,} {what} (it is meant for small networks), and at "
            f"{name!r} this network needs {amount:,}; give smaller images or fewer channels, or compare with the "
            "quantized network instead, which has no limit"
        )


def _double(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.cpu().double() if value.is_floating_point() else value.cpu()


def _still(value: Any, rows: int) -> Any:
    """Zeros like a source's value, for another batch size."""
    if not isinstance(value, Tensor):
        return value
    return torch.zeros((rows, *value.shape[1:]) if value.dim() else (), dtype=value.dtype)


def _checked_frames(snn: SpikingNetwork, inputs: Sequence[Inputs]) -> list[dict[str, Any]]:
    """Every timestep's input by placeholder name, in float64."""
    if not isinstance(inputs, (list, tuple)) or not inputs:
        raise InputError(
            f"simulate: expected a list with one input batch per timestep, got {type(inputs).__name__}; "
            "for one timestep give [x], for T steps of the same input [x] * T"
        )
    placeholders = [node for node in snn.network.graph.nodes if node.op == "placeholder"]
    names = [str(node.target) for node in placeholders]
    frames: list[dict[str, Any]] = []
    shapes: list[Any] = []
    for timestep, given in enumerate(inputs, start=1):
        snn.signature.check(given)
        shapes.append((batch_size(given), [(name, tensor.shape) for name, tensor in tensors_of(given)]))
        if shapes[-1] != shapes[0]:
            raise InputError(f"timestep {timestep}: expected the shapes of the first, {shapes[0]}, got {shapes[-1]}")
        for name, tensor in tensors_of(given):
            if not bool(torch.isfinite(tensor).all()):
                raise InputError(f"timestep {timestep}, input {name!r}: expected finite values, got NaN or Inf")
        args, kwargs = as_call(given)
        frame = {str(node.target): node.args[0] for node in placeholders if node.args}
        frame |= {**dict(zip(names, args, strict=False)), **kwargs}
        if len(args) > len(names) or set(frame) != set(names):
            raise InputError(f"timestep {timestep}: expected the inputs {names}, got {len(args)} and {sorted(kwargs)}")
        frames.append({name: _double(value) for name, value in frame.items()})
    return frames
