"""Several processes that train, calibrate and evaluate one network together; alone, everything here does nothing.

A launcher starts the processes, and :func:`polarspike.parallel.processes.join` makes them a group. Then every process
computes a share of every batch:

    training       rows ``rank, rank + world, ...`` of the batch; gradients are averaged, weighted by rows
    evaluation     batches ``rank, rank + world, ...``; counts are integers and summed, so that each sample counts once
    calibration    the same; histograms are merged in the order of ranks, to the same result everywhere

The loss is then that of one process, to rounding, with three exceptions: batch norms know only the rows of their own
process; where pictures are decoded while batches are made (ImageNet), each process draws the changes of its own rows
and mixes these alone; and what a network draws itself (dropout) each process draws for its own rows.

The process of rank 0 alone writes and prints.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch import distributed as group

from polarspike.common.samplers import generators_of, sources_of
from polarspike.errors import InputError, RunError, SpecError

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


def common(value: Value) -> Value:
    """The value of rank 0, everywhere."""
    if world_size() < 2:
        return value
    found: list[Any] = [value]
    group.broadcast_object_list(found, src=0)
    return found[0]  # type: ignore[no-any-return]


#: A note on errors that are no news to the other processes.
KNOWN = "every process has been told of this error"


@contextmanager
def together() -> Iterator[None]:
    """What is done within either succeeds in all processes or fails in all; nothing in it may wait for another process.

    Raises:
        RunError: it failed in another process only; the message is that process's own.
        Exception: it failed here, with this error.
    """
    if world_size() < 2:
        yield
        return
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    for number, message in enumerate(gathered(None if failure is None else f"{failure}")):
        if failure is not None:
            failure.add_note(KNOWN)
            raise failure
        if message is not None:
            other = RunError(f"process {number}: {message}")
            other.add_note(KNOWN)
            raise other


def ended_elsewhere(error: BaseException) -> bool:
    """Whether this error only says that another process of the group has gone."""
    if world_size() < 2 or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, group.DistError) or any(
        sign in str(error) for sign in ("gloo", "Connection closed by peer")
    )


@dataclass(frozen=True)
class Share:
    """The rows that this process has of one batch.

    Args:
        own: how many they are.
        largest: how many the process with most rows has.
        whole: how many all have together.
    """

    own: int
    largest: int
    whole: int

    @classmethod
    def of(cls, samples: int) -> Share:
        """Of a batch of so many samples, dealt out by :func:`own_rows`."""
        return cls(len(range(rank(), samples, world_size())), -(-samples // world_size()), samples)

    def pieces(self, count: int) -> list[tuple[slice, int]]:
        """The rows in at most ``count`` pieces, as many in every process, and how many of each count."""
        if count == 1:
            return [(slice(None), self.own)]
        size = -(-self.largest // count)
        ends = [(first, min(first + size, self.own)) for first in range(0, self.largest, size)]
        # Gradients are averaged piece by piece: where no row is left for one, the first stands in at weight 0.
        return [(slice(first, end), end - first) if first < end else (slice(1), 0) for first, end in ends]


def own_rows(samples: int) -> slice:
    """The rows of a batch that this process computes.

    Where none is left for it, it is the first one: a process takes part in every step, if at weight 0.
    """
    return slice(rank(), None, world_size()) if rank() < samples else slice(0, 1)


def own_portions(loader: Iterable[Any]) -> Iterator[tuple[Any, int | None]]:
    """The batches of a loader, and the number of samples of those that hold this process's rows alone (else None)."""
    portions = getattr(loader, "portions", None)  # a loader of ours makes no other rows
    if world_size() > 1 and callable(portions):
        yield from portions()
    else:
        for batch in loader:
            yield batch, None


def own_batches(
    loader: Iterable[Any], read: Callable[[Iterable[Any]], Iterable[Any]] = iter
) -> Iterator[tuple[int, Any]]:
    """The batches of a loader that this process computes, with their positions among all.

    All processes draw what rank 0 draws while they read, so that their batches are parts of one order.

    Args:
        loader: gives all batches in every process.
        read: applied to it, or to what it gives for this process.

    Raises:
        InputError: the loader gives each process other samples already.
    """
    world = world_size()
    if world < 2:
        yield from enumerate(read(loader))
        return
    require_all_samples(loader)
    every = getattr(loader, "every", None)  # a loader of ours makes no others
    with _drawing_as_main(loader):
        if callable(every):
            found: Iterable[Any] = read(every(rank(), world))
        else:
            found = itertools.islice(read(loader), rank(), None, world)
        yield from zip(itertools.count(rank(), world), found, strict=False)


def shares_samples(loader: object) -> bool:
    """Whether a loader gives each process its own samples: by torch's ``DistributedSampler``, or one like it."""
    sources = [*sources_of(loader), getattr(loader, "dataset", None)]
    counts = (getattr(source, name, 1) for source in sources for name in ("num_replicas", "num_processes"))
    return any(isinstance(count, int) and count > 1 for count in counts)


def require_all_samples(loader: object) -> None:
    """Refuse a loader whose batches several processes cannot share out exactly once.

    Raises:
        InputError: there are several, and it gives each other samples already.
    """
    if world_size() > 1 and shares_samples(loader):
        raise InputError(
            f"several processes: expected a loader of all samples, got a {type(loader).__name__} whose sampler gives "
            "each process its own and repeats some to make them equal; give a loader without it: its batches are shared here"
        )


@contextmanager
def _drawing_as_main(loader: object) -> Iterator[None]:
    """Within this context the generators that a loader may ask go on from where those of rank 0 are."""
    own = generators_of(loader)

    def states() -> tuple[Any, ...]:
        return torch.get_rng_state(), random.getstate(), np.random.get_state(), [one.get_state() for one in own]

    def set_states(states: tuple[Any, ...]) -> None:
        torch.set_rng_state(states[0])
        random.setstate(states[1])
        np.random.set_state(states[2])
        for one, state in zip(own, states[3], strict=True):
            one.set_state(state)

    before = states()
    after = common(before)
    if _equal(before, after):  # seeded alike: they draw alike, and stay so
        yield
        return
    set_states(after)
    try:
        yield
    finally:
        set_states(before)


def _equal(first: Any, second: Any) -> bool:
    if isinstance(first, tuple | list):
        return len(first) == len(second) and all(map(_equal, first, second))
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    return bool(np.array_equal(first, second))


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
def share_buffers(buffers: Mapping[str, Tensor]) -> None:
    """Give every process the same buffers, by name: the mean of running statistics, and else those of rank 0."""
    if world_size() < 2:
        return
    for name, buffer in buffers.items():
        if name.rpartition(".")[2] in ("running_mean", "running_var"):
            group.all_reduce(buffer)
            buffer.div_(world_size())
        else:
            group.broadcast(buffer, src=0)


def whole(tensor: Tensor) -> Tensor:
    """All of a tensor; of one that is sharded, every process must ask at the same time."""
    gather = getattr(tensor, "full_tensor", None)  # torch.distributed.tensor.DTensor, whose import takes its time
    return tensor if gather is None else gather()


def local(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: all of it, or its share of one that is sharded."""
    share = getattr(tensor, "to_local", None)
    return tensor if share is None else share()


@torch.no_grad()
def fill(tensor: Tensor, value: Tensor) -> None:
    """Copy a whole value into a tensor, or this process's share of it into one that is sharded; nobody waits for others."""
    if local(tensor) is not tensor:
        from torch.distributed.tensor import DTensor, distribute_tensor

        assert isinstance(tensor, DTensor)
        value = value.to(tensor.device, tensor.dtype)
        value = distribute_tensor(value, tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


@torch.no_grad()
def share_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace gradients by their means over the processes; what no process has a gradient of keeps none.

    One without a gradient where another process has one counts as zero.
    """
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    if world_size() < 2 or not parameters:
        return
    first = parameters[0]
    there = torch.tensor([float(one.grad is not None) for one in parameters], device=first.device)
    group.all_reduce(there)
    found = [one for one, count in zip(parameters, there.tolist(), strict=True) if count]
    if not found:
        return
    for one in found:
        if one.grad is None:
            one.grad = torch.zeros_like(one)
    # In float64, which holds every floating type: one message for all.
    flat = torch.cat([one.grad.double().flatten() for one in found if one.grad is not None])
    group.all_reduce(flat)
    flat.div_(world_size())
    for one, mean in zip(found, torch.split(flat, [one.numel() for one in found]), strict=True):
        assert one.grad is not None
        one.grad.copy_(mean.view_as(one))
