"""Counts of products of two signals and of attention, against hand arithmetic and plain loops."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import polarspike as ps
from polarspike.counting import count_operations
from polarspike.errors import OperatorError
from polarspike.spiking import SpikingNetwork
from tests.counting.counted import Graph, integers, stepped
from tests.counting.counted_signed import Net, element, spiking


def codes_of(snn: SpikingNetwork, *inputs: Any) -> dict[str, np.ndarray[Any, Any]]:
    """The codes of the first timestep by site."""
    codes: dict[str, np.ndarray[Any, Any]] = {}
    with snn.observe(lambda site, t, spikes: codes.update({site: spikes.numpy().copy()})), torch.no_grad():
        snn(*inputs)
    return codes


def two_relus(function: Any) -> Net:
    return Net(lambda net, a, b: function(net.one(a), net.two(b)), one=nn.ReLU(), two=nn.ReLU())


def test_two_by_two() -> None:
    left, right = torch.tensor([[[1.0, 0.0], [2.0, 3.0]]]), torch.tensor([[[0.0, 1.0], [1.0, 2.0]]])
    snn = spiking(two_relus(torch.matmul), (left, right))
    counts = count_operations(snn, {"a": left, "b": right})
    (row,) = counts.synapses
    # Column 0 of A has 2 events, row 0 of B one value; column 1 has one event, row 1 two values: 2 * 1 + 1 * 2.
    assert (row.kind, row.spiking, row.acs_by_event) == ("matmul", True, 4)
    # Unit spikes of A times values of B that are not zero: (1 + 2) * 1 + 3 * 2.
    assert row.acs_by_spike == 9
    assert (row.dense_macs, row.macs, row.outputs, row.largest) == (2 * 2 * 2, 0, 4, 3)
    # 3 events of 6 units on the left, 3 of 4 on the right.
    assert (row.events_in, row.spikes_in, row.sources) == (6, 10, ("one", "two"))
    assert not row.ternary and counts.accumulate_share == 1.0
    assert counts.totals["ann_macs"] == counts.totals["dense_macs"] == 8


def test_over_time_means_are_multiplied() -> None:
    left, right = integers(2, 3, 4), integers(2, 4, 5, seed=1)
    counts = count_operations(spiking(two_relus(torch.matmul), (left, right)), {"a": left, "b": right}, 3)
    (row,) = counts.synapses
    dense = 2 * 3 * 4 * 5
    assert (row.spiking, row.dense_macs, row.macs, row.acs_by_event) == (False, 3 * dense, 3 * dense, 0)
    assert "means" in row.reason and not row.static and row.sources == ()
    # At 2 later steps: 2 * 3 * 4 and 2 * 4 * 5 means, 2 * 3 * 5 answers.
    assert element(counts, row.name, "mean") == (0, 2 * (24 + 40 + 30))
    assert counts.totals["mean_updates"] == 2 * 94
    assert counts.accumulate_share == 0.0


@pytest.mark.parametrize("restart", [{"reading": "frames"}, {"window": 1}])
def test_steps_from_rest_repeat_the_first(restart: dict[str, Any]) -> None:
    left, right = integers(2, 3, 4), integers(2, 4, 5, seed=1)
    snn = spiking(two_relus(torch.matmul), (left, right), **restart)
    once, thrice = (count_operations(snn, {"a": left, "b": right}, timesteps) for timesteps in (1, 3))
    assert thrice.synapses[0].spiking
    for name in ("events", "acs_by_event", "acs_by_spike", "dense_macs", "mean_updates"):
        assert thrice.totals[name] == 3 * once.totals[name]


def test_a_window_starts_again() -> None:
    left, right = integers(2, 3, 4), integers(2, 4, 5, seed=1)
    snn = spiking(two_relus(torch.matmul), (left, right), step=0.7, window=2)
    once, twice = (count_operations(snn, {"a": left, "b": right}, timesteps) for timesteps in (2, 4))
    assert twice.totals["spikes"] == 2 * once.totals["spikes"]
    assert twice.totals["mean_updates"] == 2 * once.totals["mean_updates"] == 2 * 94


def test_whole_windows_cost_what_they_cost_by_themselves() -> None:
    def forward(net: Any, x: Tensor) -> Tensor:
        x = nn.functional.max_pool2d(net.one(x).relu(), 3, 2, 1, ceil_mode=True)
        x = nn.functional.avg_pool2d(net.two(x).relu(), 2, 1).flatten(2).mT
        return net.last((net.query(x) @ net.key(x).mT).softmax(-1) @ x)

    torch.manual_seed(0)
    parts = {
        "one": nn.Conv2d(2, 4, 3, padding=2, dilation=2, groups=2),
        "two": nn.ConvTranspose2d(4, 6, 2, stride=2, padding=1, output_padding=1),
        "query": nn.Linear(6, 5),
        "key": nn.Linear(6, 5),
        "last": nn.Linear(6, 3),
    }
    frames = torch.randn(2, 4, 2, 5, 7)
    qann = stepped(Graph(forward, **parts), frames[:, 0], 0.3, negative=2, positive=4)
    streamed = count_operations(ps.convert(qann, ps.ConvertSpec(window=2)), frames, time_dim=1).totals
    first, second = (count_operations(ps.convert(qann), part, time_dim=1).totals for part in frames.split(2, 1))
    once = {"neurons", "silent"}  # of a neuron in all steps
    for name in streamed.keys() - once:
        share = 1 if name.startswith("ann_") else 2  # the float network runs once, for the mean frame
        assert streamed[name] * 2 == (first[name] + second[name]) * share, name


def meeting(left: Any, right: Any) -> tuple[int, int]:
    """Additions of a batch of matrix products, by event and by unit spike of the left one, in loops."""
    events = units = 0
    left, right = left.reshape(-1, *left.shape[-2:]), right.reshape(-1, *right.shape[-2:])
    for a, b in zip(left, right, strict=True):
        for i in range(a.shape[0]):
            for j in range(a.shape[1]):
                for column in range(b.shape[1]):
                    if a[i, j] != 0 and b[j, column] != 0:
                        events += 1
                        units += int(abs(a[i, j]))
    return events, units


def test_einsum_and_its_relatives_count_like_matmul() -> None:
    left, right = integers(2, 3, 4), integers(2, 4, 5, seed=1)
    expected = meeting(left.clamp(0, 3).numpy(), right.clamp(0, 3).numpy())
    for function in (
        torch.bmm,
        lambda a, b: a.matmul(b),
        lambda a, b: torch.einsum("bij,bjk->bik", a, b),
        lambda a, b: torch.einsum("bij,bjk->bki", [a, b]),
        lambda a, b: torch.baddbmm(torch.ones(1, 3, 5), a, b),
    ):
        snn = spiking(two_relus(function), (left, right))
        counts = count_operations(snn, {"a": left, "b": right})
        (row,) = counts.synapses
        assert (row.acs_by_event, row.acs_by_spike) == expected
        assert row.connections == 2 * 3 * 4 * 5
    assert counts.totals["biases"] == 2 * 3 * 5  # what baddbmm adds


def test_a_layer_whose_weight_is_a_signal() -> None:
    x, weight = integers(1, 2, 4, 4), integers(3, 2, 3, 3, seed=1)
    snn = spiking(two_relus(lambda a, w: functional.conv2d(a, w, padding=1)), (x, weight))
    row = count_operations(snn, {"a": x, "b": weight}).synapses[0]
    present, taps = (functional.pad(x, (1, 1, 1, 1)) > 0).numpy()[0], (weight > 0).numpy()
    places = [(o, i, j) for o in range(3) for i in range(4) for j in range(4)]
    assert row.acs_by_event == sum(int((present[:, i : i + 3, j : j + 3] & taps[o]).sum()) for o, i, j in places)
    assert row.connections == 100 * 2 * 3  # (2 + 3 + 3 + 2)^2 taps, channels, outputs
    linear = spiking(two_relus(lambda a, w: functional.linear(a, w)), (integers(4, 6), integers(5, 6, seed=2)))
    counts = count_operations(linear, {"a": integers(4, 6), "b": integers(5, 6, seed=2)})
    events = meeting(integers(4, 6).clamp(0, 3)[None].numpy(), integers(5, 6, seed=2).clamp(0, 3).T[None].numpy())
    assert (counts.synapses[0].acs_by_event, counts.synapses[0].acs_by_spike) == events


def test_einsum_of_three_is_refused_by_name() -> None:
    a, b = integers(2, 3, 4), integers(2, 4, 5, seed=1)
    model = two_relus(lambda a, b: torch.einsum("bij,bjk,kl->bil", a, b, torch.ones(5, 2)))
    snn = spiking(model, (a, b))
    with pytest.raises(OperatorError, match=r"torch\.einsum of 3 operands"):
        count_operations(snn, {"a": a, "b": b})


def test_constants_beside_spikes_meet_the_other_factor() -> None:
    left, right = integers(2, 3, 4), integers(2, 4, 5, seed=1)
    a, b = left.clamp(0, 3).numpy(), right.clamp(0, 3).numpy()
    for function, expected in (
        # Constants on the right: every event on the left meets all 5 columns.
        (lambda a, b: a @ (b + 1), 5 * int((a != 0).sum())),
        # Constants on the left wait in all 3 rows for the events on the right.
        (lambda a, b: (a + 1) @ b, meeting(a, b)[0] + 3 * int((b != 0).sum())),
    ):
        row = count_operations(spiking(two_relus(function), (left, right)), {"a": left, "b": right}).synapses[0]
        assert row.spiking and row.acs_by_event == expected


def test_a_product_with_a_constant_is_a_layer() -> None:
    class Weighted(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.act, self.weight = nn.ReLU(), nn.Parameter(torch.eye(4)[:, :3].clone())

        def forward(self, x: Tensor) -> Tensor:
            return torch.addmm(torch.ones(3), self.act(x), self.weight)

    x = integers(5, 4)
    counts = count_operations(spiking(Weighted(), x), x, 2)
    (row,) = counts.synapses
    # Zeros of a constant count, as those of a layer's weights do. The codes repeat, so the second step is silent.
    assert row.spiking and row.acs_by_event == 3 * counts.totals["events"]
    assert (row.connections, counts.totals["ann_biases"], counts.totals["biases"]) == (5 * 4 * 3, 15, 30)
    assert counts.totals["mean_updates"] == 0


class Attention(nn.Module):
    """Layer norm, one head of masked attention, a residual sum."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.norm = nn.LayerNorm(4)
        self.q, self.k, self.v, self.out = (nn.Linear(4, 4) for _ in range(4))
        for parameter in self.parameters():
            if parameter.dim() == 2:
                parameter.data = torch.randn(parameter.shape, generator=generator)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        scores = self.q(y) @ self.k(y).transpose(1, 2) * 0.5
        mask = torch.full((3, 3), -math.inf).triu(1)
        return x + self.out(functional.softmax(scores + mask, dim=-1) @ self.v(y))


def attention() -> tuple[SpikingNetwork, Tensor, ps.Plan]:
    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(4))
    plan = ps.inspect(Attention(), ps.QuantSpec(negative=2, positive=3), x)
    return spiking(Attention(), x, step=0.3), x, plan


def test_attention_against_loops() -> None:
    snn, x, plan = attention()
    counts = count_operations(snn, x)
    codes = codes_of(snn, x)
    norm, out = next(iter(codes)), list(codes)[-1]
    q, k, v, p = (codes[name] for name in ("query", "key", "value", "probabilities"))
    assert all((array != 0).any() for array in codes.values())
    scores, mixed = (row for row in counts.synapses if row.kind == "matmul")
    if k.shape[1] == 3:  # the site stands in front of the transposition
        k = k.transpose(0, 2, 1)
    assert (scores.acs_by_event, scores.acs_by_spike) == meeting(q, k)
    assert (mixed.acs_by_event, mixed.acs_by_spike) == meeting(p, v)
    assert scores.connections == mixed.connections == 2 * 3 * 3 * 4
    assert scores.sources == ("query", "key") and mixed.sources == ("probabilities", "value")
    for name, source in (("q", norm), ("k", norm), ("v", norm), ("out", out)):
        row = counts.synapse(name)
        assert row.acs_by_event == 4 * int((codes[source] != 0).sum())
        assert row.acs_by_spike == 4 * int(np.abs(codes[source]).sum())
        assert element(counts, name, "bias") == (24, 24)
    # 24 elements of the norm, 18 of the softmax, 18 of the scale and of the mask, 24 of the residual sum.
    totals = counts.totals
    assert (totals["functions"], totals["ann_functions"], totals["scalings"]) == (24 + 18, 24 + 18, 18)
    assert (totals["additions"], totals["macs"], totals["products"]) == (18 + 24, 0, 0)
    # 4 layers of 24 * 4, 2 products of 72, against the 42 elements that are not affine.
    assert counts.accumulate_share == pytest.approx(528 / (528 + 42)) == pytest.approx(plan.accumulate_share(1))


def test_attention_over_time() -> None:
    snn, x, plan = attention()
    counts = count_operations(snn, x, 3)
    totals = counts.totals
    assert totals["macs"] == 3 * 2 * 72 and totals["input_macs"] == 0
    assert totals["functions"] == 3 * 42
    # Norm 24 + 24, softmax 18 + 18; scores 24 + 24 + 18, mixed 18 + 24 + 24; at 2 later steps.
    assert totals["mean_updates"] == 2 * (48 + 36 + 66 + 66)
    assert counts.accumulate_share == pytest.approx(384 / 570) == pytest.approx(plan.accumulate_share(3))
    reasons = {row.reason for row in counts.synapses if not row.spiking}
    assert reasons == {"a product of two signals: at T > 1 of their means"}


def test_a_vision_transformer_prints_within_120_columns() -> None:
    models = pytest.importorskip("torchvision.models")
    torch.manual_seed(0)
    model = models.VisionTransformer(
        image_size=16, patch_size=8, num_layers=2, num_heads=2, hidden_dim=8, mlp_dim=16, num_classes=5
    )
    x = torch.randn(2, 3, 16, 16)
    plan = ps.inspect(model, ps.QuantSpec(negative=2, positive=3), x)
    snn = spiking(model, x, step=0.3)
    for timesteps in (1, 2):
        counts = count_operations(snn, x, timesteps)
        assert counts.accumulate_share == pytest.approx(plan.accumulate_share(timesteps))
        text = str(counts)
        assert max(map(len, text.splitlines())) <= 120
        assert f"accumulate-only: {counts.accumulate_share:.1%}" in text
        assert len(json.dumps(counts.to_dict())) > 1000
        energy = ps.estimate_energy(counts)
        assert max(map(len, str(energy).splitlines())) <= 120
        totals = counts.totals
        multiplied = sum(totals[name] for name in ("scalings", "products", "functions", "mean_updates"))
        added = totals["comparisons"] + totals["additions"] - sum(row.adds for row in counts.synapses)
        assert energy.row("a").elementwise_pj == pytest.approx(multiplied * 0.3 + added * 0.1)
