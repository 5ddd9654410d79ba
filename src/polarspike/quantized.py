"""The quantized network (QANN): a captured graph whose sites hold quantizers."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor, fx, nn

from polarspike.capture import passes
from polarspike.common.checks import is_integer
from polarspike.common.inputs import Inputs, bind, tensors_of, to_device
from polarspike.common.modules import evaluating, ranks_behind_linear
from polarspike.common.signatures import Signature
from polarspike.errors import CalibrationError, InputError, SpecError
from polarspike.graph.editing import INTEGERS, finish, modules_of
from polarspike.quantizers import PolarityQuantizer
from polarspike.sites import require_exact_codes
from polarspike.specs import QuantSpec, SiteSpec


class QuantizedNetwork(nn.Module):
    """An ordinary module that computes a model with quantized activations.

    Train it with any loop, move it, copy it, compile it. :func:`polarspike.quantize` makes one.

    Args:
        network: the graph, with a :class:`~polarspike.quantizers.PolarityQuantizer` at every site.
        spec: what it was quantized with.
        signature: the example's input shapes, against which later inputs are checked.

    Attributes:
        notes: plain data that goes with the network into its file: data normalization, class names, origin.
        frozen: modules that stay in evaluation mode, as in the model's own ``train()``; batch norms, most often.
    """

    def __init__(self, network: fx.GraphModule, spec: QuantSpec, signature: Signature) -> None:
        super().__init__()
        self.network = network
        self.spec = spec
        self.signature = signature
        self.notes: dict[str, Any] = {}
        self.frozen: tuple[str, ...] = ()
        self._arguments = parameters_of(network)
        self._named_signature = signature.named(self._arguments)
        self.train(network.training)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        given = bind(self._arguments, inputs, named)
        with fitting(self._named_signature, given):
            return nn.Module.__call__(self.network, *given.values())  # that of fx prints a traceback of its own

    def train(self, mode: bool = True) -> QuantizedNetwork:
        """As of any module; what is frozen stays in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.network.get_submodule(name).eval()
        return self

    def sites(self) -> dict[str, PolarityQuantizer]:
        """The quantizers by site name, in the order in which a signal meets them."""
        return modules_of(self.network, PolarityQuantizer)

    @contextlib.contextmanager
    def float_activations(self) -> Iterator[None]:
        """Within this context every site behaves as the float activation that it replaced."""
        former = [(quantizer, quantizer.enabled) for quantizer in self.sites().values()]
        try:
            for quantizer, _ in former:
                quantizer.enabled = False
            yield
        finally:
            for quantizer, enabled in former:
                quantizer.enabled = enabled


def parameters_of(network: fx.GraphModule) -> dict[str, Any]:
    """The inputs of a graph by name, with their defaults (``inspect.Parameter.empty`` for none), in order."""
    return {
        str(node.target): Parameter.empty if node.args in ((), (...,)) else node.args[0]
        for node in network.graph.nodes
        if node.op == "placeholder"
    }


def inputs_like(
    network: fx.GraphModule, signature: Signature, samples: int, make: Callable[[tuple[int, ...]], Tensor]
) -> Inputs:
    """Inputs in the shapes of the captured example: ones where integers belong, elsewhere what ``make`` gives of a shape.

    Args:
        network: the graph.
        signature: of its example.
        samples: how many.
        make: takes (samples, ...), or the whole shape of what is the same for all of them.

    Returns:
        A tuple where the example was passed by position, else a dict.
    """
    integers = network.meta.get(INTEGERS, ())
    made = {
        name: torch.ones(shape, dtype=torch.int64) if name in integers else make(shape)
        for name, own in signature.named(parameters_of(network)).shapes
        for shape in [own if name in signature.shared else (samples, *own)]
    }
    return tuple(made.values()) if all(name.isdecimal() for name, _ in signature.shapes) else made


@contextlib.contextmanager
def fitting(signature: Signature, given: Mapping[str, Any]) -> Iterator[None]:
    """Refuse inputs that do not fit; within the context an error of torch says how they differ from the example.

    Raises:
        InputError: what :meth:`~polarspike.common.signatures.Signature.check` refuses, or inputs of another size than the
            example's that the network cannot take.
    """
    signature.check(given)
    try:
        yield
    except RuntimeError as error:
        difference = signature.explain(given) or "; ".join(
            f"input {name!r} has type {tensor.dtype} (use x.float(), or network.double() for float64)"
            for name, tensor in tensors_of(given)
            if tensor.dtype != torch.float32
        )
        if difference:
            reason = str(error).partition("\n\nWhile executing")[0]  # fx adds its own traceback
            raise InputError(f"{difference}, and the network cannot take it: {reason}") from error
        raise


def refine(qann: QuantizedNetwork, factor: int) -> QuantizedNetwork:
    """The quantized network that the spiking network equals after ``factor`` timesteps.

    Every step becomes s / factor and every level pair (N factor, P factor): the same range on a finer grid.

    Raises:
        SpecError: ``factor`` is not a positive integer, or too large for exact codes, or this is no quantized network.
    """
    _require_quantized("refine", qann)
    if not is_integer(factor, 1):
        raise SpecError(f"refine: expected a positive integer factor, got {factor!r}")
    require_exact_codes("refine", qann.sites(), factor)
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
    _require_quantized("fold_batch_norm", qann)
    if calibrated := [name for name, quantizer in qann.sites().items() if quantizer.calibrated]:
        raise SpecError(
            f"fold_batch_norm: expected a network without steps, but {calibrated[0]!r} is calibrated; "
            "fold first, then calibrate"
        )
    folded = copy.deepcopy(qann)
    folded.network = finish(passes.fold_batch_norm(folded.network, _layers_of_vectors(folded)))
    left = {name for name, _ in folded.network.named_modules()}
    folded.frozen = tuple(name for name in folded.frozen if name in left)
    return folded


def _layers_of_vectors(qann: QuantizedNetwork) -> set[str]:
    """The linear layers whose output is (batch, features); in others a batch norm's channels are not the features."""
    first = next(qann.parameters())
    example = to_device(inputs_like(qann.network, qann.signature, 2, first.new_zeros), first.device)
    with qann.float_activations(), evaluating(qann):
        ranks = ranks_behind_linear(qann, example)
    return {name.removeprefix("network.") for name, rank in ranks.items() if rank == 2}


def require_calibrated(verb: str, qann: object) -> QuantizedNetwork:
    """Refuse what is no quantized network, or has a site without a step.

    Raises:
        SpecError: not what :func:`polarspike.quantize` returns.
        CalibrationError: a site has no step.
    """
    network = _require_quantized(verb, qann)
    for name, site in network.sites().items():
        if not site.calibrated:
            raise CalibrationError(f"{verb}: site {name!r} has no step yet; call polarspike.calibrate first")
    return network


def require_same_graph(verb: str, qann: QuantizedNetwork, reference: object) -> None:
    """Refuse a reference that is no copy of a network; None is none.

    Raises:
        SpecError: it has another graph.
    """
    if reference is None:
        return
    graphs = [
        [(node.op, node.name, str(node.target)) for node in part.network.graph.nodes]
        for part in (qann, reference)
        if isinstance(part, QuantizedNetwork)
    ]
    if len(graphs) != 2 or graphs[0] != graphs[1]:
        raise SpecError(f"{verb}: reference: expected a copy of the quantized network, got another network")


def _require_quantized(verb: str, qann: object) -> QuantizedNetwork:
    if not isinstance(qann, QuantizedNetwork):
        raise SpecError(f"{verb}: expected what polarspike.quantize returns, got {type(qann).__name__}")
    return qann


def respecify(qann: QuantizedNetwork, name: str, spec: SiteSpec, step: Tensor) -> None:
    """Give one site other levels, gain and step, in place; what was learned there is forgotten."""
    former = qann.sites()[name]
    site = PolarityQuantizer(spec, name).to(former.start.device, former.start.dtype)
    site.set_step(step)
    kept = {key: parameter.requires_grad for key, parameter in former.named_parameters()}
    for key, parameter in site.named_parameters():
        parameter.requires_grad_(kept.get(key, True))
    site.train(former.training)
    qann.network.set_submodule(name, site)
