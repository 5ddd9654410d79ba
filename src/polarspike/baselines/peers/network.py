"""Another tool's spiking network behind the interface of ours."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from polarspike.common.modules import hooked
from polarspike.spiking import Observable


class PeerNetwork(Observable):
    """A peer's spiking network behind the interface of ours.

    Args:
        snn: the peer's module; one call is one timestep.
        neurons: its neuron modules by name; they put out numbers of spikes.
        reset: brings it to rest.
        scale: of its input, which its answer is divided by.
        worth: of one spike, by name, of neurons that put out spikes times what they are worth.
        once: the input enters at the first step and zeros follow, and the answer is the sum of the outputs.
    """

    rehearsal = 0

    def __init__(
        self,
        snn: nn.Module,
        neurons: Mapping[str, nn.Module],
        reset: Callable[[nn.Module], None],
        scale: float = 1.0,
        *,
        worth: Mapping[str, Tensor] | None = None,
        once: bool = False,
    ) -> None:
        super().__init__()
        self.snn = snn
        self._neurons = neurons
        self._reset = reset
        self._scale = scale
        self._worth = worth or {}
        self._once = once

    @torch.no_grad()
    def forward(self, x: Tensor, *, timesteps: int = 1, every_step: bool = False) -> Tensor:
        """The mean of the outputs of T steps of the same input, from rest; of an input that enters once, their sum."""
        total = torch.zeros(())
        answers = []
        step = 0

        def see(name: str, output: Tensor) -> None:
            spikes = (output / self._worth[name]).round() if name in self._worth else output
            for observer in self._observers:
                observer(name, step, spikes)

        handles = [
            module.register_forward_hook(lambda _, __, output, name=name: see(name, output))
            for name, module in (self._neurons.items() if self._observers else ())
        ]
        self._reset(self.snn)
        with hooked(handles):
            for step in range(1, timesteps + 1):
                enters = torch.zeros_like(x) if self._once and step > 1 else x * self._scale
                total = total + self.snn(enters) / self._scale
                answers.append(total if self._once else total / step)
        self._reset(self.snn)
        return torch.stack(answers) if every_step else answers[-1]
