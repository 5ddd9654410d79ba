"""The neuron that fires several signed spikes per step and is exact at every timestep."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from polarspike import ops
from polarspike.sites import Site
from polarspike.temporal import TemporalOperator, require_same_shape


class NeuronState(NamedTuple):
    """The sum of all input so far (A) and the running code (C); both (batch, ...), at least float32."""

    total: Tensor
    codes: Tensor


class PolarityNeuron(Site, TemporalOperator):
    """Integrate and fire, with several signed spikes per step.

        A[t] = A[t-1] + I[t]
        C[t] = clip(floor(A[t] / s + 1/2), -N t, P t)
        k[t] = C[t] - C[t-1]                          signed spikes of step t (soft reset by s k[t])
        y[t] = decode(C[t]) - decode(C[t-1])          what the next operator receives

    At the first step this is the quantizer itself. Later, a negative spike takes back what an earlier one said too much,
    also at a rectified site; for T > 1 a single k[t] may therefore leave {-N, ..., P}, while C[T] never leaves
    {-N T, ..., P T}. Hardware may hold the bounded residue v = A - s C in place of A.

    Law and theorem: docs/theory.md. Shapes: any input (batch, channels, ...); the output has its shape and type; state is
    at least float32 whatever the autocast type, because a bfloat16 membrane drifts.
    """

    def forward(self, x: Tensor) -> Tensor:
        return ops.quantize(x, self.broadcast_step(x), self.gain, self.levels)

    def advance(self, x: Tensor, state: NeuronState | None, timestep: int) -> tuple[Tensor, NeuronState]:
        require_same_shape(x, None if state is None else state.total, self.name)
        total = ops.widen(x) if state is None else state.total + x
        negative, positive = self.levels
        codes = ops.encode(total, self.broadcast_step(total), negative * timestep, positive * timestep)
        y = self.decode(codes) if state is None else self.decode(codes) - self.decode(state.codes)
        return y.to(x.dtype), NeuronState(total, codes)

    def settle(self, mean: Tensor, timesteps: int) -> Tensor:
        # The same numbers as the refined quantizer's: step s / T, levels (N T, P T).
        return ops.quantize(mean, self.broadcast_step(mean) / timesteps, self.gain, self.spec.refined(timesteps).levels)
