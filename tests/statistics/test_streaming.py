"""Streaming statistics: exact, whatever the batches; and sharp enough for the steps, outliers included."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polarspike.errors import CalibrationError, InputError
from polarspike.information import Samples, best_step
from polarspike.statistics.streaming import StreamingHistogram


def seen(*batches: Tensor, groups: int = 1, bins: int | None = None) -> StreamingHistogram:
    statistics = StreamingHistogram(groups, bins)
    for batch in batches:
        statistics.update(batch)
    return statistics


def assert_same_counts(left: StreamingHistogram, right: StreamingHistogram) -> None:
    assert left.elements == right.elements
    for a, b in (
        (left.counts(), right.counts()),
        (left.zeros, right.zeros),
        (left.minimum, right.minimum),
        (left.maximum, right.maximum),
        (left.centres(), right.centres()),
    ):
        assert torch.equal(a, b)


def heavy(seed: int, *shape: int) -> Tensor:
    """Values of both signs over thirty decades, with exact zeros and powers of two (bin edges)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(*shape, generator=generator) * 10.0 ** torch.randint(-28, 4, shape, generator=generator)
    choice = torch.randint(0, 4, shape, generator=generator)
    powers = 2.0 ** torch.randint(-40, 8, shape, generator=generator)
    return torch.where(choice == 0, 0.0, torch.where(choice == 1, -powers, torch.where(choice == 2, powers, x)))


@given(st.integers(0, 2**31), st.permutations(range(6)), st.sampled_from([1, 3]))
def test_counts_do_not_depend_on_order_or_batches(seed: int, order: list[int], groups: int) -> None:
    x = heavy(seed, 6, 3, 4)
    x *= torch.logspace(-6, 0, 6)[torch.tensor(order)].view(6, 1, 1)  # ranges that grow in any order
    whole = seen(x, groups=groups, bins=16)
    assert_same_counts(seen(*x.split(1), groups=groups, bins=16), whole)
    assert_same_counts(seen(*(x[i : i + 1] for i in order), groups=groups, bins=16), whole)
    first, second = seen(x[:2], groups=groups, bins=16), seen(x[2:], groups=groups, bins=16)
    first.merge(second)
    assert_same_counts(first, whole)
    torch.testing.assert_close(first.mean, whole.mean)
    torch.testing.assert_close(first.variance, whole.variance)
    assert int(whole.counts().sum() + whole.zeros.sum()) == x.numel()


@pytest.mark.parametrize("groups", [1, 3])
def test_against_the_definitions(groups: int, seed: int) -> None:
    x = torch.randn(40, 3, 5, 5, generator=torch.Generator().manual_seed(seed)).relu_() - 0.25
    x[:, 1] += 100.0
    statistics = seen(*x.split(7), groups=groups)
    flat = x.double().movedim(1, 0).reshape(groups, -1)
    assert statistics.elements == flat.shape[1]
    torch.testing.assert_close(statistics.mean, flat.mean(1))
    torch.testing.assert_close(statistics.variance, flat.var(1, unbiased=False))
    assert torch.equal(statistics.minimum, flat.amin(1))
    assert torch.equal(statistics.maximum, flat.amax(1))
    torch.testing.assert_close(statistics.mean_magnitude(), flat.abs().mean(1))
    torch.testing.assert_close(statistics.mean_magnitude(0.0), flat.relu().mean(1))
    torch.testing.assert_close(statistics.mean_magnitude(0.5), torch.where(flat < 0, -0.5 * flat, flat).mean(1))


def test_variance_keeps_its_digits_far_from_zero() -> None:
    x = torch.randn(64, 100, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 1e-3 + 1e6
    torch.testing.assert_close(seen(*x.split(1)).variance, x.var(unbiased=False).view(1), rtol=1e-6, atol=0.0)


def test_bins_hold_what_lies_in_them() -> None:
    x = torch.tensor([-3.0, -1.0, -0.1, 0.0, -0.0, 0.1, 1.0, 3.5])  # R = 4, bins of width 1 (powers of two)
    statistics = seen(x, bins=8)
    assert statistics.centres().tolist() == [[-3.5, -2.5, -1.5, -0.5, 0.5, 1.5, 2.5, 3.5]]
    assert statistics.counts().tolist() == [[1, 0, 1, 1, 1, 1, 0, 1]]
    assert statistics.zeros.tolist() == [2]
    statistics.update(torch.tensor([4.0]))  # R = 8
    assert statistics.counts().tolist() == [[0, 0, 1, 2, 2, 1, 1, 0]]


def test_exact_zeros_stay_at_zero() -> None:
    x = torch.tensor([0.0] * 900 + [100.0] * 100)
    law = seen(x, bins=8).law()
    mean = (law.values * law.weights).sum().item()
    # 100 lies in [96, 128) of 8 bins: only that bin's centre is off, the zeros add nothing.
    assert mean == pytest.approx(0.1 * 112.0)
    assert law.survival(torch.tensor([[1e-9]], dtype=torch.float64)).item() == pytest.approx(0.1)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_float_type_counts_the_same(dtype: torch.dtype) -> None:
    x = (torch.arange(-50, 50) / 8.0).to(dtype)  # exact in all of them
    assert_same_counts(seen(x), seen(x.double()))


@pytest.mark.parametrize("bins", [2048, 8192])
@pytest.mark.parametrize("levels", [(0, 4), (0, 16), (2, 6), (7, 7)])
def test_an_outlier_at_a_hundred_sigma_leaves_the_step(bins: int, levels: tuple[int, int]) -> None:
    # A quantile grid of the normal law instead of random numbers: what is left is the error of the histogram.
    share = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    x = math.sqrt(2.0) * torch.special.erfinv(2.0 * share - 1.0)
    x = torch.cat((x, torch.tensor([100.0], dtype=torch.float64))).unsqueeze(0)
    law = seen(x, bins=bins).law()
    assert best_step(levels, "entropy", law).item() == pytest.approx(best_step(levels, "entropy"), rel=0.02)
    # The outlier itself moves the step of least square error (by 3 % for 4 levels), so the samples are the truth.
    truth = best_step(levels, "mse", Samples(x, torch.ones_like(x)))
    assert best_step(levels, "mse", law).item() == pytest.approx(truth.item(), rel=0.015)


@pytest.mark.parametrize("groups", [1, 4])
def test_quantiles_are_within_a_bin(groups: int, seed: int) -> None:
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(seed)).relu_()
    x[:, 0] *= 7.0
    statistics = seen(x, groups=groups, bins=512)
    flat = x.double().t().reshape(groups, -1)
    width = statistics.centres()[:, 1] - statistics.centres()[:, 0]
    for q in (0.0, 0.2, 0.5, 0.9, 0.999, 1.0):
        expected = flat.quantile(q, dim=1, interpolation="lower")
        upper = flat.quantile(q, dim=1, interpolation="higher")
        value = statistics.quantile(q)
        assert bool(((value >= expected - width) & (value <= upper + width)).all()), q
    assert torch.equal(statistics.quantile(1.0), flat.amax(1))
    assert torch.equal(statistics.quantile(0.0), flat.amin(1))
    assert seen(torch.zeros(9)).quantile(0.5).item() == 0.0


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    x = heavy(1, 5, 3, 40)
    whole, channels = seen(x, bins=8), seen(x, groups=3, bins=8)
    monkeypatch.setattr("polarspike.statistics.streaming._CHUNK", 7)
    assert_same_counts(seen(x, bins=8), whole)
    assert_same_counts(seen(x, groups=3, bins=8), channels)
    torch.testing.assert_close(seen(x, groups=3, bins=8).variance, channels.variance)


def test_extreme_magnitudes() -> None:
    x = torch.tensor([torch.finfo(torch.float32).max, -1e-44, 1e-44, -1e-30])
    statistics = seen(x, bins=8)
    assert statistics.counts().tolist() == [[0, 0, 0, 2, 1, 0, 0, 1]]
    assert statistics.maximum.item() == x[0].item()
    assert_same_counts(seen(x[3:], x[:3], bins=8), statistics)
    with pytest.raises(InputError, match="float32 holds"):
        seen(torch.tensor([1e300], dtype=torch.float64))


def test_an_imagenet_sized_tensor() -> None:
    # torch.quantile refuses this many elements.
    x = torch.randn(8, 64, 112, 112, generator=torch.Generator().manual_seed(0))
    x = torch.cat((x, x, x))
    assert seen(x).quantile(0.999).item() == pytest.approx(3.090, abs=0.02)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
def test_memory_format_is_irrelevant(layout: torch.memory_format) -> None:
    x = heavy(3, 2, 3, 4, 5)
    assert_same_counts(seen(x.to(memory_format=layout), groups=3), seen(x, groups=3))


def test_bad_values_are_counted_and_leave_the_statistics_alone() -> None:
    statistics = seen(torch.ones(4))
    bad = torch.tensor([1.0, math.nan, math.inf, -math.inf, 0.0])
    with pytest.raises(InputError, match="1 NaN and 2 Inf among 5"):
        statistics.update(bad)
    assert_same_counts(statistics, seen(torch.ones(4)))


@pytest.mark.parametrize(
    ("groups", "x", "message"),
    [
        (1, torch.ones(3, dtype=torch.int64), "float tensor"),
        (1, torch.ones(0), "empty"),
        (3, torch.ones(2, 4), r"\(batch, 3, ...\), got \(2, 4\)"),
        (3, torch.ones(3), "channels are dimension 1"),
    ],
)
def test_wrong_tensors_are_named(groups: int, x: Tensor, message: str) -> None:
    with pytest.raises(InputError, match=message):
        seen(x, groups=groups)


def test_impossible_requests_are_named() -> None:
    with pytest.raises(InputError, match="groups"):
        StreamingHistogram(0)
    with pytest.raises(InputError, match="power of two"):
        StreamingHistogram(1, 100)
    with pytest.raises(InputError, match="same site"):
        StreamingHistogram(1).merge(StreamingHistogram(2))
    with pytest.raises(InputError, match="share"):
        seen(torch.ones(2)).quantile(99.9)
    for ask in (lambda s: s.law(), lambda s: s.quantile(0.5), lambda s: s.variance, lambda s: s.mean_magnitude()):
        with pytest.raises(CalibrationError, match="nothing has been seen"):
            ask(StreamingHistogram(1))


def test_merging_with_nothing_changes_nothing() -> None:
    statistics = seen(torch.tensor([1.0, -2.0]))
    statistics.merge(StreamingHistogram(1))
    assert_same_counts(statistics, seen(torch.tensor([1.0, -2.0])))
    empty = StreamingHistogram(1)
    empty.merge(statistics)
    assert_same_counts(empty, statistics)
    torch.testing.assert_close(empty.variance, statistics.variance)
