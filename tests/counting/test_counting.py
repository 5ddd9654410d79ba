"""Counts against hand arithmetic, written beside the numbers, and against autograd as an independent oracle."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from polarspike.counting import count_operations
from polarspike.counting.connections import comparisons_of
from tests.counting.counted import Graph, fan_out, integers, spiking

IMAGE = torch.tensor([[[[3.0, 0, 0, 0], [0, 2, 0, 0], [0, 0, 0, 0], [0, 0, -5, 0]]]])  # (1, 1, 4, 4)


def two_convolutions(second: nn.Conv2d) -> nn.Module:
    first = nn.Conv2d(1, 1, 1, bias=False)
    nn.init.ones_(first.weight)
    return nn.Sequential(first, nn.ReLU(), second)


def test_hand_computed_example() -> None:
    counts = count_operations(spiking(two_convolutions(nn.Conv2d(1, 5, 3, padding=1)), IMAGE), IMAGE)
    # Codes: 3 at the corner (0, 0), 2 at (1, 1); -5 is rectified away.
    (site,) = counts.sites
    assert site.codes == {0: 14, 2: 1, 3: 1}
    assert (site.neurons, site.events, site.spikes, site.negative_events, site.distinct) == (16, 2, 3 + 2, 0, 3)
    assert (site.silent, site.membrane_updates, site.take_backs) == (14, 16, 0)
    first, second = counts.synapses
    # 16 pixels * 1 tap * 1 channel, from the analog input.
    assert (first.spiking, first.macs, first.dense_macs, first.acs_by_event) == (False, 16, 16, 0)
    assert "input" in first.reason
    # A 3x3 window with padding 1 reads 4 positions (2, 3, 3, 2) times: (2 + 3 + 3 + 2)^2 = 100 connections * 5 channels.
    assert second.spiking and second.macs == 0
    assert second.dense_macs == 100 * 5
    # The corner feeds 2 * 2 = 4 outputs, (1, 1) feeds 3 * 3 = 9; 5 channels.
    assert second.acs_by_event == (4 + 9) * 5
    assert second.acs_by_spike == (3 * 4 + 2 * 9) * 5
    assert (second.events_in, second.spikes_in, second.largest, second.ternary) == (2, 5, 3, False)
    # 5 channels * 16 positions have a bias.
    assert counts.totals["biases"] == counts.totals["ann_biases"] == 5 * 16
    assert counts.totals["ann_macs"] == 16 + 500
    assert counts.totals["input_macs"] == counts.totals["static_input_macs"] == 16


def test_stride_skips_positions() -> None:
    counts = count_operations(spiking(two_convolutions(nn.Conv2d(1, 5, 1, stride=2)), IMAGE), IMAGE)
    # Only even positions are read: (0, 0) is, (1, 1) is not. 4 outputs * 1 tap * 5 channels exist.
    row = counts.synapse("2")
    assert (row.events_in, row.acs_by_event, row.acs_by_spike, row.dense_macs) == (2, 5, 15, 20)


def test_groups_reach_only_their_own_outputs() -> None:
    x = torch.tensor([[[1.0], [0], [0], [2]]])  # (1, 4, 1)
    counts = count_operations(spiking(nn.Sequential(nn.ReLU(), nn.Conv1d(4, 6, 1, groups=2)), x), x)
    # Each channel feeds 6 / 2 = 3 outputs. (1 + 1) events, (1 + 2) spikes; 4 channels * 3 dense.
    row = counts.synapse("1")
    assert (row.acs_by_event, row.acs_by_spike, row.dense_macs) == (2 * 3, 3 * 3, 4 * 3)


@pytest.mark.parametrize("timesteps", [1, 3])
def test_binary_input_without_zeros_costs_every_connection(timesteps: int) -> None:
    x = torch.ones(2, 3, 5, 4)
    snn = spiking(nn.Sequential(nn.ReLU(), nn.Conv2d(3, 4, 3, stride=2, padding=1)), x, positive=1)
    row = count_operations(snn, x, timesteps).synapse("1")
    assert row.acs_by_event == row.acs_by_spike == row.dense_macs > 0
    assert row.ternary
    assert row.dense_macs == timesteps * row.connections


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_edge_exact_against_autograd(data: st.DataObject) -> None:
    dimensions = data.draw(st.integers(1, 3))
    transposed = data.draw(st.booleans())
    groups = data.draw(st.sampled_from([1, 2]))
    kernel, stride, dilation = (data.draw(st.integers(1, most)) for most in (3, 3, 2))
    padding = data.draw(st.integers(0, 2))
    kind = getattr(nn, f"Conv{'Transpose' if transposed else ''}{dimensions}d")
    options: dict[str, Any] = {"stride": stride, "padding": padding, "dilation": dilation, "groups": groups}
    if transposed:
        options["output_padding"] = data.draw(st.integers(0, max(stride, dilation) - 1))
    elif data.draw(st.booleans()):
        modes = ["circular", "replicate", "reflect"]
        options["padding_mode"] = data.draw(st.sampled_from(modes))
    elif data.draw(st.booleans()):
        options.update(padding="same", stride=1)
    layer = kind(2 * groups, 3 * groups, kernel, **options)
    shape = (2, 2 * groups, *data.draw(st.tuples(*[st.integers(5, 6)] * dimensions)))
    x = integers(*shape, seed=data.draw(st.integers(0, 999)))
    counts = count_operations(spiking(nn.Sequential(nn.ReLU(), layer), x), x)
    reached, codes = fan_out(layer, x), x.clamp(0, 3)
    if layer.bias is not None:  # the gradient with respect to x does not see it
        assert counts.totals["biases"] == layer(x).numel()
    row = counts.synapse("1")
    assert row.connections == int(reached.sum())
    assert row.acs_by_event == int((reached * (codes != 0)).sum())
    assert row.acs_by_spike == int((reached * codes).sum())


def test_edge_exact_against_loops() -> None:
    x = integers(2, 2, 5, 4)
    layer = nn.Conv2d(2, 3, (3, 2), stride=(2, 1), padding=(1, 2), dilation=(1, 2))
    row = count_operations(spiking(nn.Sequential(nn.ReLU(), layer), x), x).synapse("1")
    events = connections = 0
    height, width = layer(x).shape[2:]
    for image in range(2):
        for _ in range(3):  # output channels
            for top in range(height):
                for left in range(width):
                    for channel in range(2):
                        for i in range(3):
                            for j in range(2):
                                at, to = top * 2 - 1 + i, left - 2 + 2 * j
                                if 0 <= at < 5 and 0 <= to < 4:
                                    connections += 1
                                    events += int(x[image, channel, at, to] > 0)
    assert (row.connections, row.acs_by_event) == (connections, events)


def test_functional_layers_and_linear_on_sequences() -> None:
    class Functional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.kernel = nn.Parameter(torch.ones(4, 1, 3))
            self.weight, self.bias = nn.Parameter(torch.ones(7, 6)), nn.Parameter(torch.zeros(7))

        def forward(self, x: Tensor) -> Tensor:
            x = functional.conv1d(functional.relu(x), self.kernel, padding=1, groups=2)
            return functional.linear(functional.relu(x), self.weight, bias=self.bias)

    x = integers(2, 2, 6)
    counts = count_operations(spiking(Functional(), x), x)
    convolution, linear = counts.synapses
    codes = x.clamp(0, 3)
    reach = torch.tensor([2, 3, 3, 3, 3, 2])  # a window of 3 with padding 1 on 6 positions
    assert (convolution.kind, linear.kind) == ("convolution", "linear")
    assert convolution.acs_by_spike == 2 * int((codes * reach).sum())  # 4 channels / 2 groups
    assert linear.connections == 2 * 4 * 6 * 7  # images * channels * positions * outputs
    assert linear.acs_by_event == counts.sites[1].events * 7
    assert counts.totals["biases"] == 2 * 4 * 7


def test_residual_sum_costs_the_events_of_each() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        a = net.one(x)
        return net.last(a + net.two(-a + 3))

    x = integers(2, 2, 3, 3)
    snn = spiking(Graph(forward, one=nn.ReLU(), two=nn.ReLU(), last=nn.Conv2d(2, 4, 1)), x)
    counts = count_operations(snn, x)
    a = x.clamp(0, 3)
    b = (3 - a).clamp(0, 3)
    row = counts.synapse("last")
    assert row.sources == ("one", "two")
    assert row.acs_by_event == 4 * int((a != 0).sum() + (b != 0).sum())
    assert row.acs_by_spike == 4 * int(a.sum() + b.sum())
    # Site two reads the spikes of site one without a weight: one accumulate for each.
    assert counts.synapse("two (input)").acs_by_event == int((a != 0).sum())
    # 2 * 2 * 3 * 3 elements: -a + 3 and a + two(...) in the dense network, none of graded values here.
    assert (counts.totals["ann_additions"], counts.totals["additions"]) == (2 * 36, 0)


def test_spikes_join_graded_values() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        a = net.one(x)
        return net.two(net.mix(a) + a + net.other(a))

    parts = {"one": nn.ReLU(), "two": nn.ReLU(), "mix": nn.Conv2d(2, 2, 1), "other": nn.Conv2d(2, 2, 1)}
    x = integers(1, 2, 3, 3)
    counts = count_operations(spiking(Graph(forward, **parts), x), x, 2)
    joined = next(row for row in counts.synapses if row.kind == "add")
    assert joined.acs_by_event == counts.site("one").events  # one accumulate for each event
    assert joined.dense_macs == 0 and joined.dense_adds == 2 * 18
    # 18 elements * 2 additions dense; of these one of graded values, at both steps.
    assert (counts.totals["ann_additions"], counts.totals["additions"]) == (2 * 18, 2 * 18)


def test_max_pooling_thins_events() -> None:
    x = integers(2, 2, 5, 5, low=-3)
    pool = nn.MaxPool2d(3, stride=2, padding=1)
    model = nn.Sequential(nn.LeakyReLU(0.5), pool, nn.Flatten(), nn.Linear(18, 4))
    counts = count_operations(spiking(model, x, negative=2), x)
    pooled = functional.max_pool2d(x.clamp(-2, 3), 3, 2, 1)
    row = counts.synapse("3")
    assert row.spiking and row.events_in == int((pooled != 0).sum()) < counts.sites[0].events
    assert row.acs_by_spike == 4 * int(pooled.abs().sum())
    # Windows along a dimension of 5: 2, 3, 2 elements exist, (2 + 3 + 2)^2 = 49 elements less 9 windows, 2 * 2 maps.
    assert counts.totals["comparisons"] == 4 * (49 - 9)


@pytest.mark.parametrize(
    "pool",
    [nn.MaxPool2d(2, ceil_mode=True), nn.MaxPool2d(3, 1, 1, dilation=2), nn.AdaptiveMaxPool2d((2, 3))],
)
def test_comparisons_against_windows_of_real_elements(pool: nn.Module) -> None:
    x = torch.arange(35.0).view(1, 1, 5, 7)
    out = pool(x)
    # An element is in a window if raising it alone changes the window's maximum.
    seen = sum(
        int((pool(x + 100.0 * nn.functional.one_hot(torch.tensor(i), 35).view_as(x)) != out).sum()) for i in range(34)
    )
    # The maximum itself, 34, stays put when raised only where it is not in the window; raise it too.
    seen += int((pool(x + 100.0 * nn.functional.one_hot(torch.tensor(34), 35).view_as(x)) != out).sum())
    assert comparisons_of(pool, x.shape, out.shape) == seen - out.numel()


def test_max_pooling_of_sums_is_graded() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        return net.last(net.pool(net.one(x) + net.two(-x)).flatten(1))

    parts = {"one": nn.ReLU(), "two": nn.ReLU(), "pool": nn.MaxPool2d(2), "last": nn.Linear(8, 3)}
    x = integers(2, 2, 4, 4)
    counts = count_operations(spiking(Graph(forward, **parts), x), x)
    # The codes of one and two enter the maximum, whose graded answer enters the site in front of the last layer.
    assert counts.synapse("pool (input)").acs_by_event == counts.site("one").events + counts.site("two").events
    assert "last_input (input)" not in [row.name for row in counts.synapses]
    row = counts.synapse("last")
    assert row.spiking and row.sources == ("last_input",) and row.acs_by_event == 3 * counts.site("last_input").events


def test_max_pooling_behind_a_falling_batch_norm_is_graded() -> None:
    def entering(weight: float) -> list[str]:
        norm = nn.BatchNorm1d(2)
        nn.init.constant_(norm.weight, weight)
        model = nn.Sequential(nn.ReLU(), norm, nn.MaxPool1d(2), nn.Conv1d(2, 3, 1))
        return [row.name for row in count_operations(spiking(model, x, negative=1), x).synapses]

    x = integers(2, 2, 6)
    # Spikes pass a rising norm and its maximum, and enter the site behind; a falling one makes the maximum graded.
    assert entering(0.5)[0] == "3_input (input)" and entering(-0.5)[0] == "2 (input)"


def test_average_of_spikes_is_graded() -> None:
    x = integers(2, 3, 4, 4)
    model = nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 5))
    counts = count_operations(spiking(model, x), x, 2)
    pool, linear = counts.synapses
    # Each event falls into one window; the dense network adds 2 * 3 * 16 elements; there is no weight.
    assert pool.acs_by_event == counts.totals["events"] and pool.connections == 96 and not pool.weighted
    assert pool.dense_macs == 0 and pool.dense_adds == 2 * 96
    # What comes out is graded: 2 images * 3 * 5 multiply-accumulates, at both steps.
    assert not linear.spiking and linear.macs == 2 * (2 * 3 * 5) and "average" in linear.reason
    assert not linear.static and counts.totals["input_macs"] == 0


@pytest.mark.parametrize(
    ("resample", "kind"),
    [
        (nn.AvgPool2d(3, stride=1, padding=1), "average"),
        (nn.AvgPool2d(2, ceil_mode=True, count_include_pad=False), "average"),
        (nn.AdaptiveAvgPool2d((3, 2)), "average"),
        (nn.Upsample(scale_factor=2, mode="bilinear"), "interpolation"),
    ],
)
def test_resampling_against_its_jacobian(resample: nn.Module, kind: str) -> None:
    x = integers(1, 1, 5, 4)
    row = count_operations(spiking(nn.Sequential(nn.ReLU(), resample), x), x).synapse("1")
    jacobian = torch.autograd.functional.jacobian(resample, x)  # (output shape, input shape)
    reached = (jacobian.flatten(0, 3) != 0).sum(0)
    assert row.kind == kind
    assert row.connections == int(reached.sum())
    assert row.acs_by_event == int((reached * (x > 0)).sum())


@pytest.mark.parametrize(
    "resample",
    [
        nn.AvgPool1d(3, stride=2, padding=1),
        nn.AdaptiveAvgPool1d(3),
        nn.Upsample(scale_factor=2, mode="linear"),
    ],
)
def test_resampling_of_one_dimension_against_its_jacobian(resample: nn.Module) -> None:
    x = integers(2, 3, 7)
    row = count_operations(spiking(nn.Sequential(nn.ReLU(), resample), x), x).synapse("1")
    jacobian = torch.autograd.functional.jacobian(resample, x)  # (output shape, input shape)
    assert row.connections == int((jacobian != 0).sum())


@pytest.mark.parametrize("dimensions", [1, 2])
def test_copies_stay_spikes(dimensions: int) -> None:
    x, conv = integers(2, 2, *(3,) * dimensions), (nn.Conv1d, nn.Conv2d)[dimensions - 1](2, 5, 1)
    counts = count_operations(spiking(nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2), conv), x), x)
    row = counts.synapse("2")
    assert len(counts.synapses) == 1 and row.sources == ("0",)
    assert row.spiking and row.acs_by_event == 2**dimensions * 5 * counts.totals["events"]


def test_an_average_over_windows_is_fired_behind_it() -> None:
    x = integers(2, 2, 4, 4)
    counts = count_operations(spiking(nn.Sequential(nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(2, 5, 1)), x), x)
    row = counts.synapse("2")
    assert row.spiking and row.sources == ("2_input",) and row.macs == 0
    assert row.acs_by_event == 5 * counts.totals["events"]


def test_functional_mean_costs_one_accumulate_per_event() -> None:
    x = integers(2, 2, 3, 3)
    counts = count_operations(spiking(Graph(lambda net, x: net.act(x).mean((2, 3)), act=nn.ReLU()), x), x)
    assert counts.synapses[0].acs_by_event == counts.totals["events"]


def test_concatenation() -> None:
    def spikes(net: Any, x: Tensor) -> Tensor:
        return net.last(torch.cat([net.one(x), net.two(-x)], dim=1))

    def mixed(net: Any, x: Tensor) -> Tensor:
        return net.last(torch.cat([net.one(x), net.two(-x), x], dim=1))

    x = integers(2, 2, 3, 3)
    parts: dict[str, nn.Module] = {"one": nn.ReLU(), "two": nn.ReLU()}
    counts = count_operations(spiking(Graph(spikes, **parts, last=nn.Conv2d(4, 5, 1)), x), x)
    assert counts.synapse("last").acs_by_event == 5 * counts.totals["events"]
    assert counts.synapse("last").sources == ("one", "two")
    graded = count_operations(spiking(Graph(mixed, **parts, last=nn.Conv2d(6, 5, 1)), x), x).synapse("last")
    assert not graded.spiking and graded.macs == 2 * 9 * 6 * 5 and "concatenation" in graded.reason


def test_concatenation_of_sums_keeps_all_streams() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        a, b = net.one(x), net.two(-x)
        return net.last(torch.cat([a + b, b], dim=1))

    x = integers(2, 2, 3, 3)
    model = Graph(forward, one=nn.ReLU(), two=nn.ReLU(), last=nn.Conv2d(4, 5, 1))
    counts = count_operations(spiking(model, x), x)
    expected = counts.site("one").events + 2 * counts.site("two").events
    assert counts.synapse("last").acs_by_event == 5 * expected


def test_moving_elements_keeps_spikes() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        first, second = net.act(x).permute(0, 2, 1).chunk(2, dim=2)
        x = torch.cat([second, first], dim=2).transpose(1, 2)
        x = functional.pad(x, (1, 2), value=4.0).reshape(x.shape[0], -1)
        return net.last(net.drop(x))

    x = integers(2, 4, 3)
    model = Graph(forward, act=nn.ReLU(), last=nn.Linear(24, 2), drop=nn.Dropout())
    counts = count_operations(spiking(model, x), x)
    row = counts.synapse("last")
    assert row.spiking and row.events_in == counts.totals["events"]
    assert row.connections == 2 * 24 * 2


def test_reflected_events_reach_more() -> None:
    x = integers(1, 1, 4, 4)
    model = nn.Sequential(nn.ReLU(), nn.ReflectionPad2d(1), nn.Conv2d(1, 1, 1))
    row = count_operations(spiking(model, x), x).synapse("2")
    assert row.events_in == int((functional.pad(x.clamp(0, 3), (1, 1, 1, 1), "reflect") > 0).sum())
