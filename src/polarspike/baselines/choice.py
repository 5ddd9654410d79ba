"""Which of several settings of a method is the best at a timestep: of those as accurate as any, the cheapest."""

from __future__ import annotations

from collections.abc import Sequence

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
