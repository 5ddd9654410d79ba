"""Weights as whole numbers: dyadic ones exactly, ties upwards; others as near as 8 bits allow, never on a threshold."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import polarspike as ps
from polarspike import integer
from polarspike.errors import ExportError
from polarspike.exporters.integer import integer_network
from polarspike.integer import rounding
from polarspike.integer.lattice import fire, largest_divisor

MOST = largest_divisor(15)


def exact_codes(units: np.ndarray, bias: np.ndarray, codes: np.ndarray) -> np.ndarray:
    return np.floor(codes @ units.T + bias + 0.5)  # float64, dyadic: exact


@pytest.mark.parametrize("power", [0, 1, 3, 6])
def test_dyadic_weights_fire_as_they_are_and_ties_go_up(power: int) -> None:
    generator = np.random.default_rng(power)
    units = generator.integers(-63, 64, (6, 9)) / 2.0**power
    bias = generator.integers(-40, 41, 6) / 2.0**power
    made = rounding.firing(units, bias, 15, MOST, wide=False)
    codes = generator.integers(-8, 16, (4000, 9))
    meant = exact_codes(units, bias, codes)
    ties = (2 * (codes @ units.T + bias)) % 2 == 1
    assert power == 0 or ties.any()
    sums = codes @ made.weight.T.astype(np.int64) + made.bias.astype(np.int64)
    assert np.array_equal(fire(sums, made.divisor, -10_000, 10_000), meant)
    for nearest in (np.rint, lambda v: np.trunc(v + np.copysign(0.5, v))):  # half to even, half away from zero
        found = nearest((sums.astype(np.float32) * (1 / made.divisor).astype(np.float32)).astype(np.float32))
        assert np.array_equal(found[np.abs(meant) < 15], meant[np.abs(meant) < 15])


def test_any_other_weights_are_as_near_as_their_bits() -> None:
    units = np.random.default_rng(0).normal(size=(8, 30)) * 0.2
    made = rounding.firing(units, np.zeros(8), 15, MOST, wide=False)
    assert (made.divisor % 2 == 1).all() and np.abs(made.weight).max() <= 127
    assert np.abs(made.weight / made.divisor[:, None] - units).max(axis=1) == pytest.approx(
        0, abs=0.5 / made.divisor.min()
    )
    assert (np.abs(made.weight).max(axis=1) > 120).all()  # all of the 8 bits


@pytest.mark.parametrize("bits", range(2, 9))
def test_weights_on_a_grid_keep_their_integers(bits: int) -> None:
    generator, largest = np.random.default_rng(bits), 2 ** (bits - 1) - 1
    whole = generator.integers(-largest, largest + 1, (5, 40))
    whole[:, 0] = largest
    step = generator.uniform(0.0011, 0.0035, (5, 1)) * 127 / largest
    units = (whole * step).astype(np.float32).astype(np.float64)
    factor = 127 // largest
    made = rounding.firing(units, np.zeros(5), 15, MOST, wide=False)
    assert np.array_equal(made.weight, factor * whole)
    assert np.abs(made.divisor * step[:, 0] / factor - 1).max() < 0.004
    most = 141  # too few units a step for the whole factor, where it is not 1 already
    made = rounding.firing(units, np.zeros(5), 15, most, wide=False)
    smaller = np.abs(made.weight).max(axis=1, keepdims=True) / largest
    assert made.divisor.max() <= most and (bits > 5 or np.array_equal(made.weight, smaller * whole))


def test_sums_of_sums_stay_exact_in_float32() -> None:
    units = np.random.default_rng(2).normal(size=(3, 512)) * 0.01
    made = rounding.firing(units, np.zeros(3), 7 * 64, MOST, wide=True)
    assert rounding.largest_sum(made.weight, 7 * 64) <= 2**24
    answer = rounding.scaling(units, np.zeros(3), 7 * 64, wide=True)
    assert rounding.largest_sum(answer.weight, 7 * 64) <= 2**24


def test_a_weight_that_saturates_its_neuron_is_refused() -> None:
    with pytest.raises(ExportError, match="output channel 1"):
        rounding.firing(np.array([[1.0], [128.0]]), np.zeros(2), 15, MOST, wide=False)


@pytest.mark.parametrize("units", [0.0, 1e-12, 1e-40, 1.0, 0.3])
def test_the_bias_of_a_float_answer_is_as_fine_as_a_bias_is(units: float) -> None:
    """Also of a row without weights, of hardly any, and of few bits, whose own unit would be too coarse."""
    generator = np.random.default_rng(0)
    weights, bias = units * generator.integers(-1, 2, (4, 9)), np.float32([0.45, -3.3, 1e-6, 0.0]).astype(np.float64)
    made = rounding.scaling(weights, bias, 15, wide=False)
    codes = generator.integers(0, 16, (50, 9))
    answer = (codes @ made.weight.T.astype(np.int64) + made.bias.astype(np.int64)) * made.scale
    assert np.abs(answer - (codes @ weights.T + bias)).max() <= (units / 127 if units > 1e-9 else 1e-6)


@pytest.mark.parametrize("bias", [0.3, -7.25, 1e7])
def test_the_bias_of_a_nearly_dead_channel_fits_everywhere(bias: float) -> None:
    units, given = np.full((1, 9), 1e-12), np.array([bias])
    fired = rounding.firing(units, given, 15, MOST, wide=False)
    averaged = rounding.averaging(units, given, 15, MOST)
    assert averaged is not None
    for made in (fired, averaged):
        assert abs(int(made.bias[0]) / int(made.divisor[0]) - bias) <= 1e-3 * max(1.0, abs(bias) / 1e6)


def test_what_fits_nowhere_names_its_channel() -> None:
    with pytest.raises(ExportError, match=r"output channel 1: expected a bias of at most .*32 bits.*, got 1e\+12"):
        rounding.firing(np.ones((2, 3)) / 3, np.array([0.0, 1e12]), 15, MOST, wide=False)
    with pytest.raises(ExportError, match=r"output channel 1: expected a bias of a finite number, got nan"):
        rounding.scaling(np.ones((2, 3)), np.array([0.0, np.nan]), 15, wide=False)


def test_means_of_weights_of_few_bits_keep_their_biases() -> None:
    generator = np.random.default_rng(0)
    units, bias = generator.integers(-1, 2, (40, 9)).astype(np.float64), generator.uniform(-0.5, 2.5, 40)
    units[:8] = 0.0
    made = rounding.averaging(units, bias, 7, 4001)
    assert made is not None and np.array_equal(made.weight / made.divisor[:, None], units)
    assert np.abs(made.bias / made.divisor - bias).max() <= 1 / 128
    codes = generator.integers(0, 8, (300, 4, 9))
    exact = np.floor(np.maximum(codes @ units.T + bias, 0).sum(1) / 4 + 0.5)
    sums = np.maximum(codes @ made.weight.T.astype(np.int64) + made.bias.astype(np.int64), 0).sum(1)
    assert (fire(sums, made.divisor * 4, 0, 10**6) != exact).mean() < 0.01


def test_means_are_refused_where_weights_would_have_few_bits() -> None:
    units = np.random.default_rng(0).normal(size=(8, 30)) * 0.1
    assert rounding.averaging(units, np.zeros(8), 15, 109) is None
    assert rounding.averaging(np.vstack([units, units * 1e-6]), np.zeros(16), 15, 4001) is not None


def test_large_whole_weights_round_their_bias_half_up() -> None:
    units, bias = np.array([[64.0, -3.0], [127.0, 1.0], [90.0, 2.0]]), np.array([0.5, 2.5, -1.5])
    made = rounding.firing(units, bias, 15, MOST, wide=False)
    assert made.divisor.tolist() == [1, 1, 1] and made.bias.tolist() == [1, 3, -1]


class Dyadic(nn.Module):
    """Weights n / 16, so that with steps that are powers of two a third of all membranes lie on a threshold."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 8, 3, stride=2), nn.Linear(8, 3)
        with torch.no_grad():
            for layer, spread in ((self.one, 3), (self.two, 2)):
                layer.weight.copy_(torch.randint(-spread, spread + 1, layer.weight.shape) / 4)
                assert layer.bias is not None
                layer.bias.copy_(4.0 * torch.randint(-3, 4, layer.bias.shape))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.one(x))
        x = torch.relu(self.two(x))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


def test_a_dyadic_network_in_whole_numbers_is_the_spiking_network_code_for_code() -> None:
    torch.manual_seed(0)
    x = torch.randint(-127, 128, (32, 1, 8, 8)).float()
    x[0, 0, 0, 0], x[0, 0, 0, 1] = -127, 127  # 254 steps of one
    qann = ps.quantize(Dyadic(), ps.QuantSpec(0, 7), example=x)
    for site, step in zip(qann.sites().values(), (32.0, 16.0), strict=True):
        site.set_step(step)
    snn = ps.convert(qann)
    made = integer_network(snn, x, [x])
    fired: dict[str, torch.Tensor] = {}
    with torch.no_grad(), snn.observe(lambda site, t, spikes: fired.update({site: spikes})):
        snn(x)
    values = dict(integer.trace(made, {made.inputs[0][0]: x.numpy()}))
    for site, value in made.sites.items():
        assert np.array_equal(values[value], fired[site].numpy()), site
    membranes = torch.relu(qann.network.get_submodule("one")(x)) / 32
    assert int(((membranes * 2) % 2 == 1).sum()) > 10  # there were ties
    assert len({int(k) for k in itertools.chain(*(s.unique() for s in fired.values()))}) > 5


@pytest.mark.parametrize("size", [1e-3, 1e-9, 1e-20])
def test_weights_keep_their_bits_however_small_they_are_where_there_is_no_bias(size: float) -> None:
    units = np.random.default_rng(0).normal(size=(3, 16))
    made, small = (rounding.scaling(u, np.zeros(3), 7, wide=False) for u in (units, size * units))
    np.testing.assert_array_equal(made.weight, small.weight)
    np.testing.assert_allclose(small.scale, size * made.scale)
    assert np.abs(made.weight).max(axis=1).tolist() == [127, 127, 127]
