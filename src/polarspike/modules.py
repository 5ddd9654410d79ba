"""Small tools for any module: call it, find its device, put it into evaluation mode for a while, let hooks go."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from polarspike.inputs import Inputs, as_call


def apply(network: nn.Module, inputs: Inputs, **options: Any) -> Any:
    """The answer of a module: a tensor is its argument, a dict holds keyword arguments; ``options`` follow them."""
    args, kwargs = as_call(inputs)
    return network(*args, **kwargs, **options)


def device_of(network: nn.Module) -> torch.device:
    """Where the parameters of a module are (or its buffers; the CPU if it has neither)."""
    for tensor in (*network.parameters(), *network.buffers()):
        return tensor.device
    return torch.device("cpu")


@contextlib.contextmanager
def hooked(handles: Iterable[RemovableHandle]) -> Iterator[None]:
    """Within this context these hooks stay; they are removed at its end."""
    kept = list(handles)
    try:
        yield
    finally:
        for handle in kept:
            handle.remove()


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put modules into evaluation mode, and every sub-module back into its own mode afterwards."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    try:
        for network in networks:
            network.eval()
        yield
    finally:
        for module, mode in modes:
            module.training = mode
