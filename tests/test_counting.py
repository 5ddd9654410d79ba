"""Counts against hand arithmetic, written beside the numbers, and against autograd as an independent oracle."""

import json
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import polarspike as ps
from polarspike.counting import count_operations
from polarspike.counting.connections import Connections, comparisons_of
from polarspike.errors import InputError, SpecError
from polarspike.spiking import SpikingNetwork


class Graph(nn.Module):
    """A model from parts and a function of (parts, x)."""

    def __init__(self, function: Any, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def spiking(model: nn.Module, example: Tensor, step: float = 1.0, **spec: Any) -> SpikingNetwork:
    """A spiking network whose sites all have this step; rectified with codes 0..3 unless said otherwise."""
    qann = ps.quantize(model.eval(), ps.QuantSpec(**{"negative": 0, "positive": 3, **spec}), example=example)
    for site in qann.sites().values():
        site.set_step(step)
    return ps.convert(qann)


def integers(*shape: int, low: int = -2, high: int = 4, seed: int = 0) -> Tensor:
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(seed)).float()


def fan_out(layer: nn.Module, x: Tensor) -> Tensor:
    """Connections of every input element, from the gradient of a layer whose weights are all one."""
    ones = [nn.Parameter(torch.ones_like(value)) for value in layer.parameters()]
    x = x.detach().clone().requires_grad_()
    out = torch.func.functional_call(layer, dict(zip(dict(layer.named_parameters()), ones, strict=True)), (x,))
    return torch.autograd.grad(out.sum(), x)[0]


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


def test_copies_stay_spikes() -> None:
    x = integers(2, 2, 3, 3)
    counts = count_operations(spiking(nn.Sequential(nn.ReLU(), nn.Upsample(scale_factor=2), nn.Conv2d(2, 5, 1)), x), x)
    row = counts.synapse("2")
    assert len(counts.synapses) == 1 and row.sources == ("0",)
    assert row.spiking and row.acs_by_event == 4 * 5 * counts.totals["events"]


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
