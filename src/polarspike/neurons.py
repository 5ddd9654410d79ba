"""The neuron that fires several signed spikes per step and is exact at every timestep, and its variants."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn

from polarspike import firing, ops
from polarspike.errors import CheckpointError
from polarspike.sites import Site
from polarspike.specs import ConvertSpec, SiteSpec
from polarspike.temporal import require_same_shape


class NeuronState(NamedTuple):
    """The sum of all input so far (A) and the running code (C); both (batch, ...), at least float32."""

    total: Tensor
    codes: Tensor


class PolarityNeuron(Site):
    """Integrate and fire, with several signed spikes per step.

        A[t] = A[t-1] + I[t]
        C[t] = clip(floor(A[t] / s + 1/2), -N t, P t)
        k[t] = C[t] - C[t-1]                          signed spikes of step t (soft reset by s k[t])
        y[t] = decode(C[t]) - decode(C[t-1])          what the next operator receives

    At the first step this is the quantizer itself. Later, a negative spike takes back what an earlier one said too much,
    also at a rectified site; for T > 1 a single k[t] may therefore leave {-N, ..., P}, while C[T] never leaves
    {-N T, ..., P T}. Hardware may hold the bounded residue v = A - s C in place of A.

    Input comes step by step (:meth:`integrate`), or as the running mean where the operator in front works on means
    (:meth:`meet`); what is handed on is the step (:meth:`emitted`), or its running mean (:meth:`average`).

    Law and theorem: docs/theory.md. Shapes: any input (batch, channels, ...); the output has its shape and type; state is
    at least float32 whatever the autocast type, because a bfloat16 membrane drifts.
    """

    #: Nobody else reads the input, and it is no view: the first timestep may write its answer there.
    overwrites: bool = False
    #: The modules that make the input: where a hook looks at one of them, its answer is left alone.
    makers: tuple[nn.Module, ...] = ()

    @property
    def most_per_step(self) -> int:
        """The unit spikes of either sign that a step from rest can fire: what hardware has to send."""
        return max(self.levels)

    def forward(self, x: Tensor) -> Tensor:
        """The output at the first timestep, from rest."""
        return self._quantize(x, self.broadcast_step(x), self.levels)

    def advance(
        self, x: Tensor, state: NeuronState | None, timestep: int, *, reuse: bool = False
    ) -> tuple[Tensor, NeuronState]:
        """The output at ``timestep`` (1, 2, ...) and the next state; ``state`` is None at the first.

        It is never altered, unless ``reuse`` gives its memory to the next one; that of ``x`` goes, too, where nobody else
        reads it.
        """
        if state is None:
            after = self.integrate(x.clone() if reuse else x, state, timestep)  # x may be somebody else's
            return self.emitted(state, after).to(x.dtype), after
        require_same_shape(x, state.total, self.name)
        step = self.broadcast_step(state.total)
        levels, take = self._reach(timestep), reuse and self._may_overwrite
        y, total, codes = firing.fire(
            x, state.total, state.codes, step, self._effective_gain, levels, reuse=reuse, take=take
        )
        return y.to(x.dtype), NeuronState(total, codes)

    def integrate(self, x: Tensor, state: NeuronState | None, timestep: int) -> NeuronState:
        """The state after the input of one step."""
        require_same_shape(x, None if state is None else state.total, self.name)
        if state is None:
            return self._coded(ops.widen(x), state, timestep)
        step = self.broadcast_step(state.total)
        return NeuronState(*firing.integrate(x, state.total, step, self._reach(timestep), self._effective_gain))

    def meet(self, mean: Tensor, state: NeuronState | None, timestep: int) -> NeuronState:
        """The state after ``timestep`` steps whose inputs had this mean: the codes of the refined quantizer."""
        require_same_shape(mean, None if state is None else state.total, self.name)
        mean = ops.widen(mean)
        codes = self._code(mean, timestep, self.broadcast_step(mean) / timestep)
        return NeuronState(mean if timestep == 1 else mean * timestep, codes)

    def emitted(self, before: NeuronState | None, after: NeuronState) -> Tensor:
        """What the next operator receives in the step between two states."""
        if before is None:
            return self.decode(after.codes)
        return firing.emit(before.codes, after.codes, self.broadcast_step(after.codes), self._effective_gain)

    def average(self, state: NeuronState, timestep: int) -> Tensor:
        """The running mean of what the next operator received: the value of the refined quantizer."""
        return ops.decode(state.codes, self.broadcast_step(state.codes) / timestep, self._effective_gain)

    def settle(self, mean: Tensor, timesteps: int) -> Tensor:
        """The mean output after ``timesteps`` steps whose inputs had this mean."""
        # The same numbers as the refined quantizer's: step s / T, levels (N T, P T).
        return self._quantize(mean, self.broadcast_step(mean) / timesteps, self._reach(timesteps))

    @property
    def _may_overwrite(self) -> bool:
        """Whether the input's memory is free: nobody else reads it in the graph, and no hook has seen it."""
        watched = self._forward_hooks or self._forward_pre_hooks or any(made._forward_hooks for made in self.makers)
        return self.overwrites and not watched

    def _quantize(self, x: Tensor, step: Tensor, levels: tuple[int, int]) -> Tensor:
        if self._may_overwrite and not torch.is_grad_enabled():
            return ops.overwrite(x, step, self.gain, levels)
        return ops.quantize(x, step, self.gain, levels)

    def _code(self, x: Tensor, timestep: int = 1, step: Tensor | None = None) -> Tensor:
        """The code of ``x`` within the levels of a timestep, with a gradient where one is asked for."""
        step = self.broadcast_step(x) if step is None else step
        return ops.encode_through(x, step, self._reach(timestep), self._effective_gain)

    @property
    def _effective_gain(self) -> Tensor | float:
        return self.gain if self.spec.negative else 1.0

    def _coded(self, total: Tensor, state: NeuronState | None, timestep: int) -> NeuronState:
        del state
        return NeuronState(total, self._code(total, timestep))

    def _reach(self, timesteps: int) -> tuple[int, int]:
        return self.levels[0] * timesteps, self.levels[1] * timesteps


class HoldingNeuron(PolarityNeuron):
    """A neuron whose answer keeps the original grid: after T steps its mean is the quantizer of the mean input.

        C[t] = t encode(M[t]),   M[t] = A[t] / t,   y[t] = decode(C[t]) - decode(C[t-1])

    So the spiking network equals the quantized network itself on the mean input, at every T: more steps average the
    input and refine nothing. A change of the mean by one level fires about t spikes at once, so ``|k[t]|`` grows with t.

    A is summed in float64 (where the device has it): the mean of equal inputs is then that input to the last bit, also
    where it lies on a boundary.
    """

    def advance(
        self, x: Tensor, state: NeuronState | None, timestep: int, *, reuse: bool = False
    ) -> tuple[Tensor, NeuronState]:
        del reuse
        after = self.integrate(x, state, timestep)
        return self.emitted(state, after).to(x.dtype), after

    def integrate(self, x: Tensor, state: NeuronState | None, timestep: int) -> NeuronState:
        require_same_shape(x, None if state is None else state.total, self.name)
        total = x.to(ops.sum_dtype(x)) if state is None else state.total + x
        mean = (total / timestep).to(ops.widen(x).dtype)
        return NeuronState(total, self._code(mean) * timestep)

    def meet(self, mean: Tensor, state: NeuronState | None, timestep: int) -> NeuronState:
        require_same_shape(mean, None if state is None else state.total, self.name)
        return NeuronState(mean.to(ops.sum_dtype(mean)) * timestep, self._code(ops.widen(mean)) * timestep)

    def average(self, state: NeuronState, timestep: int) -> Tensor:
        return self.decode(state.codes / timestep)

    def settle(self, mean: Tensor, timesteps: int) -> Tensor:
        return self.forward(mean)


class CappedNeuron(PolarityNeuron):
    """A neuron of hardware that fires at most ``cap`` spikes in a step; the rest waits in the membrane.

        G[t] = clip(floor(A[t] / s + 1/2), -N t, P t)            what should have been fired
        k[t] = clip(G[t] - C[t-1], -cap, cap),   C[t] = C[t-1] + k[t]

    ``cap = 1`` is ternary hardware (binary on a pair of lines, one for each sign). Once nothing waits anywhere
    (G = C at every site), codes and answers are those of :class:`PolarityNeuron`; until then, they are on their way.
    """

    cap = 1

    @property
    def most_per_step(self) -> int:
        return min(self.cap, super().most_per_step)  # its levels bound what it has fired in all

    def options(self) -> dict[str, Any]:
        return {"cap": self.cap}

    @classmethod
    def restored(cls, spec: SiteSpec, name: str, options: Mapping[str, Any]) -> Self:
        cap = ConvertSpec(max_spikes_per_step=options["cap"]).max_spikes_per_step
        if cap is None:
            raise CheckpointError(f"module {name!r}: a capped neuron without a cap; the file is damaged")
        site = cls(spec, name)
        site.cap = cap
        return site

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self._toward(self._code(x), None)).to(x.dtype)

    def advance(
        self, x: Tensor, state: NeuronState | None, timestep: int, *, reuse: bool = False
    ) -> tuple[Tensor, NeuronState]:
        del reuse
        after = self.integrate(x, state, timestep)
        return self.emitted(state, after).to(x.dtype), after

    def integrate(self, x: Tensor, state: NeuronState | None, timestep: int) -> NeuronState:
        require_same_shape(x, None if state is None else state.total, self.name)
        return self._coded(ops.widen(x) if state is None else state.total + x, state, timestep)

    def meet(self, mean: Tensor, state: NeuronState | None, timestep: int) -> NeuronState:
        goal = super().meet(mean, state, timestep)
        return NeuronState(goal.total, self._toward(goal.codes, state))

    def waiting(self, state: NeuronState, timestep: int) -> int:
        """How many unit spikes wait in the membranes."""
        return int((super()._coded(state.total, None, timestep).codes - state.codes).abs().sum())

    def _coded(self, total: Tensor, state: NeuronState | None, timestep: int) -> NeuronState:
        goal = super()._coded(total, None, timestep).codes
        return NeuronState(total, self._toward(goal, state))

    def _toward(self, goal: Tensor, state: NeuronState | None) -> Tensor:
        change = goal if state is None else goal - state.codes
        fired = change.clamp(-self.cap, self.cap)
        if ops.is_watched(change):  # torch's clamp has no slope at its bounds, where codes lie
            fired = torch.where(change.abs() <= self.cap, change, fired.detach())
        return fired if state is None else state.codes + fired

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, cap={self.cap}"


def build_neuron(spec: SiteSpec, name: str, convert: ConvertSpec) -> PolarityNeuron:
    """The neuron that a conversion asks for."""
    if convert.max_spikes_per_step is not None:
        capped = CappedNeuron(spec, name)
        capped.cap = convert.max_spikes_per_step
        return capped
    return (HoldingNeuron if convert.neuron == "holding" else PolarityNeuron)(spec, name)
