"""Steps stay positive and gains in [0, 1], with the gradients that training needs there."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from polarspike import bounds


class TestStepFromOffset:
    @given(
        st.floats(2.0**-100, 2.0**60, width=32),
        st.floats(allow_nan=False, allow_infinity=False, width=32).filter(lambda x: abs(x) < 2.0**126),
    )
    def test_positive_and_finite_for_every_finite_offset(self, start: float, offset: float) -> None:
        step = bounds.step_from_offset(torch.tensor(start), torch.tensor(offset)).item()
        assert 0 < step < math.inf
        assert step >= start * 2.0**-20

    @pytest.mark.parametrize("start", [bounds.LEAST_START, 1e-3, 0.7, 1e6])
    @pytest.mark.parametrize("offset", [-1e30, -1e38, 1e30, 1e38])
    def test_extremes_in_float32_have_finite_gradients(self, start: float, offset: float) -> None:
        leaf = torch.tensor(offset, requires_grad=True)
        step = bounds.step_from_offset(torch.tensor(start), leaf)
        step.backward()
        assert 0 < step.item() < math.inf
        assert leaf.grad is not None
        assert leaf.grad.item() == (1.0 if offset > 0 else 0.0)

    @given(st.lists(st.floats(-50, 50, width=32), min_size=2, max_size=30), st.floats(2.0**-6, 8, width=32))
    def test_monotone(self, offsets: list[float], start: float) -> None:
        steps = bounds.step_from_offset(torch.tensor(start), torch.tensor(sorted(offsets)))
        assert bool((steps.diff() >= 0).all())

    def test_offset_zero_is_the_start_in_every_bit_with_slope_one(self) -> None:
        start = torch.rand(1000) + 1e-3
        offset = torch.zeros(1000, requires_grad=True)
        step = bounds.step_from_offset(start, offset)
        assert torch.equal(step, start)
        step.sum().backward()
        assert offset.grad is not None
        assert torch.equal(offset.grad, torch.ones(1000))

    def test_the_derivative_is_right_and_continuous(self) -> None:
        start = torch.tensor([0.3, 0.5, 2.0], dtype=torch.float64)
        offset = torch.tensor([-0.4, 0.7, -1e-9], dtype=torch.float64, requires_grad=True)
        assert torch.autograd.gradcheck(lambda o: bounds.step_from_offset(start, o), (offset,), eps=1e-7)
        around = torch.tensor([-1e-9, 0.0, 1e-9], dtype=torch.float64, requires_grad=True)
        bounds.step_from_offset(torch.tensor(0.5, dtype=torch.float64), around).sum().backward()
        assert around.grad is not None
        torch.testing.assert_close(around.grad, torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-8)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_parameters_give_a_positive_float32_step(self, dtype: torch.dtype) -> None:
        step = bounds.step_from_offset(torch.tensor(0.01, dtype=dtype), torch.tensor(-1e4, dtype=dtype))
        assert step.dtype == torch.float32
        assert step.item() > 0


class TestBoundGain:
    @given(st.floats(allow_nan=False, allow_infinity=False, width=32))
    def test_stays_between_zero_and_one(self, raw: float) -> None:
        gain = bounds.bound_gain(torch.tensor(raw)).item()
        assert gain == min(1.0, max(0.0, raw))

    @pytest.mark.parametrize(
        ("raw", "upstream", "expected"),
        [
            (0.5, 2.0, 2.0),
            (0.5, -2.0, -2.0),
            (-0.3, 2.0, 0.0),  # descent would lead further out
            (-0.3, -2.0, -2.0),  # descent leads back inside
            (0.0, 2.0, 2.0),  # a part of a sum that may lead inside
            (0.0, -2.0, -2.0),
            (1.4, -2.0, 0.0),
            (1.4, 2.0, 2.0),
            (1.0, -2.0, -2.0),
            (1.0, 2.0, 2.0),
        ],
    )
    def test_the_gradient_beyond_a_bound_never_points_further_out(
        self, raw: float, upstream: float, expected: float
    ) -> None:
        leaf = torch.tensor(raw, requires_grad=True)
        bounds.bound_gain(leaf).backward(torch.tensor(upstream))
        assert leaf.grad is not None
        assert leaf.grad.item() == expected

    @pytest.mark.parametrize("raw", [-0.4, 1.6])
    def test_descent_comes_back_from_beyond_a_bound(self, raw: float) -> None:
        leaf = torch.tensor(raw, requires_grad=True)
        optimizer = torch.optim.SGD([leaf], lr=0.1)
        for _ in range(100):
            optimizer.zero_grad()
            ((bounds.bound_gain(leaf) - 0.6) ** 2).backward()
            optimizer.step()
        assert bounds.bound_gain(leaf).item() == pytest.approx(0.6, abs=1e-3)
