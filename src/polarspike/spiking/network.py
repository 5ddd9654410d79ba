"""The spiking network (SNN): a graph whose sites hold neurons, run for one timestep or many.

One image takes this way: :meth:`SpikingNetwork.forward` reads T, the first timestep runs the generated code of the graph,
every later one walks the same graph with an explicit state (:mod:`polarspike.spiking.walks`), and the answer is the
running mean of the output.
"""

from __future__ import annotations

import collections
import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal, cast

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from polarspike.common.frames import channels_of, frames_of, running_means
from polarspike.common.inputs import Inputs, as_call, bind
from polarspike.common.signatures import Signature
from polarspike.errors import InputError, SpecError
from polarspike.graph.editing import INTEGERS, depth_of, modules_of
from polarspike.neurons import CappedNeuron, NeuronState, PolarityNeuron
from polarspike.quantized import fitting, parameters_of
from polarspike.sites import require_exact_codes
from polarspike.specs import ConvertSpec
from polarspike.spiking.overwriting import let_overwrite
from polarspike.spiking.timing import timing_of
from polarspike.spiking.walks import Advance, Drain, Settle, WalkState, waiting_in
from polarspike.temporal import to_mean

Execution = Literal["steps", "mean"]
#: Called with the name of a site, the step t = 1, 2, ..., and the signed spikes of that step, (batch, ...).
Observer = Callable[[str, int, Tensor], None]


@dataclass(frozen=True)
class SpikingState:
    """Everything that a spiking network carries from one timestep to the next; a value, never altered.

    Attributes:
        timestep: how many inputs have been taken.
        walk: the states of the operators.
        mean: the running mean of the output so far, at least float32.
        drained: how many steps were walked after the last input (capped neurons alone).
        constants: the integer inputs of the first timestep, which every later one must repeat.
    """

    timestep: int = 0
    walk: WalkState = field(default_factory=WalkState)
    mean: Any = None
    drained: int = 0
    constants: Mapping[str, Any] = field(default_factory=dict)

    @property
    def neurons(self) -> Mapping[str, NeuronState]:
        """The states of the sites by name."""
        return self.walk.neurons


@dataclass(frozen=True)
class Latency:
    """How long a network of capped neurons takes for an answer.

    Attributes:
        inputs: T, the steps at which input is given.
        drained: the steps after them until no spike waits anywhere.
        depth: the most sites that follow each other on a way through the network.
    """

    inputs: int
    drained: int
    depth: int

    @property
    def steps(self) -> int:
        """Steps of a simulation, in which a spike crosses all layers at once."""
        return self.inputs + self.drained

    @property
    def pipeline(self) -> int:
        """Steps of clocked hardware, where every site adds one: ``steps + depth - 1``."""
        return self.steps + max(0, self.depth - 1)


class Observable(nn.Module):
    """A network whose spikes can be looked at while it runs."""

    def __init__(self) -> None:
        super().__init__()
        self._observers: list[Observer] = []

    @contextlib.contextmanager
    def observe(self, observer: Observer) -> Iterator[None]:
        """Within this context ``observer(site, t, spikes)`` is called for every site and timestep (1, 2, ...).

        ``spikes`` are the signed spikes k[t] of the step, as floats with the shape of the site's signal. Observing always
        walks the timesteps, also where the mean domain was asked for. A rehearsal of a rival ends at t = 0. What belongs to
        the answer and is fired after the last input follows at T + 1, T + 2, ...: by capped neurons (on the way to an
        earlier answer nobody is told of it), and so that later sites of a rival can rehearse.
        """
        self._observers.append(observer)
        try:
            yield
        finally:
            self._observers.remove(observer)


class SpikingNetwork(Observable):
    """A network of neurons that answers after one timestep, or refines its answer over several.

    It holds no state between calls: the same input gives the same output. :func:`polarspike.convert` makes one.
    It is always in evaluation mode, because dropout and batch statistics would break the running-mean contract.
    Gradients go straight through the rounding of every code, at any T (docs/theory.md); what they need grows with T.
    Several threads may call it; what watches its sites (evaluate, verify, counts) is for one thread at a time.

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
        self._arguments = parameters_of(network)
        self._named_signature = signature.named(self._arguments)
        self._timing = timing_of(network)
        let_overwrite(network)
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
            *inputs: what the original model takes, positional; or all of it as one tuple or dict, as in a batch.
            timesteps: T; the same input is given at every step. 1 by default, the length of the sequence if there is one.
            every_step: return the running mean after each step, stacked in front: (T, batch, ...).
            execution: ``"steps"`` walks the timesteps with memory constant in T; ``"mean"`` computes the same answer in
                one pass in the mean domain (one per prefix with ``every_step``).
            time_dim: the inputs are sequences with their time in this dimension, read as ``ConvertSpec.reading`` says.
            **named: what the original model takes, by keyword.

        Raises:
            InputError: an input does not fit the network.
            SpecError: a contradictory request, more timesteps than ``ConvertSpec.window``, or than codes stay exact for:
                ``max(N, P) T`` must be below 2^23 in float32.
        """
        if execution not in ("steps", "mean"):
            raise SpecError(f"execution: expected 'steps' or 'mean', got {execution!r}")
        given = bind(self._arguments, inputs, named)
        if self.spec.reading == "channels" and time_dim is not None:
            if timesteps not in (None, 1):
                raise SpecError(f"timesteps: reading='channels' takes a sequence as one timestep, got {timesteps!r}")
            given, time_dim = cast(dict[str, Any], channels_of(given, time_dim)), None
        frames = cast(list[Mapping[str, Any]], frames_of(given, timesteps, time_dim))
        self.spec.require_within_window("SpikingNetwork", len(frames))
        if len(frames) == 1 and not every_step and not self._observers and not self.fires_late:
            return self._respond(frames[0])
        rest = self.spec.reading == "frames"
        if len(frames) > 1 and not rest:
            require_exact_codes("SpikingNetwork", self.sites(), len(frames))
        if execution == "mean" and not rest and not self._observers:
            answers = self._by_mean(frames, every_step)
        else:
            answers = self._by_steps(frames, rest, every_step)
        return pytree.tree_map(_stack, *answers) if every_step else _last(answers)

    def step(self, inputs: Inputs, state: SpikingState | None = None) -> tuple[Any, SpikingState]:
        """Take one timestep: the running mean of the output so far, and the next state.

        With ``ConvertSpec(reading="frames")`` every frame starts from rest, and only the output's mean goes on. With
        ``ConvertSpec(window=W)`` everything starts again after W steps: the answer of step 1..W of each window is the
        mean over that window so far. Capped neurons may still hold spikes back; :meth:`drain` lets them go.

        Args:
            inputs: one frame (batch, ...): a tensor, a tuple or a dict.
            state: what the previous step returned; None to start. It is not altered and may be used again.

        Without a window the mean never forgets: each new frame moves it by 1/t, and the sums in the state grow. In float32
        codes stay exact to about 10^4 steps. An endless stream needs a window, or a new start from None. Stream within
        ``torch.no_grad()``, else the state keeps every step's graph.
        """
        args, kwargs = as_call(inputs)
        state = SpikingState() if state is None else state
        if not isinstance(state, SpikingState):
            raise InputError(
                f"step: expected the state that the previous step returned, or None, got {type(state).__name__}"
            )
        if self.spec.reading == "channels":
            raise SpecError(
                "step: reading='channels' needs all frames at once; call the network with time_dim, or convert with "
                "ConvertSpec(reading='integrate')"
            )
        frame = bind(self._arguments, args, kwargs)
        if self.spec.window is not None and state.timestep >= self.spec.window:
            state = SpikingState()
        if state.timestep == 0:  # the state keeps the first frame's own memory, which the caller may use again
            frame = {name: _copied(value) for name, value in frame.items()}
        mean, state = self._advance(frame, state, self.spec.reading == "frames")
        return pytree.tree_map(_copied, mean), state

    @property
    def fires_late(self) -> bool:
        """Whether an answer may wait for spikes after the last input, so that those of its T are not within steps 1..T."""
        return self.spec.max_spikes_per_step is not None

    def sites(self) -> dict[str, PolarityNeuron]:
        """The neurons by site name, in the order in which a signal meets them."""
        return modules_of(self.network, PolarityNeuron)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._timing = timing_of(self.network)  # an unpickled graph may name its nodes otherwise

    def train(self, mode: bool = True) -> SpikingNetwork:
        """Stay in evaluation mode: the running-mean contract holds nowhere else."""
        del mode
        super().train(False)
        return self

    def _respond(self, frame: Mapping[str, Any]) -> Any:
        """The first timestep, by the generated code of the graph."""
        with fitting(self._named_signature, frame):
            return nn.Module.__call__(self.network, *frame.values())  # that of fx prints a traceback of its own

    def _advance(
        self, frame: Mapping[str, Any], state: SpikingState, rest: bool, reuse: bool = False
    ) -> tuple[Any, SpikingState]:
        """One timestep; with ``rest`` the operators begin anew and only the output's mean goes on."""
        before = WalkState() if rest else state.walk
        timestep = state.timestep + 1
        first = {name: frame[name] for name in self.network.meta.get(INTEGERS, ()) if name in frame}
        constants = first if rest else state.constants or first
        _require_constant(constants, frame)
        walk = Advance(self.network, self._timing, before, 1 if rest else timestep, reuse)
        with fitting(self._named_signature, frame):
            mean = walk.run(*frame.values())
        if rest:  # the answers to single frames are averaged here; else the walk carries the output as its mean
            mean = to_mean(mean, state.mean, timestep, "the output", masked=True)
        self._report(before, walk.neurons, timestep)
        return mean, SpikingState(timestep, walk.state(), mean, constants=constants)

    def drain(self, inputs: Inputs, state: SpikingState) -> tuple[Any, SpikingState]:
        """Let go what capped neurons hold back: steps without input, until nothing waits anywhere.

        Then codes and answer are those of the network without a cap. A network without a cap holds nothing back.

        Args:
            inputs: any frame of the stream, for shapes and what is constant.
            state: what :meth:`step` returned after the last input.

        Returns:
            The running mean of the output, and the state, whose ``drained`` counts the steps.
        """
        args, kwargs = as_call(inputs)
        return self._drain(bind(self._arguments, args, kwargs), state)

    def draining(self, inputs: Inputs, state: SpikingState) -> Iterator[SpikingState]:
        """The states of :meth:`drain`, one for each of its steps."""
        args, kwargs = as_call(inputs)
        yield from self._draining(bind(self._arguments, args, kwargs), state)

    def _draining(self, frame: Mapping[str, Any], state: SpikingState, observed: bool = True) -> Iterator[SpikingState]:
        sites = {name: site for name, site in self.sites().items() if isinstance(site, CappedNeuron)}
        rest: dict[str, Any] = {}
        while waiting_in(sites, state.neurons, state.timestep):
            walk = Drain(self.network, self._timing, state.walk, state.timestep, rest)
            with fitting(self._named_signature, frame):
                mean = walk.run(*frame.values())
            if observed:
                self._report(state.walk, walk.neurons, state.timestep + state.drained + 1)
            state = replace(state, walk=walk.state(), mean=mean, drained=state.drained + 1)
            yield state

    def _drain(self, frame: Mapping[str, Any], state: SpikingState, observed: bool = True) -> tuple[Any, SpikingState]:
        for after in self._draining(frame, state, observed):
            state = after
        return state.mean, state

    def _report(self, before: WalkState, after: Mapping[str, NeuronState], timestep: int) -> None:
        for site in self.sites() if self._observers else ():
            earlier = before.neurons.get(site)
            codes = after[site].codes
            for observer in self._observers:
                observer(site, timestep, codes if earlier is None else codes - earlier.codes)

    @torch.no_grad()
    def latency(self, *inputs: Any, timesteps: int = 1, **named: Any) -> Latency:
        """How long this batch takes until no spike waits: the steps, and what a pipeline of layers adds.

        Args:
            *inputs: as for a call; ``timesteps``, T, is how often they are given.
            timesteps: T.
            **named: as for a call.
        """
        frames = cast(list[Mapping[str, Any]], frames_of(bind(self._arguments, inputs, named), timesteps, None))
        require_exact_codes("latency", self.sites(), len(frames))
        state = SpikingState()
        for frame in frames:
            _, state = self._advance(frame, state, False)
        _, state = self._drain(frames[-1], state)
        depth = depth_of(self.network, set(self.sites()))
        return Latency(len(frames), state.drained, depth)

    def _by_steps(self, frames: list[Mapping[str, Any]], rest: bool, every_step: bool) -> Iterator[Any]:
        state = SpikingState()
        reuse = not self._observers and not torch.is_grad_enabled()  # nobody else sees these states
        for t, frame in enumerate(frames, start=1):
            mean, state = self._advance(frame, state, rest, reuse)
            last = t == len(frames)
            if self.fires_late and (every_step or last):
                mean, _ = self._drain(frame, state, observed=last)  # steps go on from where nothing was let go
            if every_step or last:
                yield mean

    def _by_mean(self, frames: list[Mapping[str, Any]], every_step: bool) -> Iterator[Any]:
        for t, mean in enumerate(cast(Iterator[Mapping[str, Any]], running_means(frames)), start=1):
            if every_step or t == len(frames):
                with fitting(self._named_signature, mean):
                    yield Settle(self.network, t).run(*mean.values())


def _stack(*steps: Any) -> Any:
    """The answers of all steps in front; what is no tensor is the same at every step."""
    return torch.stack(steps) if isinstance(steps[0], Tensor) else steps[-1]


def _require_constant(constants: Mapping[str, Any], frame: Mapping[str, Any]) -> None:
    """Refuse integers and truth values that vary over time: their running mean is none."""
    for name, first in constants.items():
        now = frame[name]
        if now is not first and not (isinstance(now, Tensor) and torch.equal(now, first)):
            raise InputError(
                f"input {name!r}: integers and truth values (tokens, masks) must be the same at every timestep, and these "
                "differ from the first; start a new stream with None, or convert with ConvertSpec(reading='frames')"
            )


def _copied(value: Any) -> Any:
    return value.clone() if isinstance(value, Tensor) else value


def _last(values: Iterator[Any]) -> Any:
    return collections.deque(values, maxlen=1).pop()
