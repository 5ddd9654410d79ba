"""The spiking network (SNN): a graph whose sites hold neurons, run for one timestep or many.

One image takes this way: :meth:`SpikingNetwork.forward` reads T, the first timestep runs the generated code of the graph,
every later one walks the same graph with an explicit state, and the answer is the running mean of the output.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from polarspike import ops
from polarspike.errors import InputError, SpecError
from polarspike.inputs import Inputs, Signature, as_call, tensors_of
from polarspike.neurons import PolarityNeuron
from polarspike.quantized import checked_call
from polarspike.specs import ConvertSpec
from polarspike.temporal import TemporalOperator

Execution = Literal["steps", "mean"]
Observer = Callable[[str, int, Tensor], None]


@dataclass(frozen=True)
class SpikingState:
    """Everything that a spiking network carries from one timestep to the next; a value, never altered.

    Attributes:
        timestep: how many steps have been taken.
        operators: the state of each temporal operator by its path.
        mean: the running mean of the output so far, at least float32.
    """

    timestep: int = 0
    operators: Mapping[str, Any] = field(default_factory=dict)
    mean: Any = None


class SpikingNetwork(nn.Module):
    """A network of neurons that answers after one timestep, or refines its answer over several.

    It holds no state between calls: the same input gives the same output. :func:`polarspike.convert` makes one.
    It is always in evaluation mode, because dropout and batch statistics would break the running-mean contract.

    Args:
        network: the graph, with a :class:`~polarspike.neurons.PolarityNeuron` at every site.
        signature: the example's input shapes.
        spec: how sequences are read.
        report: what became what, one line per operator.

    Attributes:
        notes: plain data that goes with the network into its file, taken over from the quantized network.
    """

    def __init__(self, network: fx.GraphModule, signature: Signature, spec: ConvertSpec, report: str = "") -> None:
        super().__init__()
        self.network = network
        self.signature = signature
        self.spec = spec
        self.report = report
        self.notes: dict[str, Any] = {}
        self._observers: list[Observer] = []
        self.eval()

    def forward(
        self,
        *inputs: Any,
        timesteps: int | None = None,
        every_step: bool = False,
        execution: Execution = "steps",
        time_dim: int | None = None,
        **named: Any,
    ) -> Any:
        """The running mean of the output after T timesteps.

        Args:
            *inputs: what the original model takes, positional.
            timesteps: T; the same input is given at every step. 1 by default, the length of the sequence if there is one.
            every_step: return the running mean after each step, stacked in front: (T, batch, ...).
            execution: ``"steps"`` walks the timesteps with memory constant in T; ``"mean"`` computes the same answer in
                one pass in the mean domain (one per prefix with ``every_step``).
            time_dim: the inputs are sequences with their time in this dimension, read as ``ConvertSpec.reading`` says.
            **named: what the original model takes, by keyword.

        Raises:
            InputError: an input does not fit the network.
            SpecError: a contradictory request.
        """
        frames, total = self._frames(inputs, named, timesteps, time_dim)
        if execution not in ("steps", "mean"):
            raise SpecError(f"execution: expected 'steps' or 'mean', got {execution!r}")
        if total == 1 and not every_step and not self._observers:
            args, kwargs = frames(1)
            return checked_call(self.network, self.signature, args, kwargs)
        if self.spec.reading == "frames" and time_dim is not None:
            answers = self._by_frames(frames, total)
        elif execution == "mean":
            answers = self._by_mean(frames, total, every_step)
        else:
            answers = self._by_steps(frames, total)
        kept = list(answers) if every_step else [_last(answers)]
        return pytree.tree_map(lambda *steps: torch.stack(steps), *kept) if every_step else kept[0]

    def step(self, inputs: Inputs, state: SpikingState | None = None) -> tuple[Any, SpikingState]:
        """Take one timestep: the running mean of the output so far, and the next state.

        Args:
            inputs: one frame (batch, ...): a tensor, a tuple or a dict.
            state: what the previous step returned; None to start. It is not altered and may be used again.

        The sums in the state grow with the number of steps; in float32 codes stay exact to about 10^4 steps, after which
        a stream should start again from None.
        """
        args, kwargs = as_call(inputs)
        state = state or SpikingState()
        self.signature.check({**{str(index): value for index, value in enumerate(args)}, **kwargs})
        walk = _Advance(self.network, state)
        output = walk.run(*self._in_order(args, kwargs))
        timestep = state.timestep + 1
        previous = output if state.mean is None else state.mean
        mean = pytree.tree_map(lambda old, new: _running_mean(old, new, timestep), previous, output)
        for site in self.sites():
            _, codes = walk.states[site]
            before = state.operators.get(site)
            for observer in self._observers:
                observer(site, timestep, codes if before is None else codes - before.codes)
        return pytree.tree_map(_like, mean, output), SpikingState(timestep, walk.states, mean)

    def sites(self) -> dict[str, PolarityNeuron]:
        """The neurons by site name, in the order in which a signal meets them."""
        found = {}
        for node in self.network.graph.nodes:
            if node.op == "call_module":
                module = self.network.get_submodule(str(node.target))
                if isinstance(module, PolarityNeuron):
                    found[str(node.target)] = module
        return found

    @contextlib.contextmanager
    def observe(self, observer: Observer) -> Iterator[None]:
        """Within this context ``observer(site, t, spikes)`` is called for every site and timestep (1, 2, ...).

        ``spikes`` are the signed spikes k[t] of the step, as floats with the shape of the site's signal. Observing always
        walks the timesteps, also where the mean domain was asked for.
        """
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)

    def train(self, mode: bool = True) -> SpikingNetwork:
        """Stay in evaluation mode: the running-mean contract holds nowhere else."""
        del mode
        super().train(False)
        return self

    def _frames(
        self, inputs: tuple[Any, ...], named: dict[str, Any], timesteps: int | None, time_dim: int | None
    ) -> tuple[Callable[[int], tuple[tuple[Any, ...], dict[str, Any]]], int]:
        """The input of step t = 1, 2, ... as a function, and T."""
        if timesteps is not None and (isinstance(timesteps, bool) or not isinstance(timesteps, int) or timesteps < 1):
            raise SpecError(f"timesteps: expected a positive integer, got {timesteps!r}")
        if time_dim is None:
            return (lambda t: (inputs, named)), timesteps or 1
        given: Inputs = {**{str(index): value for index, value in enumerate(inputs)}, **named}
        if any(not -tensor.dim() <= time_dim < tensor.dim() for _, tensor in tensors_of(given)):
            raise InputError(f"time_dim={time_dim}: an input has no such dimension")
        lengths = {tensor.shape[time_dim] for _, tensor in tensors_of(given)}
        if len(lengths) != 1 or 0 in lengths:
            raise InputError(f"time_dim={time_dim}: expected inputs of one common length, got {sorted(lengths)}")
        length = lengths.pop()
        if timesteps not in (None, length):
            raise SpecError(f"timesteps={timesteps} contradicts a sequence of {length} frames; leave timesteps out")

        def frame(t: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
            def cut(value: Any) -> Any:
                return value.select(time_dim, t - 1) if isinstance(value, Tensor) else value

            return tuple(cut(value) for value in inputs), {name: cut(value) for name, value in named.items()}

        return frame, length

    def _by_steps(self, frames: Callable[[int], Any], total: int) -> Iterator[Any]:
        state: SpikingState | None = None
        for t in range(1, total + 1):
            args, kwargs = frames(t)
            mean, state = self.step(
                {**{name: value for name, value in zip(self._names(), args, strict=False)}, **kwargs}, state
            )
            yield mean

    def _by_mean(self, frames: Callable[[int], Any], total: int, every_step: bool) -> Iterator[Any]:
        mean: Any = None
        for t in range(1, total + 1):
            args, kwargs = frames(t)
            values = self._in_order(args, kwargs)
            mean = values if mean is None else [_mean_input(old, new, t) for old, new in zip(mean, values, strict=True)]
            if every_step or t == total:
                output = _Settle(self.network, t).run(*mean)
                yield output

    def _by_frames(self, frames: Callable[[int], Any], total: int) -> Iterator[Any]:
        mean: Any = None
        for t in range(1, total + 1):
            args, kwargs = frames(t)
            output = checked_call(self.network, self.signature, args, kwargs)
            previous = output if mean is None else mean
            mean = pytree.tree_map(lambda old, new, t=t: _running_mean(old, new, t), previous, output)
            yield pytree.tree_map(_like, mean, output)

    def _names(self) -> list[str]:
        return [str(node.target) for node in self.network.graph.nodes if node.op == "placeholder"]

    def _in_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
        names = self._names()
        if unknown := sorted(set(kwargs) - set(names)):
            raise InputError(f"unknown inputs {unknown}; the network takes {names}")
        return [*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs)]


class _Advance(fx.Interpreter):
    """Walk the graph for one timestep; temporal operators get their state and leave the next one in ``states``."""

    def __init__(self, network: fx.GraphModule, state: SpikingState) -> None:
        super().__init__(network)
        self.before = state
        self.states: dict[str, Any] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if not isinstance(module, TemporalOperator):
            return super().call_module(target, args, kwargs)
        (x,) = args
        y, self.states[target] = module.advance(x, self.before.operators.get(target), self.before.timestep + 1)
        return y


class _Settle(fx.Interpreter):
    """Walk the graph once in the mean domain: the mean answer after T timesteps."""

    def __init__(self, network: fx.GraphModule, timesteps: int) -> None:
        super().__init__(network)
        self.timesteps = timesteps

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if isinstance(module, TemporalOperator):
            (mean,) = args
            return module.settle(mean, self.timesteps)
        return super().call_module(target, args, kwargs)


def _running_mean(old: Any, new: Any, timestep: int) -> Any:
    """``M += (x - M) / t`` in at least float32, which is exact for a constant sequence."""
    if not isinstance(new, Tensor) or not new.is_floating_point():
        return new
    if timestep == 1:
        return ops.widen(new)
    return old + (new - old) / timestep


def _mean_input(old: Any, new: Any, timestep: int) -> Any:
    if new is old or not isinstance(new, Tensor) or not new.is_floating_point():
        return new
    return old + (new - old) / timestep


def _like(mean: Any, output: Any) -> Any:
    """The mean in the type of the output, as the first timestep returns it."""
    return mean.to(output.dtype) if isinstance(output, Tensor) else mean


def _last(values: Iterator[Any]) -> Any:
    return collections.deque(values, maxlen=1).pop()
