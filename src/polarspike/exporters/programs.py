"""The first timestep as a ``torch.export`` program, in which alone the batch size is free."""

from __future__ import annotations

import io
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram

from polarspike.common.inputs import Inputs, as_call, batch_size, float_leaves, is_batched
from polarspike.errors import ExportError
from polarspike.exporters.description import KEY
from polarspike.exporters.report import Runner


def program_of(network: fx.GraphModule, arguments: dict[str, Any], shared: Collection[str] = ()) -> ExportedProgram:
    """The program of a plain graph.

    Args:
        network: what :func:`~polarspike.exporters.first_timestep.first_timestep` made.
        arguments: of the graph, by its parameters' names.
        shared: those that are the same for all samples, which keep their size.

    Raises:
        ExportError: torch cannot export it with a free batch size.
    """
    size, batch = batch_size(arguments, shared), Dim("batch")
    held = [name not in shared and is_batched(value, size) for name, value in arguments.items()]
    values = [_at_least_two(value) if own else value for own, value in zip(held, arguments.values(), strict=True)]
    free = tuple({0: batch} if own else None for own in held)
    try:
        with torch.no_grad():
            return torch.export.export(network, tuple(values), dynamic_shapes=free, strict=False)
    except Exception as error:  # torch has no common base for what can go wrong here
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"torch.export cannot write this network with a free batch size: {reason}") from error


def save(program: ExportedProgram, path: Path, description: str) -> None:
    """Write the program and its description."""
    with open(path, "wb") as file:  # by its name torch would insist on an ending
        torch.export.save(program, file, extra_files={f"{KEY}.json": description})


def runner(path: Path) -> Runner:
    """Read a program back, to run it on inputs."""
    module = torch.export.load(io.BytesIO(path.read_bytes())).module()

    def run(inputs: Inputs) -> list[Tensor]:
        args, kwargs = as_call(inputs)
        with torch.no_grad():
            return float_leaves(module(*args, **kwargs))

    return run


def _at_least_two(samples: Tensor) -> Tensor:
    """A batch of one would be taken for a constant."""
    return torch.cat([samples, samples]) if len(samples) == 1 else samples
