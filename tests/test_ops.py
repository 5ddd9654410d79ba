"""The arithmetic of codes against exact rational arithmetic, and its gradients against a naive implementation.

What encode promises, precisely: with R the rounding of the working type (float32, or float64 for float64 input) to the
nearest, ties to even, ``encode(x, s) = clip(floor(R(R(x / s) + 1/2)), -N, P)``. So it is the exact code of every point
that is further than ``u (2 |x / s| + 1)`` from a boundary, u being half a unit in the last place of one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polarspike import ops

LEVELS = [(0, 4), (2, 5), (7, 7), (0, 1), (1, 1)]


def rounded(value: Fraction, digits: int) -> Fraction:
    """The nearest number with this many binary digits, ties to even; exact rational arithmetic, no range limits."""
    if value == 0:
        return value
    exponent = math.frexp(float(abs(value)))[1] - digits
    unit = Fraction(2) ** exponent
    while abs(value) / unit >= 2**digits:  # float() above may itself have rounded up or down
        unit *= 2
    while abs(value) / unit < 2 ** (digits - 1):
        unit /= 2
    return round(value / unit) * unit  # Python rounds fractions half to even


def promised_code(x: float, step: float, negative: int, positive: int, digits: int) -> int:
    quotient = rounded(Fraction(x) / Fraction(step), digits)
    return max(-negative, min(positive, math.floor(rounded(quotient + Fraction(1, 2), digits))))


def exact_code(x: float, step: float, negative: int, positive: int) -> int:
    return max(-negative, min(positive, math.floor(Fraction(x) / Fraction(step) + Fraction(1, 2))))


def neighbours(x: Tensor) -> Iterator[Tensor]:
    yield torch.nextafter(x, torch.full_like(x, -math.inf))
    yield x
    yield torch.nextafter(x, torch.full_like(x, math.inf))


steps32 = st.floats(2.0**-10, 2.0**10, width=32)
inputs32 = st.floats(-(2.0**14), 2.0**14, width=32).filter(lambda x: x == 0 or abs(x) > 2.0**-60)


class TestEncode:
    @given(inputs32, steps32, st.sampled_from(LEVELS))
    def test_any_point_has_the_promised_code(self, x: float, step: float, levels: tuple[int, int]) -> None:
        assert ops.encode(torch.tensor(x), step, *levels).item() == promised_code(x, step, *levels, digits=24)

    @given(st.integers(-40, 40), steps32)
    def test_boundaries_and_their_neighbours_have_the_promised_codes(self, k: int, step: float) -> None:
        boundary = torch.tensor((k - 0.5) * step)
        for x in neighbours(boundary):
            assert ops.encode(x, step, 64, 64).item() == promised_code(x.item(), step, 64, 64, digits=24)

    @given(st.integers(-40, 40), st.floats(2.0**-10, 2.0**10))
    def test_boundaries_in_float64(self, k: int, step: float) -> None:
        boundary = torch.tensor((k - 0.5) * step, dtype=torch.float64)
        for x in neighbours(boundary):
            code = ops.encode(x, step, 64, 64)
            assert code.dtype == torch.float64
            assert code.item() == promised_code(x.item(), step, 64, 64, digits=53)

    @given(inputs32, steps32)
    def test_away_from_boundaries_the_code_is_exact(self, x: float, step: float) -> None:
        quotient = Fraction(x) / Fraction(step)
        distance = abs(quotient + Fraction(1, 2) - round(quotient + Fraction(1, 2)))
        code = ops.encode(torch.tensor(x), step, 2**23, 2**23).item()
        if distance > Fraction(1, 2**24) * (2 * abs(quotient) + 1):
            assert code == exact_code(x, step, 2**23, 2**23)
        else:
            assert abs(code - exact_code(x, step, 2**23, 2**23)) <= 1

    @pytest.mark.parametrize("exponent", [-3, 0, 5])
    def test_with_steps_that_are_powers_of_two_boundaries_are_exact(self, exponent: int) -> None:
        step = 2.0**exponent
        k = torch.arange(-50, 51, dtype=torch.float32)
        boundary = (k - 0.5) * step  # belongs to the code above it
        assert torch.equal(ops.encode(boundary, step, 64, 64), k)
        below = torch.nextafter(boundary, torch.full_like(k, -math.inf))
        codes = ops.encode(below, step, 64, 64)
        # The one exception: half a step minus one float plus 1/2 is a tie, and rounds up to 1.
        assert torch.equal(codes, torch.where(k == 1, k, k - 1))

    @given(st.lists(inputs32, min_size=2, max_size=20), steps32)
    def test_codes_grow_with_the_input(self, values: list[float], step: float) -> None:
        codes = ops.encode(torch.tensor(sorted(values)), step, 9, 9)
        assert bool((codes.diff() >= 0).all())

    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_half_precision_is_widened_first(self, dtype: torch.dtype) -> None:
        x = (torch.randn(20_000) * 3).to(dtype)
        step = torch.tensor(0.0371)
        codes = ops.encode(x, step, 100, 100)
        assert codes.dtype == torch.float32
        assert torch.equal(codes, ops.encode(x.float(), step, 100, 100))
        narrow = (x / step.to(dtype) + 0.5).floor().clamp(-100, 100)
        assert bool((codes != narrow.float()).any())  # so the widening is not idle

    def test_nan_stays_nan_and_infinity_saturates(self) -> None:
        codes = ops.encode(torch.tensor([math.nan, math.inf, -math.inf]), 0.5, 2, 3)
        assert math.isnan(codes[0])
        assert codes[1:].tolist() == [3.0, -2.0]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_a_step_may_be_a_number_or_a_tensor(self, dtype: torch.dtype) -> None:
        k = torch.randint(-20, 20, (20_000,)).to(dtype)
        step = 0.1371
        x = (k - 0.5) * torch.tensor(step, dtype=dtype)
        expected = ops.encode(x, torch.tensor(step, dtype=dtype), 30, 30)
        assert torch.equal(ops.encode(x, step, 30, 30), expected)
        assert torch.equal(ops.encode(x, torch.full_like(x, step), 30, 30), expected)

    def test_codes_are_exact_below_two_to_the_23_and_not_beyond(self) -> None:
        whole = torch.tensor([2.0**22 + 1, 2.0**23 - 1, -(2.0**23) + 1])
        assert torch.equal(ops.encode(whole, 1.0, 2**24, 2**24), whole)
        beyond = torch.tensor(2.0**23 + 1)  # plus 1/2 is a tie between two floats
        assert ops.encode(beyond, 1.0, 0, 2**24).item() == 2.0**23 + 2

    def test_input_and_step_are_left_alone(self) -> None:
        x, step = torch.randn(10), torch.tensor(0.3)
        before = x.clone()
        ops.encode(x, step, 1, 1)
        assert torch.equal(x, before)

    def test_integers_are_read_as_floats(self) -> None:
        assert ops.encode(torch.tensor([-3, 0, 2]), 1.0, 2, 2).tolist() == [-2.0, 0.0, 2.0]


class TestOneRounding:
    """Why nothing else may round: at boundaries the usual shortcuts give other codes."""

    @staticmethod
    def boundary_points() -> tuple[Tensor, Tensor]:
        step = torch.rand(20_000) * 2 + 0.01
        k = torch.randint(-8, 9, (20_000,)).float()
        around = torch.stack(list(neighbours((k - 0.5) * step)))  # (3, 20000)
        return around, step

    def test_thresholds_disagree(self) -> None:
        x, step = self.boundary_points()
        thresholds = (torch.arange(-20, 21).float() + 0.5).view(-1, 1, 1) * step
        codes = (x >= thresholds).sum(0) - 20.0
        self.assert_differs(codes, x, step)

    def test_the_reciprocal_disagrees(self) -> None:
        x, step = self.boundary_points()
        self.assert_differs((x * (1.0 / step) + 0.5).floor(), x, step)

    def test_half_to_even_disagrees(self) -> None:
        x, step = self.boundary_points()
        self.assert_differs((x / step).round(), x, step)

    @staticmethod
    def assert_differs(codes: Tensor, x: Tensor, step: Tensor) -> None:
        expected = ops.encode(x, step, 20, 20)
        share = float((codes.clamp(-20, 20) != expected).float().mean())
        assert 0.01 < share < 0.4
        assert float((codes.clamp(-20, 20) - expected).abs().max()) == 1.0


class TestDecode:
    def test_negative_codes_carry_the_gain(self) -> None:
        codes = torch.tensor([-2.0, -1.0, 0.0, 1.0, 3.0])
        assert ops.decode(codes, 0.5, 0.25).tolist() == [-0.25, -0.125, 0.0, 0.5, 1.5]
        assert ops.decode(codes, 0.5, torch.tensor(0.25)).tolist() == [-0.25, -0.125, 0.0, 0.5, 1.5]
        assert ops.decode(codes, 0.5, 0.0).tolist() == [0.0, 0.0, 0.0, 0.5, 1.5]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    def test_the_gain_of_one_in_any_form_is_the_plain_product(self, dtype: torch.dtype) -> None:
        codes = torch.randint(-9, 9, (1000,)).to(dtype)
        step = torch.rand(1000) + 0.1
        plain = ops.decode(codes, step)
        assert plain.dtype == dtype
        for gain in (1, 1.0, torch.tensor(1.0), torch.tensor(1.0, dtype=torch.bfloat16)):
            assert torch.equal(ops.decode(codes, step, gain), plain)

    @given(st.integers(-100, 100), steps32)
    def test_a_decoded_code_encodes_to_itself(self, code: int, step: float) -> None:
        value = ops.decode(torch.tensor(float(code)), step)
        assert ops.encode(value, step, 100, 100).item() == code

    @given(st.floats(0, 1, width=32), steps32)
    def test_decoding_is_monotone(self, gain: float, step: float) -> None:
        values = ops.decode(torch.arange(-9.0, 10.0), step, gain)
        assert bool((values.diff() >= 0).all())


def naive(x: Tensor, step: Tensor, gain: Tensor | float, levels: tuple[int, int]) -> Tensor:
    """Quantize by autograd alone: a straight-through floor, written without any code of the library."""
    negative, positive = levels
    ratio = x / step
    free = torch.floor(ratio + 0.5).detach()
    code = free.clamp(-negative, positive)
    through = ratio + (code - ratio).detach()
    code = torch.where(free == code, through, code)
    weight = torch.where(x < 0, torch.as_tensor(gain, dtype=x.dtype), 1.0) if negative else 1.0
    return weight * step * code


def gradients(quantize: object, x: Tensor, step: Tensor, gain: Tensor | float, upstream: Tensor) -> list[Tensor]:
    leaves = [x.clone().requires_grad_(), step.clone().requires_grad_()]
    if isinstance(gain, Tensor):
        gain = gain.clone().requires_grad_()
        leaves.append(gain)
    y = quantize(leaves[0], leaves[1], gain)  # type: ignore[operator]
    y.backward(upstream)
    return [y.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


class TestQuantize:
    @pytest.mark.parametrize("gain", [1.0, 0.3, 0.0, "learned"])
    @pytest.mark.parametrize("channels", [0, 5])
    @pytest.mark.parametrize("levels", LEVELS)
    def test_value_and_gradients_are_those_of_the_formulas(
        self, levels: tuple[int, int], channels: int, gain: float | str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(ops, "_PIECE", 100)
        x = torch.randn(7, 5, 4, 3, dtype=torch.float64) * 3
        step = torch.rand(5, 1, 1, dtype=torch.float64) + 0.2 if channels else torch.tensor(0.55, dtype=torch.float64)
        g: Tensor | float = torch.tensor(0.4, dtype=torch.float64) if gain == "learned" else float(gain)
        upstream = torch.randn_like(x)
        inside = ops.encode(x, step, 99, 99)
        assert bool((inside > levels[1]).any())  # all three parts of the range are there
        assert bool((inside < -levels[0]).any())
        got = gradients(lambda a, b, c: ops.quantize(a, b, c, levels), x, step, g, upstream)
        expected = gradients(lambda a, b, c: naive(a, b, c, levels), x, step, g, upstream)
        if levels[0] == 0 and isinstance(g, Tensor):
            assert len(got) == 3  # the gain plays no part, and gets no gradient
        for left, right in zip(got, expected, strict=True):
            torch.testing.assert_close(left, right, rtol=1e-12, atol=1e-12)

    def test_gradients_by_hand(self) -> None:
        #              below     clip edge  inside, negative  inside, positive   above
        x = torch.tensor([-9.0, -1.25, -1.2, -0.3, -0.1, 0.0, 0.2, 0.3, 1.74, 1.75, 9.0], requires_grad=True)
        step, gain = torch.tensor(0.5, requires_grad=True), torch.tensor(0.25, requires_grad=True)
        y = ops.quantize(x, step, gain, (2, 3))
        assert y.tolist() == [-0.25, -0.25, -0.25, -0.125, 0.0, 0.0, 0.0, 0.5, 1.5, 1.5, 1.5]
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [0.0, 0.25, 0.25, 0.25, 0.25, 1.0, 1.0, 1.0, 1.0, 0.0, 0.0]
        by_element = [-0.5, 0.25 * 0.5, 0.25 * 0.4, 0.25 * -0.4, 0.25 * 0.2, 0.0, -0.4, 0.4, 3 - 3.48, 3.0, 3.0]
        assert step.grad is not None
        assert gain.grad is not None
        assert step.grad.item() == pytest.approx(sum(by_element), rel=1e-6)
        assert gain.grad.item() == pytest.approx(0.5 * (-2 - 2 - 2 - 1))

    def test_without_negative_levels_the_gain_plays_no_part(self) -> None:
        x = torch.tensor([-0.3, -0.2, 0.2], requires_grad=True)  # the outer half step below zero passes gradients
        y = ops.quantize(x, torch.tensor(0.5), 0.1, (0, 3))
        y.sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [0.0, 1.0, 1.0]

    def test_gradient_scale_scales_step_and_gain_alone(self) -> None:
        x, upstream = torch.randn(6, 3), torch.randn(6, 3)
        step, gain = torch.tensor([0.3, 0.4, 0.5]), torch.tensor(0.5)
        plain = gradients(lambda a, b, c: ops.quantize(a, b, c, (2, 3)), x, step, gain, upstream)
        scaled = gradients(lambda a, b, c: ops.quantize(a, b, c, (2, 3), 0.125), x, step, gain, upstream)
        assert torch.equal(scaled[0], plain[0])
        assert torch.equal(scaled[1], plain[1])
        assert torch.equal(scaled[2], plain[2] * 0.125)
        assert torch.equal(scaled[3], plain[3] * 0.125)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("levels", LEVELS)
    @pytest.mark.parametrize("gain", [1.0, 0.3, torch.tensor(0.3)])
    def test_the_value_is_decode_of_encode_in_every_bit(
        self, dtype: torch.dtype, levels: tuple[int, int], gain: float | Tensor
    ) -> None:
        x = (torch.randn(500, 3) * 2).to(dtype)
        step = torch.tensor([0.31, 0.77, 0.05])
        y = ops.quantize(x, step, gain, levels)
        assert y.dtype == dtype
        assert torch.equal(y, ops.decode(ops.encode(x, step, *levels), step, gain).to(dtype))

    @pytest.mark.parametrize("layout", ["contiguous", "channels_last", "strided", "expanded", "flipped", "one sample"])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    @pytest.mark.parametrize("channel_dim", [1, -1])
    @pytest.mark.parametrize("size", [1000, 150, 50])  # several samples, one, and a part of one
    def test_pieces_change_nothing(
        self, layout: str, dtype: torch.dtype, channel_dim: int, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        x = torch.randn(9, 4, 6, 6).to(dtype)
        x = {
            "contiguous": x,
            "channels_last": x.contiguous(memory_format=torch.channels_last),
            "strided": torch.randn(9, 8, 6, 12).to(dtype)[:, ::2, :, ::2],
            "expanded": x[:, :1].expand(-1, 4, -1, -1),
            "flipped": x.transpose(2, 3),
            "one sample": x[:1],
        }[layout]
        upstream = torch.ones((), dtype=dtype).expand(x.shape)  # what y.sum().backward() gives: no memory of its own
        step, gain = torch.rand((4, 1, 1) if channel_dim == 1 else (6,)) + 0.2, torch.tensor(0.4)

        def run() -> list[Tensor]:
            return gradients(lambda a, b, c: ops.quantize(a, b, c, (2, 3)), x, step, gain, upstream)

        whole = run()
        monkeypatch.setattr(ops, "_PIECE", size)
        pieces = run()
        found = [x[piece].numel() for piece, _ in ops.pieces(x, step)]
        assert sum(found) == x.numel()
        assert max(found) <= size
        assert len(found) > 1 or x.numel() <= size
        assert torch.equal(whole[0], pieces[0])
        assert whole[0].stride() == pieces[0].stride()
        assert torch.equal(whole[1], pieces[1])
        for left, right in zip(whole[2:], pieces[2:], strict=True):
            torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-5)  # sums in another order

    def test_memory_format_is_kept(self) -> None:
        x = torch.randn(2, 3, 4, 4).contiguous(memory_format=torch.channels_last)
        y = ops.quantize(x, torch.tensor(0.5), 1.0, (2, 3))
        assert y.is_contiguous(memory_format=torch.channels_last)

    @pytest.mark.parametrize("shape", [(), (0, 3), (0,), (5,), (3, 0, 2)])
    def test_odd_shapes(self, shape: tuple[int, ...]) -> None:
        x = torch.randn(shape, requires_grad=True)
        step = torch.tensor(0.5, requires_grad=True)
        y = ops.quantize(x, step, 0.5, (2, 3))
        y.sum().backward()
        assert y.shape == shape
        assert x.grad is not None
        assert x.grad.shape == shape
        assert step.grad is not None
        assert bool(step.grad.isfinite())

    def test_gradients_stay_finite_where_the_quotient_overflows(self) -> None:
        x = torch.tensor([1e30, -1e30, math.inf, -math.inf, 0.0], requires_grad=True)
        step = torch.tensor(1e-20, requires_grad=True)
        ops.quantize(x, step, 0.5, (2, 3)).sum().backward()
        assert x.grad is not None
        assert x.grad.tolist() == [0.0, 0.0, 0.0, 0.0, 1.0]
        assert step.grad is not None
        assert step.grad.item() == pytest.approx(3 - 1 + 3 - 1)  # P above, -g N below

    def test_gradients_have_the_types_of_their_leaves(self) -> None:
        x = torch.randn(8, dtype=torch.bfloat16, requires_grad=True)
        step = torch.tensor(0.5, requires_grad=True)
        gain = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        ops.quantize(x, step, gain, (2, 3)).sum().backward()
        assert x.grad is not None
        assert step.grad is not None
        assert gain.grad is not None
        assert (x.grad.dtype, step.grad.dtype, gain.grad.dtype) == (torch.bfloat16, torch.float32, torch.float64)

    def test_a_frozen_input_gets_no_gradient_and_costs_no_error(self) -> None:
        x, step = torch.randn(8), torch.tensor(0.5, requires_grad=True)
        ops.quantize(x, step, 0.5, (2, 3)).sum().backward()
        assert x.grad is None
        assert step.grad is not None


def test_widen_keeps_what_is_wide_enough() -> None:
    kinds = {dtype: ops.widen(torch.zeros(1, dtype=dtype)).dtype for dtype in
             (torch.bfloat16, torch.float16, torch.float32, torch.float64)}  # fmt: skip
    assert list(kinds.values()) == [torch.float32, torch.float32, torch.float32, torch.float64]
    x = torch.randn(3)
    assert ops.widen(x) is x
