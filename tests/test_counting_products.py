"""Counts of products of signals and of operators that are not affine, against hand arithmetic and plain loops."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import polarspike as ps
from polarspike.counting import OperationCounts, count_operations
from polarspike.errors import OperatorError, SpecError
from polarspike.spiking import SpikingNetwork
from tests.counted import integers


class Net(nn.Module):
    """A model of parts and a function of (parts, a, b)."""

    def __init__(self, function: Any, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            self.add_module(name, part)
        self.function = function

    def forward(self, a: Tensor, b: Tensor) -> Any:
        return self.function(self, a, b)


def spiking(model: nn.Module, example: Any, step: float = 1.0, **convert: Any) -> SpikingNetwork:
    """All sites have this step and the levels (2, 3)."""
    qann = ps.quantize(model.eval(), ps.QuantSpec(negative=2, positive=3), example=example)
    for site in qann.sites().values():
        site.set_step(step)
    return ps.convert(qann, ps.ConvertSpec(**convert))


def element(counts: OperationCounts, name: str, kind: str) -> tuple[int, int]:
    """(float network, spiking network) of one elementwise row; zeros where there is none."""
    found = [row for row in counts.elementwise if (row.name, row.kind) == (name, kind)]
    return (found[0].dense, found[0].spiking) if found else (0, 0)


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


class Squeeze(nn.Module):
    """Squeeze and excitation behind a site, in a channel-wise convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.pool, self.fc, self.gate = (
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(2, 2, 1),
            nn.Hardsigmoid(),
        )
        self.depthwise = nn.Conv2d(2, 2, 3, groups=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        return self.depthwise(x * self.gate(self.fc(self.pool(x))))


def test_squeeze_and_excitation() -> None:
    x = integers(2, 2, 3, 3)
    snn = spiking(Squeeze(), x)
    counts = count_operations(snn, x)
    events = int((x > 0).sum())
    # The spikes enter the average, and the product, one accumulate each; what leaves the average is graded.
    assert counts.synapse("pool").acs_by_event == counts.synapse("mul (input)").acs_by_event == events
    assert counts.synapse("fc").macs == 2 * 2 * 2
    assert element(counts, "mul", "product") == (36, 36)  # 2 * 2 * 9 elements
    assert element(counts, "gate", "function") == (4, 4)
    depthwise = counts.synapse("depthwise")
    site = depthwise.sources[0]
    assert depthwise.spiking and depthwise.acs_by_event == counts.site(site).events  # a 3x3 window over 3x3: one output
    assert "product of signals" in _reason_of(snn, x, "mul")
    later = count_operations(snn, x, 3)
    assert element(later, "mul", "product") == (36, 108)
    assert element(later, "mul", "mean") == (0, 2 * (36 + 4 + 36))
    assert element(later, "gate", "mean") == (0, 2 * (4 + 4))


def _reason_of(snn: SpikingNetwork, x: Tensor, name: str) -> str:
    from polarspike.counting.propagation import propagate
    from polarspike.counting.recording import Recording

    _, state = snn.step(x)
    recording = Recording(snn.network, [x])
    operands = propagate(recording, {}, state.neurons)
    return str(next(operand.reason for node, operand in operands.items() if node.name == name))


class Beside(nn.Module):
    """A site whose spikes go to a layer, and through an operator that is not affine to another one."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.act, self.function, self.one, self.two = nn.ReLU(), function, nn.Conv1d(2, 5, 1), nn.Conv1d(2, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        return self.one(x) + self.two(self.function(x))


@pytest.mark.parametrize(
    "function", [nn.LayerNorm([2, 3]), nn.GroupNorm(1, 2), nn.GELU(), nn.Softmax(-1), nn.Sigmoid()]
)
@pytest.mark.parametrize("timesteps", [1, 3])
def test_what_is_not_affine_multiplies_once_for_each_element(function: nn.Module, timesteps: int) -> None:
    x = integers(4, 2, 3)
    counts = count_operations(spiking(Beside(function), x, step=0.25), x, timesteps)
    # 24 elements; at every later step 24 means and 24 answers move.
    assert element(counts, "function", "function") == (24, 24 * timesteps)
    assert element(counts, "function", "mean") == (0, 48 * (timesteps - 1))
    # The spikes enter it at one accumulate each.
    assert counts.synapse("function (input)").acs_by_event == counts.site("act").events > 0
    assert counts.synapse("one").sources == ("act",) and counts.synapse("two").sources == ("two_input",)
    assert element(counts, "add", "add") == (4 * 5 * 3, 4 * 5 * 3 * timesteps)


def test_maximum_over_time_adds() -> None:
    x = integers(2, 2, 4)
    counts = count_operations(spiking(nn.Sequential(nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(2, 1, 1)), x), x, 3)
    # 16 sums and 8 answers at 2 later steps; 8 comparisons at all 3.
    assert element(counts, "1", "add") == (0, 2 * 24) and element(counts, "1", "comparison") == (8, 24)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(10, 4), nn.Embedding(5, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.table(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.head(self.norm(x))
        return x * mask[..., None], x.mean(1)


def test_embedding_of_integers_and_two_outputs() -> None:
    torch.manual_seed(0)
    batch = {"ids": torch.randint(0, 10, (2, 5)), "mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])}
    counts = count_operations(spiking(Words(), batch, step=0.5), batch, 2)
    assert counts.images == 2
    (site,) = counts.sites
    assert site.neurons == 5 * 4 and site.events > 0
    assert counts.synapse("head").acs_by_event == 3 * site.events
    # Nothing is multiplied for a table: the places are a constant, added to 40 elements at both steps.
    assert counts.totals["macs"] == 0 and element(counts, "add", "add") == (40, 80)
    assert element(counts, "norm", "function") == (40, 80)
    assert counts.totals["ann_scalings"] == 30  # the mask, on 2 * 5 * 3 elements


def test_windows_in_the_batch_dimension_count_as_neurons_of_an_image() -> None:
    x = integers(2, 4, 6)
    model = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(0, 1), nn.ReLU(), nn.Linear(6, 1))
    counts = count_operations(spiking(model, x), x)
    assert counts.images == 2 and counts.sites[0].neurons == 24 and counts.totals["membrane_updates"] == 48
    assert counts.synapses[0].dense_macs == 48


def test_masks_keep_spikes() -> None:
    condition = torch.tensor([True, False, True])
    for function in (
        lambda a: torch.where(condition, a, torch.zeros(3)),
        lambda a: a.masked_fill(~condition, 7.0),
    ):
        model = Net(lambda net, a, b, f=function: net.last(f(net.one(a))) + b, one=nn.ReLU(), last=nn.Linear(3, 2))
        a, b = integers(4, 3), torch.ones(4, 2)
        row = count_operations(spiking(model, (a, b)), {"a": a, "b": b}).synapse("last")
        assert row.spiking and row.acs_by_event == 2 * int((a.clamp(0, 3) * condition != 0).sum())


def test_shuffled_channels_keep_spikes() -> None:
    def forward(net: Any, a: Tensor, b: Tensor) -> Tensor:
        a = net.one(a)
        groups = a.view(a.shape[0], 2, 2, 3).transpose(1, 2).contiguous()
        return net.last(groups.view_as(a)) + b

    model = Net(forward, one=nn.ReLU(), last=nn.Conv1d(4, 2, 1, groups=2))
    batch = {"a": integers(2, 4, 3), "b": torch.ones(2, 2, 3)}
    counts = count_operations(spiking(model, batch), batch, 2)
    assert counts.synapse("last").acs_by_event == counts.totals["events"] > 0


def test_running_sums_reach_what_comes_later() -> None:
    x = integers(2, 4)
    model = Net(lambda net, a, b: torch.cumsum(net.one(a), 1) + b, one=nn.ReLU())
    batch = {"a": x, "b": torch.ones(2, 4)}
    row = count_operations(spiking(model, batch), batch).synapse("cumsum")
    # Place i reaches 4 - i sums.
    assert row.acs_by_event == int(((x > 0) * torch.tensor([4, 3, 2, 1])).sum()) and row.connections == 2 * 10


def test_sums_with_a_factor() -> None:
    scale = torch.tensor([0.5, 2.0, 1.0])
    model = Net(lambda net, a, b: net.last(torch.addcmul(net.one(a), scale, net.two(b))), one=nn.ReLU(), two=nn.ReLU(),
                last=nn.Linear(3, 2))  # fmt: skip
    a, b = integers(4, 3), integers(4, 3, seed=1)
    counts = count_operations(spiking(model, (a, b)), {"a": a, "b": b})
    assert counts.synapse("last").acs_by_event == 2 * counts.totals["events"]
    assert element(counts, "addcmul", "scale") == (12, 0) and element(counts, "addcmul", "add") == (12, 0)


def test_enlarged_and_joined_spikes_of_a_decoder() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.up = nn.ReLU(), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear")
            self.last = nn.Conv2d(2, 1, 1)

        def forward(self, small: Tensor, large: Tensor) -> dict[str, Tensor]:
            up = self.up(self.one(small))
            return {"mask": self.last(torch.cat([self.two(large), self.two(large)], 1)), "up": up}

    batch = {"small": integers(1, 1, 2, 2), "large": integers(1, 1, 4, 4, seed=2)}
    counts = count_operations(spiking(Decoder(), batch), batch)
    up = counts.synapse("up")
    assert up.kind == "interpolation" and up.acs_by_event == 9 * int((batch["small"] > 0).sum())
    assert counts.synapse("last").acs_by_event == 2 * int((batch["large"] > 0).sum())


def test_capped_neurons_are_refused() -> None:
    x = integers(2, 3)
    snn = spiking(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), x, max_spikes_per_step=1)
    with pytest.raises(SpecError, match="max_spikes_per_step=1"):
        count_operations(snn, x)


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
