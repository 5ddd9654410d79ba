"""The quantized network (QANN): a captured graph whose sites hold quantizers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from torch import fx, nn

from polarspike import passes
from polarspike.errors import InputError, SpecError
from polarspike.graph import finish
from polarspike.inputs import Signature
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import QuantSpec


class QuantizedNetwork(nn.Module):
    """An ordinary module that computes a model with quantized activations.

    Train it with any loop, move it, copy it, compile it. :func:`polarspike.quantize` makes one.

    Args:
        network: the graph, with a :class:`~polarspike.quantizers.PolarityQuantizer` at every site.
        spec: what it was quantized with.
        signature: the example's input shapes, against which later inputs are checked.

    Attributes:
        notes: plain data that goes with the network into its file: data normalization, class names, origin.
    """

    def __init__(self, network: fx.GraphModule, spec: QuantSpec, signature: Signature) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.signature = signature
        self.notes: dict[str, Any] = {}
        self.train(network.training)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return checked_call(self.network, self.signature, inputs, named)

    def sites(self) -> dict[str, PolarityQuantizer]:
        """The quantizers by site name, in the order in which a signal meets them."""
        found = {}
        for node in self.network.graph.nodes:
            if node.op == "call_module":
                module = self.network.get_submodule(str(node.target))
                if isinstance(module, PolarityQuantizer):
                    found[str(node.target)] = module
        return found

    @contextlib.contextmanager
    def float_activations(self) -> Iterator[None]:
        """Within this context every site behaves as the float activation that it replaced."""
        quantizers = self.sites().values()
        try:
            for quantizer in quantizers:
                quantizer.enabled = False
            yield
        finally:
            for quantizer in quantizers:
                quantizer.enabled = True


def checked_call(network: nn.Module, signature: Signature, inputs: tuple[Any, ...], named: dict[str, Any]) -> Any:
    """Run a network on inputs that fit its signature; an error of torch says how the inputs differ from the example."""
    given = {**{str(index): value for index, value in enumerate(inputs)}, **named}
    signature.check(given)
    try:
        return network(*inputs, **named)
    except RuntimeError as error:
        if difference := signature.explain(given):
            raise InputError(f"{difference}, and the network cannot take it: {error}") from error
        raise


def refine(qann: QuantizedNetwork, factor: int) -> QuantizedNetwork:
    """The quantized network that the spiking network equals after ``factor`` timesteps.

    Every step becomes s / factor and every level pair (N factor, P factor): the same range on a finer grid.

    Raises:
        SpecError: ``factor`` is not a positive integer.
    """
    if isinstance(factor, bool) or not isinstance(factor, int) or factor < 1:
        raise SpecError(f"refine: expected a positive integer factor, got {factor!r}")
    fine = copy.deepcopy(qann)
    for name, quantizer in fine.sites().items():
        fine.network.add_submodule(name, quantizer.refined(factor))
    fine.network.recompile()
    return fine


def fold_batch_norm(qann: QuantizedNetwork) -> QuantizedNetwork:
    """A copy with every batch norm folded into the layer before it; calibrate after folding, not before.

    Raises:
        SpecError: a site already has a step: folding changes sums by rounding, and codes at a boundary with them.
    """
    if calibrated := [name for name, quantizer in qann.sites().items() if quantizer.calibrated]:
        raise SpecError(
            f"fold_batch_norm: expected a network without steps, but {calibrated[0]!r} is calibrated; "
            "fold first, then calibrate"
        )
    folded = copy.deepcopy(qann)
    folded.network = finish(passes.fold_batch_norm(folded.network))
    return folded
