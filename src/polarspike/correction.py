"""Bias correction: give every layer of a quantized network the mean output that it has in the float network."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn

from polarspike.common.checks import is_integer
from polarspike.common.inputs import batches_of, require_batches, to_device
from polarspike.common.modules import apply, device_of, evaluating, hooked
from polarspike.errors import CalibrationError, SpecError
from polarspike.graph.synaptic import (
    SynapticLayer,
    add_bias,
    along_channels,
    channel_dim,
    channel_sums,
    mark_changed,
    require_goal,
    synaptic_layers,
)
from polarspike.quantized import QuantizedNetwork, require_calibrated, require_same_graph

# A shift below this part of the layer's root mean square is left: float32 sums do not agree better.
_TOLERANCE = 1e-6


@dataclass(frozen=True)
class CorrectedLayer:
    """One row of a bias correction.

    Attributes:
        name: of the convolution or linear layer.
        holder: whose bias was changed: the layer, or the batch norm directly behind it; empty if nothing was.
        shift: the root mean square over channels of what was added, as a part of the float output's root mean square.
        left: the largest shift of a channel that is left, on the same scale; NaN where it was not measured (after one
            pass alone) and for a layer that was left alone.
        note: why the layer was left alone; empty if it was not.
    """

    name: str
    holder: str
    shift: float
    left: float
    note: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.note or f'{self.shift:.2%} added to {self.holder}.bias, {self.left:.1e} left'}"


@torch.no_grad()
def correct_bias(
    qann: QuantizedNetwork,
    batches: Iterable[Any] | Tensor,
    *,
    reference: QuantizedNetwork | None = None,
    passes: int | None = None,
) -> tuple[CorrectedLayer, ...]:
    """Shift biases, in place and without labels, until every channel's mean is that of the float network.

        b <- b + E[y_float] - E[y_quantized]     per channel, over samples and positions

    Every convolution and linear layer is corrected, the network's last one included; where a batch norm alone reads the
    layer, y is the norm's output and b its bias. A layer's shift is what quantization does *behind the corrected layers
    before it*: in the first pass each batch is centered layer by layer on its way through the network, so that one pass
    nearly does what a pass per layer would. Each later pass measures what is left with the biases fixed, and settles the
    first layers on the way where something is: only of them are all inputs final, and correcting all layers at once
    overshoots (in a network of 22 layers it made the shifts grow from pass to pass). The memory does not grow with the
    number of batches.

    A layer or norm that is used at several places, or shares its weights, is left alone: one bias cannot center them all.

    Args:
        qann: calibrated; evaluation mode is used and the former mode restored.
        batches: an iterable of inputs or (inputs, target), or one tensor; read once per pass, so no iterator.
        reference: the network whose float activations are the goal: a copy of ``qann`` from before the first change, which
            is required after a reconstruction or another correction; default: ``qann`` as it is now. The float
            activations of ``qann`` are shifted, too, and its notes say so.
        passes: at most so many readings of the batches, the last one only to measure; None for as many as it takes, at most
            the network's depth and two. One is nearly as good in accuracy; then nothing measures what is left.

    Returns:
        One row per layer, in the order of the graph.

    Raises:
        CalibrationError: no step has been set, no batch came, or a mean is NaN or Inf, with layer.
        SpecError: not a quantized network, another network as reference, or none where one is required; an iterator.

    Source: Nagel, van Baalen, Blankevoort, Welling: Data-Free Quantization Through Weight Equalization and Bias
    Correction (ICCV 2019), section 4.2, the variant that measures on data; there for weights that are quantized, here
    for activations. The centering within a batch is this project's own.
    """
    _check_arguments(qann, batches, reference, passes)
    layers = synaptic_layers(qann.network)
    goal = reference or qann
    rows = {holder: _Row(channel_dim(qann.network.get_submodule(holder))) for holder in map(_holder, layers) if holder}
    _center(qann, goal, rows, batches)
    mark_changed("correct_bias", qann.notes)
    for holder, row in rows.items():
        row.apply(qann.network.get_submodule(holder))
    depths, settled = _depths(qann, layers), 0
    most = passes or max(depths.values(), default=0) + 2
    for index in range(most - 1):
        _measure(qann, rows, batches)
        waiting = [
            depths[holder] for holder, row in rows.items() if row.left() > _TOLERANCE and depths[holder] > settled
        ]
        # The last reading only measures, so that what the rows say is left is what is left.
        if not waiting or index == most - 2:
            break
        settled = min(waiting)
        for holder, row in rows.items():
            if depths[holder] == settled:
                row.apply(qann.network.get_submodule(holder))
    return tuple(_describe(layer, rows) for layer in layers)


@dataclass
class _Row:
    """What is known of one bias; sums over all batches, per channel."""

    dim: int
    wanted: Tensor | None = None  # sum of the float outputs
    square: float = 0.0
    size: int = 0  # values per channel in ``wanted``
    got: Tensor | None = None  # sum of the quantized outputs of the present pass
    count: int = 0
    added: Tensor | None = None
    now: Tensor | None = field(default=None, repr=False)  # sum of the float outputs of the present batch

    def float_output(self, y: Tensor) -> None:
        self.now, count = channel_sums(y, self.dim)
        self.wanted = self.now if self.wanted is None else self.wanted + self.now
        self.square += float(y.float().square().mean()) * count
        self.size += count

    def quantized_output(self, y: Tensor) -> Tensor:
        total, count = channel_sums(y, self.dim)
        self.got = total if self.got is None else self.got + total
        self.count += count
        return total / max(1, count)

    def shift(self) -> Tensor:
        assert self.wanted is not None and self.got is not None
        return self.wanted / max(1, self.size) - self.got / max(1, self.count)

    def scale(self) -> float:
        return (self.square / max(1, self.size)) ** 0.5 or 1.0

    def left(self) -> float:
        if self.got is None:  # changed since it was last measured
            return math.nan
        return float(self.shift().abs().max()) / self.scale()

    def apply(self, module: nn.Module) -> None:
        shift = self.shift()
        self.added = shift if self.added is None else self.added + shift
        if bool(shift.any()):
            add_bias(module, shift)
        self.got, self.count = None, 0


def _center(qann: QuantizedNetwork, goal: QuantizedNetwork, rows: dict[str, _Row], batches: Iterable[Any]) -> None:
    """The first pass: means of both networks, each batch of the quantized one centered on its way."""

    def watch(row: _Row, y: Tensor) -> None:
        row.float_output(y)

    def center(row: _Row, y: Tensor) -> Tensor:
        assert row.now is not None
        mean = row.quantized_output(y)
        return y + along_channels(row.now / max(1, y.numel() // y.shape[row.dim]) - mean, y, row.dim)

    device, seen = device_of(qann), 0
    with evaluating(qann, goal):
        for inputs, _ in batches_of(batches):
            seen += 1
            inputs = to_device(inputs, device)
            with goal.float_activations(), _hooked(goal, rows, watch):
                apply(goal, inputs)
            with _hooked(qann, rows, center):
                apply(qann, inputs)
    require_batches(seen > 0 and all(row.size for row in rows.values()), "correct_bias", "batch with a sample in it")
    for holder, row in rows.items():  # before anything is changed
        if not bool(torch.isfinite(row.shift()).all()):
            raise CalibrationError(
                f"layer {holder!r}: the mean of its output is NaN or Inf; look for NaN or Inf in the calibration batches"
            )


def _measure(qann: QuantizedNetwork, rows: dict[str, _Row], batches: Iterable[Any]) -> None:
    """A later pass: means of the quantized network as it now is."""

    def watch(row: _Row, y: Tensor) -> None:
        row.quantized_output(y)

    for row in rows.values():
        row.got, row.count = None, 0
    device = device_of(qann)
    with evaluating(qann), _hooked(qann, rows, watch):
        for inputs, _ in batches_of(batches):
            apply(qann, to_device(inputs, device))


@contextlib.contextmanager
def _hooked(
    network: QuantizedNetwork, rows: dict[str, _Row], look: Callable[[_Row, Tensor], Tensor | None]
) -> Iterator[None]:
    handles = [
        network.network.get_submodule(holder).register_forward_hook(lambda _, __, y, row=row: look(row, y))
        for holder, row in rows.items()
    ]
    with hooked(handles):
        yield


def _depths(qann: QuantizedNetwork, layers: list[SynapticLayer]) -> dict[str, int]:
    """For every bias, how many of them are on the longest way to it, itself included."""
    holders = {
        layer.norm if holder != layer.name else layer.node: holder for layer in layers if (holder := _holder(layer))
    }
    deep: dict[fx.Node, int] = {}
    for node in qann.network.graph.nodes:
        deep[node] = max((deep[parent] for parent in node.all_input_nodes), default=0) + (node in holders)
    return {holder: deep[node] for node, holder in holders.items() if node is not None}


def _holder(layer: SynapticLayer) -> str:
    """Whose bias takes the correction; empty if nothing can."""
    if layer.norm is not None and layer.norm_alone:
        return str(layer.norm.target)
    return layer.name if layer.alone else ""


def _describe(layer: SynapticLayer, rows: dict[str, _Row]) -> CorrectedLayer:
    holder = _holder(layer)
    if not holder:
        note = "left alone: it is used at several places, or shares its weights"
        return CorrectedLayer(layer.name, "", 0.0, math.nan, note)
    row = rows[holder]
    assert row.added is not None
    return CorrectedLayer(layer.name, holder, float(row.added.square().mean().sqrt()) / row.scale(), row.left())


def _check_arguments(qann: object, batches: object, reference: QuantizedNetwork | None, passes: int | None) -> None:
    network = require_calibrated("correct_bias", qann)
    if passes is not None and not is_integer(passes, 1):
        raise SpecError(f"correct_bias: passes: expected a positive integer or None, got {passes!r}")
    if passes != 1 and isinstance(batches, Iterator):
        raise SpecError(
            "correct_bias: expected batches that can be read more than once, got an iterator; give a list or a loader, or "
            "passes=1"
        )
    require_goal("correct_bias", network.notes, given=reference is not None)
    require_same_graph("correct_bias", network, reference)
