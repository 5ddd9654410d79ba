"""Float model -> quantized network: which operators become sites, and with which levels.

The rule table is keyed by the type of activation. A site stands in the place of an activation; every other operator of
the table stays as it is. What the table does not know is an error, never skipped.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from polarspike.capture import capture, check_capture, graph_inputs
from polarspike.contract import require_contract
from polarspike.errors import OperatorError, SpecError
from polarspike.graph import finish, signals
from polarspike.inputs import Inputs, Signature
from polarspike.operators import Meaning, base_of, describe_target, place_of, unknown
from polarspike.passes import standardize
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.sites import Site
from polarspike.specs import QuantSpec, SiteSpec

# A learned gain starts here where the activation itself has no negative side; from zero it would fire without effect.
_LEARNED_GAIN_START = 0.25


@dataclass(frozen=True)
class FloatLaw:
    """What an activation computes: ``min(x, ceiling)`` for x >= 0, ``slope * x`` below."""

    slope: float = 0.0
    ceiling: float | None = None


def _leaky(module: nn.Module) -> FloatLaw:
    return FloatLaw(slope=float(module.negative_slope))  # type: ignore[arg-type]


#: The rule table: which activations become a site, and the float function that the site stands for.
RULES: dict[type[nn.Module], Callable[[nn.Module], FloatLaw]] = {
    nn.ReLU: lambda module: FloatLaw(),
    nn.ReLU6: lambda module: FloatLaw(ceiling=6.0),
    nn.LeakyReLU: _leaky,
}


@dataclass(frozen=True)
class PlannedSite:
    """One row of a plan: a site, what it replaces, what it gets, and why."""

    name: str
    replaces: str
    spec: SiteSpec
    reason: str


@dataclass(frozen=True)
class Plan:
    """What :func:`quantize` would do: the sites, and the operators that stay as they are."""

    sites: tuple[PlannedSite, ...]
    analog: tuple[tuple[str, str, str], ...]

    def __str__(self) -> str:
        lines = [f"{len(self.sites)} sites become spiking:"]
        width = max(len(name) for name in [*(site.name for site in self.sites), *(row[0] for row in self.analog)])
        for site in self.sites:
            gain = "learned" if site.spec.learned_gain else f"{site.spec.gain:g}"
            steps = f"{site.spec.channels} steps" if site.spec.channels else "1 step"
            lines.append(
                f"  {site.name:<{width}}  {site.replaces:<10} levels {site.spec.levels}, gain {gain}, {steps}: {site.reason}"
            )
        if not any(site.spec.negative for site in self.sites):
            lines.append("  (no site has negative levels: all are rectified; QuantSpec(signed='all') would give them)")
        lines.append(f"{len(self.analog)} operators stay as they are:")
        lines += [f"  {name:<{width}}  {target:<18} {note}" for name, target, note in self.analog]
        return "\n".join(lines)


def inspect(model: nn.Module, spec: QuantSpec, example: Inputs) -> Plan:
    """Say what :func:`quantize` would do, without doing it.

    Raises: what :func:`quantize` raises.
    """
    return _plan(_captured(model, spec, example), spec, graph_inputs(model, example))


def quantize(model: nn.Module, spec: QuantSpec, *, example: Inputs) -> QuantizedNetwork:
    """A quantized copy of a model; the model itself is left untouched.

    The model is captured as a graph, standardized, and checked: with float activations at its sites the graph must
    compute what the model computes, on the example and on another batch size and content. The steps are chosen
    afterwards, by :func:`polarspike.calibrate`.

    The graph is that of evaluation mode: what the model does only under ``if self.training`` is not in it, and functional
    dropout becomes a module that follows the network's mode.

    Args:
        model: a module that torch.fx can trace and whose operators are all in the operator table.
        spec: levels, gain, granularity and initialization of the sites.
        example: an example input batch: a tensor, a tuple (positional) or a dict (keyword).

    Raises:
        InputError: the example does not fit the model, or holds NaN or Inf.
        CaptureError: the model cannot be traced, holds NaN, or its graph computes something else.
        OperatorError: an operator is not in the table, or there is nothing to quantize.
        SpecError: the spec cannot hold at a site, or an override matches none.
    """
    network = _captured(model, spec, example)
    plan = _plan(network, spec, graph_inputs(model, example))
    for site in plan.sites:
        network.add_submodule(site.name, PolarityQuantizer(site.spec, site.name))
    qann = QuantizedNetwork(finish(network), spec, Signature.of(example))
    with qann.float_activations():
        check_capture(model, qann, example)
    modes = {name: module.training for name, module in model.named_modules()}
    qann.train(model.training)
    for name, module in qann.network.named_modules():  # a norm that was frozen stays frozen
        module.training = modes.get(name, module.training)
    return qann


def _captured(model: nn.Module, spec: QuantSpec, example: Inputs) -> fx.GraphModule:
    if not isinstance(spec, QuantSpec):
        raise SpecError(f"expected a QuantSpec, got {type(spec).__name__}; write QuantSpec(negative=2, positive=6)")
    if isinstance(model, nn.Module) and any(isinstance(part, Site) for part in model.modules()):
        raise SpecError(f"expected a float model, got {type(model).__name__} with sites already in it")
    return standardize(capture(model, example))


def _plan(network: fx.GraphModule, spec: QuantSpec, inputs: dict[str, Any]) -> Plan:
    sites: list[PlannedSite] = []
    analog: list[tuple[str, str, str]] = []
    dependent = signals(network)
    shapes = _shapes(network, inputs)
    for node in network.graph.nodes:
        if node.op in ("placeholder", "output", "get_attr"):
            continue
        meaning = require_contract(network, node, dependent)
        if meaning is Meaning.ACTIVATION and node not in dependent:
            raise OperatorError(
                f"{place_of(node)}: an activation of a constant; a neuron would fire it step by step, and what it feeds "
                "would no longer be constant. Compute it once, outside of forward, and keep it as a parameter or buffer"
            )
        if meaning is Meaning.ACTIVATION:
            sites.append(_planned_site(network, node, spec, shapes))
        elif meaning in _NOTES and node in dependent:
            analog.append((str(node.target) if node.op == "call_module" else node.name,
                           describe_target(network, node), _NOTES[meaning]))  # fmt: skip
    if not sites:
        raise OperatorError(
            "the model has no activation that could become a site, so nothing would spike; "
            f"known activations: {', '.join(kind.__name__ for kind in RULES)} and their functional forms"
        )
    if not any(site.spec.learned_gain for site in sites) and spec.gain == "learned":
        raise SpecError(
            "QuantSpec.gain='learned' reaches no site: none has negative levels, because every activation here is "
            "rectified; give signed='all', or a number"
        )
    for pattern in spec.overrides:
        if not any(spec.at(site.name) is spec.overrides[pattern] for site in sites):
            names = ", ".join(site.name for site in sites)
            raise SpecError(f"QuantSpec.overrides: the pattern {pattern!r} matches no site of its own; sites: {names}")
    return Plan(tuple(sites), tuple(analog))


_NOTES: dict[Meaning, str] = {
    Meaning.CONVOLUTION: "synapses",
    Meaning.LINEAR: "synapses",
    Meaning.NORM: "affine per channel",
    Meaning.AVERAGE: "affine: a mean of spikes",
    Meaning.MAX_POOLING: "exact at T=1; over time on sums",
    Meaning.ADD: "affine: sums spikes of its operands",
    Meaning.SCALE: "affine: a constant factor",
    Meaning.CONCATENATE: "affine",
    Meaning.UPSAMPLE: "affine",
    Meaning.DROPOUT: "training only",
}


def _planned_site(
    network: fx.GraphModule, node: fx.Node, spec: QuantSpec, shapes: dict[fx.Node, torch.Size]
) -> PlannedSite:
    module = network.get_submodule(str(node.target))
    kind = base_of(module)
    if kind not in RULES:
        raise unknown(network, node)
    law = RULES[kind](module)
    name = str(node.target)
    local = spec.at(name)
    site, reason = _site_spec(law, local, name)
    if local.granularity == "channel":
        shape = shapes[node]
        if len(shape) < 2:
            raise SpecError(
                f"{place_of(node)}: one step per channel needs a channel dimension, got shape {tuple(shape)}"
            )
        site = replace(site, channels=shape[1])
    return PlannedSite(name, kind.__name__, site, reason)


def _site_spec(law: FloatLaw, spec: QuantSpec, name: str) -> tuple[SiteSpec, str]:
    """Levels and gain of one site; see the table in :class:`~polarspike.specs.QuantSpec`."""
    signed_by_nature = law.slope > 0.0
    if signed_by_nature and (spec.signed == "none" or spec.negative == 0):
        raise SpecError(
            f"site {name!r}: LeakyReLU passes negative values, which (0, {spec.positive}) would lose; "
            "give negative >= 1 and signed='by-nature', here or in overrides"
        )
    if law.slope > 1.0 or law.slope < 0.0:
        raise SpecError(f"site {name!r}: expected a negative slope in [0, 1], got {law.slope}")
    common: dict[str, Any] = {"positive": spec.positive, "slope": law.slope, "ceiling": law.ceiling, "init": spec.init}
    if not signed_by_nature and spec.signed != "all":
        return SiteSpec(negative=0, **common), "rectified"
    learned = spec.gain == "learned"
    natural = law.slope or (_LEARNED_GAIN_START if learned else float(spec.gain))
    reason = f"signed by nature (slope {law.slope:g})" if signed_by_nature else "signed on request"
    return SiteSpec(negative=spec.negative, gain=natural, learned_gain=learned, **common), reason


class _ShapeRecorder(fx.Interpreter):
    def __init__(self, network: fx.GraphModule) -> None:
        super().__init__(network)
        self.shapes: dict[fx.Node, torch.Size] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor):
            self.shapes[n] = value.shape
        return value


@torch.no_grad()
def _shapes(network: fx.GraphModule, inputs: dict[str, Any]) -> dict[fx.Node, torch.Size]:
    recorder = _ShapeRecorder(network)
    recorder.run(*inputs.values())
    return recorder.shapes
