"""Networks that are trained through time: the reading of a sequence that knows its order.

Every site becomes a neuron with a membrane that is carried from frame to frame and may leak::

    v[t] = b v[t-1] + I[t]
    k[t] = clip(floor(v[t] / s + 1/2), -N, P)          the same encode as everywhere
    v[t] <- v[t] - s k[t]                              soft reset, by what was fired
    y[t] = decode(k[t])

and every operator in between works on the step by itself. The gradient of k is the straight-through one of
:func:`polarspike.ops.quantize`; none passes through a reset: with one, v - s k has no slope, and order is not learned. The
leak b in (0, 1] is one number for each site, fixed or learned. Near b = 0 every frame would be its own first timestep; at
b = 1 nothing is forgotten, and where no level clips either and the gain is 1, this is the neuron of
:mod:`polarspike.neurons` (which takes spikes back at the price they had).

The network starts from a calibrated or trained quantized network, and answers with the mean of the outputs of all frames.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from polarspike import ops
from polarspike.common.checks import is_integer, is_share
from polarspike.common.inputs import Inputs, as_call, as_whole, batch_size, bind
from polarspike.errors import CheckpointError, InputError, SpecError
from polarspike.graph.editing import finish
from polarspike.quantized import QuantizedNetwork, fitting
from polarspike.specs import SiteSpec
from polarspike.spiking.network import SpikingNetwork
from polarspike.spiking.sequences import SequenceNetwork, SequenceNeuron, SpikeTrain, Walk
from polarspike.temporal import require_same_shape, to_mean

#: Where b starts unless asked otherwise: near the first timesteps that the weights know, and with a slope to learn from.
#: On simulated events of Fashion-MNIST, one seed, it ended a point above a start at .9 (docs/results.md).
FIRST_LEAK = 0.2
# A learned leak starts below this, where its logistic form still has a slope.
_MOST_LEAK = 0.999


class LeakyPolarityNeuron(SequenceNeuron):
    """Several signed spikes a step from a carried membrane.

    Args:
        spec, name: as for any site.
        leak: b, in (0, 1].
        learned: b is a parameter, through a logistic function, from min(b, .999).
    """

    fixed_leak: Tensor | None

    def __init__(self, spec: SiteSpec, name: str = "", leak: float = FIRST_LEAK, learned: bool = False) -> None:
        super().__init__(spec, name)
        start = min(leak, _MOST_LEAK)
        self.raw_leak = nn.Parameter(torch.tensor(math.log(start / (1.0 - start)))) if learned else None
        self.register_buffer("fixed_leak", None if learned else torch.tensor(float(leak)))

    def options(self) -> dict[str, Any]:
        return {"learned": self.raw_leak is not None}

    @classmethod
    def restored(cls, spec: SiteSpec, name: str, options: Mapping[str, Any]) -> Self:
        learned = options["learned"]
        if not isinstance(learned, bool):
            raise CheckpointError(f"module {name!r}: expected true or false for a learned leak, got {learned!r}")
        return cls(spec, name, learned=learned)

    @property
    def leak(self) -> Tensor:
        """B, 0-d."""
        if self.raw_leak is not None:
            return torch.sigmoid(self.raw_leak)
        assert self.fixed_leak is not None
        return self.fixed_leak

    def values_of(self, currents: Tensor) -> tuple[Tensor, SpikeTrain]:
        values, spikes, _ = self.run(currents, None)
        return values, SpikeTrain(spikes)

    def train_of(self, currents: Tensor) -> SpikeTrain:
        return self.values_of(currents)[1]

    def run(self, currents: Tensor, membrane: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
        """What is handed on, the spikes, and the membrane after these steps; None is rest.

        Raises:
            InputError: the membrane is of another shape than the input.
        """
        require_same_shape(currents[0], membrane, self.name)
        step, leak = self.broadcast_step(currents[0]), self.leak
        scale = self.gradient_scale(currents[0], self.levels)
        gain = self.gain if self.spec.negative else 1.0
        values, spikes = [], []
        for current in ops.widen(currents):
            membrane = current if membrane is None else leak * membrane + current
            with torch.no_grad():
                fired = ops.encode(membrane, step, *self.levels)
                reset = fired * step
            learns = torch.is_grad_enabled()  # else the value follows from the code that is there already
            values.append(
                ops.quantize(membrane, step, gain, self.levels, scale) if learns else ops.decode(fired, step, gain)
            )
            membrane = membrane - reset
            spikes.append(fired)
        assert membrane is not None
        return torch.stack(values), torch.stack(spikes), membrane


@dataclass(frozen=True)
class StreamState:
    """What a stream carries from frame to frame; a value, never altered.

    Attributes:
        timestep: how many frames have been taken.
        membranes: by site.
        mean: the running mean of the output.
    """

    timestep: int = 0
    membranes: Mapping[str, Tensor] = field(default_factory=dict)
    mean: Any = None


class TemporalNetwork(SequenceNetwork):
    """A network of carried membranes that reads sequences (batch, frames, ...), and learns from their order.

    Train it with :func:`polarspike.fit` on batches (frames, labels), measure it with :func:`polarspike.evaluate` (T is then
    the number of first frames), stream it with :meth:`step`. :func:`unroll` makes one, :func:`polarspike.save` keeps it.
    """

    notes: dict[str, Any]

    def leaks(self) -> dict[str, float]:
        """What the membranes of every site keep from one frame to the next: b, in (0, 1]."""
        return {name: site.leak.item() for name, site in self.sites().items() if isinstance(site, LeakyPolarityNeuron)}

    def forward(
        self,
        *inputs: Any,
        timesteps: int | None = None,
        every_step: bool = False,
        time_dim: int | None = 1,
        **named: Any,
    ) -> Any:
        """The mean of the outputs over the frames, or over the first ``timesteps`` of them."""
        return super().forward(*inputs, timesteps=timesteps, every_step=every_step, time_dim=time_dim, **named)

    def _frames(self, given: Mapping[str, Any], timesteps: int | None, time_dim: int | None) -> list[Mapping[str, Any]]:
        if time_dim is None or timesteps is None:
            return super()._frames(given, timesteps, time_dim)
        frames, timesteps = super()._frames(given, None, time_dim), as_whole(timesteps)
        if not is_integer(timesteps):
            raise SpecError(f"timesteps: expected an integer, got {timesteps!r}")
        if not 0 < timesteps <= len(frames):
            raise InputError(f"timesteps: expected 1 to {len(frames)}, the frames given, got {timesteps}")
        return frames[:timesteps]

    @torch.no_grad()
    def step(self, inputs: Inputs, state: StreamState | None = None) -> tuple[Any, StreamState]:
        """Take one frame: the running mean of the output so far, and the next state."""
        if state is not None and not isinstance(state, StreamState):
            raise SpecError(f"step: expected the state of the step before or None, got {type(state).__name__}")
        state = StreamState() if state is None else state
        args, kwargs = as_call(inputs)
        frame = bind(self._arguments, args, kwargs)
        images = batch_size(frame, self.signature.shared)
        if any(len(membrane) != images for membrane in state.membranes.values()):
            raise InputError(f"step: expected the streams of the state, got {images} others; start new ones with None")
        walk = _Stream(self, images, state.membranes)
        with fitting(self._named_signature, frame):
            output = walk.run(*frame.values())
        timestep = state.timestep + 1
        for name, train in walk.trains.items() if self._observers else ():
            for observer in self._observers:
                observer(name, timestep, train.spikes[0])
        mean = to_mean(output, state.mean, timestep, "the output", masked=True)
        # A copy to hand out: what is done to the answer is not done to the state.
        return pytree.tree_map(lambda y: y.clone() if isinstance(y, Tensor) else y, mean), StreamState(
            timestep, walk.after, mean
        )


class _Stream(Walk):
    """One frame, from the membranes of the frame before."""

    def __init__(self, network: TemporalNetwork, images: int, before: Mapping[str, Tensor]) -> None:
        super().__init__(network.network, 1, 0, images, "none")
        self.before = before
        self.after: dict[str, Tensor] = {}

    def fire(self, path: str, neuron: SequenceNeuron, currents: Tensor) -> tuple[Tensor, SpikeTrain]:
        assert isinstance(neuron, LeakyPolarityNeuron)
        values, spikes, self.after[path] = neuron.run(currents, self.before.get(path))
        return values, SpikeTrain(spikes)


def unroll(
    start: QuantizedNetwork | SpikingNetwork, *, leak: float = FIRST_LEAK, learned: bool = True
) -> TemporalNetwork:
    """The network through time that starts with the weights, steps and levels of a quantized or converted network.

    Args:
        start: calibrated or trained, and left untouched.
        leak: b of every site, in (0, 1]: what a membrane keeps from one frame to the next.
        learned: each site learns its own.

    Raises:
        SpecError: not such a network, or a leak out of range.
        CalibrationError: a site has no step.
    """
    if not isinstance(start, QuantizedNetwork | SpikingNetwork):
        raise SpecError(f"unroll: expected a quantized or a spiking network, got {type(start).__name__}")
    if not is_share(leak):
        raise SpecError(f"unroll: expected a leak in (0, 1], got {leak!r}")
    network = copy.deepcopy(start.network)
    for name, site in start.sites().items():
        site.require_calibrated()
        network.add_submodule(name, LeakyPolarityNeuron(site.spec, site.name, leak, learned).to(site.start).adopt(site))
    made = TemporalNetwork(finish(network), start.signature, contract="none")
    made.notes = dict(start.notes)
    return made.train(start.training)
