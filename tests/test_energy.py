"""Joules of hand-computed counts, the arithmetic written beside each number."""

import json
import math

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.counting import OperationCounts, count_operations
from polarspike.energy import CONVENTIONS, CostTable, EnergyEstimate, estimate_energy
from polarspike.errors import SpecError

IMAGE = torch.tensor([[[[3.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, -5, 0]]]])  # (1, 1, 4, 4)


def counted(model: nn.Module, x: Tensor, timesteps: int = 1, negative: int = 0, positive: int = 3) -> OperationCounts:
    qann = ps.quantize(model.eval(), ps.QuantSpec(negative=negative, positive=positive), example=x)
    for site in qann.sites().values():
        site.set_step(1.0)
    return count_operations(ps.convert(qann), x, timesteps)


def example(positive: int = 3, timesteps: int = 1) -> OperationCounts:
    """Events of 3 and 2 units: 13 connections * 5 channels = 65, 3 * 4 + 2 * 9 = 30 * 5 = 150; see test_counting."""
    first = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(first.weight)
    return counted(nn.Sequential(first, nn.ReLU(), nn.Conv2d(1, 5, 3, padding=1)), IMAGE, timesteps, positive=positive)


@pytest.mark.parametrize(("precision", "mac", "add"), [("float32", 4.6, 0.9), ("int8", 0.3, 0.1)])
def test_conventions_of_the_hand_computed_example(precision: str, mac: float, add: float) -> None:
    estimate = estimate_energy(example(), CostTable.cmos45())
    # Common to all: 16 MACs of the input layer, 16 membrane updates at a MAC each, 80 biases.
    common = 16 * mac + 16 * mac + 80 * add
    expected = {
        "ann": (16 + 500) * mac + 80 * add,
        "a": common + 65 * add,  # 65 connections crossed
        "b": common + 150 * add,  # |k| accumulates each
        "c": common + 500 * mac,  # codes of 2 and 3: all connections of the second layer
        "d": common + 65 * mac,
    }
    for system, total in expected.items():
        row = estimate.row(system, precision)  # type: ignore[arg-type]
        assert row.total_pj == pytest.approx(total), system
        assert row.joules == pytest.approx(total * 1e-12)
        assert row.ratio == pytest.approx(total / expected["ann"])
    row = estimate.row("b", precision)  # type: ignore[arg-type]
    assert (row.spikes_pj, row.analog_pj) == pytest.approx((150 * add, 16 * mac))
    assert (row.neurons_pj, row.biases_pj) == pytest.approx((16 * mac, 80 * add))
    assert (row.second_scale_pj, row.elementwise_pj, row.input_once_pj) == (0, 0, 0)


def test_integer_accelerator_is_the_same_dense_network_with_requantization() -> None:
    estimate = estimate_energy(example(timesteps=2))
    # One pass whatever T: 516 MACs, 16 requantizations, 80 biases.
    assert estimate.row("qann").total_pj == pytest.approx((516 + 16) * 0.3 + 80 * 0.1)
    with pytest.raises(SpecError, match="qann/int8"):
        estimate.row("qann", "float32")


def test_ternary_spikes_are_never_dense() -> None:
    estimate = estimate_energy(example(positive=1))
    # Both events now carry one unit, so (a), (b) and (c) agree: 65 accumulates.
    assert [estimate.row(letter).spikes_pj for letter in ("a", "b", "c")] == pytest.approx([6.5] * 3)  # type: ignore[arg-type]
    assert estimate.row("d").spikes_pj == pytest.approx(65 * 0.3)


def test_several_steps_of_a_repeated_image() -> None:
    estimate = estimate_energy(example(timesteps=3))
    # The input layer is computed at each of 3 steps; 2 of them could be saved.
    assert estimate.row("a").analog_pj == pytest.approx(3 * 16 * 0.3)
    assert estimate.row("a").input_once_pj == pytest.approx(2 * 16 * 0.3)
    assert estimate.row("a", "float32").input_once_pj == pytest.approx(2 * 16 * 4.6)
    assert estimate.code_bits == 4  # 3 * 3 + 1 = 10 values
    assert "computed once would save" in str(estimate)


def test_second_scale() -> None:
    x = torch.tensor([[-2.0, -1.0, 0.0, 2.0]])
    counts = counted(nn.Sequential(nn.LeakyReLU(0.3), nn.Linear(4, 5, bias=False)), x, negative=2)
    estimate = estimate_energy(counts)
    # 5 outputs join their second accumulator by one MAC each; a dense multiplier needs no second accumulator.
    assert [estimate.row(letter).second_scale_pj for letter in "abcd"] == pytest.approx([1.5, 1.5, 0, 1.5])  # type: ignore[arg-type]
    assert estimate.row("qann").second_scale_pj == pytest.approx(1.5)
    assert estimate.row("ann").second_scale_pj == 0
    # 3 events * 5 outputs, 2 + 1 + 2 units * 5 outputs, 4 * 5 connections.
    assert [estimate.row(letter).spikes_pj for letter in "abcd"] == pytest.approx([1.5, 2.5, 6.0, 4.5])  # type: ignore[arg-type]


def crossing() -> OperationCounts:
    """C = 1, then -1, at the second site: one of its events enters both accumulators; see test_counting."""
    middle, last = nn.Linear(1, 1), nn.Linear(1, 3)
    nn.init.constant_(middle.weight, 2.0)
    nn.init.constant_(middle.bias, -1.4)
    return counted(
        nn.Sequential(nn.LeakyReLU(0.5), middle, nn.LeakyReLU(0.5), last), torch.tensor([[0.5]]), 2, negative=2
    )


def test_crossing_events_pay_twice() -> None:
    estimate = estimate_energy(crossing())
    # Joins: 2 steps * (1 + 3) outputs; crossing: 3 connections more, but for (b), whose units go to one or the other.
    joins = 2 * 4 * 0.3
    expected = [joins + 3 * 0.1, joins, 0.0, joins + 3 * 0.3]
    assert [estimate.row(letter).second_scale_pj for letter in "abcd"] == pytest.approx(expected)  # type: ignore[arg-type]


def pooled() -> EnergyEstimate:
    """2 * 2 channels of 4 ones, averaged, then 3 outputs; a batch norm and an addition of graded values before."""

    class Pooled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.act = nn.BatchNorm2d(2, eps=0.0), nn.ReLU()
            self.pool, self.head = nn.AvgPool2d(2), nn.Linear(2, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.pool(self.act(self.norm(x) + x)).flatten(1))

    return estimate_energy(counted(Pooled(), torch.ones(2, 2, 2, 2)))


def test_integer_accelerator_joins_once() -> None:
    # 1 + 3 outputs, in one pass whatever T.
    assert estimate_energy(crossing()).row("qann").second_scale_pj == pytest.approx(4 * 0.3)


def test_averages_and_elementwise_operations() -> None:
    estimate = pooled()
    # 16 codes of 1 + 1 = 2: one accumulate each into its average; in (b) two; 16 additions where dense, also in (c), (d).
    assert [estimate.row(letter).spikes_pj for letter in "abcd"] == pytest.approx([1.6, 3.2, 1.6, 1.6])  # type: ignore[arg-type]
    # The head sees graded values: 2 * 2 * 3 MACs, in every convention.
    assert [estimate.row(letter).analog_pj for letter in "abcd"] == pytest.approx([12 * 0.3] * 4)  # type: ignore[arg-type]
    # 16 elements through the batch norm (MAC) and the sum (addition), on both sides.
    for system in ("ann", "qann", "a"):
        assert estimate.row(system).elementwise_pj == pytest.approx(16 * 0.3 + 16 * 0.1)  # type: ignore[arg-type]
    # Dense: 12 MACs and 16 additions of the average.
    assert estimate.row("ann").analog_pj == pytest.approx(12 * 0.3 + 16 * 0.1)


def test_memory_stays_apart() -> None:
    counts = example()
    table = CostTable("free", "test", 0, 0, 0, 0, sram_word_pj=2.0, dram_word_pj=100.0)
    estimate = estimate_energy(counts, table)
    assert all(row.total_pj == 0 for row in estimate.rows)
    assert math.isnan(estimate.row("a").ratio)
    for system, words in {
        "ann": counts.ann_memory().words,
        "a": counts.memory("event").words,
        "b": counts.memory("spike").words,
        "c": counts.memory("dense").words,
        "d": counts.memory("event").words,
    }.items():
        row = estimate.row(system)  # type: ignore[arg-type]
        assert (row.memory.words, row.sram_pj, row.dram_pj) == (words, 2.0 * words, 100.0 * words)
    assert estimate.row("b").memory.words > estimate.row("a").memory.words


def test_table_and_text() -> None:
    table = CostTable.cmos45()
    assert (table.float32_mac_pj, table.float32_add_pj, table.int8_mac_pj, table.int8_add_pj) == (4.6, 0.9, 0.3, 0.1)
    assert CostTable.from_dict(json.loads(json.dumps(table.to_dict()))) == table
    estimate = pooled()
    data = json.loads(json.dumps(estimate.to_dict()))
    assert len(data["rows"]) == 5 + 6
    assert data["rows"][0]["joules_per_image"] == pytest.approx(estimate.row("ann", "float32").joules / 2)
    assert max(map(len, str(estimate).splitlines())) <= 120
    text = " ".join(str(estimate).split())  # lines are folded
    assert all(label in text and hides in text for label, hides in CONVENTIONS.values())
    assert "Horowitz" in text and "QANN, integer accelerator" in text and "computed once" not in text


def test_wrong_requests() -> None:
    with pytest.raises(SpecError, match="count_operations"):
        estimate_energy({})  # type: ignore[arg-type]
    for price in (-1.0, math.inf, math.nan, True):
        with pytest.raises(SpecError, match="int8_add_pj"):
            CostTable("x", "y", 1, 1, 1, price, 1, 1)
