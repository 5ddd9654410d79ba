"""Operators in time: max pooling as a difference on sums."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polarspike.errors import InputError
from polarspike.temporal import HomogeneousDifference, PoolState

POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, padding=1),
    nn.MaxPool2d(3, 1, padding=1, dilation=1),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.AdaptiveMaxPool2d(3),
]


def run(operator: HomogeneousDifference, inputs: list[Tensor]) -> tuple[list[Tensor], PoolState]:
    state, outputs = None, []
    for timestep, x in enumerate(inputs, start=1):
        y, state = operator.advance(x, state, timestep)
        outputs.append(y)
    assert state is not None
    return outputs, state


@pytest.mark.parametrize("pool", POOLS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_mean_output_is_the_operator_of_the_mean_input(pool: nn.Module, steps: int) -> None:
    operator = HomogeneousDifference(pool)
    inputs = list(torch.randn(steps, 2, 3, 7, 7, dtype=torch.float64))
    outputs, _ = run(operator, inputs)
    mean = torch.stack(inputs).mean(0)
    torch.testing.assert_close(torch.stack(outputs).mean(0), pool(mean), rtol=1e-12, atol=1e-12)
    assert torch.equal(operator.settle(mean, steps), pool(mean))


@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_multiples_of_a_step_stay_multiples_of_it(pool: nn.Module) -> None:
    codes = list(torch.randint(-9, 9, (6, 2, 3, 7, 7)).float())
    outputs, state = run(HomogeneousDifference(pool), [0.25 * code for code in codes])
    for y in [*outputs, state.response]:
        assert torch.equal(y / 0.25, (y / 0.25).round())


def test_the_first_step_is_the_operator_itself() -> None:
    operator = HomogeneousDifference(nn.MaxPool2d(2))
    x = torch.randn(2, 3, 6, 6)
    for kind in (torch.float32, torch.bfloat16, torch.float64):
        expected = nn.MaxPool2d(2)(x.to(kind))
        assert torch.equal(operator(x.to(kind)), expected)
        first, _ = operator.advance(x.to(kind), None, 1)
        assert first.dtype == kind
        assert torch.equal(first, expected)


def test_state_is_wide_and_never_altered() -> None:
    operator = HomogeneousDifference(nn.MaxPool2d(2))
    x = torch.randn(1, 1, 4, 4).bfloat16()
    _, state = run(operator, [x, x])
    assert (state.total.dtype, state.response.dtype) == (torch.float32, torch.float32)
    kept = PoolState(state.total.clone(), state.response.clone())
    one, _ = operator.advance(x, state, 3)
    two, _ = operator.advance(x, state, 3)
    assert torch.equal(one, two)
    assert torch.equal(state.total, kept.total)
    assert torch.equal(state.response, kept.response)
    full = torch.randn(1, 1, 4, 4)
    before = full.clone()
    _, first = operator.advance(full, None, 1)
    operator.advance(full, first, 2)
    assert torch.equal(full, before)


def test_a_state_of_another_batch_is_refused() -> None:
    operator = HomogeneousDifference(nn.MaxPool2d(2))
    _, state = operator.advance(torch.randn(1, 1, 4, 4), None, 1)
    with pytest.raises(InputError, match="'MaxPool2d': expected the shape of the state"):
        operator.advance(torch.randn(3, 1, 4, 4), state, 2)
