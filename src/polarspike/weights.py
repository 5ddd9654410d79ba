"""Weights of few bits, trained as such: for hardware and integer kernels that hold no float weights."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.utils import parametrize

from polarspike.errors import SpecError
from polarspike.operator_table import Meaning
from polarspike.operators import entry_of
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import WeightQuantizer


def quantize_weights(qann: QuantizedNetwork, bits: int = 8) -> tuple[str, ...]:
    """Let every convolution and linear layer compute with weights of ``bits`` bits, in place, while they train.

    From now on the layers round their weights (:class:`~polarspike.quantizers.WeightQuantizer`), and training moves the
    float weights behind them. :func:`polarspike.convert` takes the rounded ones. End it with :func:`fix_weights`, before
    the network is saved. Biases stay float: integer membranes hold them in 32 bits.

    Args:
        qann: calibrated or not; fold its batch norms before, if the weights that run are to be the rounded ones.
        bits: 2 to 8.

    Returns:
        The names of the layers.

    Raises:
        SpecError: not a quantized network, a number of bits out of range, or weights that are rounded already.
    """
    if not isinstance(qann, QuantizedNetwork):
        raise SpecError(f"quantize_weights: expected what polarspike.quantize returns, got {type(qann).__name__}")
    if isinstance(bits, bool) or not isinstance(bits, int) or not 2 <= bits <= 8:
        raise SpecError(f"quantize_weights: bits: expected a whole number from 2 to 8, got {bits!r}")
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
        parametrize.register_parametrization(module, "weight", WeightQuantizer(bits, output_dim))
        names.append(name)
    return tuple(names)


def fix_weights(network: nn.Module) -> tuple[str, ...]:
    """Keep the rounded weights as plain ones, in place, and end the rounding.

    Args:
        network: whose weights :func:`quantize_weights` rounds.

    Returns:
        The names of the layers.
    """
    network = network.network if isinstance(network, QuantizedNetwork) else network
    names = trained_weights(network)
    for name in names:
        module = network.get_submodule(name)
        weight: Tensor = module.weight  # type: ignore[assignment]
        # By hand: torch removes the property from a class that copies of the module share.
        del module.parametrizations
        module.__class__ = type(module).__mro__[1]
        module.weight = nn.Parameter(weight.detach().clone())
    return names


def trained_weights(network: nn.Module) -> tuple[str, ...]:
    """The layers whose weights are rounded while they train."""
    return tuple(name for name, module in network.named_modules() if _is_rounded(module))


def _is_rounded(module: nn.Module) -> bool:
    if not parametrize.is_parametrized(module, "weight"):
        return False
    steps = module.parametrizations["weight"]  # type: ignore[index]
    return any(isinstance(step, WeightQuantizer) for step in steps)
