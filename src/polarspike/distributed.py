"""Several processes that train, calibrate and evaluate one network together; alone, everything here does nothing.

A launcher starts the processes, and :func:`polarspike.processes.join` makes them a group. Then every process computes a
share of every batch:

    training       rows ``rank, rank + world, ...`` of the batch; gradients are averaged over the processes
    evaluation     batches ``rank, rank + world, ...``; counts are integers and summed, so that each sample counts once
    calibration    the same; histograms are merged in the order of ranks, to the same result everywhere

The process of rank 0 alone writes and prints.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, TypeVar

import torch
from torch import distributed as group
from torch import nn

from polarspike.errors import SpecError

Value = TypeVar("Value")


def world_size() -> int:
    """How many processes work together; 1 where no group has been made."""
    return group.get_world_size() if group.is_available() and group.is_initialized() else 1


def rank() -> int:
    """The number of this process among them, from 0."""
    return group.get_rank() if world_size() > 1 else 0


def is_main() -> bool:
    """Whether this process writes and prints."""
    return rank() == 0


def summed(values: Sequence[float]) -> list[float]:
    """Numbers summed over the processes, in float64."""
    if world_size() < 2:
        return list(values)
    total = torch.tensor(values, dtype=torch.float64)
    if group.get_backend() == "nccl":
        total = total.cuda()
    group.all_reduce(total)
    return total.tolist()


def gathered(value: Value) -> list[Value]:
    """The values of all processes, in the order of ranks, everywhere."""
    if world_size() < 2:
        return [value]
    found: list[Any] = [None] * world_size()
    group.all_gather_object(found, value)
    return found


def wait() -> None:
    """Until all processes are here."""
    if world_size() > 1:
        group.barrier()


def own_rows() -> slice:
    """The rows of a batch that this process computes."""
    return slice(rank(), None, world_size())


def own_batches(loader: Iterable[Any]) -> Iterator[tuple[int, Any]]:
    """The batches of a loader that this process computes, with their positions among all."""
    if world_size() < 2:
        return enumerate(loader)
    every = getattr(loader, "every", None)  # a loader of ours makes no others
    found = every(rank(), world_size()) if callable(every) else itertools.islice(loader, rank(), None, world_size())
    return zip(itertools.count(rank(), world_size()), found, strict=False)


def require_same_start(model: nn.Module) -> None:
    """Refuse parameters that differ between the processes: they would go on apart.

    Raises:
        SpecError: the sums of the parameters differ.
    """
    if world_size() < 2:
        return
    sums = gathered([float(parameter.detach().double().sum()) for parameter in model.parameters()])
    if any(other != sums[0] for other in sums):
        raise SpecError(
            "several processes: their networks start from different weights; seed before building the network, or load the "
            "same file in each"
        )


@torch.no_grad()
def share_buffers(model: nn.Module) -> None:
    """Give every process the same buffers: the mean of running statistics, and else those of rank 0."""
    if world_size() < 2:
        return
    for name, buffer in model.named_buffers():
        if name.rpartition(".")[2] in ("running_mean", "running_var"):
            group.all_reduce(buffer)
            buffer.div_(world_size())
        else:
            group.broadcast(buffer, src=0)
