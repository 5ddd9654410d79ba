"""Where sites go: the table of QuantSpec row by row, signs, names, and one step per channel."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarspike as ps
from polarspike.errors import SpecError
from polarspike.plan import Plan
from tests.networks import CURVED, network, signal

X = torch.randn(2, 2, 8, 8, generator=torch.Generator().manual_seed(3))
SPEC = ps.QuantSpec(2, 6, gain=0.5)
ALL = ps.QuantSpec(2, 6, gain=0.5, signed="all")


class Net(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two, self.three = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1)
        self.down, self.wide = nn.Conv2d(4, 4, 3, 2, 1), nn.Conv2d(8, 4, 1)
        self.norm, self.layer, self.group = nn.BatchNorm2d(4), nn.LayerNorm(8), nn.GroupNorm(2, 4)
        self.shift = nn.Parameter(torch.full((4, 1, 1), -1.0))
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, self.one(x))


def plan(body: Callable[[Any, Tensor], Any], spec: ps.QuantSpec = SPEC) -> Plan:
    return ps.inspect(Net(body).eval(), spec, X)


def only(body: Callable[[Any, Tensor], Any], spec: ps.QuantSpec = SPEC) -> Any:
    (site,) = plan(body, spec).sites
    return site


# --- the table -----------------------------------------------------------------------------------------------------------

ROWS: dict[str, tuple[Callable[[Any, Tensor], Any], tuple[Any, ...], tuple[Any, ...]]] = {
    "ReLU": (lambda n, x: n.two(F.relu(x)), (0, 6, 1.0, None), (2, 6, 0.5, None)),
    "ReLU6": (lambda n, x: n.two(F.relu6(x)), (0, 6, 1.0, 6.0), (2, 6, 0.5, 6.0)),
    "LeakyReLU": (lambda n, x: n.two(F.leaky_relu(x, 0.2)), (2, 6, 0.2, None), (2, 6, 0.2, None)),
    "GELU": (lambda n, x: n.two(F.gelu(x)), (2, 6, 1.0, None), (2, 6, 1.0, None)),
    "SiLU": (lambda n, x: n.two(F.silu(x)), (2, 6, 1.0, None), (2, 6, 1.0, None)),
    "Hardswish": (lambda n, x: n.two(F.hardswish(x)), (2, 6, 1.0, None), (2, 6, 1.0, None)),
    "layer norm": (lambda n, x: n.two(n.layer(x)), (2, 6, 1.0, None), (2, 6, 1.0, None)),
    "group norm": (lambda n, x: n.two(n.group(x)), (2, 6, 1.0, None), (2, 6, 1.0, None)),
    "sigmoid": (lambda n, x: n.two(torch.sigmoid(x)), (0, 6, 1.0, None), (0, 6, 1.0, None)),
    "softmax": (lambda n, x: n.two(torch.softmax(x, 1)), (0, 6, 1.0, None), (0, 6, 1.0, None)),
    "square": (lambda n, x: n.two(x**2), (0, 6, 1.0, None), (0, 6, 1.0, None)),
}


@pytest.mark.parametrize("row", ROWS)
def test_the_table_of_the_spec(row: str) -> None:
    body, by_nature, with_all = ROWS[row]
    for spec, expected in ((SPEC, by_nature), (ALL, with_all)):
        site = only(body, spec).spec
        assert (site.negative, site.positive, site.gain, site.ceiling) == expected


def test_a_bottleneck_and_a_residual_sum_are_signed() -> None:
    sites = plan(lambda n, x: n.three(x + n.two(x))).sites
    assert [(site.name, site.spec.levels, site.spec.gain) for site in sites] == [
        ("two_input", (2, 6), 1.0), ("three_input", (2, 6), 1.0)]  # fmt: skip
    assert "bottleneck" in sites[0].reason and "residual sum" in sites[1].reason


def test_attention_gets_four_roles() -> None:
    sites = {site.name: site for site in ps.inspect(network("attention"), SPEC, signal("attention", 2)).sites}
    for role in ("query", "key", "value"):
        assert sites[f"mha.{role}"].spec.levels == (2, 6) and f"{role} of attention" in sites[f"mha.{role}"].reason
    assert sites["mha.probabilities"].spec.levels == (0, 6)
    assert {"mha.out_proj_input", "fc1_input", "fc2_input", "head_input"} <= set(sites)
    assert "after norm2" in sites["fc1_input"].replaces or "after LayerNorm" in sites["fc1_input"].replaces
    assert len([name for name in sites if "_proj_input" in name]) == 2  # one site for q, k and v, which read one signal


def test_two_signals_without_attention_are_left_and_right() -> None:
    names = [site.name for site in plan(lambda n, x: torch.matmul(torch.tanh(x), n.two(x).transpose(2, 3))).sites]
    assert names == ["two_input", "matmul_left_input", "matmul_right_input"]


# --- what carries spikes, and what does not ------------------------------------------------------------------------------

CARRIED: dict[str, Callable[[Any, Tensor], Any]] = {
    "pooling": lambda n, x: n.two(F.max_pool2d(F.relu(x), 3, 2, 1)),
    "norm": lambda n, x: n.two(n.norm(F.relu(x))),
    "reshape": lambda n, x: n.two(F.relu(x).flip(2).flatten(2).unflatten(2, (8, 8))),
    "factor": lambda n, x: n.two(F.relu(x) * 0.5 - n.shift),
    "sum": lambda n, x: n.two(F.relu(x) + F.pad(F.relu(x), (1, 1))[..., 1:-1]),
    "upsampling": lambda n, x: n.two(F.interpolate(F.relu(x), scale_factor=2)),
}


@pytest.mark.parametrize("between", [lambda x: F.avg_pool2d(x, 2), lambda x: F.interpolate(x, size=5, mode="bilinear")])
def test_the_site_stands_behind_an_average_over_windows(between: Callable[[Tensor], Tensor]) -> None:
    found = plan(lambda n, x: n.two(between(F.relu(x))))
    assert [site.name for site in found.sites] == ["two_input"]
    assert found.sites[0].spec.negative == 0
    assert next(row for row in found.operators if row.name == "two").first is True


def test_an_average_over_whole_images_is_left_as_it_is() -> None:
    found = plan(lambda n, x: n.two(F.adaptive_avg_pool2d(F.relu(x), 1)))
    assert [site.name for site in found.sites] == ["relu"]
    assert next(row for row in found.operators if row.name == "two").first is False


def test_the_maximum_of_sums_is_none_of_them() -> None:
    names = [site.name for site in plan(lambda n, x: n.two(F.max_pool2d(F.relu(x) + F.relu(-x), 2))).sites]
    assert names == ["relu", "relu_1", "two_input"]


def test_a_maximum_behind_an_average_is_quantized_once() -> None:
    names = [site.name for site in plan(lambda n, x: n.two(F.max_pool2d(F.avg_pool2d(F.relu(x), 2), 2))).sites]
    assert names == ["two_input"]


@pytest.mark.parametrize("name", CARRIED)
def test_spikes_are_carried_through_affine_operators(name: str) -> None:
    found = plan(CARRIED[name])
    assert {site.replaces for site in found.sites} == {"ReLU"}
    assert all(row.first for row in found.operators if row.name == "two")


def test_one_site_for_all_readers_of_a_signal() -> None:
    found = plan(lambda n, x: n.wide(torch.cat([n.two(y := F.gelu(x)), n.three(y)], 1)))
    assert [site.name for site in found.sites] == ["two_input", "wide_input"]


def test_a_rectifier_that_reaches_no_synapse_is_none() -> None:
    assert [site.name for site in plan(lambda n, x: n.two(torch.softmax(F.relu(x), 1))).sites] == ["two_input"]
    assert [site.replaces for site in plan(lambda n, x: F.relu(n.two(F.silu(x)))).sites] == ["after SiLU", "ReLU"]


def test_the_input_is_analog_unless_asked_for() -> None:
    def body(n: Net, x: Tensor) -> Tensor:
        return n.two(F.relu(x))

    assert [site.name for site in plan(body).sites] == ["relu"]
    found = plan(body, ps.QuantSpec(2, 6, inputs=True))
    assert [site.name for site in found.sites] == ["one_input", "relu"]
    assert found.sites[0].reason.startswith("the network's input") or "input" in found.sites[0].reason
    assert found.accumulate_share() == 1.0 > plan(body).accumulate_share() > 0
    assert next(row for row in plan(body).operators if row.name == "one").first is False


# --- signs ---------------------------------------------------------------------------------------------------------------

NEVER: dict[str, Callable[[Any, Tensor], Any]] = {
    "gate of a rectified signal": lambda n, x: n.two(F.relu(x) * torch.sigmoid(x.mean((2, 3), keepdim=True))),
    "sum of rectified signals, gated": lambda n, x: n.two((F.relu(x) + F.relu(-x)) * torch.sigmoid(x)),
    "pooled": lambda n, x: n.two(F.avg_pool2d(torch.sigmoid(x), 2) * 3),
    "norm of a row": lambda n, x: n.two(torch.linalg.vector_norm(x, dim=1, keepdim=True).expand(-1, 4, -1, -1)),
    "padded": lambda n, x: n.two(F.pad(torch.sigmoid(x), (1, 1))),
}
SIGNED: dict[str, Callable[[Any, Tensor], Any]] = {
    "difference": lambda n, x: n.two(torch.sigmoid(x) - torch.sigmoid(-x)),
    "negated": lambda n, x: n.two(-torch.sigmoid(x)),
    "negative factor": lambda n, x: n.two(torch.sigmoid(x) * -2),
    "added with a negative factor": lambda n, x: n.two(torch.add(torch.sigmoid(x), torch.sigmoid(-x), alpha=-1)),
    "shifted": lambda n, x: n.two(torch.sigmoid(x) + n.shift),
    "scaled by a parameter": lambda n, x: n.two(torch.sigmoid(x) * n.shift),
    "beside a constant": lambda n, x: n.wide(torch.cat([torch.sigmoid(x), n.shift.expand(x.shape[0], 4, 8, 8)], 1)),
    "padded with a negative value": lambda n, x: n.two(F.pad(torch.sigmoid(x), (1, 1), value=-1.0)),
    "bicubic": lambda n, x: n.two(F.interpolate(torch.sigmoid(x), scale_factor=2, mode="bicubic")),
    "product of signed signals": lambda n, x: n.two(x * torch.sigmoid(x)),
    "added product": lambda n, x: n.two(torch.addcmul(n.shift, torch.sigmoid(x), torch.sigmoid(x), value=0.5)),
    "subtracted product": lambda n, x: n.two(
        torch.addcmul(torch.sigmoid(x), torch.sigmoid(-x), torch.exp(x), value=-3)
    ),
    "extrapolated": lambda n, x: n.two(torch.lerp(torch.sigmoid(x), torch.sigmoid(-x), 2.0)),
    "logarithm": lambda n, x: n.two(torch.log(torch.sigmoid(x))),
    "selected": lambda n, x: n.two(torch.where(n.shift > 0, torch.sigmoid(x), n.shift)),
}


@pytest.mark.parametrize("name", [*NEVER, *SIGNED])
def test_negative_levels_stand_where_a_signal_can_be_negative(name: str) -> None:
    body = (NEVER | SIGNED)[name]
    last = plan(body).sites[-1]
    assert last.spec.levels == ((0, 6) if name in NEVER else (2, 6)), last.reason
    if name in SIGNED:
        with pytest.raises(SpecError, match=r"site '\w+_input': .* passes negative values, which \(0, 6\) would lose"):
            plan(body, ps.QuantSpec(negative=0, positive=6))
        with pytest.raises(SpecError, match="give negative >= 1 and signed='by-nature', here or in overrides"):
            plan(body, ps.QuantSpec(positive=6, signed="none"))


@torch.no_grad()
@pytest.mark.parametrize("name", [*NEVER, *CURVED])
def test_no_site_without_negative_levels_sees_a_negative_value(name: str) -> None:
    model = Net(NEVER[name]).eval() if name in NEVER else network(name)
    x = X if name in NEVER else signal(name, 4)
    qann = ps.quantize(model, SPEC, example=x).eval()
    seen: list[str] = []
    for path, site in qann.sites().items():
        if site.levels[0] == 0 and path.endswith("_input"):
            site.register_forward_hook(lambda module, inputs, output: seen.append(module.name))
            site.register_forward_pre_hook(lambda module, inputs: _require(float(inputs[0].min()) >= 0, module.name))
    with qann.float_activations():
        qann(x)
    assert name in CURVED or seen


def _require(holds: bool, site: str) -> None:
    assert holds, f"{site} sees negative values"


# --- one step per channel ------------------------------------------------------------------------------------------------


def test_channels_are_the_second_dimension_of_a_convolution_and_the_last_of_a_linear_layer() -> None:
    spec = ps.QuantSpec(2, 6, granularity="channel")
    sites = {site.name: site.spec for site in ps.inspect(network("attention"), spec, signal("attention", 2)).sites}
    assert (sites["fc1_input"].channels, sites["fc1_input"].channel_dim) == (8, -1)
    assert (sites["fc2_input"].channels, sites["fc2_input"].channel_dim) == (12, -1)
    for role in ("query", "key", "value", "probabilities"):
        assert sites[f"mha.{role}"].channels == 0
    sites = {site.name: site.spec for site in ps.inspect(network("smooth"), spec, signal("smooth", 2)).sites}
    assert (sites["conv2_input"].channels, sites["conv2_input"].channel_dim) == (6, 1)


@torch.no_grad()
@pytest.mark.filterwarnings("ignore:channels that never carry a signal")
def test_steps_of_the_last_dimension_scale_it() -> None:
    model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Tanh(), nn.Linear(3, 3, bias=False))
    for layer in (model[0], model[2]):
        layer.weight.copy_(torch.eye(3))
    x = torch.randn(4, 5, 3)
    qann = ps.quantize(model, ps.QuantSpec(9, 9, granularity="channel"), example=x)
    (site,) = qann.sites().values()
    site.set_step(torch.tensor([0.1, 0.2, 0.4]))
    y = qann.eval()(x)
    for channel, step in enumerate((0.1, 0.2, 0.4)):
        codes = y[..., channel] / step
        torch.testing.assert_close(codes, (torch.tanh(x[..., channel]) / step + 0.5).floor().clamp(-9, 9))
