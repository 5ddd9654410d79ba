"""Operators in time: what each operator must do at every step so that running means come out right.

The running-mean contract: the mean over steps 1..T of an operator's output equals the operator applied to the mean of
its inputs. Affine operators keep it as they are. Any other operator becomes a :class:`TemporalOperator`, which carries
an explicit state from step to step and keeps none itself.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, NamedTuple

from torch import Tensor, nn

from polarspike import ops
from polarspike.errors import InputError


class TemporalOperator(nn.Module):
    """An operator with three readings: the first step, a later step, and the whole of T steps at once."""

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """The output at the first timestep, from rest."""

    @abstractmethod
    def advance(self, x: Tensor, state: Any, timestep: int) -> tuple[Tensor, Any]:
        """The output at ``timestep`` (1, 2, ...) and the next state; ``state`` is None at the first and never altered."""

    @abstractmethod
    def settle(self, mean: Tensor, timesteps: int) -> Tensor:
        """The mean output after ``timesteps`` steps whose inputs had this mean."""


def require_same_shape(x: Tensor, total: Tensor | None, place: str) -> None:
    """Refuse a state of other inputs, which broadcasting could hide.

    Raises:
        InputError: the sum so far has another shape than the input of this step.
    """
    if total is not None and total.shape != x.shape:
        raise InputError(
            f"{place!r}: expected the shape of the state, {tuple(total.shape)}, got {tuple(x.shape)}; "
            "a state belongs to its batch: start a new stream with state=None"
        )


class PoolState(NamedTuple):
    """The sum of all inputs so far, and the operator's response to it; both the shape of one step."""

    total: Tensor
    response: Tensor


class HomogeneousDifference(TemporalOperator):
    """A positively homogeneous operator f (max pooling) over time, on sums.

        S[t] = S[t-1] + x[t],    y[t] = f(S[t]) - f(S[t-1])

    Because f(a x) = a f(x) for a >= 0, the mean of y over t steps is f(S[t]) / t = f(mean of x). Working on sums instead
    of means needs no division, and integer multiples of a step stay integer multiples of it.

    Args:
        operator: f, a module with one tensor in and one out.
    """

    def __init__(self, operator: nn.Module) -> None:
        super().__init__()
        self.operator = operator

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.operator(x)
        return result

    def advance(self, x: Tensor, state: PoolState | None, timestep: int) -> tuple[Tensor, PoolState]:
        require_same_shape(x, None if state is None else state.total, type(self.operator).__name__)
        wide = ops.widen(x)  # sums in bfloat16 would drift
        if state is None:
            response = self.operator(wide)
            return response.to(x.dtype), PoolState(wide, response)
        total = state.total + wide
        response = self.operator(total)
        return (response - state.response).to(x.dtype), PoolState(total, response)

    def settle(self, mean: Tensor, timesteps: int) -> Tensor:
        result: Tensor = self.operator(mean)
        return result
