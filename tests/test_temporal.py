"""A signal as steps and as running means: there and back, positively homogeneous operators on sums, explicit state."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from polarspike.errors import InputError
from polarspike.temporal import SumState, advance_homogeneous, change_of, moved_by, to_mean, to_step

POOLS = [
    nn.MaxPool2d(2),
    nn.MaxPool2d(3, 2, padding=1),
    nn.MaxPool2d(3, 1, padding=1, dilation=1),
    nn.MaxPool2d(2, ceil_mode=True),
    nn.AdaptiveMaxPool2d(3),
    nn.LeakyReLU(0.1),
]


def run(pool: nn.Module, inputs: list[Tensor]) -> tuple[list[Tensor], SumState]:
    state, outputs = None, []
    for x in inputs:
        y, state = advance_homogeneous(pool, x, state, "pool")
        outputs.append(y)
    assert state is not None
    return outputs, state


@pytest.mark.parametrize("pool", POOLS, ids=repr)
@pytest.mark.parametrize("steps", [1, 2, 3, 8])
def test_the_mean_output_is_the_operator_of_the_mean_input(pool: nn.Module, steps: int) -> None:
    inputs = list(torch.randn(steps, 2, 3, 7, 7, dtype=torch.float64))
    outputs, _ = run(pool, inputs)
    mean = torch.stack(inputs).mean(0)
    torch.testing.assert_close(torch.stack(outputs).mean(0), pool(mean), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("pool", POOLS[:-1], ids=repr)
def test_multiples_of_a_step_stay_multiples_of_it(pool: nn.Module) -> None:
    codes = list(torch.randint(-9, 9, (6, 2, 3, 7, 7)).float())
    outputs, state = run(pool, [0.25 * code for code in codes])
    for y in [*outputs, state.response]:
        assert torch.equal(y / 0.25, (y / 0.25).round())


def test_the_first_step_is_the_operator_itself() -> None:
    pool, x = nn.MaxPool2d(2), torch.randn(2, 3, 6, 6)
    for kind in (torch.float32, torch.bfloat16, torch.float64):
        first, state = advance_homogeneous(pool, x.to(kind), None, "pool")
        assert first.dtype == kind and torch.equal(first, pool(x.to(kind)))
        assert state.total.dtype == torch.promote_types(kind, torch.float32)


def test_state_is_wide_and_never_altered() -> None:
    pool, x = nn.MaxPool2d(2), torch.randn(1, 1, 4, 4).bfloat16()
    _, state = run(pool, [x, x])
    assert (state.total.dtype, state.response.dtype) == (torch.float32, torch.float32)
    kept = SumState(state.total.clone(), state.response.clone())
    one, _ = advance_homogeneous(pool, x, state, "pool")
    two, _ = advance_homogeneous(pool, x, state, "pool")
    assert torch.equal(one, two)
    assert torch.equal(state.total, kept.total) and torch.equal(state.response, kept.response)


def test_a_state_of_another_batch_is_refused() -> None:
    _, state = advance_homogeneous(nn.MaxPool2d(2), torch.randn(1, 1, 4, 4), None, "pool")
    with pytest.raises(
        InputError, match=r"'pool': expected the shape of the state, \(1, 1, 4, 4\), got \(3, 1, 4, 4\)"
    ):
        advance_homogeneous(nn.MaxPool2d(2), torch.randn(3, 1, 4, 4), state, "pool")
    with pytest.raises(InputError, match=r"'x': expected the shape of the state.*start a new stream with state=None"):
        to_mean(torch.randn(3, 2), to_mean(torch.randn(1, 2), None, 1, "x"), 2, "x")


def test_steps_and_means_follow_from_each_other() -> None:
    steps = torch.randn(9, 4, 3, dtype=torch.float64)
    mean, total = None, torch.zeros(4, 3, dtype=torch.float64)
    for t, step in enumerate(steps, start=1):
        before, mean = mean, to_mean(step, mean, t, "x")
        total += step
        torch.testing.assert_close(mean, total / t, rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(to_step(mean, before, t), step, rtol=1e-12, atol=1e-12)


def test_a_repeated_signal_does_not_drift() -> None:
    x = torch.randn(100)
    mean = to_mean(x, None, 1, "x")
    for t in range(2, 300):
        before, mean = mean, to_mean(x, mean, t, "x")
        assert torch.equal(mean, x) and torch.equal(to_step(mean, before, t), x)


def test_minus_infinity_stays_where_a_mask_put_it() -> None:
    x, y = torch.tensor([1.0, -torch.inf, 3.0]), torch.tensor([2.0, -torch.inf, -1.0])
    mean = to_mean(y, to_mean(x, None, 1, "x", True), 2, "x", True)
    assert torch.equal(mean, torch.tensor([1.5, -torch.inf, 1.0]))


def test_a_change_moves_the_mean_without_a_new_step() -> None:
    mean = torch.randn(5, dtype=torch.float64)
    change = torch.randn(5, dtype=torch.float64)
    after = moved_by(change, mean, 4)
    torch.testing.assert_close(after, mean + change / 4)
    torch.testing.assert_close(change_of(after, mean, 4), change)


def test_trees_are_taken_leaf_by_leaf() -> None:
    one, two = (torch.ones(2), [torch.zeros(1), 7]), (torch.full((2,), 3.0), [torch.ones(1), 7])
    mean = to_mean(two, to_mean(one, None, 1, "x"), 2, "x")
    assert torch.equal(mean[0], torch.full((2,), 2.0)) and torch.equal(mean[1][0], torch.tensor([0.5]))
    assert mean[1][1] == 7
    assert torch.equal(to_step(mean, one, 2)[0], two[0])
