"""Quantized network -> spiking network, by a rule table over meanings.

Quantizers become neurons with the same tensors; affine operators stay, because they keep the running-mean contract as they
are; max pooling becomes a difference on sums; dropout goes. Anything else is an error. Nothing is folded: moving a step
into a neighbouring weight, or a batch norm into a convolution, changes sums by rounding, and codes at a boundary with them.
"""

from __future__ import annotations

import copy

from torch import fx

from polarspike.contract import AFFINE, require_contract
from polarspike.errors import SpecError
from polarspike.graph import finish, signals
from polarspike.neurons import PolarityNeuron
from polarspike.operators import Meaning, describe_target, unknown
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import ConvertSpec
from polarspike.spiking import SpikingNetwork
from polarspike.temporal import HomogeneousDifference


def convert(qann: QuantizedNetwork, spec: ConvertSpec | None = None) -> SpikingNetwork:
    """The spiking network of a quantized network: equal at T = 1, and to its T-fold refinement after T steps.

    The quantized network is left untouched, and the two share no tensor.

    Args:
        qann: what :func:`polarspike.quantize` made, calibrated.
        spec: how sequences are read.

    Returns:
        The spiking network; ``snn.report`` says what became what.

    Raises:
        SpecError: not a quantized network.
        CalibrationError: a site has no step.
        OperatorError: an operator has no rule over time (a product of two signals).
    """
    if not isinstance(qann, QuantizedNetwork):
        raise SpecError(f"convert: expected what polarspike.quantize returns, got {type(qann).__name__}")
    if spec is not None and not isinstance(spec, ConvertSpec):
        raise SpecError(f"convert: expected a ConvertSpec, got {type(spec).__name__}")
    for quantizer in qann.sites().values():
        quantizer.require_calibrated()
    network = copy.deepcopy(qann.network)
    dependent = signals(network)
    rows = [_convert_node(network, node, dependent) for node in list(network.graph.nodes)]
    snn = SpikingNetwork(finish(network), qann.signature, spec or ConvertSpec(), "\n".join(filter(None, rows)))
    snn.notes = dict(qann.notes)
    return snn


def _convert_node(network: fx.GraphModule, node: fx.Node, dependent: set[fx.Node]) -> str:
    """Put the temporal counterpart of one node into the network; return its line of the report."""
    if node.op in ("placeholder", "get_attr", "output"):
        return ""
    module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
    name = str(node.target) if module is not None else node.name
    if isinstance(module, PolarityQuantizer):
        neuron = PolarityNeuron(module.spec, module.name).adopt(module)
        network.add_submodule(name, neuron)
        return f"{name}: quantizer -> neuron, levels {neuron.levels}"
    meaning = require_contract(network, node, dependent)
    if meaning is Meaning.MAX_POOLING and module is not None:
        network.add_submodule(name, HomogeneousDifference(module))
        return f"{name}: {type(module).__name__} -> difference on sums"
    if meaning is Meaning.DROPOUT:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        network.graph.erase_node(node)
        return f"{name}: dropout -> removed"
    if meaning not in AFFINE:
        raise unknown(network, node)  # an activation that somebody put back in the place of a site
    return f"{name}: {describe_target(network, node)} -> as it is" if node in dependent else ""
