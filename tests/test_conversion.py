"""Operators of every family, all the way: quantize, calibrate, convert, prove T = 1 and T = 3, save, load."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import polarspike as ps
from polarspike.common.inputs import Inputs, as_call, map_inputs
from polarspike.errors import CalibrationError, OperatorError, SpecError

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
SPEC = ps.QuantSpec(negative=3, positive=5)
SIGNED = ps.QuantSpec(negative=2, positive=3, gain=0.5, signed="all")
LEARNED = ps.QuantSpec(negative=2, positive=3, gain="learned", signed="all", granularity="channel", init="mse")


_NORM_BIAS = "bias" in inspect.signature(nn.BatchNorm2d).parameters  # a recent torch


class Override(nn.ReLU):
    """Not a ReLU: a leaky one, made of known operators."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) - 0.25 * torch.relu(-x)


class Inherit(nn.ReLU):
    """A ReLU by another name."""


class Block(nn.Module):
    """One weight, one activation, called more than once."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.norm(self.conv(x)))


class Net(nn.Module):
    """Parts for the bodies below: a body gets the network and its input."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up = nn.ConvTranspose2d(4, 4, 2, stride=2)
        self.norm, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4, bias=False) if _NORM_BIAS else nn.BatchNorm2d(4)
        self.relu, self.other, self.same = nn.ReLU(inplace=True), Override(), Inherit()
        self.six, self.leaky, self.drop = nn.ReLU6(inplace=True), nn.LeakyReLU(0.2, inplace=True), nn.Dropout2d(0.5)
        self.max, self.average, self.ceil = nn.MaxPool2d(3, 2, 1), nn.AvgPool2d(2), nn.MaxPool2d(3, 2, ceil_mode=True)
        self.adaptive, self.peak = nn.AdaptiveAvgPool2d((2, None)), nn.AdaptiveMaxPool2d(2)
        self.upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
        self.block, self.list = Block(), nn.ModuleList([Block(), Block()])
        self.nested = nn.Sequential(nn.Sequential(nn.Conv2d(4, 4, 1), nn.ReLU()), nn.Sequential(nn.ReLU(inplace=True)))
        self.head = nn.Linear(4, 5)
        self.scale, self.shift = nn.Parameter(torch.rand(4, 1, 1) + 0.5), nn.Parameter(torch.rand(4, 1, 1))
        self.register_buffer("mean", torch.rand(3, 1, 1))
        self.register_buffer("hidden", torch.rand(3, 1, 1) + 0.5, persistent=False)
        self.plain = torch.rand(4, 1, 1)
        self.group, self.layer, self.prelu = nn.GroupNorm(2, 4), nn.LayerNorm(4), nn.PReLU(4)
        self.body = body
        for norm in (part for part in self.modules() if isinstance(part, nn.BatchNorm2d)):
            nn.init.uniform_(norm.weight, 0.5, 1.5)
            norm.running_mean.uniform_(-0.2, 0.2)  # type: ignore[union-attr]
            norm.running_var.uniform_(0.5, 1.5)  # type: ignore[union-attr]

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)

    def score(self, x: Tensor) -> Tensor:
        return self.head(x.mean([2, 3]))


def shared_thrice(n: Net, x: Tensor) -> Tensor:
    x = n.relu(n.one(x))
    y = n.relu(n.two(x))
    return n.score(n.relu(x + y))


def residual_in_place(n: Net, x: Tensor) -> Tensor:
    x = n.relu(n.one(x))
    y = n.norm(n.two(x))
    y += x
    return n.score(F.relu(y, inplace=True))


def read_after_change(n: Net, x: Tensor) -> Tensor:
    x = n.one(x)
    y = n.relu(x)  # x is altered, too
    return n.score(x + n.two(y))


def read_after_second_change(n: Net, x: Tensor) -> Tensor:
    y = n.two(n.relu(n.one(x)))
    z = n.relu(y)
    return n.score(y + z)


def statement(n: Net, x: Tensor) -> Tensor:
    x = n.one(x)
    n.relu(x)
    x.mul_(0.5)
    y = n.two(x)
    y.relu_().add_(x)
    return n.score(y)


def scaled(n: Net, x: Tensor) -> Tensor:
    x = (x - n.mean) / n.hidden
    return n.score(torch.relu(n.one(x) * n.scale + n.shift - n.plain) * 0.5 + torch.tensor(0.25))


def shapes(n: Net, x: Tensor) -> Tensor:
    batch, _, height, width = x.shape
    x = torch.relu(n.one(x)).view(batch, 4, height * width).mean(-1)
    return n.head(x.reshape(x.size(0), -1).flatten(1))


def branches(n: Net, x: Tensor) -> Tensor:
    x = torch.relu(n.one(x))
    left, right = x.chunk(2, dim=1)
    y = torch.cat([right[:, :1], left, x[:, 3:, ...]], 1)
    return n.score(torch.stack([y, x]).sum(0))


def loop(n: Net, x: Tensor) -> Tensor:
    x = n.block(n.block(n.relu(n.one(x))))  # shared weights stay shared
    for part in n.list:
        x = part(x) + x
    return n.score(n.nested(x))


def pooled(n: Net, x: Tensor) -> Tensor:
    x = n.max(n.relu(n.one(x)))  # (N, 4, 4, 4)
    x = n.ceil(F.max_pool2d(F.pad(n.relu(n.two(x)), (1, 2, 0, 1)), 2))
    return n.score(n.upsample(n.average(F.interpolate(x, scale_factor=2.0))))


def pooled_by_functions(n: Net, x: Tensor) -> Tensor:
    x = torch.max_pool2d(F.relu(n.one(x)), 3, 2, 1, 1, True)
    x = F.max_pool2d(input=torch.relu(n.two(x)), kernel_size=2, stride=1, ceil_mode=True)
    x = F.adaptive_avg_pool2d(F.adaptive_max_pool2d(F.avg_pool2d(x, 2), (1, None)), 1)
    return n.head(torch.flatten(x, 1))


def by_keyword(n: Net, x: Tensor) -> Tensor:
    x = n.drop(input=n.relu(input=n.one(input=x)))
    return n.head(n.max(input=torch.relu(input=x)).mean(dim=(2, 3)))


def dropped(n: Net, x: Tensor) -> Tensor:
    x = F.dropout(n.drop(torch.relu(n.one(x))), 0.3, n.training)
    return n.score(F.dropout2d(x, training=n.training))


def gated(n: Net, x: Tensor) -> Tensor:
    x = torch.relu(n.one(x))
    gate = torch.sigmoid(n.two(x).mean((2, 3), keepdim=True))
    return n.score(torch.relu(n.two(x * gate)))


def attended(n: Net, x: Tensor) -> Tensor:
    x = n.one(x).flatten(2).transpose(1, 2)  # (N, 64, 4)
    scores = torch.matmul(x, x.transpose(1, 2)) / 2
    return n.head(torch.matmul(torch.softmax(scores, -1), x).mean(1))


def normalized(n: Net, x: Tensor) -> Tensor:
    x = F.gelu(n.group(n.one(x)))
    return n.head(n.layer(n.two(n.prelu(n.two(x))).mean((2, 3))))


def dynamic(n: Net, x: Tensor) -> Tensor:
    x = torch.relu(n.one(x))
    return n.score(F.conv2d(x, x[:1, :, :3, :3].expand(4, -1, -1, -1), padding=1))  # its weight is a signal


BODIES: dict[str, Callable[[Net, Tensor], Any]] = {
    "F.relu": lambda n, x: n.score(F.relu(n.one(x))),
    "F.relu in place": lambda n, x: n.score(F.relu(n.one(x), inplace=True)),
    "F.relu positional in place": lambda n, x: n.score(F.relu(n.one(x), True)),
    "torch.relu": lambda n, x: n.score(torch.relu(n.one(x))),
    "torch.relu_": lambda n, x: n.score(torch.relu_(n.one(x))),
    "x.relu": lambda n, x: n.score(n.one(x).relu()),
    "x.relu_": lambda n, x: n.score(n.one(x).relu_()),
    "relu of the input": lambda n, x: n.score(n.one(x.relu_())),
    "subclass": lambda n, x: n.score(n.same(n.one(x))),
    "subclass with forward": lambda n, x: n.score(n.other(n.one(x))),
    "site as output": lambda n, x: torch.relu(n.score(torch.relu(n.one(x)))),
    "relu6": lambda n, x: n.score(F.relu6(n.two(n.six(9 * n.one(x))))),
    "leaky": lambda n, x: n.score(F.leaky_relu(n.two(n.leaky(n.one(x))), 0.1)),
    "leaky_": lambda n, x: n.score(F.leaky_relu_(n.one(x), 0.3)),
    "norm before": lambda n, x: n.score(F.relu(n.norm(n.one(x)))),
    "norm after": lambda n, x: n.score(n.norm2(F.relu(n.norm(n.one(x))))),
    "transposed": lambda n, x: n.score(F.relu(n.norm(n.up(n.relu(n.one(x)))))),
    "adaptive": lambda n, x: n.score(n.peak(n.adaptive(F.relu(n.one(x))))),
    "square": lambda n, x: n.score(torch.relu(n.one(x)) ** 2),
    "product": lambda n, x: n.score(torch.mul(input=torch.relu(n.one(x)), other=n.two(torch.relu(n.one(x))))),
    "divisor": lambda n, x: n.score(torch.div(input=n.plain, other=torch.relu(n.one(x)) + 1)),
    "quotient": lambda n, x: n.score(n.two(torch.relu(n.one(x))) / (n.one(x) ** 2 + 1)),
    "clamp": lambda n, x: n.score(n.two(n.one(x).clamp(-0.5, 0.75))),
    "floor": lambda n, x: n.score(n.two(torch.div(torch.relu(n.one(x)), 0.1, rounding_mode="floor"))),
    "silu": lambda n, x: n.score(n.two(F.silu(n.one(x)))),
    "hardswish": lambda n, x: n.score(n.two(F.hardswish(n.one(x), inplace=True))),
    "maximum": lambda n, x: n.score(n.two(torch.maximum(n.one(x), n.two(n.one(x).abs())))),
    "dict": lambda n, x: {"a": n.score(F.relu(n.one(x))), "b": [x.mean([1, 2, 3])]},
    "tuple": lambda n, x: (n.score(F.relu(n.one(x))), x),
    **{body.__name__: body for body in (shared_thrice, residual_in_place, read_after_change, read_after_second_change,
                                        statement, scaled, shapes, branches, loop, pooled, pooled_by_functions,
                                        by_keyword, dropped, gated, attended, normalized, dynamic)},
}  # fmt: skip


def answer(network: nn.Module, inputs: Inputs, **options: Any) -> list[Tensor]:
    args, kwargs = as_call(inputs)
    with torch.no_grad():
        leaves: list[Tensor] = pytree.tree_leaves(network(*args, **kwargs, **options))
    return leaves


def equal(left: list[Tensor], right: list[Tensor]) -> bool:
    return len(left) == len(right) and all(torch.equal(a, b) for a, b in zip(left, right, strict=True))


def double(inputs: Inputs) -> Inputs:
    return map_inputs(lambda value: value.double() if isinstance(value, Tensor) else value, inputs)


def whole_way(model: nn.Module, spec: ps.QuantSpec, inputs: Inputs, folder: Path) -> ps.QuantizedNetwork:
    """Quantize, calibrate, convert, verify, save and load; every step must be exact."""
    qann = ps.quantize(model, spec, example=inputs)
    ps.calibrate(qann, [inputs])
    qann.eval()
    snn = ps.convert(qann)
    assert equal(answer(qann, inputs), answer(snn, inputs))
    proof = ps.verify(qann, snn, [inputs], scope=False)
    assert all(site.different == 0 for site in proof.sites.values()), proof
    fine, wide = copy.deepcopy(qann).double(), copy.deepcopy(snn).double()
    later = ps.verify(fine, wide, [double(inputs)], timesteps=3, scope=False)
    assert all(site.different == 0 for site in later.sites.values()), later
    for steps, settled in zip(answer(wide, double(inputs), timesteps=3),
                              answer(wide, double(inputs), timesteps=3, execution="mean"), strict=True):  # fmt: skip
        torch.testing.assert_close(steps, settled)
    for network in (qann, snn):
        ps.save(network, folder / "net.safetensors")
        again = ps.load(folder / "net.safetensors", model)
        assert type(again) is type(network) and list(again.sites()) == list(network.sites())
        assert equal(answer(again, inputs), answer(network, inputs))
        assert equal(answer(again, inputs, **({"timesteps": 2} if network is snn else {})),
                     answer(network, inputs, **({"timesteps": 2} if network is snn else {})))  # fmt: skip
    return qann


@pytest.mark.parametrize("name", BODIES)
def test_every_operator_all_the_way(name: str, tmp_path: Path) -> None:
    model = Net(BODIES[name]).eval()
    qann = whole_way(model, SPEC, X, tmp_path)
    with qann.float_activations():
        for got, want in zip(answer(qann, X), answer(model, X.clone()), strict=True):
            torch.testing.assert_close(got, want)


@pytest.mark.filterwarnings("ignore:channels that never carry a signal")  # of four random channels, one may be dead
@pytest.mark.parametrize("name", ["loop", "pooled", "leaky", "branches", "dict"])
@pytest.mark.parametrize("spec", [SIGNED, LEARNED], ids=["signed", "learned"])
def test_signed_and_learned_sites_all_the_way(name: str, spec: ps.QuantSpec, tmp_path: Path) -> None:
    whole_way(Net(BODIES[name]).eval(), spec, X, tmp_path)


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(3, 4, 3), nn.Conv2d(2, 4, 3), nn.Linear(4, 5)

    def forward(
        self, a: Tensor, b: Tensor, doubled: bool = True, factor: float | None = None, *, name: str = "x"
    ) -> dict[str, Tensor]:
        x = torch.relu(self.one(a) + self.two(b))
        x = 2 * x if doubled else x
        x = x if factor is None else x * factor
        return {name: self.head(x.mean([2, 3]))}


A, B = X, X[:, :2] + 0.5


@pytest.mark.parametrize(
    "example",
    [{"a": A, "b": B}, {"b": B, "a": A}, {"a": A, "b": B, "doubled": False}, {"factor": 2.0, "name": "y", "b": B, "a": A}],
    ids=lambda example: " ".join(example),
)  # fmt: skip
def test_several_inputs_and_flags(example: dict[str, Any], tmp_path: Path) -> None:
    model = TwoInputs().eval()
    qann = whole_way(model, SPEC, example, tmp_path)
    assert qann(**example).keys() == model(**example).keys()
    assert torch.equal(*answer(qann, (A, B)), *answer(qann, {"b": B, "a": A}))


def test_inputs_by_position_with_a_flag_between() -> None:
    class Between(TwoInputs):
        def forward(self, a: Tensor, doubled: bool, b: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(a, b, doubled)["x"]

    model = Between().eval()
    qann = ps.quantize(model, SPEC, example=(A, False, B))
    ps.calibrate(qann, [{"a": A, "doubled": False, "b": B}])
    snn = ps.convert(qann.eval())
    assert torch.equal(qann(A, False, B), snn(a=A, b=B))
    with qann.float_activations():
        torch.testing.assert_close(qann(A, False, B), model(A, False, B))
    with pytest.raises(ps.PolarspikeError, match="'doubled': the network was captured with False"):
        qann(A, True, B)
    with pytest.raises(ps.PolarspikeError, match=r"inputs \['b'\] are missing"):
        qann(A, False)


def test_variadic_inputs(tmp_path: Path) -> None:
    class Starred(TwoInputs):
        def forward(self, *signals: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(*signals)["x"]

    class Keywords(TwoInputs):
        def forward(self, **signals: Tensor) -> Tensor:  # type: ignore[override]
            return super().forward(**signals)["x"]

    keywords = whole_way(Keywords().eval(), SPEC, {"b": B, "a": A}, tmp_path)
    model = Starred().eval()
    qann = ps.quantize(model, SPEC, example=(A, B))
    ps.calibrate(qann, [{"signals_0": A, "signals_1": B}])
    ps.save(qann.eval(), tmp_path / "net.safetensors")
    assert torch.equal(ps.load(tmp_path / "net.safetensors")(A, B), qann(A, B))
    with qann.float_activations(), keywords.float_activations():
        torch.testing.assert_close(qann(A, B), model(A, B))
        assert keywords(a=A, b=B).shape == (4, 5)


def test_what_has_no_running_mean_is_refused_by_place() -> None:
    def forward(n: Net, x: Tensor) -> Any:
        return n.score(torch.relu(n.one(x)).view(torch.int32).float())

    with pytest.raises(OperatorError, match=r"node 'view' \[File .*test_conversion.py.*: Tensor.view as another type"):
        ps.quantize(Net(forward).eval(), SPEC, example=X)  # before anything is trained


def test_a_norm_without_running_statistics_is_refused() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.ReLU())
    with pytest.raises(
        OperatorError, match=r"^module '1', node .*without running statistics.*track_running_stats=True"
    ):
        ps.quantize(model, SPEC, example=X)


def test_what_convert_refuses() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())
    with pytest.raises(SpecError, match=r"expected what polarspike.quantize returns, got Sequential"):
        ps.convert(model)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match=r"site '1' has no step yet; call polarspike.calibrate"):
        ps.convert(ps.quantize(model, SPEC, example=X))


def test_conversion_shares_no_tensor_and_reports_every_operator() -> None:
    qann = ps.quantize(Net(pooled).train(), SPEC, example=X)
    ps.calibrate(qann, [X])
    snn = ps.convert(qann)
    ours = {value.data_ptr() for value in qann.state_dict().values()}
    assert not ours & {value.data_ptr() for value in snn.state_dict().values()}
    assert qann.training and not snn.training
    for line in (
        "relu: quantizer -> neuron, levels (0, 5)",
        "ceil: MaxPool2d -> difference on sums",
        "one: Conv2d -> as it is",
    ):
        assert line in snn.report


def test_dropout_is_gone() -> None:
    qann = ps.quantize(Net(dropped).train(), SPEC, example=X)
    ps.calibrate(qann, [X])
    assert len([part for part in qann.modules() if isinstance(part, (nn.Dropout, nn.Dropout2d))]) == 3
    snn = ps.convert(qann)
    assert not [part for part in snn.modules() if "Dropout" in type(part).__name__]
    assert snn.report.count("dropout -> removed") == 3
    assert equal(answer(snn.train(), X), answer(qann.eval(), X))
