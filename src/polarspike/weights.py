"""Weights of few bits, trained as such: for hardware and integer kernels that hold no float weights."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from polarspike import ops
from polarspike.common.checks import is_integer
from polarspike.errors import SpecError
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import entry_of
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import WeightQuantizer
from polarspike.sites import Site

#: Up to here float32 has room for the half that rounding adds.
_MOST_UNITS = 2**23


def quantize_weights(qann: QuantizedNetwork, bits: int = 8, *, dyadic: bool = False) -> tuple[str, ...]:
    """Let every convolution and linear layer compute with weights of ``bits`` bits, in place, while they train.

    From now on the layers round their weights (:class:`~polarspike.quantizers.WeightQuantizer`), and training moves the
    float weights behind them. :func:`polarspike.convert` takes the rounded ones. End it with :func:`fix_weights`, before
    the network is saved. Biases stay float: integer membranes hold them in 32 bits.

    Args:
        qann: calibrated or not; fold its batch norms before, if the weights that run are to be the rounded ones.
        bits: 2 to 8.
        dyadic: steps of the weights that are powers of two, for networks whose sites have such steps, too
            (:func:`polarspike.snap_steps`): exported to whole numbers, layers without residual sums then fire the very codes
            of the spiking network. 2 to 7 bits, because integer kernels hold such weights doubled.

    Returns:
        The names of the layers.

    Raises:
        SpecError: not a quantized network, a number of bits out of range, or weights that are rounded already.
    """
    if not isinstance(qann, QuantizedNetwork):
        raise SpecError(f"quantize_weights: expected what polarspike.quantize returns, got {type(qann).__name__}")
    most = 7 if dyadic else 8
    if not is_integer(bits, 2) or bits > most:
        with_powers = " with dyadic=True" if dyadic else ""
        raise SpecError(f"quantize_weights: bits: expected a whole number from 2 to {most}{with_powers}, got {bits!r}")
    names = []
    for name, module in qann.network.named_modules():
        entry = entry_of(module)
        if entry is None or entry.meaning not in (Meaning.CONVOLUTION, Meaning.LINEAR):
            continue
        if parametrize.is_parametrized(module):
            raise SpecError(
                f"quantize_weights: {name!r} is parametrized already; call fix_weights, or "
                "torch.nn.utils.parametrize.remove_parametrizations, first"
            )
        output_dim = 1 if isinstance(module, nn.modules.conv._ConvTransposeNd) else 0
        parametrize.register_parametrization(module, "weight", WeightQuantizer(bits, output_dim, dyadic))
        names.append(name)
    return tuple(names)


def fix_weights(network: nn.Module) -> tuple[str, ...]:
    """Keep the rounded weights as plain ones, in place, and end the rounding.

    In a quantized network with dyadic weights whose input has steps that are powers of two, biases move to the grid of
    their sums, by at most half a unit of it, so that float32 sums are exact: fix the weights before you convert.

    Args:
        network: whose weights :func:`quantize_weights` rounds.

    Returns:
        The names of the layers.
    """
    quantized = isinstance(network, QuantizedNetwork)
    network = network.network if isinstance(network, QuantizedNetwork) else network
    names = trained_weights(network)
    for name in names:
        module = network.get_submodule(name)
        weight: Tensor = module.weight  # type: ignore[assignment]
        trained: bool = module.parametrizations["weight"].original.requires_grad  # type: ignore[index, union-attr]
        if quantized:
            _fix_bias(network, name, module)
        # By hand: torch removes the property from a class that copies of the module share.
        del module.parametrizations
        module.__class__ = type(module).__mro__[1]
        module.weight = nn.Parameter(weight.detach().clone(), requires_grad=trained)
    return names


@torch.no_grad()
def _fix_bias(network: nn.Module, name: str, module: nn.Module) -> None:
    steps: Any = module.parametrizations["weight"]  # type: ignore[index]
    rounding, bias = steps[0], module.bias
    unit = _unit_of_input(network, name) if isinstance(network, fx.GraphModule) else None
    if not isinstance(rounding, WeightQuantizer) or not rounding.dyadic or not isinstance(bias, Tensor) or unit is None:
        return
    grid = rounding.step_of(steps.original).flatten() * unit
    if grid.shape == bias.shape:  # a bias beyond float32's digits of its grid lies on it as well as it can
        moved = ops.quantize(bias[None], grid, 1.0, (_MOST_UNITS, _MOST_UNITS))[0]
        bias.copy_(torch.where(bias.abs() < _MOST_UNITS * grid, moved, bias))


def _unit_of_input(network: fx.GraphModule, name: str) -> Tensor | None:
    """The smallest step of the sites that a layer reads; None if one of them is no power of two, or there is none."""
    found: list[Tensor] = []
    waiting = [node for node in network.graph.nodes if node.op == "call_module" and node.target == name]
    while waiting:
        for node in waiting.pop().all_input_nodes:
            site = network.get_submodule(str(node.target)) if node.op == "call_module" else None
            if not isinstance(site, Site):
                waiting.append(node)
            elif not site.dyadic:
                return None
            else:
                found.append(site.step.detach().min())
    return torch.stack(found).min() if found else None


def trained_weights(network: nn.Module) -> tuple[str, ...]:
    """The layers whose weights are rounded while they train."""
    return tuple(name for name, module in network.named_modules() if _is_rounded(module))


def _is_rounded(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    steps = module.parametrizations["weight"]  # type: ignore[index]
    return any(isinstance(step, WeightQuantizer) for step in steps)
