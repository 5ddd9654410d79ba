"""All runtimes of a subject against each other, for every batch size and number of threads."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polarspike.errors import SpecError
from polarspike.speed.race import LEAST_ROUNDS, Action, Clock, Times, race, timed_once
from polarspike.speed.runtimes import BASE, Runtimes

#: A runtime that takes so many times as long as torch does, for each timestep, is not raced, and said to.
_TOO_SLOW = 5.0
_PAUSE_S = 0.02


@dataclass(frozen=True)
class Course:
    """How to measure.

    Args:
        batches: sizes.
        threads: numbers of threads.
        rounds: of each race, 5 at least.
    """

    batches: tuple[int, ...] = (1, 64)
    threads: tuple[int, ...] = (1,)
    rounds: int = 7

    def __post_init__(self) -> None:
        for name, values in (("batches", self.batches), ("threads", self.threads)):
            if not values or min(values) < 1:
                raise SpecError(f"{name}: expected numbers of at least 1, got {values}")
        if self.rounds < LEAST_ROUNDS:
            raise SpecError(f"rounds: expected at least {LEAST_ROUNDS}, got {self.rounds}")


@dataclass(frozen=True)
class Heat:
    """One race.

    Args:
        batch: how many images at once.
        threads: of each runtime.
        times: by the name of the runtime.
        skipped: why others are not among them.
    """

    batch: int
    threads: int
    times: dict[str, Times]
    skipped: dict[str, str]

    @property
    def clock(self) -> Clock:
        """Processor time for one thread, which other load disturbs least; for several the wall."""
        return "cpu" if self.threads == 1 else "wall"

    def row(self, name: str) -> dict[str, Any]:
        """Milliseconds of a runtime, and how many times as fast as others it is, as plain numbers."""
        mine, (engine, _, kind) = self.times[name], name.partition(" ")
        others = {"torch": BASE}
        if engine != "torch":
            others["own_fp32"] = f"{engine} fp32"
        if kind == "snn":
            others["own_int8"] = f"{engine} int8"
        row: dict[str, Any] = {
            "runtime": name,
            "batch": self.batch,
            "threads": self.threads,
            "clock": self.clock,
            "ms": [round(1e3 * value, 4) for value in mine.of(self.clock)],
        }
        for key, other in others.items():
            if other in self.times and other != name:
                ratio = self.times[other].over(mine, self.clock)
                row[f"x_{key}"] = [round(value, 3) for value in ratio]
        return row

    def rows(self) -> list[dict[str, Any]]:
        """Of all runtimes."""
        return [self.row(name) for name in self.times]


def measure(runtimes: Runtimes, images: Tensor, course: Course) -> Iterator[Heat]:
    """Race them; each result as soon as it is there.

    Args:
        runtimes: what can run.
        images: (N, C, H, W), repeated where a batch needs more.
        course: how.
    """
    for threads in course.threads:
        with _threads(threads):
            for size in course.batches:
                x = _batch(images, size)
                actions, skipped = _trial(runtimes, x, threads)
                times = race(actions, course.rounds, pause_s=_PAUSE_S if threads > 1 else 0.0)
                yield Heat(size, threads, times, skipped)


def _trial(runtimes: Runtimes, x: Tensor, threads: int) -> tuple[dict[str, Action], dict[str, str]]:
    """Prepare and try each: what runs at a bearable speed, and why the others do not."""
    actions: dict[str, Action] = {}
    skipped = dict(runtimes.skipped)
    base = 0.0
    for each in runtimes.ready:
        try:
            action = each.prepare(x, threads)
            action()
            seconds, _ = timed_once(action)
        except Exception as error:  # runtimes have no common base for what they cannot do
            skipped[each.name] = f"does not run here: {str(error).strip().partition(chr(10))[0]}"
            continue
        base = seconds if each.name == BASE else base
        if base and seconds > _TOO_SLOW * base * each.timesteps:
            skipped[each.name] = f"tried once: {seconds / base:.1f} times as long as {BASE}"
            continue
        actions[each.name] = action
    return actions, skipped


def _batch(images: Tensor, size: int) -> Tensor:
    repeated: Sequence[int] = (-(-size // len(images)), *[1] * (images.dim() - 1))
    return images.repeat(repeated)[:size].contiguous()


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
