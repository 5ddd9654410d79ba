"""Run actions in turn, round by round, in one process, and time them by two clocks.

Other load comes and goes more slowly than rounds do, so that it meets all actions alike: ratios are taken within a round.

    t_r       of a round: the median of as many runs as fill a twentieth of a second, 1 to 25
    median, low, high      of t_1 .. t_R;  of a ratio: of t_1 / u_1 .. t_R / u_R
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal, NamedTuple

from polarspike.errors import SpecError

Action = Callable[[], object]
Clock = Literal["cpu", "wall"]
LEAST_ROUNDS = 5
_FILLED_S = 0.05
_MOST_RUNS = 25


class Ratio(NamedTuple):
    """Median, least and largest of a figure over the rounds."""

    median: float
    low: float
    high: float


@dataclass(frozen=True)
class Times:
    """Seconds of one run, a figure for each round.

    Args:
        cpu: of all threads of the process together, what other processes use left out.
        wall: that passed.
    """

    cpu: tuple[float, ...]
    wall: tuple[float, ...]

    def by(self, clock: Clock) -> tuple[float, ...]:
        """The figures of one clock."""
        return self.cpu if clock == "cpu" else self.wall

    def of(self, clock: Clock) -> Ratio:
        """Median and range of the seconds."""
        return _summary(self.by(clock))

    def over(self, other: Times, clock: Clock) -> Ratio:
        """How many times as long as the other one it took, round by round."""
        return _summary([mine / its for mine, its in zip(self.by(clock), other.by(clock), strict=True)])


def race(actions: Mapping[str, Action], rounds: int, *, pause_s: float = 0.0) -> dict[str, Times]:
    """Time all actions, each round beginning with another one.

    Args:
        actions: by name; each has run before, so that nothing is set up any more.
        rounds: 5 at least.
        pause_s: before each action, in which threads that wait for more work of the one before go to sleep.

    Raises:
        SpecError: too few rounds.
    """
    if rounds < LEAST_ROUNDS:
        raise SpecError(f"rounds: expected at least {LEAST_ROUNDS}, got {rounds}")
    names = list(actions)
    runs = {name: _runs(action) for name, action in actions.items()}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in names}
    for index in range(rounds):
        first = index % len(names) if names else 0
        for name in names[first:] + names[:first]:
            time.sleep(pause_s)
            timed = [timed_once(actions[name]) for _ in range(runs[name])]
            found[name].append((median(cpu for cpu, _ in timed), median(wall for _, wall in timed)))
    return {
        name: Times(tuple(cpu for cpu, _ in pairs), tuple(wall for _, wall in pairs)) for name, pairs in found.items()
    }


def timed_once(action: Action) -> tuple[float, float]:
    """Seconds of the process, and of the wall."""
    wall, cpu = time.perf_counter(), time.process_time()
    action()
    return time.process_time() - cpu, time.perf_counter() - wall


def _runs(action: Action) -> int:
    """How many of it fill a twentieth of a second."""
    _, wall = timed_once(action)
    return max(1, min(_MOST_RUNS, math.ceil(_FILLED_S / max(wall, 1e-6))))


def _summary(values: Sequence[float]) -> Ratio:
    return Ratio(median(values), min(values), max(values))
