"""Walk a spiking network for T steps and tally its operations."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, fx, nn

from polarspike.counting.connections import Connections, comparisons_of, of_convolution
from polarspike.counting.counts import ElementwiseCounts, Kind, OperationCounts, SiteCounts, SynapseCounts
from polarspike.counting.streams import (
    Graded,
    Operand,
    Recording,
    Spikes,
    Stream,
    added_by,
    meaning_in_time,
    module_at,
    operand_of,
    propagate,
)
from polarspike.errors import InputError, SpecError
from polarspike.inputs import Inputs, as_call, batch_size, batches_of, bind, tensors_of
from polarspike.neurons import NeuronState, PolarityNeuron
from polarspike.operators import Meaning
from polarspike.quantized import parameters_of
from polarspike.spiking import SpikingNetwork, SpikingState

_CONVOLUTION_ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_SYNAPTIC = (Meaning.CONVOLUTION, Meaning.LINEAR)


@torch.no_grad()
def count_operations(snn: SpikingNetwork, batch: Any, timesteps: int = 1) -> OperationCounts:
    """Count what a spiking network does with a batch in T timesteps, and what the float network would do.

    The batch is run once, with the same input at every step, and every spike is followed to every connection that it
    crosses. What is counted how: :class:`~polarspike.counting.OperationCounts`.

    Args:
        snn: what :func:`polarspike.convert` made.
        batch: inputs, or (inputs, target).
        timesteps: T.

    Raises:
        SpecError: not a spiking network, or T is not a positive integer.
        InputError: the batch does not fit the network, is empty, or holds NaN or Inf.
        OperatorError: an operator has no count.
    """
    if not isinstance(snn, SpikingNetwork):
        raise SpecError(f"count_operations: expected what polarspike.convert returns, got {type(snn).__name__}")
    if isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1:
        raise SpecError(f"timesteps: expected a positive integer, got {timesteps!r}")
    inputs, _ = next(iter(batches_of([batch])))
    _check(inputs)
    state: SpikingState | None = None
    tally: _Tally | None = None
    for _ in range(timesteps):
        before: Mapping[str, NeuronState] = {} if state is None else state.operators
        _, state = snn.step(inputs, state)  # checks the inputs first
        if tally is None:
            tally = _Tally(Recording(snn.network, _in_order(snn.network, inputs)), timesteps, batch_size(inputs))
        tally.step(before, state.operators)
    assert tally is not None  # timesteps >= 1
    return tally.result()


@dataclass
class _SynapseTally:
    """A row in the making: what does not change over time, and the sums of the steps so far."""

    name: str
    kind: Kind
    weighted: bool
    links: Connections
    connections: int
    outputs: int
    operand: Operand
    scaled: int  # sources with a gain other than 0 and 1
    sums: Counter[str] = field(default_factory=Counter)
    largest: int = 0

    def arrive(self, stream: Stream, scaled: bool) -> None:
        spikes = stream.spikes
        events = spikes != 0
        size = spikes.abs()
        self.sums["events_in"] += int(events.sum())
        self.sums["spikes_in"] += int(size.sum(dtype=torch.int64))
        self.sums["acs_by_event"] += self.links.count(events)
        self.sums["acs_by_spike"] += self.links.count(size)
        if size.numel():
            self.largest = max(self.largest, int(size.amax()))
        if scaled and stream.before is not None:
            self.sums["second_scale_acs"] += self.links.count(stream.now * stream.before < 0)


@dataclass
class _SiteTally:
    site: PolarityNeuron
    shape: torch.Size
    fired: Tensor | None = None
    codes: Counter[int] = field(default_factory=Counter)
    sums: Counter[str] = field(default_factory=Counter)

    def fire(self, name: str, before: Tensor | None, now: Tensor) -> None:
        spikes = now if before is None else now - before
        low, high = (float(end) for end in spikes.aminmax())
        if not low > -torch.inf or not high < torch.inf:  # also NaN
            raise InputError(f"site {name!r}: expected finite codes, got NaN or Inf; check the input and the weights")
        counts = torch.bincount((spikes - low).long().flatten())
        self.codes.update({int(low) + place: count for place, count in enumerate(counts.tolist()) if count})
        events = spikes != 0
        self.fired = events if self.fired is None else self.fired | events
        above, below = now.clamp(min=0), now.clamp(max=0)
        was_above = torch.zeros_like(now) if before is None else before.clamp(min=0)
        was_below = torch.zeros_like(now) if before is None else before.clamp(max=0)
        self.sums["take_backs"] += int((was_above - above).clamp_(min=0).sum(dtype=torch.int64))
        self.sums["take_backs"] += int((below - was_below).clamp_(min=0).sum(dtype=torch.int64))
        if has_second_scale(self.site):
            self.sums["second_scale_events"] += int((below != was_below).sum())
        if self.site.spec.negative and float(self.site.gain) == 0.0:
            self.sums["valueless_events"] += int((events & (above == was_above)).sum())


def has_second_scale(site: PolarityNeuron) -> bool:
    """Whether a site's negative spikes have a value of their own: N > 0 and a gain other than 0 and 1."""
    return site.spec.negative > 0 and float(site.gain) not in (0.0, 1.0)


class _Tally:
    """Rows in the order in which a signal meets them; each is made at the first step and grows with every one."""

    def __init__(self, recording: Recording, timesteps: int, images: int) -> None:
        self.recording = recording
        self.timesteps = timesteps
        self.images = images
        self.synapses: dict[str, _SynapseTally] = {}
        self.elementwise: dict[tuple[str, str], ElementwiseCounts] = {}
        self.sites: dict[str, _SiteTally] = {}
        self.operands: dict[fx.Node, Any] = {}
        nodes = [node for node in recording.network.graph.nodes if node in recording.signals]
        self.nodes = [node for node in nodes if node.op not in ("placeholder", "output")]
        self.names = _names(self.nodes)

    def step(self, before: Mapping[str, NeuronState], now: Mapping[str, NeuronState]) -> None:
        """Add one timestep."""
        self.operands = propagate(self.recording, before, now)
        for node in self.nodes:
            module = self.recording.network.get_submodule(str(node.target)) if node.op == "call_module" else None
            meaning = meaning_in_time(self.recording.network, node)
            if isinstance(module, PolarityNeuron):
                self._site(node, module, before, now)
            elif meaning in _SYNAPTIC:
                self._weights(node, meaning)
            elif meaning in (Meaning.AVERAGE, Meaning.UPSAMPLE):
                self._resampling(node, meaning)
            elif meaning is Meaning.MAX_POOLING:
                self._max_pooling(node)
            elif meaning is Meaning.ADD:
                self._add(node)
            elif meaning in (Meaning.NORM, Meaning.SCALE):
                self._scale(node)

    def result(self) -> OperationCounts:
        """The counts of the steps so far."""
        return OperationCounts(
            self.images,
            self.timesteps,
            tuple(self._site_row(name, tally) for name, tally in self.sites.items()),
            tuple(self._synapse_row(tally) for tally in self.synapses.values()),
            tuple(self.elementwise.values()),
        )

    # What each kind of operator adds.

    def _site(
        self, node: fx.Node, site: PolarityNeuron, before: Mapping[str, NeuronState], now: Mapping[str, NeuronState]
    ) -> None:
        name = str(node.target)
        tally = self.sites.setdefault(name, _SiteTally(site, self.recording.shape(node)))
        tally.fire(name, before[name].codes if name in before else None, now[name].codes)
        source = operand_of(node)
        if isinstance(self.operands[source], Spikes):
            self._arrive(node, f"{self.names[node]} (input)", "accumulate", False, source, Connections(1))

    def _weights(self, node: fx.Node, meaning: Meaning) -> None:
        source = operand_of(node)
        kind: Kind = "linear" if meaning is Meaning.LINEAR else "convolution"
        links, biased = self._links(node, meaning)
        self._arrive(node, self.names[node], kind, True, source, links)
        if biased:
            self._elementwise(node, "bias", self.recording.shape(node).numel())

    def _links(self, node: fx.Node, meaning: Meaning) -> tuple[Connections, bool]:
        args, kwargs = self.recording.arguments(node)
        settings: Any
        if node.op == "call_module":
            settings = module_at(self.recording.network, node)
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

    def _resampling(self, node: fx.Node, meaning: Meaning) -> None:
        links, copies = self.recording.resampling(node)
        if not copies:
            kind: Kind = "average" if meaning is Meaning.AVERAGE else "interpolation"
            self._arrive(node, self.names[node], kind, kind == "interpolation", operand_of(node), links)

    def _max_pooling(self, node: fx.Node) -> None:
        source = operand_of(node)
        pool: nn.Module = module_at(self.recording.network, node)
        self._elementwise(
            node, "comparison", comparisons_of(pool, self.recording.shape(source), self.recording.shape(node))
        )
        if isinstance(self.operands[source], Spikes) and isinstance(self.operands[node], Graded):
            self._arrive(node, f"{self.names[node]} (input)", "accumulate", False, source, Connections(1))

    def _add(self, node: fx.Node) -> None:
        operands, constants = added_by(self.recording, self.operands, node)
        shape = self.recording.shape(node)
        graded = [operand for operand in operands if isinstance(operand, Graded)]
        spikes = [operand for operand in operands if isinstance(operand, Spikes)]
        sums = len(graded) + len(constants) - 1
        if graded and spikes:
            # One of the two is spikes, and so there is nothing else to add: each event is one accumulate.
            arriving = Spikes(tuple(spikes[0].through(lambda codes: codes.broadcast_to(shape)).streams))
            self._arrive(node, self.names[node], "add", False, node, Connections(1), arriving)
        elif graded:
            self._elementwise(node, "add", sums * shape.numel())
        else:
            dense = (len(operands) + len(constants) - 1) * shape.numel()
            self._elementwise(node, "add", dense, spiking=0)

    def _scale(self, node: fx.Node) -> None:
        count = self.recording.shape(node).numel()
        self._elementwise(node, "scale", count, spiking=0 if isinstance(self.operands[node], Spikes) else None)

    # Rows.

    def _arrive(
        self,
        node: fx.Node,
        name: str,
        kind: Kind,
        weighted: bool,
        source: fx.Node,
        links: Connections,
        operand: Operand | None = None,
    ) -> None:
        operand = self.operands[source] if operand is None else operand
        scaled = {name for name in self.sites if has_second_scale(self.sites[name].site)}
        if name not in self.synapses:
            connections = links.everywhere(self.recording.shape(source))
            used = operand.sources & scaled if isinstance(operand, Spikes) else ()
            outputs = self.recording.shape(node).numel()
            self.synapses[name] = _SynapseTally(name, kind, weighted, links, connections, outputs, operand, len(used))
        if isinstance(operand, Spikes):
            for stream in operand.streams:
                self.synapses[name].arrive(stream, bool(stream.sources & scaled))

    def _elementwise(self, node: fx.Node, kind: Any, dense: int, spiking: int | None = None) -> None:
        total = dense * self.timesteps if spiking is None else spiking
        self.elementwise[self.names[node], kind] = ElementwiseCounts(self.names[node], kind, dense, total)

    def _site_row(self, name: str, tally: _SiteTally) -> SiteCounts:
        assert tally.fired is not None  # a tally is made when it fires first
        return SiteCounts(
            site=name,
            levels=tally.site.levels,
            gain=float(tally.site.gain) if tally.site.spec.negative else 1.0,
            neurons=tally.shape[1:].numel(),
            images=self.images,
            timesteps=self.timesteps,
            codes=dict(sorted(tally.codes.items())),
            silent=tally.fired.numel() - int(tally.fired.sum()),
            take_backs=tally.sums["take_backs"],
            second_scale_events=tally.sums["second_scale_events"],
            valueless_events=tally.sums["valueless_events"],
        )

    def _synapse_row(self, tally: _SynapseTally) -> SynapseCounts:
        operand = tally.operand
        spiking = isinstance(operand, Spikes)
        sources = tuple(name for name in self.sites if name in operand.sources) if isinstance(operand, Spikes) else ()
        within = all(max(self.sites[name].site.levels) <= 1 for name in sources)
        return SynapseCounts(
            name=tally.name,
            kind=tally.kind,
            weighted=tally.weighted,
            spiking=spiking,
            reason=f"spikes of {', '.join(sources)}" if isinstance(operand, Spikes) else operand.reason,
            sources=sources,
            ternary=spiking and within and tally.largest <= 1,
            timesteps=self.timesteps,
            connections=tally.connections,
            outputs=tally.outputs,
            static=isinstance(operand, Graded) and operand.static,
            largest=tally.largest,
            second_scale_macs=tally.scaled * tally.outputs * self.timesteps,
            **{name: tally.sums[name] for name in
               ("events_in", "spikes_in", "acs_by_event", "acs_by_spike", "second_scale_acs")},
        )  # fmt: skip


def _names(nodes: list[fx.Node]) -> dict[fx.Node, str]:
    """Module paths, or node names of functions and of further uses of a module."""
    names: dict[fx.Node, str] = {}
    for node in nodes:
        path = str(node.target) if node.op == "call_module" else node.name
        names[node] = f"{path} ({node.name})" if path in names.values() else path
    return names


def _check(inputs: Inputs) -> None:
    if batch_size(inputs) == 0:
        raise InputError("count_operations: expected at least one image, got an empty batch")
    for name, tensor in tensors_of(inputs):
        if tensor.is_floating_point() and not bool(tensor.isfinite().all()):
            raise InputError(f"count_operations: input {name!r}: expected finite values, got NaN or Inf")


def _in_order(network: fx.GraphModule, inputs: Inputs) -> list[Any]:
    return list(bind(parameters_of(network), *as_call(inputs)).values())
