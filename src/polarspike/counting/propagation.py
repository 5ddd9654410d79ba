"""How every operator passes on what arrives: one rule for a kind of operator.

Operators that move, copy, select or scale elements keep a stream; max pooling keeps it because decoding is monotone: the
code of the maximum is the maximum of the codes. Averages, interpolations, synapses, and operators that are not affine turn
spikes into graded values, which only a site turns back.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from polarspike.counting.recording import Recording, label, operand_of
from polarspike.counting.streams import Graded, Operand, Spikes, Stream, fired, graded_among, is_static
from polarspike.graph.contract import Rule
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import argument, meaning_of, moving, unknown
from polarspike.neurons import NeuronState, PolarityNeuron

#: Keep every element where it is, with its value.
_STILL = frozenset({"Identity", "contiguous", "clone", "detach", "float", "double", "half", "bfloat16", "to", "type",
                    "type_as"})  # fmt: skip
#: Products by name that also add: their signals are the terms of a sum.
ADDING_PRODUCTS = frozenset({"addcmul", "addcdiv", "lerp"})
_SYNAPTIC = (Meaning.CONVOLUTION, Meaning.LINEAR, Meaning.MATMUL)
_KINDS = {Meaning.SCALE: "a product of signals", Meaning.MATMUL: "a product of signals"}


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
        if node not in recording.signals or node.op == "output":
            continue
        if node.op == "placeholder":
            walk.operands[node] = Graded("the network's input", static=True)
            continue
        site = recording.module(node) if node.op == "call_module" else None
        if isinstance(site, PolarityNeuron):
            walk.operands[node] = fired(site, str(node.target), before, now)
        else:
            walk.operands[node] = walk.behind(node)
    return walk.operands


class _Propagation:
    """The rules, one method for a kind of operator."""

    def __init__(self, recording: Recording) -> None:
        self.recording = recording
        self.operands: dict[fx.Node, Any] = {}

    def behind(self, node: fx.Node) -> Any:
        meaning = meaning_of(self.recording.network, node)
        rule = self.recording.rules[node]
        if meaning is Meaning.EMBEDDING:
            return Graded("an embedding of integers", static=True)
        operands = [self.operands[signal] for signal in moving(node, self.operands)]
        if node.target is operator.getitem and isinstance(operands[0], tuple):  # of the pieces of a split
            return operands[0][self.recording.value(node.args[1])]
        if meaning in _SYNAPTIC:
            kind = "a product of signals at" if rule is Rule.DIFFERENCE else "weighted sums of"
            return Graded(f"{kind} {label(node)!r}", is_static(tuple(operands)))
        if meaning is Meaning.MAX_POOLING and isinstance(operands[0], Spikes):
            return self._max_pooling(node, operands[0])
        if rule is not Rule.AFFINE and meaning is not Meaning.MAX_POOLING:
            what = _KINDS.get(meaning) or self.recording.called(node)  # type: ignore[arg-type]
            return self._graded(node, Graded(f"{what} at {label(node)!r}", is_static(tuple(operands))))
        if meaning is Meaning.CONCATENATE:
            return self._concatenate(node)
        if meaning is Meaning.ADD or (meaning is Meaning.SCALE and self.recording.called(node) in ADDING_PRODUCTS):
            return self._add(node)
        if meaning is Meaning.SELECT:
            return self._select(node)
        graded = graded_among(operands)
        if graded is not None or isinstance(operands[0], tuple) or meaning is Meaning.CONSTANT:
            graded = graded or Graded(f"{self.recording.called(node)} at {label(node)!r}")
            return self._graded(node, Graded(graded.reason, is_static(tuple(operands))))
        return self._carried(node, meaning, operands[0])

    def _carried(self, node: fx.Node, meaning: Meaning | None, operand: Spikes) -> Any:
        """One signal of spikes through an affine operator that mixes nothing."""
        if meaning is Meaning.DROPOUT:
            return operand
        if meaning is Meaning.NORM:
            return self._norm(node, operand)
        if meaning is Meaning.RESHAPE:
            return self._reshape(node, operand)
        if meaning is Meaning.PAD:
            return self._pad(node, operand)
        if meaning is Meaning.SCALE:
            return self._scale(node, operand)
        if meaning in (Meaning.AVERAGE, Meaning.UPSAMPLE):
            if self.recording.resampling(node)[1]:
                return operand.through(self.recording.operator(node))
            kind = "an average" if meaning is Meaning.AVERAGE else "an interpolation"
            return Graded(f"{kind} of spikes at {label(node)!r}")
        raise unknown(self.recording.network, node)

    def _graded(self, node: fx.Node, operand: Graded) -> Any:
        value = self.recording.values[node]
        return tuple(operand for _ in value) if isinstance(value, (tuple, list)) else operand

    def _norm(self, node: fx.Node, operand: Spikes) -> Spikes:
        if node.op == "call_module":
            weight = getattr(self.recording.module(node), "weight", None)
        else:  # F.batch_norm(x, mean, var, weight, ...), torch.batch_norm(x, weight, ...)
            first = node.target is torch.batch_norm
            weight = self.recording.value(argument(node, 1 if first else 3, "weight"))
        rising = weight is None or bool((weight > 0).all())
        return Spikes(
            tuple(
                replace(stream, shifted=True, order="channel" if rising and stream.order != "none" else "none")
                for stream in operand.streams
            )
        )

    def _reshape(self, node: fx.Node, operand: Spikes) -> Any:
        name = self.recording.called(node)
        if name in _STILL:
            return operand
        if name == "fold":  # sums what overlaps
            return Graded(f"sums of spikes at {label(node)!r}")
        value = self.recording.values[node]
        run = self.recording.operator(node)
        if isinstance(value, (tuple, list)):
            return tuple(operand.through(_piece_of(run, piece), order="none") for piece in range(len(value)))
        return Spikes(
            tuple(
                stream.through(run, order=stream.order if stream.order == "tensor" else "none")
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
                stream.through(
                    pad,
                    order="none" if constant and (value or stream.shifted) else stream.order,
                    shifted=stream.shifted or bool(constant and value),
                )
                for stream in operand.streams
            )
        )

    def _max_pooling(self, node: fx.Node, operand: Spikes) -> Operand:
        if len(operand.streams) > 1:
            return Graded(f"a maximum over sums of spikes at {label(node)!r}")
        if operand.streams[0].order == "none":
            return Graded(f"a maximum over spikes of different value at {label(node)!r}")
        return operand.through(self.recording.operator(node))

    def _scale(self, node: fx.Node, operand: Spikes) -> Spikes:
        (signal,) = moving(node, self.operands)
        factors = [self.recording.value(item) for item in (*node.args, *node.kwargs.values()) if item is not signal]
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
        graded = graded_among(operands)
        if graded is not None:
            return Graded(graded.reason, is_static(tuple(operands)))
        shape = self.recording.shape(node)
        name = self.recording.called(node)
        plain = not any(part in name for part in ("sub", "addc", "lerp")) and "alpha" not in node.kwargs
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

    def _select(self, node: fx.Node) -> Any:
        """``where``, ``masked_fill``, ``tril``: every signal is kept where the condition says so."""
        signals = moving(node, self.operands)
        operands = [self.operands[signal] for signal in signals]
        graded = graded_among(operands)
        if graded is not None:
            return Graded(graded.reason, is_static(tuple(operands)))
        shape = self.recording.shape(node)
        streams: list[Stream] = []
        for signal, operand in zip(signals, operands, strict=True):
            keep = self._kept(node, signal, operand.streams[0].now.device).broadcast_to(shape)
            streams += [
                stream.through(lambda codes, keep=keep: torch.where(keep, codes, 0), order="none", shifted=True)
                for stream in operand.streams
            ]
        return Spikes(tuple(streams))

    def _kept(self, node: fx.Node, signal: fx.Node, device: torch.device) -> Tensor:
        """Where a selecting operator lets this signal through: its answer is affine in the signal."""

        def answer(value: float) -> Tensor:
            def given(parent: fx.Node) -> Any:
                if parent not in self.operands:
                    return self.recording.values[parent]
                return torch.full(self.recording.shape(parent), value if parent is signal else 0.0, device=device)

            args, kwargs = fx.node.map_arg((node.args, node.kwargs), given)
            if node.op == "call_method":
                first, *rest = args
                result = getattr(first, str(node.target))(*rest, **kwargs)
            else:
                result = node.target(*args, **kwargs)  # type: ignore[operator]
            return torch.as_tensor(result)

        return answer(1.0) != answer(0.0)

    def _written(self, node: fx.Node) -> Operand:
        """A part of a signal overwritten by another one: ``slice_scatter``, ``select_scatter``."""
        given = (argument(node, 0, "input"), argument(node, 1, "src"))
        operands = [self.operands.get(part) for part in given]  # None for a constant
        moved = tuple(operand for operand in operands if operand is not None)
        graded = graded_among(list(moved))
        if graded is not None:
            return Graded(graded.reason, is_static(moved))
        rest = [self.recording.value(item) for item in node.args[2:]]
        named = {name: self.recording.value(item) for name, item in node.kwargs.items() if name not in ("input", "src")}
        shapes = [self.recording.shape(part) for part in given]
        streams: list[Stream] = []
        for place, operand in enumerate(operands):

            def write(codes: Tensor, place: int = place) -> Tensor:
                filled = [codes if place == index else codes.new_zeros(shape) for index, shape in enumerate(shapes)]
                return node.target(*filled, *rest, **named)  # type: ignore[operator, no-any-return]

            for stream in operand.streams if operand is not None else ():
                streams.append(stream.through(write, order="none", shifted=True))
        return Spikes(tuple(streams))

    def _concatenate(self, node: fx.Node) -> Operand:
        if self.recording.called(node).endswith("_scatter"):
            return self._written(node)
        parts = operand_of(node)
        if isinstance(parts, fx.Node):  # the result of a split, put together again
            operands, shapes = list(self.operands[parts]), [value.shape for value in self.recording.values[parts]]
        else:
            operands = [self.operands.get(part) for part in parts]  # None for a constant
            shapes = [self.recording.shape(part) for part in parts]
        for operand in operands:
            if isinstance(operand, Graded):
                return Graded(
                    f"a concatenation with graded values at {label(node)!r} ({operand.reason})",
                    all(other is None or is_static(other) for other in operands),
                )
        run = self.recording.operator(node)
        columns = zip_longest(*(operand.streams if operand else () for operand in operands))
        joined = tuple(self._joined(run, node, shapes, column) for column in columns)
        constant = any(operand is None for operand in operands)
        return Spikes(tuple(replace(stream, shifted=stream.shifted or constant) for stream in joined))

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
        apart = self.recording.called(node) != "stack" and dimension in (1, 1 - template.dim())
        ordered = apart and all(stream.order != "none" for stream in present)
        return Stream(
            join("now"),
            None if present[0].before is None else join("before"),
            frozenset[str]().union(*(stream.sources for stream in present)),
            "channel" if ordered else "none",
            any(stream.shifted for stream in present),
        )


def added_by(recording: Recording, operands: Mapping[fx.Node, Any], node: fx.Node) -> tuple[list[Operand], list[Any]]:
    """The signals and the constants that an operator adds; of ``addcmul`` and the like every signal is a term."""
    if recording.called(node) in ADDING_PRODUCTS:
        signals = moving(node, operands)
        # With one signal the other term is a constant.
        return [operands[signal] for signal in signals], [None] if len(signals) == 1 else []
    terms = [*node.args[:2], *(node.kwargs[name] for name in ("input", "other") if name in node.kwargs)]
    found = [operands[term] for term in terms if isinstance(term, fx.Node) and term in operands]
    constants = [recording.value(term) for term in terms if not (isinstance(term, fx.Node) and term in operands)]
    return found, constants


def _piece_of(split: Callable[[Any], Any], piece: int) -> Callable[[Tensor], Tensor]:
    return lambda codes: split(codes)[piece]


def _padding(recording: Recording, node: fx.Node) -> tuple[Any, str, Any]:
    if node.op == "call_module":
        module: Any = recording.module(node)
        kinds = {"Reflection": "reflect", "Replication": "replicate", "Circular": "circular"}
        name = recording.called(node)
        mode = next((mode for kind, mode in kinds.items() if name.startswith(kind)), "constant")
        return list(module.padding), mode, getattr(module, "value", 0)
    args, kwargs = recording.arguments(node)
    names = (
        ("input", "pad", "value") if recording.called(node) == "constant_pad_nd" else ("input", "pad", "mode", "value")
    )
    given = {**dict(zip(names, args, strict=False)), **kwargs}
    return list(given["pad"]), given.get("mode", "constant"), given.get("value", 0)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)


def _is_positive_number(value: Any) -> bool:
    return _is_number(value) and bool(value > 0)
