"""Which of several settings of a method is the best at a timestep: of those as accurate as any, the cheapest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from polarspike.evaluation import Evaluation

#: A setting whose share of right answers is this close to the best one's is as good; of those the fewest spikes decide.
AS_GOOD = 0.003


def chosen(tried: Sequence[tuple[Evaluation, int]]) -> int:
    """Which of several settings is the best at the T beside it: the fewest spikes of all that are as good as the best.

    Accuracy alone would pay any number of spikes for an image more or less.
    """
    scores = [found.accuracy[timesteps] for found, timesteps in tried]
    spikes = [found.firing[timesteps].spikes_per_neuron if found.firing else 0.0 for found, timesteps in tried]
    as_good = [index for index, score in enumerate(scores) if score >= max(scores) - AS_GOOD]
    return min(as_good, key=lambda index: (spikes[index], -scores[index]))


def shared_out(tried: Sequence[tuple[Mapping[int, int], Evaluation]]) -> dict[int, dict[int, int]]:
    """The latencies at which each setting is the best (:func:`chosen`), each with its T, by the place of the setting.

    Args:
        tried: of each setting, true latency -> T of its answers, and these.
    """
    found: dict[int, dict[int, int]] = {}
    for latency in sorted({latency for steps, _ in tried for latency in steps}):
        able = [index for index, (steps, _) in enumerate(tried) if latency in steps]
        best = able[chosen([(tried[index][1], tried[index][0][latency]) for index in able])]
        found.setdefault(best, {})[latency] = tried[best][0][latency]
    return dict(sorted(found.items()))
