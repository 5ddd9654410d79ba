"""Float model -> quantized network: which signals become sites, and with which levels.

A rectifier (ReLU, ReLU6, LeakyReLU, clipping at zero) that feeds a synapse *becomes* a site; any other operand of a synapse
that is not made of spikes gets a site in front of the synapse (:mod:`polarspike.graph.placement`). Every other operator
of the table stays as it is. What the table does not know is an error, never skipped.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from polarspike import ops
from polarspike.capture import Route, capture, check_capture, graph_inputs
from polarspike.capture.preparation import frozen_in, tell_of_pruned
from polarspike.capture.programs import model_of
from polarspike.common.inputs import Inputs
from polarspike.common.modules import evaluating
from polarspike.common.signatures import Signature
from polarspike.errors import OperatorError, SpecError
from polarspike.graph.contract import Rule, rules_of
from polarspike.graph.editing import INTEGERS, SHARED, finish, free_path, scope_of, signals
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import base_of, describe_target, meaning_of, moving, place_of
from polarspike.graph.placement import (
    Arrival,
    arrivals,
    channel_dim_behind,
    operands_to_place,
    reaching,
    synapses_of,
)
from polarspike.plan import Plan, PlannedOperator, PlannedSite
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.sites import require_float
from polarspike.specs import QuantSpec, SiteSpec

# A learned gain starts here where the activation itself has no negative side; from zero it would fire without effect.
_LEARNED_GAIN_START = 0.25


@dataclass(frozen=True)
class FloatLaw:
    """What a site stands for: ``min(x, ceiling)`` for x >= 0, ``slope * x`` below; the identity has slope 1."""

    slope: float = 0.0
    ceiling: float | None = None


def _leaky(module: nn.Module) -> FloatLaw | None:
    slope = float(module.negative_slope)  # type: ignore[arg-type]
    return FloatLaw(slope=slope) if 0.0 <= slope <= 1.0 else None  # else decoding would not be monotone


def _integers(network: fx.GraphModule) -> str:
    """What to say where integers come in, which count as masks and tokens, not as signals."""
    names = ", ".join(map(repr, network.meta.get(INTEGERS, ())))
    return f"; input {names} holds integers, which are no signals: give images as floats, or as uint8" if names else ""


def _clipped(low: float, high: float) -> FloatLaw | None:
    return FloatLaw(ceiling=high if math.isfinite(high) else None) if low == 0.0 < high else None


#: The rectifiers that a site replaces, and the float function that it then stands for; None: not this one.
RULES: dict[type[nn.Module], Callable[[nn.Module], FloatLaw | None]] = {
    nn.ReLU: lambda module: FloatLaw(),
    nn.ReLU6: lambda module: FloatLaw(ceiling=6.0),
    nn.LeakyReLU: _leaky,
    nn.Hardtanh: lambda module: _clipped(float(module.min_val), float(module.max_val)),  # type: ignore[arg-type]
    nn.Threshold: lambda module: FloatLaw() if module.threshold == module.value == 0 else None,
}


def inspect(model: nn.Module | ExportedProgram, spec: QuantSpec, example: Inputs, *, route: Route = "auto") -> Plan:
    """Say what :func:`quantize` would do, without doing it.

    Raises: what :func:`quantize` raises.
    """
    model = model_of(model)
    network = _captured(model, spec, example, route)
    return _Planner(network, spec, graph_inputs(model, example)).plan()


def quantize(
    model: nn.Module | ExportedProgram, spec: QuantSpec, *, example: Inputs, route: Route = "auto"
) -> QuantizedNetwork:
    """A quantized copy of a model; the model itself is left untouched.

    The model is captured as a graph, standardized, and checked: with float activations at its sites the graph must
    compute what the model computes, on the example, on another batch size and content, and on one sample. Steps are chosen
    afterwards, by :func:`polarspike.calibrate`.

    The graph is that of evaluation mode: what the model does only under ``if self.training`` is not in it, and functional
    dropout and batch norms become modules that follow the network's mode. Those that are called with ``training=False``
    itself stay off; that is seen by torch.fx alone, and with torch.export they follow the mode, too. A module that the
    model's own ``train()`` leaves in evaluation mode (a frozen batch norm) stays in it. A ``torch.no_grad()`` block in
    ``forward`` is no part of the graph: what it keeps from training, ``.detach()`` or ``requires_grad_(False)`` keeps from
    it here, too. Outputs come back in plain containers: a dictionary where the model answers with a mapping of its own
    class.

    Args:
        model: a module that torch.fx or torch.export can capture and whose operators are all in the operator table; an
            exported program of a free batch size, or the module of one, is such a model in evaluation mode.
        spec: levels, gain, granularity and initialization of the sites.
        example: an example input batch: a tensor, a tuple (positional) or a dict (keyword).
        route: how the model is captured, see :func:`polarspike.capture.capturing.capture`.

    Raises:
        InputError: the example does not fit the model, or holds NaN or Inf.
        CaptureError: the model cannot be captured, holds NaN, or its graph computes something else.
        OperatorError: an operator is not in the table, or there is nothing to quantize.
        SpecError: the spec cannot hold at a site, or an override matches none.

    Warns:
        PolarspikeWarning: layers of the model are pruned; training moves their zeros again.
    """
    model = model_of(model)
    network = _captured(model, spec, example, route)
    tell_of_pruned(model)
    planner = _Planner(network, spec, graph_inputs(model, example))
    planner.plan()
    planner.place()
    fixed = str(network.meta.get("route", "")).startswith("export")
    shared = network.meta[SHARED]
    qann = QuantizedNetwork(finish(network), spec, Signature.of(example, fixed=fixed, shared=shared))
    with qann.float_activations():
        check_capture(model, qann, example, shared)
    modes = {name: module.training for name, module in model.named_modules()}
    qann.frozen = frozen_in(model, qann.network)
    qann.train(model.training)
    for name, module in qann.network.named_modules():  # a norm that was frozen stays frozen
        module.training = modes.get(name, module.training)
    return qann


def _captured(model: nn.Module, spec: QuantSpec, example: Inputs, route: Route) -> fx.GraphModule:
    if not isinstance(spec, QuantSpec):
        raise SpecError(f"expected a QuantSpec, got {type(spec).__name__}; write QuantSpec(negative=2, positive=6)")
    require_float(model)
    return capture(model, example, route)


class _Planner:
    """The sites of one captured graph: decided by :meth:`plan`, put in by :meth:`place`."""

    def __init__(self, network: fx.GraphModule, spec: QuantSpec, inputs: dict[str, Any]) -> None:
        self.network = network
        self.spec = spec
        self.dependent = signals(network)
        self.rules = rules_of(network, self.dependent)
        self.shapes = _shapes(network, inputs)
        self.samples = next(
            (value.shape[0] for value in inputs.values() if isinstance(value, Tensor) and value.dim()), 1
        )
        synapses = synapses_of(network, self.rules, self.dependent)
        reached = reaching(network, self.rules, synapses)
        self.rectifiers = {
            node: law for node in network.graph.nodes if node in reached and (law := self._law(node)) is not None
        }
        self.operands = operands_to_place(network, self.rules, self.dependent, self.rectifiers, spec.inputs)
        self.planned: dict[fx.Node, PlannedSite] = {}
        self.synapses = synapses

    def plan(self) -> Plan:
        """Decide every site, in the order in which a signal meets them."""
        placed = {operand.node: operand for operand in self.operands}
        taken: set[str] = set()
        for node in self.network.graph.nodes:
            if node in self.rectifiers:
                name = str(node.target)
                site, reason = _site_spec(self.rectifiers[node], self.spec.at(name), name, True)
                dim = channel_dim_behind(self.network, node, self.dependent)
                self.planned[node] = self._row(node, name, self._kind(node), site, reason, dim)
            if node in placed:
                operand = placed[node]
                name = self._free(operand.name, taken)
                law = FloatLaw(slope=1.0 if operand.negative else 0.0)
                site, _ = _site_spec(law, self.spec.at(name), name, operand.negative, operand.reason)
                replaces = describe_target(self.network, node) if node.op.startswith("call") else "input"
                self.planned[node] = self._row(
                    node, name, f"after {replaces.rpartition('.')[2]}", site, operand.reason, operand.channel_dim
                )
            if node in self.planned:
                taken.add(self.planned[node].name)
        plan = Plan(tuple(self.planned.values()), self._operators(), str(self.network.meta.get("route", "")))
        self._require_sense(plan)
        return plan

    def place(self) -> None:
        """Put a quantizer wherever a site was planned."""
        readers = {operand.node: operand.readers for operand in self.operands}
        first = next((value for value in self.network.parameters() if value.is_floating_point()), torch.zeros(()))
        for node, row in self.planned.items():
            # On the model's device; in its type only where that is wider than float32.
            quantizer = PolarityQuantizer(row.spec, row.name).to(first.device, ops.widen(first).dtype)
            self.network.add_submodule(row.name, quantizer)
            if node not in readers:
                continue
            with self.network.graph.inserting_after(node):
                site = self.network.graph.call_module(row.name, (node,))
            site.meta = {key: value for key, value in node.meta.items() if key == "nn_module_stack"}
            for reader in readers[node]:
                reader.replace_input_with(node, site)

    def _law(self, node: fx.Node) -> FloatLaw | None:
        kind = self._table_type(node)
        if kind not in RULES or node not in self.dependent:
            return None
        return RULES[kind](self.network.get_submodule(str(node.target)))

    def _table_type(self, node: fx.Node) -> type[nn.Module] | None:
        return base_of(self.network.get_submodule(str(node.target))) if node.op == "call_module" else None

    def _kind(self, node: fx.Node) -> str:
        kind = self._table_type(node)
        return kind.__name__ if kind else describe_target(self.network, node)

    def _free(self, name: str, taken: set[str]) -> str:
        candidate, count = free_path(self.network, name), 0
        while candidate in taken:
            count += 1
            candidate = free_path(self.network, f"{name}_{count}")
        return candidate

    def _row(
        self, node: fx.Node, name: str, replaces: str, site: SiteSpec, reason: str, channel_dim: int | None
    ) -> PlannedSite:
        if self.spec.at(name).granularity == "channel":
            shape = self.shapes[node]
            if len(shape) < 2:
                raise SpecError(
                    f"{place_of(node)}: one step per channel needs a channel dimension, got shape {tuple(shape)}"
                )
            if channel_dim is not None:  # products of two signals have no channels: one step
                site = replace(site, channels=shape[channel_dim], channel_dim=channel_dim)
        return PlannedSite(name, replaces, site, reason)

    def _operators(self) -> tuple[PlannedOperator, ...]:
        carried = arrivals(self.network, self.rules, self.dependent, self.rectifiers)
        operands = {operand.node for operand in self.operands}
        rows = []
        for node, rule in self.rules.items():
            if node in self.rectifiers:
                continue
            meaning = meaning_of(self.network, node)
            name = str(node.target) if node.op == "call_module" else ".".join(filter(None, [scope_of(node), node.name]))
            spiking = all(
                carried[operand] in (Arrival.SPIKES, Arrival.SUM) or operand in operands
                for operand in self.synapses.get(node, ())
            )
            if node in self.synapses:
                work = self._multiplications(node)
                note = _synapse_note(rule, spiking, any(carried[item] is Arrival.MIXED for item in self.synapses[node]))
                rows.append(
                    PlannedOperator(name, self._kind(node), note, work, spiking, spiking and rule is Rule.AFFINE)
                )
            elif rule is Rule.DIFFERENCE:
                work = math.prod(self.shapes.get(node, (0,))) // self.samples
                rows.append(PlannedOperator(name, self._kind(node), _analog_note(meaning), work, False, False))
            elif meaning in _NOTES:
                rows.append(PlannedOperator(name, self._kind(node), _NOTES[meaning]))
        return tuple(rows)

    def _multiplications(self, node: fx.Node) -> int:
        """Multiply-accumulates for one sample."""
        out = self.shapes.get(node)
        if out is None:
            return 0
        weight = (
            getattr(self.network.get_submodule(str(node.target)), "weight", None) if node.op == "call_module" else None
        )
        if isinstance(weight, Tensor):
            transposed = "Transpose" in self._kind(node)
            source = self.shapes[moving(node, self.dependent)[0]] if transposed else out
            return math.prod(source) * weight[0].numel() // self.samples
        inner = self.shapes.get(next(iter(self.synapses[node]), node), torch.Size((1,)))
        return math.prod(out) * (inner[-1] if inner else 1) // self.samples

    def _require_sense(self, plan: Plan) -> None:
        if not plan.sites:
            raise OperatorError(
                "the model has no operand of a synapse that could become a site, so nothing would spike; a site is placed "
                "at rectifiers and in front of convolutions, linear layers and products of two signals, except at the "
                f"network's input (QuantSpec(inputs=True) places one there, too){_integers(self.network)}"
            )
        if not any(site.spec.learned_gain for site in plan.sites) and self.spec.gain == "learned":
            raise SpecError(
                "QuantSpec.gain='learned' reaches no site: none has negative levels, because every activation here is "
                "rectified; give signed='all', or a number"
            )
        for pattern in self.spec.overrides:
            if not any(self.spec.at(site.name) is self.spec.overrides[pattern] for site in plan.sites):
                names = ", ".join(site.name for site in plan.sites)
                raise SpecError(
                    f"QuantSpec.overrides: the pattern {pattern!r} matches no site of its own; sites: {names}"
                )


_NOTES: dict[Meaning, str] = {
    Meaning.NORM: "affine per channel",
    Meaning.AVERAGE: "affine: a mean",
    Meaning.MAX_POOLING: "exact at T=1; over time on sums",
    Meaning.ACTIVATION: "homogeneous: over time on sums",
    Meaning.ELEMENTWISE: "homogeneous: over time on sums",
    Meaning.REDUCTION: "homogeneous: over time on sums",
    Meaning.ADD: "affine: sums spikes of its operands",
    Meaning.SCALE: "affine: a constant factor",
    Meaning.CONCATENATE: "affine",
    Meaning.UPSAMPLE: "affine",
    Meaning.EMBEDDING: "looked up at every step",
    Meaning.DROPOUT: "training only",
}


def _synapse_note(rule: Rule, spiking: bool, mixed: bool) -> str:
    if mixed:
        return "synapses of averages of spikes, or of the network's input among them: multiplied"
    if not spiking:
        return "synapses of the network's input: analog"
    return "synapses" if rule is Rule.AFFINE else "synapses at T=1; over time a product of two means: analog"


def _analog_note(meaning: Meaning | None) -> str:
    what = "a product of two signals" if meaning is Meaning.SCALE else "not affine"
    return f"analog: {what}; over time by differences of means"


def _site_spec(law: FloatLaw, spec: QuantSpec, name: str, negative: bool, why: str = "") -> tuple[SiteSpec, str]:
    """Levels and gain of one site; see the table in :class:`~polarspike.specs.QuantSpec`."""
    signed_by_nature = law.slope > 0.0
    if signed_by_nature and (spec.signed == "none" or spec.negative == 0):
        what = why.removesuffix(", signed by nature") if why else "LeakyReLU"
        raise SpecError(
            f"site {name!r}: {what} passes negative values, which (0, {spec.positive}) would lose; "
            "give negative >= 1 and signed='by-nature', here or in overrides"
        )
    common: dict[str, Any] = {"positive": spec.positive, "slope": law.slope, "ceiling": law.ceiling, "init": spec.init}
    if not signed_by_nature and (spec.signed != "all" or not negative):
        return SiteSpec(negative=0, **common), "rectified"
    learned = spec.gain == "learned"
    natural = law.slope or (_LEARNED_GAIN_START if learned else float(spec.gain))
    reason = f"signed by nature (slope {law.slope:g})" if signed_by_nature else "signed on request"
    return SiteSpec(negative=spec.negative, gain=natural, learned_gain=learned, **common), reason


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.dependent = signals(network)
        self.shapes: dict[fx.Node, torch.Size] = {}
        self.refused: fx.Node | None = None

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
            real = value.is_floating_point() or not n.op.startswith("call") or n not in self.dependent
            if not real and self.refused is None:
                self.refused, self.kind = n, value.dtype
        return value


@torch.no_grad()
def _shapes(network: fx.GraphModule, inputs: dict[str, Any]) -> dict[fx.Node, torch.Size]:
    recorder = _ShapeRecorder(network)
    with evaluating(network):
        recorder.run(*inputs.values())
    if recorder.refused is not None:
        raise OperatorError(
            f"{place_of(recorder.refused)}: {describe_target(network, recorder.refused)} turns a signal into "
            f"{recorder.kind}: integers, truth values and complex numbers have no running mean; keep signals real, or take "
            "this step outside of the model"
        )
    return recorder.shapes
