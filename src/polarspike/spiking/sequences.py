"""A network whose neurons take a whole sequence at once: layer by layer, all timesteps in one batch.

So run networks that are trained through time (:mod:`polarspike.spiking.through_time`) and those of rival methods
(:mod:`polarspike.baselines`). Timesteps lie in front of the batch, and both together are the batch of every operator between
two sites: (S, batch, ...) is folded to (S batch, ...) and unfolded where a neuron wants its time. What an operator does over
time is decided by ``contract``::

                 affine        homogeneous (max pooling)    any other (softmax, layer norm, products)
    "all"        y = f(x[t])   f(S[t]) - f(S[t-1])          t f(M[t]) - (t-1) f(M[t-1])       our running-mean contract
    "means"      y = f(x[t])   f(x[t])                      t f(M[t]) - (t-1) f(M[t-1])       as most rivals pool
    "none"       y = f(x[t])   f(x[t])                      f(x[t])                           every step by itself

The answer after T steps is the mean of the outputs of steps 1..T.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from polarspike.common.frames import frames_of
from polarspike.common.inputs import batch_size, bind, is_batched, rows_of
from polarspike.common.signatures import Signature
from polarspike.errors import InputError, OperatorError
from polarspike.graph.contract import Rule, rules_of
from polarspike.graph.editing import depth_of, modules_of, signals
from polarspike.graph.operators import moving
from polarspike.neurons import PolarityNeuron
from polarspike.quantized import fitting, parameters_of
from polarspike.spiking.network import Observable

Contract = Literal["all", "means", "none"]
# Timesteps times images that are computed at once where nothing trains; beyond it activations leave the caches.
_PIECE = 512


class SpikeTrain(NamedTuple):
    """What a neuron fires: signed spikes of every timestep (S, batch, ...), and of a rehearsal before them, if any."""

    spikes: Tensor
    rehearsal: Tensor | None = None


class SequenceNeuron(PolarityNeuron, ABC):
    """A neuron that takes the inputs of all timesteps, (S, batch, ...), and says what it fires at each.

    It is counted like :class:`~polarspike.neurons.PolarityNeuron`: a spike is worth the step of its site.
    """

    #: Steps that the whole network must run before those that count.
    pre_run: int = 0
    #: Steps that this site by itself looks at before it fires.
    own_rehearsal: int = 0

    @abstractmethod
    def train_of(self, currents: Tensor) -> SpikeTrain:
        """The spikes at all timesteps."""

    def values_of(self, currents: Tensor) -> tuple[Tensor, SpikeTrain]:
        """What the next operator receives at every step, (S, batch, ...), and the spikes that carry it."""
        train = self.train_of(currents)
        return self.decode(train.spikes.flatten(0, 1)).view(train.spikes.shape), train

    def forward(self, x: Tensor) -> Tensor:
        """The first timestep from rest."""
        return self.values_of(x.unsqueeze(0))[0][0].to(x.dtype)


class SequenceNetwork(Observable):
    """A spiking network over sequences.

    Args:
        network: a graph with a :class:`SequenceNeuron` at every site.
        signature: of the example.
        timesteps: T where a call names none: what the network is trained at.
        contract: what operators do over time, see above.

    It can be trained with :func:`polarspike.fit` and measured with :func:`polarspike.evaluate`, like any other network.
    """

    def __init__(
        self, network: fx.GraphModule, signature: Signature, *, timesteps: int = 1, contract: Contract = "all"
    ) -> None:
        super().__init__()
        self.network = network
        self.signature = signature
        self.timesteps = timesteps
        self.contract: Contract = contract
        self._arguments = parameters_of(network)
        self._named_signature = signature.named(self._arguments)
        self.train(network.training)

    def sites(self) -> dict[str, SequenceNeuron]:
        """The neurons by site name."""
        return modules_of(self.network, SequenceNeuron)  # type: ignore[type-abstract]

    @property
    def pre_run(self) -> int:
        """Steps that the whole network runs before those that count (SRP)."""
        return max((site.pre_run for site in self.sites().values()), default=0)

    @property
    def rehearsal(self) -> int:
        """Steps before those that count, of the network or of every site by itself (COS): publications leave them out."""
        return self.pre_run + max((site.own_rehearsal for site in self.sites().values()), default=0)

    def pipeline_latency(self, timesteps: int) -> int:
        """Steps on clocked hardware: every site on the longest way adds one, and its own rehearsal before it."""
        depth = depth_of(self.network, set(self.sites()))
        return timesteps + self.pre_run + max(0, depth - 1) + depth * (self.rehearsal - self.pre_run)

    def forward(
        self,
        *inputs: Any,
        timesteps: int | None = None,
        every_step: bool = False,
        time_dim: int | None = None,
        **named: Any,
    ) -> Any:
        """The mean of the outputs of steps 1..T; arguments as for :class:`~polarspike.SpikingNetwork`."""
        given = bind(self._arguments, inputs, named)
        frames = self._frames(given, timesteps, time_dim)
        self._named_signature.check(frames[0])
        shared = self.signature.shared
        length = batch_size(frames[0], shared)
        if length == 0:
            raise InputError("expected at least one image, got an empty batch")
        size = length if torch.is_grad_enabled() else max(1, _PIECE // (self._simulated(len(frames)) + self.pre_run))
        # Decided once: a last piece may have as many images as a mask has rows.
        whole = {name for name, value in frames[0].items() if name in shared or not is_batched(value, length)}
        pieces = [slice(i, i + size) for i in range(0, length, size)]
        answers = [
            self._run([cast(Mapping[str, Any], rows_of(f, rows, length, whole)) for f in frames], whole)
            for rows in pieces
        ]
        outputs = pytree.tree_map(_joined, *answers)  # (T, batch, ...)
        return pytree.tree_map(_running_mean if every_step else _mean, outputs)

    def _frames(self, given: Mapping[str, Any], timesteps: int | None, time_dim: int | None) -> list[Mapping[str, Any]]:
        """The inputs of steps 1..T."""
        steps = timesteps if timesteps is not None or time_dim is not None else self.timesteps
        return cast(list[Mapping[str, Any]], frames_of(given, steps, time_dim))

    def _simulated(self, timesteps: int) -> int:
        """How many counted steps are run for T: a site's rehearsal (COS) needs as many corrected inputs as it is long."""
        return max(timesteps, self.rehearsal - self.pre_run)

    def _run(self, frames: list[Mapping[str, Any]], shared: set[str]) -> Any:
        """The outputs of the T counted steps, (T, batch, ...); ``shared`` inputs are the same for all images."""
        asked, rehearsed = len(frames), self.pre_run
        ahead = [frames[t % asked] for t in range(rehearsed)]
        frames = ahead + [frames[t % asked] for t in range(self._simulated(asked))]
        images = batch_size(frames[0], shared)
        walk = Walk(self.network, len(frames), rehearsed, images, self.contract)
        folded = {
            name: _same(name, [f[name] for f in frames], images)
            if name in shared
            else torch.cat([f[name] for f in frames])
            for name in frames[0]
        }
        with fitting(self._named_signature, frames[0]):
            output = walk.run(*folded.values())
        self._report(walk, rehearsed)

        def counted(y: Any) -> Any:
            if not isinstance(y, Tensor):
                return y
            if not is_batched(y, len(frames) * images):
                raise OperatorError(
                    f"the output: expected the batch in dimension 0, {images} images at {len(frames)} timesteps, got shape "
                    f"{tuple(y.shape)}; return only what belongs to an image"
                )
            return _unfolded(y, len(frames))[rehearsed : rehearsed + asked]

        return pytree.tree_map(counted, output)

    def _report(self, walk: Walk, rehearsed: int) -> None:
        for name, train in walk.trains.items() if self._observers else ():
            parts = [] if train.rehearsal is None else list(train.rehearsal)
            first = 1 - rehearsed - len(parts)
            for t, spikes in enumerate([*parts, *train.spikes], start=first):
                for observer in self._observers:
                    observer(name, t, spikes.detach())


class Walk(fx.Interpreter):
    """All timesteps of a graph at once; ``trains`` holds what the sites fired."""

    def __init__(self, network: fx.GraphModule, length: int, rehearsed: int, images: int, contract: Contract) -> None:
        super().__init__(network)
        self.extra_traceback = False  # an error says by itself where it was found
        self.length = length
        self.images = images
        #: Neurons start anew after a pre-run, so sums and means over time do, too.
        self.parts = [part for part in (rehearsed, length - rehearsed) if part]
        self.contract = contract
        self.dependent = signals(network)
        self.rules = rules_of(network, self.dependent)
        self.trains: dict[str, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        module = self.module.get_submodule(str(n.target)) if n.op == "call_module" else None
        if isinstance(module, SequenceNeuron):
            return self._fire(n, module)
        rule = self.rules.get(n, Rule.AFFINE)
        by_itself = self.contract == "none" or (rule is Rule.HOMOGENEOUS and self.contract == "means")
        if self.length == 1 or rule is Rule.AFFINE or by_itself:
            return super().run_node(n)
        times = torch.cat([torch.arange(1, part + 1) for part in self.parts])
        given = {
            parent: pytree.tree_map(
                lambda x: self._sums(x, times if rule is Rule.DIFFERENCE else None), self.env[parent]
            )
            for parent in moving(n, self.dependent)
        }
        args, kwargs = fx.node.map_arg((n.args, n.kwargs), lambda parent: given.get(parent, self.env[parent]))
        answer = getattr(self, n.op)(n.target, args, kwargs)
        return pytree.tree_map(lambda y: self._steps(y, times if rule is Rule.DIFFERENCE else None), answer)

    def _fire(self, node: fx.Node, neuron: SequenceNeuron) -> Tensor:
        x: Tensor = self.env[node.all_input_nodes[0]]
        if x.shape[0] != self.length * self.images:
            raise OperatorError(
                f"{node.target}: expected the batch in dimension 0, {self.images} images at {self.length} timesteps, got "
                f"shape {tuple(x.shape)}; rivals need a network that keeps its batch in front (batch_first=True)"
            )
        path = str(node.target)
        values, self.trains[path] = self.fire(path, neuron, _unfolded(x, self.length))
        return values.flatten(0, 1).to(x.dtype)

    def fire(self, path: str, neuron: SequenceNeuron, currents: Tensor) -> tuple[Tensor, SpikeTrain]:
        """What a site hands on at every step, and what it fires."""
        del path
        return neuron.values_of(currents)

    def _sums(self, x: Any, times: Tensor | None) -> Any:
        """Running sums over the timesteps, or means where the times are given."""
        if not isinstance(x, Tensor) or not x.is_floating_point():
            return x
        total = torch.cat([part.cumsum(0) for part in torch.split(_unfolded(x, self.length), self.parts)])
        if times is not None:
            total = total / times.to(x).view(-1, *(1,) * (total.dim() - 1))
        return total.flatten(0, 1)

    def _steps(self, y: Any, times: Tensor | None) -> Any:
        """What every step adds to running responses."""
        if not isinstance(y, Tensor) or not y.is_floating_point():
            return y
        response = _unfolded(y, self.length)
        if times is not None:
            response = response * times.to(y).view(-1, *(1,) * (response.dim() - 1))
        parts = [torch.cat((part[:1], part[1:] - part[:-1])) for part in torch.split(response, self.parts)]
        return torch.cat(parts).flatten(0, 1)


def _same(name: str, values: list[Any], images: int) -> Any:
    """An input that is the same for all images, and so at all timesteps."""
    first = values[0]
    if isinstance(first, Tensor) and not all(value is first or torch.equal(value, first) for value in values):
        raise InputError(
            f"input {name!r}: expected the same at every timestep, because it has no batch of {images} in front, got "
            f"another behind the first, of shape {tuple(first.shape)}; give it for every sample"
        )
    return first


def _joined(*pieces: Any) -> Any:
    """An output of all pieces of a batch, (T, batch, ...); what is no tensor is the same in each."""
    return torch.cat(pieces, 1) if isinstance(pieces[0], Tensor) else pieces[0]


def _unfolded(x: Tensor, length: int) -> Tensor:
    """(S batch, ...) as (S, batch, ...)."""
    return x.reshape(length, x.shape[0] // length, *x.shape[1:])


def _has_mean(outputs: Any) -> bool:
    return isinstance(outputs, Tensor) and (outputs.is_floating_point() or outputs.is_complex())


def _mean(outputs: Any) -> Any:
    """Of floats over time; of integers the last, because they have none, and what is no tensor as it is."""
    if _has_mean(outputs):
        return outputs.mean(0)
    return outputs[-1] if isinstance(outputs, Tensor) else outputs


def _running_mean(outputs: Any) -> Any:
    if not _has_mean(outputs):
        return outputs
    times = torch.arange(1, len(outputs) + 1).to(outputs).view(-1, *(1,) * (outputs.dim() - 1))
    return outputs.cumsum(0) / times
