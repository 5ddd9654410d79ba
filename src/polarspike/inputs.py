"""How inputs and batches are read, everywhere: a tensor, a tuple (positional) or a dict (keyword)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polarspike.errors import InputError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]


def as_call(inputs: Inputs) -> Call:
    """Positional and keyword arguments of one forward call.

    >>> as_call((1, 2)), as_call({"x": 3})
    (((1, 2), {}), ((), {'x': 3}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def batches_of(batches: Iterable[Any] | Tensor) -> Iterator[tuple[Inputs, Any]]:
    """Read batches as (inputs, target); a batch is inputs alone or the pair, and several inputs are then a dict.

    A single tensor is one batch, not an iterable of samples.

    Raises:
        InputError: something that is not a batch, named by its position.
    """
    if isinstance(batches, Tensor):
        batches = [batches]
    for position, batch in enumerate(batches):
        if isinstance(batch, (Tensor, Mapping)):
            yield batch, None
        elif isinstance(batch, (tuple, list)) and len(batch) in (1, 2) and isinstance(batch[0], (Tensor, Mapping)):
            yield batch[0], batch[1] if len(batch) == 2 else None
        else:
            raise InputError(
                f"batch {position}: expected inputs (a tensor or a dict) or a pair (inputs, target), "
                f"got {type(batch).__name__}; pack several inputs into a dict by argument name"
            )


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs with every tensor on ``device``."""

    def move(value: Any) -> Any:
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return map_inputs(move, inputs)


def map_inputs(function: Any, inputs: Inputs) -> Inputs:
    """Apply a function to every value of the inputs, keeping their form."""
    if isinstance(inputs, Mapping):
        return {name: function(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(function(value) for value in inputs)
    result: Inputs = function(inputs)
    return result


def tensors_of(inputs: Inputs) -> list[tuple[str, Tensor]]:
    """Every tensor of the inputs with its position or name."""
    args, kwargs = as_call(inputs)
    named = [(str(index), value) for index, value in enumerate(args)] + list(kwargs.items())
    return [(name, value) for name, value in named if isinstance(value, Tensor)]


def batch_size(inputs: Inputs) -> int:
    """The length of dimension 0 of the first tensor."""
    tensors = tensors_of(inputs)
    if not tensors or tensors[0][1].dim() == 0:
        raise InputError("expected at least one input tensor with a batch dimension, got none")
    return tensors[0][1].shape[0]


@dataclass(frozen=True)
class Signature:
    """What the example of a network looked like: the shape of each tensor input behind its batch dimension.

    The number of dimensions and the channels (dimension 1) must agree; spatial sizes may differ.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]

    @classmethod
    def of(cls, inputs: Inputs) -> Signature:
        return cls(tuple((name, tuple(tensor.shape[1:])) for name, tensor in tensors_of(inputs)))

    def check(self, inputs: Inputs) -> None:
        """Refuse inputs that the network cannot have been built for.

        Raises:
            InputError: another number of dimensions, or another number of channels.
        """
        expected = dict(self.shapes)
        for name, tensor in tensors_of(inputs):
            shape = expected.get(name)
            if shape is None:
                continue
            got = tuple(tensor.shape[1:])
            if len(got) != len(shape) or (shape and got[0] != shape[0]):
                wanted = ", ".join(["batch", *(str(n) if d == 0 else f"*({n})" for d, n in enumerate(shape))])
                raise InputError(
                    f"input {name!r}: expected shape ({wanted}) as in the example that the network was captured with, "
                    f"got {tuple(tensor.shape)}"
                )

    def explain(self, inputs: Inputs) -> str:
        """One clause on how these inputs differ from the example; empty if they do not."""
        expected = dict(self.shapes)
        different = [
            f"input {name!r} has shape {tuple(tensor.shape)} where the example had (batch, "
            f"{', '.join(map(str, expected[name]))})"
            for name, tensor in tensors_of(inputs)
            if name in expected and tuple(tensor.shape[1:]) != expected[name]
        ]
        return "; ".join(different)
