"""Quantized network -> spiking network, by a rule table over meanings.

Quantizers become neurons with the same tensors; affine operators stay, because they keep the running-mean contract as they
are; max pooling becomes a difference on sums; dropout goes. Anything else is an error. Nothing is folded: moving a step
into a neighbouring weight, or a batch norm into a convolution, changes sums by rounding, and codes at a boundary with them.
"""

from __future__ import annotations

import copy
import operator

import torch
from torch import fx, nn
from torch.utils import _pytree as pytree

from polarspike.errors import OperatorError, SpecError
from polarspike.graph import finish, signals
from polarspike.neurons import PolarityNeuron
from polarspike.operators import Meaning, describe_target, meaning_of, place_of, unknown
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import ConvertSpec
from polarspike.spiking import SpikingNetwork
from polarspike.temporal import HomogeneousDifference

#: Operators whose output over time is the running-mean contract as they stand.
AFFINE = frozenset(
    {
        Meaning.CONVOLUTION,
        Meaning.LINEAR,
        Meaning.NORM,
        Meaning.AVERAGE,
        Meaning.ADD,
        Meaning.SCALE,
        Meaning.CONCATENATE,
        Meaning.RESHAPE,
        Meaning.PAD,
        Meaning.UPSAMPLE,
        Meaning.SIZE,
    }
)


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
    meaning = meaning_of(network, node)
    if meaning is Meaning.MAX_POOLING and module is not None:
        network.add_submodule(name, HomogeneousDifference(module))
        return f"{name}: {type(module).__name__} -> difference on sums"
    if meaning is Meaning.DROPOUT:
        node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
        network.graph.erase_node(node)
        return f"{name}: dropout -> removed"
    if meaning not in AFFINE:
        raise unknown(network, node)
    if node in dependent:
        _require_affine(network, node, meaning, dependent)
    if meaning is Meaning.NORM and isinstance(module, nn.Module) and getattr(module, "running_mean", None) is None:
        raise OperatorError(
            f"{place_of(node)}: a batch norm without running statistics normalizes each batch by itself, which has no "
            "running mean; use track_running_stats=True"
        )
    return f"{name}: {describe_target(network, node)} -> as it is" if node in dependent else ""


def _require_affine(network: fx.GraphModule, node: fx.Node, meaning: Meaning, dependent: set[fx.Node]) -> None:
    """Refuse the calls of known operators that are not affine in their signals."""

    def moving(position: int, name: str) -> bool:
        value = node.args[position] if len(node.args) > position else node.kwargs.get(name)
        return any(leaf in dependent for leaf in pytree.tree_leaves(value) if isinstance(leaf, fx.Node))

    def refuse(problem: str, repair: str) -> OperatorError:
        what = describe_target(network, node)
        return OperatorError(f"{place_of(node)}: {what} {problem}, so it has no rule over time; {repair}")

    function = node.op == "call_function"
    if meaning is Meaning.SCALE:
        if moving(1, "other") and (moving(0, "input") or "div" in describe_target(network, node)):
            raise refuse(
                "of two signals, or by a signal, is not affine",
                "scale by a constant or a parameter instead, or add the signals",
            )
        if node.kwargs.get("rounding_mode") is not None:
            raise refuse("with rounding_mode is not affine", "divide without it")
    elif meaning in (Meaning.CONVOLUTION, Meaning.LINEAR) and function and moving(1, "weight"):
        raise refuse("whose weight is a signal is not affine", "use a constant weight")
    elif node.target is operator.getitem and moving(1, ""):
        raise refuse("at a place that a signal names is not affine", "use constant indices")
    elif node.target == "view" and any(isinstance(value, torch.dtype) for value in node.args):
        raise refuse("as another type is not affine", "view as another shape alone")
