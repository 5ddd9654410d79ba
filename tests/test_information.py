"""Entropy, square error and best steps: the table of the theory page, closed forms against samples, awkward laws."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from polarspike.errors import InputError
from polarspike.information import (
    Levels,
    NormalMixture,
    Samples,
    best_step,
    code_probabilities,
    entropy,
    square_error,
)

LEVELS = st.tuples(st.integers(0, 9), st.integers(1, 9))


def normal(mean: float = 0.0, std: float = 1.0) -> NormalMixture:
    return NormalMixture(torch.tensor([[mean]]), torch.tensor([[std]]))


def points(values: Tensor) -> Samples:
    return Samples(values, torch.ones_like(values))


def codes(x: Tensor, levels: Levels, step: float) -> Tensor:
    return torch.floor(x / step + 0.5).clamp(-levels[0], levels[1])


def reference_error(x: Tensor, levels: Levels, step: float, gain: float) -> Tensor:
    """The definition, element by element."""
    k = codes(x, levels, step)
    slope = gain if levels[0] else 0.0
    q = torch.where(k >= 0, step * k, gain * step * k)
    return (q - torch.where(x >= 0, x, slope * x)).square()


# N, P, step of most entropy, H, P(k != 0), E|k|, step of least square error, H there: z ~ N(0, 1).
TABLE = [
    ((0, 4), "0.29", "1.86", "0.44", "1.16", "0.53", "1.66"),
    ((0, 8), "0.18", "2.36", "0.46", "2.03", "0.32", "2.11"),
    ((0, 16), "0.10", "2.87", "0.48", "3.76", "0.18", "2.60"),
    ((1, 1), "0.86", "1.585", "0.67", "0.67", "1.22", "1.54"),
    ((2, 2), "0.56", "2.32", "0.78", "1.18", "0.84", "2.19"),
    ((4, 4), "0.33", "3.15", "0.87", "2.15", "0.53", "2.91"),
    ((4, 8), "0.23", "3.50", "0.91", "2.99", "0.48", "3.06"),
    ((8, 8), "0.19", "4.03", "0.92", "3.90", "0.32", "3.67"),
]


@pytest.mark.parametrize(("levels", "step", "bits", "active", "spikes", "least", "bits_least"), TABLE)
def test_table_of_the_theory_page(
    levels: Levels, step: str, bits: str, active: str, spikes: str, least: str, bits_least: str
) -> None:
    def printed(value: float, like: str) -> str:
        return f"{value:.{len(like) - 2}f}"

    assert printed(best_step(levels), step) == step
    assert printed(best_step(levels, "mse"), least) == least
    # The other columns belong to the steps as printed.
    assert printed(entropy(levels, float(step)), bits) == bits
    assert printed(entropy(levels, float(least)), bits_least) == bits_least
    probability = code_probabilities(normal(), levels, float(step))[0]
    magnitude = torch.arange(-levels[0], levels[1] + 1).abs()
    assert printed(1.0 - probability[levels[0]].item(), active) == active
    assert printed((probability * magnitude).sum().item(), spikes) == spikes


@given(LEVELS, st.floats(1e-3, 1e3), st.floats(-3.0, 3.0))
def test_entropy_is_at_most_the_logarithm_of_the_levels(levels: Levels, step: float, mean: float) -> None:
    bits = entropy(levels, step, normal(mean)).item()
    assert 0.0 <= bits <= math.log2(sum(levels) + 1) + 1e-12
    assert code_probabilities(normal(mean), levels, step).sum().item() == pytest.approx(1.0, abs=1e-12)


@given(st.integers(1, 64), st.floats(1e-2, 10.0), st.floats(-3.0, 0.0))
def test_bound_on_the_entropy_of_rectified_levels(positive: int, step: float, mean: float) -> None:
    # Where the median is at most s / 2, code 0 holds half of the mass: H <= h(1/2) + 1/2 log2 P.
    bits = entropy((0, positive), step, normal(mean + step / 2 if mean == 0.0 else mean)).item()
    assert bits <= 1.0 + 0.5 * math.log2(positive) + 1e-12


@pytest.mark.slow
@given(LEVELS, st.floats(1e-6, 1e6), st.sampled_from(["entropy", "mse"]))
def test_best_step_scales_with_the_input(levels: Levels, scale: float, objective: str) -> None:
    # (0, 1): at a median of zero or below the entropy names no step; both fall back to the square error.
    law, scaled = normal(0.3, 1.0), normal(0.3 * scale, scale)
    step, larger = best_step(levels, objective, law), best_step(levels, objective, scaled)  # type: ignore[arg-type]
    assert larger.item() == pytest.approx(scale * step.item(), rel=1e-3)
    assert entropy(levels, larger, scaled).item() == pytest.approx(entropy(levels, step, law).item(), abs=1e-7)
    error = square_error(levels, larger, scaled).item() / scale**2
    assert error == pytest.approx(square_error(levels, step, law).item(), rel=1e-4)


@given(
    levels=LEVELS,
    step=st.floats(0.05, 3.0),
    gain=st.sampled_from([0.0, 0.25, 1.0]),
    seed=st.integers(0, 2**31),
)
def test_samples_agree_with_the_definition(levels: Levels, step: float, gain: float, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(1, 200, generator=generator, dtype=torch.float64)
    x[0, :5] = torch.tensor([0.0, 0.5, -0.5, 1.5, -1.5], dtype=torch.float64) * step  # on boundaries too
    law = points(x)
    k = codes(x, levels, step)
    expected = torch.stack([(k == code).double().mean() for code in range(-levels[0], levels[1] + 1)])
    # A boundary may round to either side of x / s + 1/2 here, by one sample.
    assert (code_probabilities(law, levels, step)[0] - expected).abs().max().item() <= 4.5 / 200
    if step in (0.25, 0.5, 1.0, 2.0):
        torch.testing.assert_close(code_probabilities(law, levels, step)[0], expected)
    measured = square_error(levels, step, law, gain).item()
    assert measured == pytest.approx(reference_error(x, levels, step, gain).mean().item(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("levels", [(0, 3), (2, 5), (4, 4)])
def test_a_value_on_a_boundary_has_the_upper_code(levels: Levels) -> None:
    x = torch.tensor([[-1.5, -0.5, 0.0, 0.5, 1.5]], dtype=torch.float64)
    expected = torch.bincount((codes(x, levels, 1.0) + levels[0]).long().flatten(), minlength=sum(levels) + 1) / 5.0
    constants = [NormalMixture(x[:, i : i + 1], torch.zeros(1, 1)) for i in range(5)]
    torch.testing.assert_close(code_probabilities(points(x), levels, 1.0)[0], expected.double())
    total = torch.stack([code_probabilities(law, levels, 1.0)[0] for law in constants]).mean(0)
    torch.testing.assert_close(total, expected.double())


@pytest.mark.parametrize("levels", [(0, 4), (2, 6), (1, 1)])
@pytest.mark.parametrize("gain", [0.0, 0.1, 1.0])
def test_samples_converge_to_the_closed_form(levels: Levels, gain: float, seed: int) -> None:
    mean, std, step = 0.4, 1.7, 0.8
    errors = []
    for count in (1_000, 400_000):
        x = mean + std * torch.randn(1, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        bits = entropy(levels, step, points(x)) - entropy(levels, step, normal(mean, std))
        error = square_error(levels, step, points(x), gain) / square_error(levels, step, normal(mean, std), gain) - 1.0
        errors.append((bits.abs().item(), error.abs().item()))
    assert errors[1][0] < 0.005
    assert errors[1][1] < 0.02
    assert best_step(levels, "mse", points(x), gain).item() == pytest.approx(
        best_step(levels, "mse", normal(mean, std), gain).item(), rel=0.02
    )


def test_a_mixture_of_one_equals_the_law_and_groups_do_not_mix() -> None:
    mean = torch.tensor([[0.0], [1.0], [-2.0]])
    std = torch.tensor([[1.0], [0.1], [3.0]])
    law = NormalMixture(mean, std)
    repeated = NormalMixture(mean.expand(3, 7), std.expand(3, 7))
    for objective in ("entropy", "mse"):
        together = best_step((2, 6), objective, law)
        torch.testing.assert_close(best_step((2, 6), objective, repeated), together, rtol=1e-4, atol=0.0)
        alone = torch.cat([best_step((2, 6), objective, normal(m, s)) for m, s in zip(mean, std, strict=True)])
        torch.testing.assert_close(alone, together)
    assert best_step((2, 6), "entropy", normal()).item() == pytest.approx(best_step((2, 6)))


def test_a_mixture_is_the_average_of_its_laws() -> None:
    mean, std = torch.tensor([[0.0, 2.0, -1.0]]), torch.tensor([[1.0, 0.0, 0.3]])
    single = [normal(m, s) for m, s in zip(mean[0].tolist(), std[0].tolist(), strict=True)]
    probability = torch.stack([code_probabilities(law, (2, 4), 0.6) for law in single]).mean(0)
    torch.testing.assert_close(code_probabilities(NormalMixture(mean, std), (2, 4), 0.6), probability)
    error = torch.stack([square_error((2, 4), 0.6, law, 0.5) for law in single]).mean(0)
    torch.testing.assert_close(square_error((2, 4), 0.6, NormalMixture(mean, std), 0.5), error)


def test_large_mixtures_are_computed_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    law = NormalMixture(torch.linspace(-1, 1, 50).expand(2, 50), torch.linspace(0.1, 2, 50).expand(2, 50))
    whole = code_probabilities(law, (20, 30), 0.1)
    monkeypatch.setattr("polarspike.statistics.laws._ELEMENTS", 300)
    torch.testing.assert_close(code_probabilities(law, (20, 30), 0.1), whole, rtol=0.0, atol=0.0)


def dense_best(law: NormalMixture, levels: Levels, objective: str, centre: float) -> float:
    """Best objective over a fine scan two decades around ``centre``, whose steps are groups of one law."""
    scan = centre * torch.logspace(-1, 1, 601, dtype=torch.float64)
    repeated = NormalMixture(law.mean.expand(601, -1), law.std.expand(601, -1))
    if objective == "entropy":
        return entropy(levels, scan, repeated).max().item()
    return square_error(levels, scan, repeated).min().item()


@pytest.mark.parametrize(
    "law",
    [
        NormalMixture(torch.zeros(1, 40), torch.tensor([[1e-3] * 39 + [10.0]])),
        NormalMixture(torch.tensor([[-6.0, 0.5]]), torch.tensor([[1.0, 0.0]])),
        normal(-6.0, 1.0),
        normal(5.0, 1.0),
    ],
    ids=["skewed", "one constant", "far below zero", "far above zero"],
)
@pytest.mark.parametrize("levels", [(0, 4), (3, 7)])
def test_no_scanned_step_is_better(law: NormalMixture, levels: Levels) -> None:
    step = best_step(levels, "entropy", law)
    assert entropy(levels, step, law).item() >= dense_best(law, levels, "entropy", step.item()) - 1e-6
    step = best_step(levels, "mse", law)
    least = square_error(levels, step, law).item()
    assert least <= dense_best(law, levels, "mse", step.item()) * (1.0 + 1e-4)


def test_dead_groups_have_no_step() -> None:
    law = NormalMixture(torch.tensor([[0.0], [0.0], [-50.0]]), torch.tensor([[1.0], [0.0], [1.0]]))
    for objective in ("entropy", "mse"):
        steps = best_step((0, 4), objective, law)
        assert steps[0].item() > 0.1
        assert steps[1:].tolist() == [0.0, 0.0]
        zeros = points(torch.zeros(2, 8))
        assert best_step((2, 2), objective, zeros).tolist() == [0.0, 0.0]
    assert best_step((0, 4), "mse", normal(3.0, 0.0)).item() > 0.0  # a constant can be met exactly
    assert square_error((0, 4), best_step((0, 4), "mse", normal(3.0, 0.0)), normal(3.0, 0.0)).item() < 1e-6
    assert best_step((0, 4), "entropy", normal(3.0, 0.0)).item() == 0.0


def test_binary_levels_take_the_square_error_step() -> None:
    # At a median of zero H(0, 1) grows to 1 bit as the step goes to 0: the entropy names no step.
    assert entropy((0, 1), 1e-6) > entropy((0, 1), 0.5)
    assert best_step((0, 1)) == best_step((0, 1), "mse")
    # Above zero it does: s / 2 is the median.
    assert best_step((0, 1), "entropy", normal(2.0)).item() == pytest.approx(4.0, rel=1e-3)


def test_bins_and_a_point_at_zero_are_a_law() -> None:
    # Half of the mass exactly at zero, half uniform on [0, 1].
    law = Samples(torch.tensor([[0.5, 0.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[1.0, 0.0]]))
    torch.testing.assert_close(
        code_probabilities(law, (0, 2), 0.5)[0], torch.tensor([0.625, 0.25, 0.125], dtype=torch.float64)
    )
    assert law.power().item() == pytest.approx(1.0 / 6.0)
    # Codes 0, 1, 2 on [0, .25), [.25, .75), [.75, 1]: each is a uniform error of step^2 / 12 = 1 / 48.
    assert square_error((0, 2), 0.5, law).item() == pytest.approx(0.5 / 48.0)
    straddling = Samples(torch.tensor([[0.0]]), torch.tensor([[2.0]]), torch.tensor([[2.0]]))
    assert straddling.power().item() == pytest.approx(1.0 / 6.0)
    assert square_error((1, 1), 1.0, straddling).item() == pytest.approx(1.0 / 12.0)


def test_no_law_means_a_float_and_the_standard_normal() -> None:
    assert isinstance(entropy(levels=(2, 6), step=0.4), float)
    assert isinstance(best_step(levels=(2, 6), objective="mse"), float)
    assert square_error((2, 6), 0.4) == square_error((2, 6), 0.4, normal()).item()
    assert best_step((2, 6), "entropy", normal()).dtype == torch.float64


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: entropy((0, 0), 0.4), "N >= 0 and P >= 1"),
        (lambda: entropy((-1, 2), 0.4), "N >= 0 and P >= 1"),
        (lambda: entropy((True, 4), 0.5), "levels"),
        (lambda: entropy((2, 6), 0.0), "positive finite"),
        (lambda: entropy((2, 6), float("nan")), "positive finite"),
        (lambda: entropy((2, 6), torch.ones(3), normal()), r"shape \(1,\)"),
        (lambda: best_step((2, 6), "median"), "'entropy' or 'mse'"),  # type: ignore[call-overload]
        (lambda: entropy((2, 6), "0.4"), "step: expected one number or a tensor, got '0.4'"),  # type: ignore[call-overload]
        (lambda: best_step((2, 6), "mse", normal(), 1.5), r"\[0, 1\]"),
        (lambda: best_step((2, 6), "mse", normal(), "learned"), r"\[0, 1\], got 'learned'"),  # type: ignore[call-overload]
        (lambda: normal(0.0, -1.0), "no negative value"),
        (lambda: NormalMixture(torch.zeros(3), torch.ones(3)), r"got \(3,\)"),
        (lambda: NormalMixture(torch.zeros(1, 3), torch.ones(1, 2)), r"\(1, 3\)"),
        (lambda: points(torch.tensor([[0.0, math.nan, math.inf]])), "2 NaN or Inf"),
        (lambda: Samples(torch.ones(1, 2), torch.zeros(1, 2)), "positive sum"),
        (lambda: Samples(torch.tensor([[0.0, 0.5]]), torch.ones(1, 2), torch.ones(1, 2)), "overlap"),
    ],
)
def test_wrong_input_is_named(call, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InputError, match=message):
        call()
