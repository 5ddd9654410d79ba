"""Accuracy at every timestep, and the firing that it costs, from one pass over a loader.

A spiking network runs ``max(timesteps)`` steps once a batch; the running mean after step ``T`` is its answer at ``T``.
One of capped neurons runs once for each T, because each answer waits for spikes that the next step does not start from.
Everything is counted in integers: a fraction appears only where it is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from tqdm import tqdm

from polarspike.common.checks import is_integer
from polarspike.common.inputs import Inputs, as_whole, to_device
from polarspike.common.modules import apply, device_of, evaluating
from polarspike.errors import InputError, SpecError
from polarspike.parallel import distributed
from polarspike.spiking import Observer, SpikingNetwork


@runtime_checkable
class Spiking(Protocol):
    """What ``evaluate`` asks of a spiking network, beyond being a module."""

    def observe(self, callback: Observer) -> AbstractContextManager[Any]:
        """While the context is open, call ``callback`` at every site and step."""
        ...


@dataclass(frozen=True)
class Firing:
    """Spikes of all sites, summed over images and over the steps ``1..T``, and what capped neurons fire after them.

    An event is a non-zero code; it carries ``|code|`` unit spikes. ``pairs`` counts (neuron, image) pairs, so that
    ``events / pairs`` is per neuron and image, for all ``T`` steps together (with ``T > 1`` it may exceed 1).
    """

    events: int
    spikes: int
    negative_events: int
    negative_spikes: int
    pairs: int

    @property
    def events_per_neuron(self) -> float:
        """Events per neuron and image."""
        return self.events / self.pairs if self.pairs else 0.0

    @property
    def spikes_per_neuron(self) -> float:
        """Unit spikes per neuron and image."""
        return self.spikes / self.pairs if self.pairs else 0.0

    @property
    def positive_spikes_per_neuron(self) -> float:
        """Positive unit spikes per neuron and image."""
        return (self.spikes - self.negative_spikes) / self.pairs if self.pairs else 0.0

    @property
    def negative_spikes_per_neuron(self) -> float:
        """Negative unit spikes per neuron and image."""
        return self.negative_spikes / self.pairs if self.pairs else 0.0


class FiringCounter:
    """An :data:`Observer` that counts; the counts stay on the device of the spikes until they are read."""

    def __init__(self) -> None:
        self._counts: dict[tuple[str, int], Tensor] = {}
        self._pairs: dict[str, int] = {}

    def __call__(self, site: str, t: int, spikes: Tensor) -> None:
        """Count the signed spikes (batch, ...) of one site at step ``t``."""
        negative = spikes.clamp(max=0)
        counts = torch.stack(
            [
                spikes.count_nonzero(),
                spikes.abs().sum(dtype=torch.int64),  # float32 would stop counting at 2^24
                negative.count_nonzero(),
                -negative.sum(dtype=torch.int64),
            ]
        )
        previous = self._counts.get((site, t))
        self._counts[site, t] = counts if previous is None else previous + counts
        if t == 1:
            self._pairs[site] = self._pairs.get(site, 0) + spikes.numel()

    def __getstate__(self) -> dict[str, Any]:
        """For other processes: a tensor of a GPU would come back there, and open a context on it in each of them."""
        return {"_counts": {key: value.cpu() for key, value in self._counts.items()}, "_pairs": self._pairs}

    def merge(self, all_of_them: Sequence[FiringCounter]) -> None:
        """Become the sum of the counters of several processes, which hold this one's counts, too."""
        counts: dict[tuple[str, int], Tensor] = {}
        pairs: dict[str, int] = {}
        for counter in all_of_them:
            for key, value in counter._counts.items():
                counts[key] = value if key not in counts else counts[key] + value
            for site, number in counter._pairs.items():
                pairs[site] = pairs.get(site, 0) + number
        self._counts, self._pairs = counts, pairs

    @property
    def steps(self) -> int:
        """The last step at which a site was seen."""
        return max((t for _, t in self._counts), default=0)

    @property
    def sites(self) -> list[str]:
        """The sites seen, in the order in which they fired first."""
        return list(self._pairs)

    def up_to(self, timesteps: int | None = None, site: str | None = None) -> Firing:
        """The firing of the steps ``1..timesteps``, or of every step, of one site or of all."""
        names = self.sites if site is None else [site]
        timesteps = self.steps if timesteps is None else timesteps
        seen = [counts.tolist() for (name, t), counts in self._counts.items() if name in names and t <= timesteps]
        events, spikes, *negative = (sum(column) for column in zip([0, 0, 0, 0], *seen, strict=True))
        return Firing(events, spikes, negative[0], negative[1], sum(self._pairs[name] for name in names))


@dataclass(frozen=True)
class Evaluation:
    """How many of ``total`` images are right after each T, and what that costs.

    Attributes:
        correct: right answers, by T.
        total: images.
        firing: what fired until the answer, by T; None where nothing spikes.
        steps: of capped neurons, which answer once nothing waits any more: the steps that the slowest batch ran for the
            answer of T, which are its true latency (:meth:`~polarspike.SpikingNetwork.latency`); else None, and T itself.
    """

    correct: dict[int, int]
    total: int
    firing: dict[int, Firing] | None = None
    steps: dict[int, int] | None = None

    @property
    def accuracy(self) -> dict[int, float]:
        """The fraction of right answers, in [0, 1], by T."""
        return {timesteps: count / self.total for timesteps, count in self.correct.items()}

    def to_dict(self) -> dict[str, Any]:
        """Plain data for a JSON file, one row for each T."""
        rows = []
        for timesteps, count in self.correct.items():
            row: dict[str, Any] = {"timesteps": timesteps, "correct": count, "accuracy": count / self.total}
            if self.steps is not None:
                row["steps"] = self.steps[timesteps]
            if self.firing is not None:
                row |= vars(self.firing[timesteps])
            rows.append(row)
        return {"total": self.total, "rows": rows}

    def __str__(self) -> str:
        width = max(len("correct"), 2 * len(str(self.total)) + 1)
        lines = [f"{'T':>4}  {'accuracy':>8}  {'correct':>{width}}"]
        lines += [
            f"{timesteps:>4}  {100 * count / self.total:>7.2f}%  {f'{count}/{self.total}':>{width}}"
            for timesteps, count in self.correct.items()
        ]
        if self.steps is not None:
            lines[0] += "  steps"
            for row, ran in enumerate(self.steps.values(), start=1):
                lines[row] += f"  {ran:>5}"
        if self.firing is not None:
            lines[0] += "  events/neuron  spikes/neuron  positive  negative"
            for row, fired in enumerate(self.firing.values(), start=1):
                lines[row] += (
                    f"  {fired.events_per_neuron:>13.4f}  {fired.spikes_per_neuron:>13.4f}"
                    f"  {fired.positive_spikes_per_neuron:>8.4f}  {fired.negative_spikes_per_neuron:>8.4f}"
                )
        return "\n".join(lines)


def evaluate(
    network: nn.Module, loader: Iterable[Any], timesteps: int | Sequence[int] = (1,), *, progress: bool = False
) -> Evaluation:
    """Count the right answers of ``network`` on ``loader`` after each number of ``timesteps``.

    Args:
        network: a spiking network, or any module (float or quantized) that answers (batch, classes); a module without
            time answers only at ``timesteps=(1,)``. Its training mode is what it was when the call returns.
        loader: batches ``(inputs, target)``; inputs are a tensor or a dict (keyword), target holds class indices
            (batch,). They are moved to the network's device.
        timesteps: the T to report, each at least 1; one number is a single T.
        progress: show a progress bar where standard error is a terminal.

    Raises:
        SpecError: a T is not a positive integer, above ``ConvertSpec.window``, or not 1 of a network without time.
        InputError: the loader is empty, a batch or a target is not what is described above, or an output is NaN or
            infinite; the message names the batch and the sample.
    """
    if not isinstance(loader, Iterable):
        raise InputError(f"evaluate: expected a loader of batches (inputs, target), got {type(loader).__name__}")
    steps = _whole(timesteps)
    if isinstance(network, SpikingNetwork):
        network.spec.require_within_window("evaluate", steps[-1])  # before the first batch
    counters = _counters(network, steps)
    if not counters and steps != [1]:
        raise SpecError(
            f"evaluate: a {type(network).__name__} has no time, so it can be evaluated only at timesteps=(1,), "
            f"got {timesteps!r}; convert it to a spiking network first"
        )
    device = device_of(network)
    correct = dict.fromkeys(steps, 0)
    total = 0
    with evaluating(network), torch.no_grad():
        quiet = None if progress and distributed.is_main() else True
        bar = tqdm(distributed.own_batches(loader), desc="evaluate", unit="batch", leave=False, disable=quiet)
        for index, batch in bar:
            where = f"evaluate, batch {index}"
            inputs, target = read_batch(batch, device, where)
            answers = _answers(network, inputs, steps, counters)
            for T in steps:
                check_answer(answers[T], target, where)
                check_finite(answers[T], f"{where}, timestep {T}")
                correct[T] += int((answers[T].argmax(dim=1) == target).sum())
            total += target.shape[0]
    total, *shared = (int(count) for count in distributed.summed([total, *correct.values()]))
    correct = dict(zip(correct, shared, strict=True))
    for counter in counters.values():
        counter.merge(distributed.gathered(counter))
    if total == 0:
        raise InputError("evaluate: the loader gave no samples; check the data, its split and drop_last")
    ran = {T: counter.steps for T, counter in counters.items()} if _fires_late(network) else None
    return Evaluation(correct, total, _firing(steps, counters), ran)


def _counters(network: nn.Module, steps: list[int]) -> dict[int, FiringCounter]:
    """By the T at which a run ends, what counts its spikes: one run of the longest, or one for each T."""
    if not isinstance(network, Spiking):
        return {}
    return {T: FiringCounter() for T in (steps if _fires_late(network) else steps[-1:])}


def _fires_late(network: nn.Module) -> bool:
    return bool(getattr(network, "fires_late", False))


def _firing(steps: list[int], counters: Mapping[int, FiringCounter]) -> dict[int, Firing] | None:
    if not counters:
        return None
    longest = counters[steps[-1]]
    return {T: counters[T].up_to() if T in counters else longest.up_to(T) for T in steps}


def _whole(timesteps: int | Sequence[int]) -> list[int]:
    """The T that are asked for, in order; integers of NumPy and torch are some, too."""
    given = list(timesteps) if isinstance(timesteps, Iterable) else [timesteps]
    found = [as_whole(T.tolist() if isinstance(T, Tensor) else T) for T in given]
    if not found or not all(is_integer(T, 1) for T in found):
        raise SpecError(f"evaluate: expected timesteps of at least 1, such as (1, 2, 4), got {timesteps!r}")
    return sorted(set(found))


def _answers(
    network: nn.Module, inputs: Inputs, steps: list[int], counters: Mapping[int, FiringCounter]
) -> dict[int, Any]:  # T -> (batch, classes)
    if not isinstance(network, Spiking):
        return {1: apply(network, inputs)}
    if _fires_late(network):
        answers = {}
        for T, counter in counters.items():
            with network.observe(counter):
                answers[T] = apply(network, inputs, timesteps=T)
        return answers
    with network.observe(counters[steps[-1]]):
        means = apply(network, inputs, timesteps=steps[-1], every_step=True)  # (max T, batch, classes)
    return {T: means[T - 1] for T in steps}


def read_batch(batch: Any, device: torch.device, where: str, *, shares: bool = False) -> tuple[Inputs, Tensor]:
    """The inputs and the class indices (int64) of a batch ``(inputs, target)``, on ``device``.

    With ``shares`` the target may also be (batch, classes): the share of every class, as mixtures have it.

    Raises:
        InputError: the batch is not such a pair.
    """
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        got = f"{len(batch)} values" if isinstance(batch, tuple | list) else type(batch).__name__
        raise InputError(f"{where}: expected (inputs, target), got {got}; several inputs go into one dict")
    inputs, target = batch
    if shares and isinstance(target, Tensor) and target.ndim == 2 and target.is_floating_point() and len(target):
        off = (target.sum(1) - 1).abs().max()
        if not bool(off < 1e-3) or float(target.min()) < 0:
            raise InputError(f"{where}: expected the shares of classes to be at least 0 and to sum to 1 in every row")
        return to_device(inputs, device), target.to(device, torch.float32, non_blocking=True)
    if not isinstance(target, Tensor) or target.ndim != 1 or target.is_floating_point() or target.dtype == torch.bool:
        raise InputError(
            f"{where}: expected class indices as an integer tensor of shape (batch,), got {_describe(target)}"
        )
    if target.shape[0] == 0:
        raise InputError(f"{where}: the batch is empty; check the sampler and the collate function of the loader")
    several = isinstance(inputs, Mapping) and inputs and all(isinstance(value, Tensor) for value in inputs.values())
    if not isinstance(inputs, Tensor) and not several:
        raise InputError(f"{where}: expected inputs as a tensor or a dict of tensors, got {_describe(inputs)}")
    return to_device(inputs, device), target.to(device, torch.int64, non_blocking=True)


def check_answer(answer: Any, target: Tensor, where: str) -> None:
    """Refuse an answer that is not (batch, classes), and targets that name no class of it.

    Raises:
        InputError: with the shapes, or with the first wrong target.
    """
    batch = target.shape[0]
    if not isinstance(answer, Tensor) or answer.ndim != 2 or answer.shape[0] != batch:
        raise InputError(f"{where}: expected an output of shape ({batch}, classes), got {_describe(answer)}")
    classes = answer.shape[1]
    if target.ndim == 2:
        if target.shape[1] != classes:
            raise InputError(f"{where}: expected shares of {classes} classes, got {target.shape[1]}")
        return
    if (wrong := (target < 0) | (target >= classes)).any():
        sample = int(wrong.nonzero()[0, 0])
        raise InputError(
            f"{where}, sample {sample}: expected a class in 0..{classes - 1}, got {int(target[sample])}; "
            "check the labels, and the number of classes of the network"
        )


def check_finite(answer: Tensor, where: str) -> None:
    """Refuse an answer (batch, classes) that holds NaN or infinity: the largest of its entries means nothing.

    Raises:
        InputError: with the first such sample.
    """
    if not (finite := answer.isfinite().all(dim=1)).all():
        sample = int((~finite).nonzero()[0, 0])
        raise InputError(
            f"{where}, sample {sample}: the output is NaN or infinite; check this sample for NaN, "
            "and the weights and steps of the network"
        )


def _describe(value: Any) -> str:
    return f"{value.dtype} of shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
