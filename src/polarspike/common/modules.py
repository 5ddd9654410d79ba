"""Small tools for any module: call it, find its device, put it into evaluation mode for a while, let hooks go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from polarspike.common.inputs import Inputs, as_call
from polarspike.common.precision import float32_products
from polarspike.errors import SpecError


def apply(network: nn.Module, inputs: Inputs, **options: Any) -> Any:
    """The answer of a module: a tensor is its argument, a dict holds keyword arguments; ``options`` follow them."""
    args, kwargs = as_call(inputs)
    return network(*args, **kwargs, **options)


def device_of(network: nn.Module) -> torch.device:
    """Where the parameters of a module are (or its buffers; the CPU if it has neither)."""
    for tensor in (*network.parameters(), *network.buffers()):
        return tensor.device
    return torch.device("cpu")


def require_ordinary(operation: str, network: nn.Module) -> None:
    """Refuse weights that torch cannot take a gradient of, ever: those that were made in its inference mode.

    Raises:
        SpecError: such a parameter or buffer, by name.
    """
    for name, tensor in (*network.named_parameters(), *network.named_buffers()):
        if tensor.is_inference():
            raise SpecError(
                f"{operation}: {name!r} was made within torch.inference_mode(), whose tensors take part in no gradient; "
                "build, quantize and load networks outside of it, or give a copy.deepcopy of this one"
            )


def move_for_training(network: nn.Module, device: torch.device | str) -> nn.Module:
    """The network on a device with its weights in channels_last, in which convolutions are faster; in place.

    Weights keep their order where torch's kernels for a CPU would not survive the other: there the backward pass of a
    strided 1x1 convolution of few channels writes beyond its memory. (Seen with torch 2.14.1 on AVX2 below 7 channels;
    twice the width of its vectors is left aside, because there are processors with twice that width.)
    """
    if torch.device(device).type == "cpu" and any(map(_is_fragile, network.modules())):
        return network.to(device)
    return network.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _is_fragile(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.Conv2d)
        and module.in_channels // module.groups < 16
        and set(module.kernel_size) == {1}
        and max(module.stride) > 1
    )


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within this context these hooks stay; they are removed at its end."""
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()


@torch.no_grad()
def ranks_behind_linear(network: nn.Module, inputs: Inputs) -> dict[str, int]:
    """How many dimensions the output of every linear layer has, by path: two where its inputs are vectors."""
    found: dict[str, int] = {}
    handles = [
        part.register_forward_hook(lambda _, __, y, name=name: found.update({name: y.dim()}))
        for name, part in network.named_modules()
        if isinstance(part, nn.Linear)
    ]
    with hooked(handles):
        apply(network, inputs)
    return found


@contextlib.contextmanager
def at_rest(*networks: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode, and every sub-module back into its own mode afterwards."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """The same, and float32 is multiplied as such: what is measured does not depend on a GPU's roundings."""
    with at_rest(*networks), float32_products():
        yield
