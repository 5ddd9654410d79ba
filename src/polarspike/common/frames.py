"""Inputs over several timesteps: one object T times, or the frames of a sequence; as channels, and their running means."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from polarspike.common.checks import is_integer
from polarspike.common.inputs import Inputs, as_whole, map_inputs, named_values, tensors_of
from polarspike.errors import InputError, SpecError


def frames_of(inputs: Inputs, timesteps: int | None, time_dim: int | None) -> list[Inputs]:
    """The inputs of steps 1..T: one object T times, or the frames of a sequence as views.

    Args:
        inputs: of one call; with ``time_dim`` every tensor holds its time in that dimension, other values stay as they are.
        timesteps: T; None for 1, or for the length of the sequence.
        time_dim: None if the same input is given at every step.

    Raises:
        SpecError: ``timesteps`` is not a positive integer or contradicts the sequence; ``time_dim`` is not an integer.
        InputError: the sequences have no such dimension, no frames, or different lengths.
    """
    timesteps, time_dim = as_whole(timesteps), as_whole(time_dim)
    if timesteps is not None and not is_integer(timesteps, 1):
        raise SpecError(f"timesteps: expected a positive integer, got {timesteps!r}")
    if time_dim is None:
        return [inputs] * (timesteps or 1)
    if not is_integer(time_dim):
        raise SpecError(f"time_dim: expected an integer or None, got {time_dim!r}")
    tensors = tensors_of(inputs)
    for name, tensor in tensors:
        if not -tensor.dim() <= time_dim < tensor.dim():
            raise InputError(
                f"time_dim={time_dim}: input {name!r} of shape {tuple(tensor.shape)} has no such dimension"
            )
    lengths = {tensor.shape[time_dim] for _, tensor in tensors}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"time_dim={time_dim}: expected inputs of one common length, at least 1, got {sorted(lengths)}"
        )
    length = lengths.pop()
    if timesteps not in (None, length):
        raise SpecError(f"timesteps={timesteps} contradicts a sequence of {length} frames; leave timesteps out")
    return [
        map_inputs(lambda value, t=t: value.select(time_dim, t) if isinstance(value, Tensor) else value, inputs)
        for t in range(length)
    ]


def channels_of(inputs: Inputs, time_dim: int) -> Inputs:
    """Sequences with their frames side by side as channels: (batch, T, C, ...) -> (batch, T C, ...).

    Raises:
        InputError: a tensor without such a dimension, or without channels beside it.
    """

    def merge(value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        if value.dim() < 3 or not -value.dim() <= time_dim < value.dim() or time_dim % value.dim() == 0:
            raise InputError(
                f"time_dim={time_dim}: expected a sequence (batch, time, channels, ...) with its time behind the batch, got "
                f"shape {tuple(value.shape)}"
            )
        return value.movedim(time_dim, 1).flatten(1, 2)

    return map_inputs(merge, inputs)


def running_means(frames: Iterable[Inputs]) -> Iterator[Inputs]:
    """The mean of frames 1..t for t = 1, 2, ...; the tensor itself as long as it is one object, so that nothing rounds.

    Means are taken in at least float32 and given in the type of the frames.

    Raises:
        InputError: integers that vary over time, whose mean is no integer.
    """
    means: dict[str, Any] = {}
    for t, frame in enumerate(frames, start=1):
        values = named_values(frame)
        means = {name: _updated_mean(name, means[name], value, t) if means else value for name, value in values.items()}
        results = iter(means.values())
        yield map_inputs(lambda value, results=results: _cast_like(next(results), value), frame)


def _updated_mean(name: str, mean: Any, value: Any, timestep: int) -> Any:
    if value is mean or not isinstance(value, Tensor):
        return value
    if not value.is_floating_point():
        if not torch.equal(mean, value):
            raise InputError(
                f"input {name!r}: integers that vary over time have no mean of their own type; give floats"
            )
        return value
    wide = mean.to(torch.promote_types(mean.dtype, torch.float32))
    moved = wide + (value.to(wide.dtype) - wide) / timestep
    return torch.where(wide == value, wide, moved)  # a mask may stay at minus infinity


def _cast_like(mean: Any, value: Any) -> Any:
    return mean.to(value.dtype) if isinstance(value, Tensor) else value
