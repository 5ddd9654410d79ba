"""Counts over timesteps, their totals, and the memory behind them."""

import json
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from polarspike.counting import count_operations
from polarspike.counting.connections import Connections
from polarspike.errors import InputError, SpecError
from polarspike.spiking import SpikingNetwork
from tests.counting.counted import Graph, fan_out, integers, spiking


def chain(gain: float) -> nn.Module:
    """Two sites of one neuron: the second gets w y + b with w = 1, b = -0.4; then three outputs."""
    middle, last = nn.Linear(1, 1), nn.Linear(1, 3)
    nn.init.ones_(middle.weight)
    nn.init.constant_(middle.bias, -0.4)
    act = nn.LeakyReLU(gain) if gain else nn.ReLU()
    return nn.Sequential(nn.ReLU(), middle, act, last)


def test_take_back_over_two_steps() -> None:
    x = torch.tensor([[0.5]])
    counts = count_operations(spiking(chain(0.0), x), x, 2)
    first, second = counts.sites
    # Site 1: A = 0.5, 1.0, so C = 1, 1 and k = 1, 0.
    assert first.codes == {0: 1, 1: 1} and first.take_backs == 0
    # Site 2: I = 1 - 0.4, then -0.4: A = 0.6, 0.2, so C = 1, 0 and k = 1, -1, which takes the spike back.
    assert second.codes == {-1: 1, 1: 1}
    assert (second.take_backs, second.negative_events, second.negative_spikes) == (1, 1, 1)
    assert (second.silent, first.silent) == (0, 0)
    assert second.second_scale_events == 0  # rectified: a negative spike is worth as much as a positive one
    # 2 events * 3 outputs; 2 steps * 3 connections.
    row = counts.synapse("3")
    assert (row.acs_by_event, row.dense_macs) == (2 * 3, 2 * 3)
    assert counts.totals["membrane_updates"] == 2 + 2
    # There is no layer before the first site, so no input is multiplied.
    assert counts.totals["macs"] == counts.totals["input_macs"] == 0


def test_input_layer_is_counted_at_every_step() -> None:
    x = integers(2, 1, 4, 4)
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 1, 1))
    totals = count_operations(spiking(model, x), x, 3).totals
    once = 2 * 2 * 4 * 9  # images * channels * outputs * taps
    assert (totals["input_macs"], totals["static_input_macs"], totals["macs"]) == (3 * once, once, 3 * once)
    assert (totals["scalings"], totals["ann_scalings"]) == (3 * 16, 16)  # the batch norm: 2 * 2 * 4 elements


def test_second_scale_of_leaky_relu() -> None:
    x = torch.tensor([[-2.0, -1.0, 0.0, 2.0]])
    model = nn.Sequential(nn.LeakyReLU(0.3), nn.Linear(4, 5))
    counts = count_operations(spiking(model, x, negative=2), x)
    (site,) = counts.sites
    assert site.codes == {-2: 1, -1: 1, 0: 1, 2: 1} and site.gain == pytest.approx(0.3)
    assert (site.second_scale_events, site.negative_events, site.negative_spikes) == (2, 2, 3)
    row = counts.synapse("1")
    assert (row.acs_by_event, row.acs_by_spike) == (3 * 5, 5 * 5)
    assert row.second_scale_macs == 5  # one join for each output
    assert row.second_scale_acs == 0  # nothing crosses zero at the first step


def test_events_that_cross_zero_enter_both_accumulators() -> None:
    x = torch.tensor([[0.5]])
    model = chain(0.5)
    nn.init.constant_(model[1].bias, -0.4 - 1.0)
    nn.init.constant_(model[1].weight, 2.0)
    counts = count_operations(spiking(model, x, negative=2), x, 2)
    # Site 2: I = 2 - 1.4 = 0.6, then -1.4: A = 0.6, -0.8, so C = 1, -1 and k = 1, -2: one unit back, one below zero.
    second = counts.sites[1]
    assert second.codes == {-2: 1, 1: 1}
    assert (second.take_backs, second.second_scale_events) == (1, 1)
    row = counts.synapse("3")
    assert (row.second_scale_acs, row.second_scale_macs) == (3, 2 * 3)
    assert (row.acs_by_event, row.acs_by_spike) == (2 * 3, 3 * 3)


def test_one_scale_needs_one_accumulator() -> None:
    x = torch.tensor([[0.5]])
    model = chain(1.0)  # slope 1: a negative spike is worth as much as a positive one
    nn.init.constant_(model[1].bias, -1.4)
    nn.init.constant_(model[1].weight, 2.0)
    row = count_operations(spiking(model, x, negative=2), x, 2).synapse("3")
    assert (row.acs_by_spike, row.second_scale_acs, row.second_scale_macs) == (3 * 3, 0, 0)


@pytest.mark.parametrize("gain", [0.0, 1.0])
def test_gain_zero_sends_no_negative_codes(gain: float) -> None:
    x = torch.tensor([[-2.0, -1.0, 0.0, 2.0]])
    snn = spiking(nn.Sequential(nn.ReLU(), nn.Linear(4, 5)), x, negative=2, signed="all", gain=gain)
    counts = count_operations(snn, x)
    (site,) = counts.sites
    assert (site.events, site.negative_events, site.second_scale_events) == (3, 2, 0)
    assert site.valueless_events == (2 if gain == 0.0 else 0)
    assert counts.synapse("1").acs_by_event == (5 if gain == 0.0 else 15)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.stem, self.norm = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.body, self.short = nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.Conv2d(4, 6, 1, stride=2)
        self.pool, self.head = nn.MaxPool2d(2), nn.Linear(6, 3)
        for parameter in self.parameters():
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.4

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.norm(self.stem(x)))
        x = self.pool(functional.leaky_relu(self.body(x) + self.short(x), 0.3))
        return self.head(x.flatten(1))


def residual() -> tuple[SpikingNetwork, Tensor]:
    x = torch.randn(3, 2, 6, 6, generator=torch.Generator().manual_seed(2))
    return spiking(Residual(), x[:, :, :5, :5], step=0.4, negative=2), x[:, :, :5, :5]


def test_steps_agree_with_what_observers_see() -> None:
    snn, x = residual()
    model = Residual()
    seen: dict[str, list[Tensor]] = {}
    with snn.observe(lambda site, t, spikes: seen.setdefault(site, []).append(spikes.clone())):
        snn(x, timesteps=4)
    counts = count_operations(snn, x, 4)
    first, second = (seen[site.site] for site in counts.sites)
    assert counts.totals["spikes"] == int(sum(spikes.abs().sum() for spikes in first + second))
    expected = sum(int((fan_out(model.body, spikes) * (spikes != 0)).sum()) for spikes in first)
    assert counts.synapse("body").acs_by_event == expected
    # Behind the pool: differences of the pooled running codes.
    running = torch.stack(second).cumsum(0)
    pooled = torch.stack([functional.max_pool2d(codes, 2) for codes in running])
    steps = torch.diff(pooled, dim=0, prepend=torch.zeros_like(pooled[:1]))
    assert counts.synapse("head").acs_by_spike == 3 * int(steps.abs().sum())
    assert counts.sites[0].silent == int((torch.stack(first) == 0).all(0).sum())


def test_later_steps_only_add() -> None:
    snn, x = residual()
    shorter, longer = (count_operations(snn, x, timesteps).totals for timesteps in (2, 3))
    assert all(longer[name] >= shorter[name] for name in longer if name != "silent")
    assert longer["dense_macs"] * 2 == shorter["dense_macs"] * 3
    assert longer["ann_macs"] == shorter["ann_macs"] == longer["dense_macs"] // 3
    with_target = count_operations(snn, (x, torch.zeros(3)), 3)
    assert with_target.totals == longer
    assert with_target.per_image["macs"] == longer["macs"] / 3


def test_images_are_counted_one_by_one() -> None:
    snn, x = residual()
    whole = count_operations(snn, x, 2).totals
    apart = [count_operations(snn, x[i : i + 1], 2).totals for i in range(3)]
    summed = {name: sum(totals[name] for totals in apart) for name in whole}
    assert {**summed, "neurons": whole["neurons"]} == whole


def test_totals_are_integer_sums_of_named_rows() -> None:
    snn, x = residual()
    counts = count_operations(snn, x, 2)
    data = json.loads(json.dumps(counts.to_dict()))
    for name, total in counts.totals.items():
        assert type(total) is int, name
        rows = data["sites"] if name in data["sites"][0] else data["synapses"]
        if name in rows[0]:
            assert total == sum(row[name] for row in rows)
    names = [row["name"] for row in data["synapses"]]
    assert names == ["stem", "body", "short", "head"]
    assert all(type(value) is int for row in counts.sites for value in row.codes.values())
    text = str(counts)
    assert all(name in text for name in names) and "stem: the network's input" in text
    assert counts.site(counts.sites[1].site).levels == (2, 3)
    assert counts.sites[1].bits == 4  # 2 steps of 5 levels and zero: 11 values
    with pytest.raises(SpecError, match="expected one of stem, body"):
        counts.synapse("nothing")


def test_memory_without_reuse() -> None:
    x = torch.tensor([[2.0, 0.0], [1.0, 1.0]])
    model = nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 3, bias=False))
    nn.init.eye_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    counts = count_operations(spiking(model, x), x)
    # Events: 2, 1, 1 (3 events, 4 spikes), each feeds 3 outputs. Analog: 2 images * 4 macs, 2 * 2 outputs, 4 biases.
    memory = counts.memory()
    assert (memory.weight_reads, memory.activation_reads, memory.output_writes) == (9 + 8 + 4, 8, 4)
    assert memory.membrane_reads == memory.membrane_writes == 9 + 4  # 4 neurons of the batch
    assert (memory.event_reads, memory.event_writes) == (3, 3)
    units = counts.memory("spike")
    assert (units.weight_reads, units.membrane_reads, units.event_reads, units.event_writes) == (12 + 12, 16, 4, 4)
    dense = counts.memory("dense")
    assert (dense.weight_reads, dense.activation_reads, dense.membrane_reads) == (12 + 8 + 4, 20, 4)
    ann = counts.ann_memory()
    # 8 + 2 * 6 macs; 4 biases; 4 + 6 outputs.
    assert (ann.weight_reads, ann.activation_reads, ann.output_writes) == (20 + 4, 20, 10)
    assert ann.words == 24 + 20 + 10


def test_memory_of_sums() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.head(net.act(x + net.norm(x)))

    x = integers(2, 3)
    parts = {"norm": nn.BatchNorm1d(3), "act": nn.ReLU(), "head": nn.Linear(3, 1, bias=False)}
    counts = count_operations(spiking(Graph(forward, **parts), x), x, 2)
    # 6 sums of two graded values at each of 2 steps: two reads and a write. The dense network: once, and 6 macs, 2 outputs.
    assert (counts.memory().activation_reads, counts.memory().output_writes) == (2 * 2 * 6, 2 * 6)
    assert (counts.ann_memory().activation_reads, counts.ann_memory().output_writes) == (2 * 6 + 6, 6 + 2)


def test_split_and_joined_graded_values() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        first, second = x.split(1, dim=1)
        return net.last(torch.cat(net.act(torch.cat([first, second], dim=1)).split(1, dim=1), dim=1))

    x = integers(2, 2, 3)
    counts = count_operations(spiking(Graph(forward, act=nn.ReLU(), last=nn.Conv1d(2, 4, 1)), x), x)
    assert counts.synapse("last").acs_by_event == 4 * counts.totals["events"]


def test_valid_padding_and_pairs() -> None:
    x = integers(1, 1, 4, 4)
    for padding in ("valid", (0, 1)):
        layer = nn.Conv2d(1, 2, (2, 3), padding=padding)
        row = count_operations(spiking(nn.Sequential(nn.ReLU(), layer), x), x).synapse("1")
        assert row.connections == int(fan_out(layer, x).sum())


def test_a_maximum_over_spikes_of_different_value_is_graded() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        a = net.act(x)
        return net.last(net.pool(a * torch.tensor([[1.0], [-1.0]])))

    x = integers(2, 2, 4)
    model = Graph(forward, act=nn.ReLU(), pool=nn.MaxPool1d(2), last=nn.Conv1d(2, 3, 1))
    row = count_operations(spiking(model, x), x).synapse("last")
    assert not row.spiking and "different value" in row.reason
    falling = Graph(lambda net, x: net.pool(-2 * net.act(x)), act=nn.ReLU(), pool=nn.MaxPool1d(2))
    rising = Graph(lambda net, x: net.pool(2 * net.act(x) + 1), act=nn.ReLU(), pool=nn.MaxPool1d(2))
    assert [len(count_operations(spiking(net, x), x).synapses) for net in (falling, rising)] == [1, 0]


def test_nothing_is_lost_above_float32() -> None:
    links = Connections(2**20 + 1, (torch.tensor([3]),))
    assert links.count(torch.full((5, 7, 1), 11.0)) == 5 * 7 * 11 * 3 * (2**20 + 1)
    assert Connections(1).count(torch.full((3, 5), 2.0**23 + 1)) == 15 * (2**23 + 1)


def test_one_layer_used_twice_has_two_rows() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.layer(net.two(net.layer(net.one(x))))

    x = integers(2, 4)
    parts = {"layer": nn.Linear(4, 4), "one": nn.ReLU(), "two": nn.ReLU()}
    counts = count_operations(spiking(Graph(forward, **parts), x), x)
    assert [row.acs_by_event for row in counts.synapses] == [4 * site.events for site in counts.sites]
    assert len({row.name for row in counts.synapses}) == 2


def test_wrong_requests() -> None:
    snn, x = residual()
    with pytest.raises(SpecError, match=r"polarspike\.convert"):
        count_operations(nn.ReLU(), x)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="positive integer"):
        count_operations(snn, x, 0)
    with pytest.raises(InputError, match="NaN or Inf"):
        count_operations(snn, x * float("nan"))
    with pytest.raises(InputError, match="empty batch"):
        count_operations(snn, x[:0])
    with pytest.raises(InputError, match="expected shape"):
        count_operations(snn, x[:, :1])
    with torch.no_grad():
        snn.network.stem.weight.fill_(float("nan"))  # type: ignore[union-attr, operator]
    with pytest.raises(InputError, match="site 'relu'"):
        count_operations(snn, x)
