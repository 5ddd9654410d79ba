"""ST-BIF+ (SpikeZIP-TF, ICML 2024): an image enters once, and bipolar spikes follow until every site holds its code.

    fire +1 if q >= s and C < P;   -1 if q < 0 and C > -N;     q = A - s C + s / 2

q >= s says floor(A / s + 1/2) >= C + 1, and q < 0 says that it is below C: this is our capped neuron at one spike a step.
Its operators in between (differences of layer norms, of softmax) are our running-mean contract at T = 1. So it runs on our
own network: the first step takes the image, each later one what is still on its way, and the answer is what has arrived so
far. Once nothing waits it is the quantized network's.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.utils import _pytree as pytree

from polarspike.common.checks import is_integer
from polarspike.common.signatures import Signature
from polarspike.conversion import convert
from polarspike.errors import SpecError
from polarspike.quantized import QuantizedNetwork
from polarspike.specs import ConvertSpec
from polarspike.spiking import Observer, SpikingState


class SettlingNetwork(nn.Module):
    """A network of ST-BIF+ neurons; T is the step after the image at which the answer is read.

    Args:
        qann: the calibrated quantized network.
    """

    #: Nothing runs before the steps that count.
    rehearsal = 0

    def __init__(self, qann: QuantizedNetwork) -> None:
        super().__init__()
        self.snn = convert(qann, ConvertSpec(max_spikes_per_step=1))

    @property
    def network(self) -> Any:
        """The graph, for counting."""
        return self.snn.network

    @property
    def signature(self) -> Signature:
        """Of the example, for counting."""
        return self.snn.signature

    def observe(self, observer: Observer) -> contextlib.AbstractContextManager[None]:
        """Within this context ``observer(site, t, spikes)`` is called."""
        return self.snn.observe(observer)

    def forward(self, *inputs: Any, timesteps: int = 1, every_step: bool = False) -> Any:
        """What has arrived after T steps; arguments as for :class:`~polarspike.SpikingNetwork`."""
        if not is_integer(timesteps, 1):
            raise SpecError(f"timesteps: expected a positive integer, got {timesteps!r}")
        answers = [state.mean for state in self._states(inputs, timesteps)]
        answers += answers[-1:] * (timesteps - len(answers))  # settled before
        return pytree.tree_map(lambda *steps: torch.stack(steps), *answers) if every_step else answers[-1]

    def _states(self, inputs: tuple[Any, ...], timesteps: int) -> Iterator[SpikingState]:
        _, state = self.snn.step(inputs)
        yield state
        yield from itertools.islice(self.snn.draining(inputs, state), timesteps - 1)

    def train(self, mode: bool = True) -> SettlingNetwork:
        """Stay in evaluation mode, as every spiking network of ours."""
        del mode
        super().train(False)
        return self
