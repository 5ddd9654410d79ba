"""Quantized network -> spiking network.

Quantizers become neurons with the same tensors, and dropout goes. Every other operator stays where it is: affine ones keep
the running-mean contract as they are, and what the others do at later steps is decided by their rule
(:mod:`polarspike.graph.contract`) while the network runs. Nothing is folded: moving a step into a neighbouring weight, or
a batch norm into a convolution, changes sums by rounding, and codes at a boundary with them.
"""

from __future__ import annotations

import copy

from torch import fx

from polarspike.errors import SpecError
from polarspike.graph.contract import Rule, rules_of
from polarspike.graph.editing import finish, signals
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import describe_target, meaning_of
from polarspike.neurons import build_neuron
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import ConvertSpec
from polarspike.spiking import SpikingNetwork
from polarspike.weights import fix_weights


def convert(qann: QuantizedNetwork, spec: ConvertSpec | None = None) -> SpikingNetwork:
    """The spiking network of a quantized network: equal at T = 1, and to its T-fold refinement after T steps.

    The quantized network is left untouched, and the two share no tensor.

    Args:
        qann: what :func:`polarspike.quantize` made, calibrated.
        spec: how neurons fire, and how sequences are read.

    Returns:
        The spiking network; ``snn.report`` says what became what.

    Raises:
        SpecError: not a quantized network.
        CalibrationError: a site has no step.
        OperatorError: an operator has no rule over time.
    """
    if not isinstance(qann, QuantizedNetwork):
        raise SpecError(f"convert: expected what polarspike.quantize returns, got {type(qann).__name__}")
    if spec is not None and not isinstance(spec, ConvertSpec):
        raise SpecError(f"convert: expected a ConvertSpec, got {type(spec).__name__}")
    spec = spec or ConvertSpec()
    for quantizer in qann.sites().values():
        quantizer.require_calibrated()
    network = copy.deepcopy(qann.network)
    fix_weights(network)
    dependent = signals(network)
    rules = rules_of(network, dependent)
    rows = [_convert_node(network, node, rules, spec) for node in list(network.graph.nodes)]
    snn = SpikingNetwork(finish(network), qann.signature, spec, "\n".join(filter(None, rows)))
    snn.notes = dict(qann.notes)
    return snn


def _convert_node(network: fx.GraphModule, node: fx.Node, rules: dict[fx.Node, Rule], spec: ConvertSpec) -> str:
    """Put the temporal counterpart of one node into the network; return its line of the report."""
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = str(node.target) if module is not None else node.name
    if isinstance(module, PolarityQuantizer):
        neuron = build_neuron(module.spec, module.name, spec).adopt(module)
        network.add_submodule(name, neuron)
        return f"{name}: quantizer -> neuron, levels {neuron.levels}" + (
            ", step a power of two" if neuron.dyadic else ""
        )
    if node not in rules:
        return ""
    if meaning_of(network, node) is Meaning.DROPOUT:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        network.graph.erase_node(node)
        return f"{name}: dropout -> removed"
    return f"{name}: {describe_target(network, node)} -> {rules[node].value}"
