"""What travels along every edge of a spiking network at one timestep: streams of spikes, or graded values.

A stream holds the running codes of its source, so that the spikes of the step are ``C[t] - C[t-1]`` wherever it has come
to. Operators that move, copy or scale elements keep a stream; max pooling keeps it because decoding is monotone: the code
of the maximum is the maximum of the codes. A sum of streams is a list of streams, each with its own events. Averages,
interpolations and synapses turn spikes into graded values, which only a site turns back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import zip_longest
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.nn import functional
from torch.utils import _pytree as pytree

from polarspike.counting.connections import Connections, of_resampling
from polarspike.errors import OperatorError
from polarspike.graph import signals
from polarspike.neurons import NeuronState, PolarityNeuron
from polarspike.operators import Meaning, describe_target, entry_of, meaning_of, place_of, unknown
from polarspike.temporal import HomogeneousDifference

#: Where one increasing function turns codes into values: the whole tensor, each channel, or nowhere.
Order = Literal["tensor", "channel", "none"]


@dataclass(frozen=True)
class Stream:
    """Spikes on their way from one or several sites.

    Attributes:
        now: the running codes C[t] as they arrive here, float-typed integers.
        before: C[t-1], or None at the first step.
        sources: the sites that fired them.
        order: where values increase with codes, which max pooling needs.
        shifted: a constant has been added, so code 0 is not the value 0.
    """

    now: Tensor
    before: Tensor | None
    sources: frozenset[str]
    order: Order
    shifted: bool = False

    @property
    def spikes(self) -> Tensor:
        """The signed spikes of this step."""
        return self.now if self.before is None else self.now - self.before

    def through(self, function: Callable[[Tensor], Tensor], **changes: Any) -> Stream:
        """The stream behind an operator that acts on codes as it acts on values."""
        before = None if self.before is None else function(self.before)
        return replace(self, now=function(self.now), before=before, **changes)


@dataclass(frozen=True)
class Spikes:
    """A signal that is a sum of streams, constants apart."""

    streams: tuple[Stream, ...]

    @property
    def sources(self) -> frozenset[str]:
        """The sites that it comes from."""
        return frozenset[str]().union(*(stream.sources for stream in self.streams))

    def through(self, function: Callable[[Tensor], Tensor], **changes: Any) -> Spikes:
        """Every stream behind an operator."""
        return Spikes(tuple(stream.through(function, **changes) for stream in self.streams))


@dataclass(frozen=True)
class Graded:
    """A signal of analog values.

    Attributes:
        reason: why it is not spikes.
        static: it depends on the input alone, so a repeated image repeats it.
    """

    reason: str
    static: bool = False


Operand = Spikes | Graded


class Recording:
    """One run of the first timestep: what each node is worth (constants) or which shape it has (signals)."""

    def __init__(self, network: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.network = network
        self.signals = signals(network)
        recorder = _Recorder(network, self.signals)
        recorder.run(*inputs)
        self.values = recorder.values
        self._resampling: dict[fx.Node, tuple[Connections, bool]] = {}

    def shape(self, node: fx.Node) -> torch.Size:
        """The shape of a node that is one tensor."""
        shape: torch.Size = self.values[node].shape
        return shape

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a node was called with; a signal is a tensor without data."""
        return map_arg(node.args, self.values.__getitem__), map_arg(node.kwargs, self.values.__getitem__)

    def operator(self, node: fx.Node) -> Callable[[Any], Any]:
        """The node's operator as a function of its first argument."""
        args, kwargs = self.arguments(node)
        if not args:
            kwargs = {name: value for name, value in kwargs.items() if name != "input"}
        rest = args[1:]
        if node.op == "call_module":
            module = module_at(self.network, node)
            return lambda x: module(x, *rest, **kwargs)
        if node.op == "call_method":
            return lambda x: getattr(x, str(node.target))(*rest, **kwargs)
        function = node.target
        return lambda x: function(x, *rest, **kwargs)  # type: ignore[operator]

    def resampling(self, node: fx.Node) -> tuple[Connections, bool]:
        """The connections of an averaging or interpolating node, and whether it only copies elements."""
        if node not in self._resampling:
            source = self.shape(operand_of(node))
            if describe_target(self.network, node).split(".")[-1] in ("mean", "sum"):
                self._resampling[node] = Connections(1), source.numel() == self.shape(node).numel()
            else:
                self._resampling[node] = of_resampling(self.operator(node), source)
        return self._resampling[node]


class _Recorder(fx.Interpreter):
    def __init__(self, network: fx.GraphModule, dependent: set[fx.Node]) -> None:
        super().__init__(network)
        self.dependent = dependent
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = pytree.tree_map(_without_data, value) if n in self.dependent else value
        return value


def _without_data(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def module_at(network: fx.GraphModule, node: fx.Node) -> nn.Module:
    """The module that a node calls; the operator itself where it is wrapped for time."""
    module = network.get_submodule(str(node.target))
    return module.operator if isinstance(module, HomogeneousDifference) else module


def meaning_in_time(network: fx.GraphModule, node: fx.Node) -> Meaning | None:
    """What a node of a spiking network does, looking into wrappers."""
    if node.op == "call_module":
        entry = entry_of(module_at(network, node))
        return entry.meaning if entry else None
    return meaning_of(network, node)


def operand_of(node: fx.Node) -> Any:
    """The first argument of a node: its input signal."""
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensors"))


def propagate(
    recording: Recording, before: Mapping[str, NeuronState], now: Mapping[str, NeuronState]
) -> dict[fx.Node, Any]:
    """The operand that every signal of the network is at one timestep; a tuple of operands behind a split.

    Args:
        recording: of the same network and input shapes.
        before: the states of the sites at step t - 1, empty before the first.
        now: their states at step t.

    Raises:
        OperatorError: an operator without a rule.
    """
    walk = _Propagation(recording)
    for node in recording.network.graph.nodes:
        if node.op == "placeholder":
            walk.operands[node] = Graded("the network's input", static=True)
        elif node in recording.signals and node.op != "output":
            site = recording.network.get_submodule(str(node.target)) if node.op == "call_module" else None
            if isinstance(site, PolarityNeuron):
                walk.operands[node] = _fired(site, str(node.target), before, now)
            else:
                walk.operands[node] = walk.behind(node)
    return walk.operands


def _fired(
    site: PolarityNeuron, name: str, before: Mapping[str, NeuronState], now: Mapping[str, NeuronState]
) -> Spikes:
    earlier = before[name].codes if name in before else None
    stream = Stream(now[name].codes, earlier, frozenset({name}), "channel" if site.spec.channels else "tensor")
    if site.spec.negative and float(site.gain) == 0.0:
        # A negative code is worth nothing here, so it is not sent.
        stream = stream.through(lambda codes: codes.clamp(min=0))
    return Spikes((stream,))


class _Propagation:
    """The rules, one method for a kind of operator."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.operands: dict[fx.Node, Any] = {}

    def behind(self, node: fx.Node) -> Any:
        meaning = meaning_in_time(self.recording.network, node)
        if meaning is Meaning.CONCATENATE:
            return self._concatenate(node)
        if meaning is Meaning.ADD:
            return self._add(node)
        if meaning is Meaning.SCALE:
            return self._scale(node)
        source = operand_of(node)
        if not isinstance(source, fx.Node) or [
            parent for parent in node.all_input_nodes if parent in self.operands
        ] != [source]:
            raise OperatorError(
                f"{place_of(node)}: expected one signal, the first argument of "
                f"{describe_target(self.recording.network, node)}, and constants behind it; a signal as a weight has no "
                "count"
            )
        operand = self.operands[source]
        if isinstance(operand, tuple):  # the pieces of a split
            return operand[self.recording.arguments(node)[0][1]]
        if meaning in (Meaning.CONVOLUTION, Meaning.LINEAR):
            return Graded(f"weighted sums of {node.name!r}", _static(operand))
        if isinstance(operand, Graded):
            return self._graded(node, operand)
        if meaning is Meaning.DROPOUT:
            return operand
        if meaning is Meaning.NORM:
            return self._norm(node, operand)
        if meaning is Meaning.RESHAPE:
            return self._reshape(node, operand)
        if meaning is Meaning.PAD:
            return self._pad(node, operand)
        if meaning is Meaning.MAX_POOLING:
            return self._max_pooling(node, operand)
        if meaning in (Meaning.AVERAGE, Meaning.UPSAMPLE):
            if self.recording.resampling(node)[1]:
                return operand.through(self.recording.operator(node))
            kind = "an average" if meaning is Meaning.AVERAGE else "an interpolation"
            return Graded(f"{kind} of spikes at {_label(node)!r}")
        raise unknown(self.recording.network, node)

    def _graded(self, node: fx.Node, operand: Graded) -> Any:
        value = self.recording.values[node]
        return tuple(operand for _ in value) if isinstance(value, (tuple, list)) else operand

    def _norm(self, node: fx.Node, operand: Spikes) -> Spikes:
        weight = getattr(module_at(self.recording.network, node), "weight", None)
        rising = weight is None or bool((weight > 0).all())
        return Spikes(
            tuple(
                replace(stream, shifted=True, order="channel" if rising and stream.order != "none" else "none")
                for stream in operand.streams
            )
        )

    def _reshape(self, node: fx.Node, operand: Spikes) -> Any:
        value = self.recording.values[node]
        run = self.recording.operator(node)
        if isinstance(value, (tuple, list)):
            return tuple(operand.through(_piece_of(run, piece), order="none") for piece in range(len(value)))
        still = describe_target(self.recording.network, node) in ("Identity", "Tensor.contiguous", "Tensor.float")
        return Spikes(
            tuple(
                stream.through(run, order=stream.order if still or stream.order == "tensor" else "none")
                for stream in operand.streams
            )
        )

    def _pad(self, node: fx.Node, operand: Spikes) -> Spikes:
        padding, mode, value = _padding(self.recording, node)
        constant = mode == "constant"

        def pad(codes: Tensor) -> Tensor:
            # Padding with a constant adds no spikes: it acts like a bias.
            return functional.pad(codes, padding) if constant else functional.pad(codes, padding, mode)

        return Spikes(
            tuple(
                stream.through(pad, order="none" if constant and (value or stream.shifted) else stream.order)
                for stream in operand.streams
            )
        )

    def _max_pooling(self, node: fx.Node, operand: Spikes) -> Operand:
        if len(operand.streams) > 1:
            return Graded(f"a maximum over sums of spikes at {_label(node)!r}")
        if operand.streams[0].order == "none":
            return Graded(f"a maximum over spikes of different value at {_label(node)!r}")
        return operand.through(self.recording.operator(node))

    def _scale(self, node: fx.Node) -> Operand:
        signal = next(
            item for item in (*node.args, *node.kwargs.values()) if isinstance(item, fx.Node) and item in self.operands
        )
        operand: Operand = self.operands[signal]
        if isinstance(operand, Graded):
            return operand
        args, kwargs = self.recording.arguments(node)
        factors = [value for value in (*args, *kwargs.values()) if value is not self.recording.values[signal]]
        rising = bool(factors) and all(_is_positive_number(factor) for factor in factors)
        shape = self.recording.shape(node)
        return Spikes(
            tuple(
                stream.through(lambda codes: codes.broadcast_to(shape), order=stream.order if rising else "none")
                for stream in operand.streams
            )
        )

    def _add(self, node: fx.Node) -> Operand:
        operands, constants = added_by(self.recording, self.operands, node)
        for operand in operands:
            if isinstance(operand, Graded):
                return Graded(operand.reason, all(map(_static, operands)))
        shape = self.recording.shape(node)
        plain = "sub" not in describe_target(self.recording.network, node) and "alpha" not in node.kwargs
        rising = plain and all(map(_is_number, constants))
        streams = [stream for operand in operands if isinstance(operand, Spikes) for stream in operand.streams]
        return Spikes(
            tuple(
                stream.through(
                    lambda codes: codes.broadcast_to(shape),
                    order=stream.order if rising else "none",
                    shifted=stream.shifted or bool(constants),
                )
                for stream in streams
            )
        )

    def _concatenate(self, node: fx.Node) -> Operand:
        parts = operand_of(node)
        if isinstance(parts, fx.Node):  # the result of a split, put together again
            operands, shapes = list(self.operands[parts]), [value.shape for value in self.recording.values[parts]]
        else:
            operands = [self.operands.get(part) for part in parts]  # None for a constant
            shapes = [self.recording.shape(part) for part in parts]
        for operand in operands:
            if isinstance(operand, Graded):
                return Graded(
                    f"a concatenation with graded values at {_label(node)!r} ({operand.reason})",
                    all(other is None or _static(other) for other in operands),
                )
        run = self.recording.operator(node)
        columns = zip_longest(*(operand.streams if operand else () for operand in operands))
        return Spikes(tuple(self._joined(run, node, shapes, column) for column in columns))

    def _joined(
        self, run: Callable[[Any], Tensor], node: fx.Node, shapes: list[torch.Size], column: Sequence[Stream | None]
    ) -> Stream:
        present = [stream for stream in column if stream is not None]
        template = present[0].now

        def join(which: str) -> Tensor:
            codes = [None if stream is None else getattr(stream, which) for stream in column]
            return run(
                [template.new_zeros(shape) if code is None else code for code, shape in zip(codes, shapes, strict=True)]
            )

        args, kwargs = self.recording.arguments(node)
        dimension = args[1] if len(args) > 1 else kwargs.get("dim", 0)
        apart = "stack" not in describe_target(self.recording.network, node) and dimension in (1, 1 - template.dim())
        ordered = apart and all(stream.order != "none" for stream in present)
        return Stream(
            join("now"),
            None if present[0].before is None else join("before"),
            frozenset[str]().union(*(stream.sources for stream in present)),
            "channel" if ordered else "none",
            any(stream.shifted for stream in present),
        )


def added_by(recording: Recording, operands: Mapping[fx.Node, Any], node: fx.Node) -> tuple[list[Operand], list[Any]]:
    """The signals and the constants that an addition or a subtraction adds."""
    terms = [*node.args[:2], *(node.kwargs[name] for name in ("input", "other") if name in node.kwargs)]
    found = [operands[term] for term in terms if isinstance(term, fx.Node) and term in operands]
    constants = [
        recording.values[term] if isinstance(term, fx.Node) else term
        for term in terms
        if not (isinstance(term, fx.Node) and term in operands)
    ]
    return found, constants


def _piece_of(split: Callable[[Any], Any], piece: int) -> Callable[[Tensor], Tensor]:
    return lambda codes: split(codes)[piece]


def _padding(recording: Recording, node: fx.Node) -> tuple[Any, str, Any]:
    if node.op == "call_module":
        module: Any = module_at(recording.network, node)
        kinds = {nn.ReflectionPad2d: "reflect", nn.ReplicationPad2d: "replicate"}
        mode = next((mode for kind, mode in kinds.items() if isinstance(module, kind)), "constant")
        return list(module.padding), mode, getattr(module, "value", 0)
    args, kwargs = recording.arguments(node)
    given = {**dict(zip(("input", "pad", "mode", "value"), args, strict=False)), **kwargs}
    return list(given["pad"]), given.get("mode", "constant"), given.get("value", 0)


def _static(operand: Operand) -> bool:
    return isinstance(operand, Graded) and operand.static


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _is_positive_number(value: Any) -> bool:
    return _is_number(value) and bool(value > 0)


def _label(node: fx.Node) -> str:
    return str(node.target) if node.op == "call_module" else node.name
