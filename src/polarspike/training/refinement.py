"""Training a quantized network for several timesteps: each step of the optimizer at the grid of one T.

After T steps of one image the spiking network equals the quantized network with steps s / T and levels (N T, P T)
(docs/theory.md). Weights that were trained on the grid of T = 1 alone have adapted to its roundings, and on a finer grid
they may answer worse: softmax and layer norms have never seen it. So the T of every optimizer step is drawn anew,

    P(T = 1) = f,    P(T) = (1 - f) / (number of the others)

with f = ``TrainSpec.first_share``, which is 0 where T = 1 is not asked for. A step costs one pass, as before. The draw
depends on the seed and on the step's number alone: all processes compute the same T, and a resumed run those of an unbroken
one. Loss and training accuracy of an epoch are means over the T that came up, and so are the statistics of batch norms, of
which a network has one set for every T; what is validated is T = 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn

from polarspike.errors import SpecError
from polarspike.quantizers import PolarityQuantizer
from polarspike.training.randomness import number_of
from polarspike.training_spec import TrainSpec


class Refinement:
    """The quantizers of a model in training, which compute at the grid of one T after another.

    Raises:
        SpecError: the model has no quantizers.
    """

    def __init__(self, model: nn.Module, spec: TrainSpec) -> None:
        self._spec = spec
        self._sites = [module for module in model.modules() if isinstance(module, PolarityQuantizer)]
        if not self._sites and spec.timesteps != (1,):
            raise SpecError(
                f"TrainSpec.timesteps: expected a quantized network, which {spec.timesteps} refine, got a "
                f"{type(model).__name__} without quantizers; call polarspike.quantize first, or, of a float network or one "
                "that is trained through time, leave timesteps at (1,)"
            )

    def turn(self, index: int) -> int:
        """Let training compute the T of optimizer step ``index`` (from 1), and return it."""
        timesteps = drawn(self._spec, index)
        self._set(timesteps)
        return timesteps

    @contextlib.contextmanager
    def lasting(self) -> Iterator[None]:
        """Within this context turns count; behind it training computes T = 1, as without one."""
        try:
            yield
        finally:
            self._set(1)

    def _set(self, timesteps: int) -> None:
        for site in self._sites:
            site.timesteps = timesteps


def drawn(spec: TrainSpec, index: int) -> int:
    """The T of optimizer step ``index`` (from 1, over all epochs).

    >>> drawn(TrainSpec(timesteps=(1, 2, 4), first_share=1.0), 7)
    1
    """
    rest = [T for T in spec.timesteps if T != 1]
    if not rest:
        return 1
    share = number_of(f"{spec.seed}/timesteps/{index}") / 2**63
    first = spec.first_share if 1 in spec.timesteps else 0.0
    if share < first:
        return 1
    return rest[min(len(rest) - 1, int((share - first) / (1.0 - first) * len(rest)))]
