"""The spiking network (SNN): a graph whose sites hold neurons, run for one timestep or many.

One image takes this way: :meth:`SpikingNetwork.forward` reads T, the first timestep runs the generated code of the graph,
every later one walks the same graph with an explicit state, and the answer is the running mean of the output.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from polarspike import ops
from polarspike.errors import InputError, SpecError
from polarspike.graph import modules_of
from polarspike.inputs import Inputs, Signature, as_call, bind, frames_of, running_means
from polarspike.neurons import PolarityNeuron
from polarspike.quantized import fitting, parameters_of
from polarspike.specs import ConvertSpec
from polarspike.temporal import TemporalOperator

Execution = Literal["steps", "mean"]
#: Called with the name of a site, the step t = 1, 2, ..., and the signed spikes of that step, (batch, ...).
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
        self._arguments = parameters_of(network)
        self._named_signature = signature.named(self._arguments)
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
        if execution not in ("steps", "mean"):
            raise SpecError(f"execution: expected 'steps' or 'mean', got {execution!r}")
        given = bind(self._arguments, inputs, named)
        frames = cast(list[Mapping[str, Any]], frames_of(given, timesteps, time_dim))
        if len(frames) == 1 and not every_step and not self._observers:
            return self._respond(frames[0])
        rest = self.spec.reading == "frames"
        if execution == "mean" and not rest and not self._observers:
            answers = self._by_mean(frames, every_step)
        else:
            answers = self._by_steps(frames, rest)
        return pytree.tree_map(_stack, *answers) if every_step else _last(answers)

    def step(self, inputs: Inputs, state: SpikingState | None = None) -> tuple[Any, SpikingState]:
        """Take one timestep: the running mean of the output so far, and the next state.

        With ``ConvertSpec(reading="frames")`` every frame starts from rest, and only the output's mean goes on.

        Args:
            inputs: one frame (batch, ...): a tensor, a tuple or a dict.
            state: what the previous step returned; None to start. It is not altered and may be used again.

        The sums in the state grow with the number of steps; in float32 codes stay exact to about 10^4 steps, after which
        a stream should start again from None. Stream within ``torch.no_grad()``, else the state keeps every step's graph.
        """
        args, kwargs = as_call(inputs)
        state = SpikingState() if state is None else state
        if not isinstance(state, SpikingState):
            raise InputError(
                f"step: expected the state that the previous step returned, or None, got {type(state).__name__}"
            )
        frame = bind(self._arguments, args, kwargs)
        if state.timestep == 0:  # the state keeps the first frame's own memory, which the caller may use again
            frame = {name: _copied(value) for name, value in frame.items()}
        mean, state = self._advance(frame, state, self.spec.reading == "frames")
        return pytree.tree_map(_copied, mean), state

    def sites(self) -> dict[str, PolarityNeuron]:
        """The neurons by site name, in the order in which a signal meets them."""
        return modules_of(self.network, PolarityNeuron)

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

    def _respond(self, frame: Mapping[str, Any]) -> Any:
        """The first timestep, by the generated code of the graph."""
        with fitting(self._named_signature, frame):
            return self.network(*frame.values())

    def _advance(self, frame: Mapping[str, Any], state: SpikingState, rest: bool) -> tuple[Any, SpikingState]:
        """One timestep; with ``rest`` the operators begin anew and only the output's mean goes on."""
        before = SpikingState() if rest else state
        walk = _Advance(self.network, before)
        with fitting(self._named_signature, frame):
            output = walk.run(*frame.values())
        timestep = state.timestep + 1
        previous = output if state.mean is None else state.mean
        mean = pytree.tree_map(lambda old, new: _running_mean(old, new, timestep), previous, output)
        for site in self.sites() if self._observers else ():
            _, codes = walk.states[site]
            earlier = before.operators.get(site)
            for observer in self._observers:
                observer(site, timestep, codes if earlier is None else codes - earlier.codes)
        return pytree.tree_map(_like, mean, output), SpikingState(timestep, walk.states, mean)

    def _by_steps(self, frames: list[Mapping[str, Any]], rest: bool) -> Iterator[Any]:
        state = SpikingState()
        for frame in frames:
            mean, state = self._advance(frame, state, rest)
            yield mean

    def _by_mean(self, frames: list[Mapping[str, Any]], every_step: bool) -> Iterator[Any]:
        for t, mean in enumerate(cast(Iterator[Mapping[str, Any]], running_means(frames)), start=1):
            if every_step or t == len(frames):
                with fitting(self._named_signature, mean):
                    yield _Settle(self.network, t).run(*mean.values())


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


def _stack(*steps: Any) -> Any:
    """The answers of all steps in front; what is no tensor is the same at every step."""
    return torch.stack(steps) if isinstance(steps[0], Tensor) else steps[-1]


def _like(mean: Any, output: Any) -> Any:
    """The mean in the type of the output, as the first timestep returns it."""
    return mean.to(output.dtype) if isinstance(output, Tensor) else mean


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _last(values: Iterator[Any]) -> Any:
    return collections.deque(values, maxlen=1).pop()
