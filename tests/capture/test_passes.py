"""Rewrites keep the output: in-place operators, functional forms, shared modules, batch-norm folding."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import polarspike as ps
from polarspike.capture import capture, passes
from polarspike.errors import OperatorError, SpecError
from polarspike.graph.operator_table import IN_PLACE, Meaning
from polarspike.graph.operators import meaning_of

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
SPEC = ps.QuantSpec(negative=3, positive=5)


class Body(nn.Module):
    def __init__(self, body: Callable[[Body, Tensor], Tensor], **parts: nn.Module) -> None:
        super().__init__()
        self.conv, self.body = nn.Conv2d(4, 4, 3, padding=1), body
        for name, part in parts.items():
            self.add_module(name, part)

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self, x)


def standardized(model: nn.Module, x: Tensor = X) -> fx.GraphModule:
    network = passes.standardize(capture(model, x)).eval()
    torch.testing.assert_close(network(x.clone()), copy.deepcopy(model).eval()(x.clone()))
    return network


def calls(network: fx.GraphModule) -> list[str]:
    return [str(node.target) for node in network.graph.nodes if node.op == "call_module"]


def test_nothing_in_place_is_left_and_later_readers_see_the_change() -> None:
    def body(n: Body, x: Tensor) -> Tensor:
        x = n.conv(x)
        y = F.relu(x, inplace=True)
        x.add_(1.0)
        z = x.mul_(2.0)
        n.relu(z)
        return x + y + z

    model = Body(body, relu=nn.ReLU(inplace=True))
    network = standardized(model)
    assert not any(getattr(part, "inplace", False) for part in network.modules())
    targets = {node.target for node in network.graph.nodes}
    assert not targets & set(IN_PLACE)
    assert model.relu.inplace is True  # type: ignore[union-attr]


def test_an_operator_on_the_input_does_not_alter_the_callers_tensor() -> None:
    qann = ps.quantize(Body(lambda n, x: n.conv(x.relu_())), SPEC, example=X)
    ps.calibrate(qann, [X])
    x = X.clone()
    qann(x)
    ps.convert(qann)(x)
    assert torch.equal(x, X)


def test_functional_forms_become_modules_named_after_their_place() -> None:
    def body(n: Body, x: Tensor) -> Tensor:
        x = F.leaky_relu(F.relu6(torch.relu(n.conv(x))), 0.3)
        x = F.max_pool2d(x, 3, 2, 1, ceil_mode=True)
        x = F.dropout(F.adaptive_max_pool2d(x, 2), 0.25, n.training)
        return F.dropout2d(x.relu(), training=n.training)

    network = standardized(Body(body))
    parts = dict(network.named_modules())
    assert calls(network) == ["conv", "relu", "relu6", "leaky_relu", "max_pool2d", "adaptive_max_pool2d", "dropout",
                              "relu_1", "dropout2d"]  # fmt: skip
    assert parts["leaky_relu"].negative_slope == 0.3
    pool = parts["max_pool2d"]
    assert (pool.kernel_size, pool.stride, pool.padding, pool.ceil_mode) == (3, 2, 1, True)
    assert type(parts["dropout"]) is nn.Dropout and parts["dropout"].p == 0.25
    assert type(parts["dropout2d"]) is nn.Dropout2d and parts["dropout2d"].p == 0.5


@pytest.mark.parametrize(
    ("call", "stride"),
    [
        (lambda x: F.max_pool2d(x, 2), 2),
        (lambda x: F.max_pool2d(x, (2, 3)), (2, 3)),
        (lambda x: F.max_pool2d(x, kernel_size=3, stride=1), 1),
        (lambda x: torch.max_pool2d(x, 2, [], 1), 2),
        (lambda x: F.max_pool1d(x.flatten(1, 2), 2), 2),
        (lambda x: F.max_pool3d(x.unsqueeze(1), 2), 2),
    ],
)
def test_a_stride_left_out_is_the_kernel_size(call: Callable[[Tensor], Tensor], stride: object) -> None:
    network = standardized(Body(lambda n, x: call(torch.relu(n.conv(x)))))
    (pool,) = [part for part in network.modules() if "MaxPool" in type(part).__name__]
    assert pool.stride == stride


def test_dropout_that_stays_on_and_indices_that_are_asked_for_are_refused() -> None:
    def default(n: Body, x: Tensor) -> Tensor:
        return F.dropout(torch.relu(n.conv(x)))

    def indices(n: Body, x: Tensor) -> Tensor:
        return F.max_pool2d(torch.relu(n.conv(x)), 2, return_indices=True)[0]

    def adaptive(n: Body, x: Tensor) -> Tensor:
        return F.adaptive_max_pool2d(torch.relu(n.conv(x)), 2, return_indices=True)[0]

    def module(n: Body, x: Tensor) -> Tensor:
        return n.pool(torch.relu(n.conv(x)))[0]

    with pytest.raises(
        OperatorError, match=r"node 'dropout' \[File .*test_passes.* F.dropout stays random .*n.Dropout"
    ):
        standardized(Body(default))
    for body in (indices, adaptive, module):
        model = Body(body, pool=nn.MaxPool2d(2, return_indices=True))
        with pytest.raises(OperatorError, match=r"max pooling with return_indices=True has no running mean; drop it"):
            capture(model, X, "fx")
        network = standardized(model)  # the values alone are read, which torch.export shows
        assert "return_indices=True" in network.meta["route"]


def test_each_use_of_an_activation_gets_a_module_of_its_own_and_weights_stay_shared() -> None:
    def body(n: Body, x: Tensor) -> Tensor:
        for _ in range(3):
            x = n.again(n.pool(n.relu(n.conv(x))))
        return x

    relu = nn.ReLU()
    model = Body(body, relu=relu, again=relu, pool=nn.MaxPool2d(3, 1, 1))
    network = standardized(model)
    assert calls(network).count("conv") == 3
    sites = [name for name in calls(network) if name != "conv"]
    assert len(sites) == 9 and set(sites) == {"pool", *(f"relu{end}" for end in ("", *(f"_{i}" for i in range(1, 6))))}
    parts = dict(network.named_modules())
    assert len({id(parts[name]) for name in set(sites)}) == 7  # pooling holds nothing of its own, so it stays shared
    qann = ps.quantize(
        model, SPEC, example=X
    )  # a rectifier behind which only pooling and another one stand adds nothing
    assert list(qann.sites()) == ["relu_1", "relu_3", "relu_5"]
    ps.calibrate(qann, [X])
    steps = {site.step.item() for site in qann.sites().values()}
    assert len(steps) > 1


# --- folding -------------------------------------------------------------------------------------------------------------


def norm(kind: type[nn.Module] = nn.BatchNorm2d, features: int = 4) -> nn.Module:
    part = kind(features)
    nn.init.uniform_(part.weight, 0.5, 1.5)  # type: ignore[arg-type]
    nn.init.uniform_(part.bias)  # type: ignore[arg-type]
    part.running_mean.uniform_(-0.5, 0.5)  # type: ignore[operator, union-attr]
    part.running_var.uniform_(0.5, 2.0)  # type: ignore[operator, union-attr]
    return part


class Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = nn.Conv2d(4, 4, 3, padding=1), norm(), norm()

    def forward(self, x: Tensor) -> Tensor:
        return self.other(self.conv(torch.relu(self.norm(self.conv(x)))))


class ReadBetween(Shared):
    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return torch.relu(self.norm(x)) + x


FOLDED = {
    "convolution": nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), norm(), nn.ReLU()),
    "grouped": nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), norm(), nn.ReLU()),
    "transposed": nn.Sequential(nn.ConvTranspose2d(4, 6, 3, stride=2), norm(features=6), nn.ReLU()),
    "one dimension": nn.Sequential(nn.Flatten(2), nn.Conv1d(4, 4, 3), norm(nn.BatchNorm1d), nn.ReLU()),
    "linear": nn.Sequential(nn.Flatten(), nn.Linear(256, 8), norm(nn.BatchNorm1d, 8), nn.ReLU()),
    "two": nn.Sequential(nn.Conv2d(4, 4, 3), norm(), nn.ReLU(), nn.Conv2d(4, 4, 1), norm()),
}
LEFT = {
    "after an activation": nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), norm()),
    "first": nn.Sequential(norm(), nn.ReLU()),
    "shared convolution": Shared(),
    "read in between": ReadBetween(),
    "grouped transposed": nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=2), norm(), nn.ReLU()),
    "depthwise transposed": nn.Sequential(nn.ConvTranspose2d(4, 4, 3, groups=4), norm(), nn.ReLU()),
    "linear on sequences": nn.Sequential(nn.Flatten(2), nn.Linear(64, 4), norm(nn.BatchNorm1d), nn.ReLU()),
}


def norms(qann: ps.QuantizedNetwork) -> int:
    network = qann.network
    return sum(meaning_of(network, node) is Meaning.NORM for node in network.graph.nodes)


@pytest.mark.parametrize("name", [*FOLDED, *LEFT])
def test_folding_keeps_the_output(name: str) -> None:
    model = (FOLDED | LEFT)[name]
    qann = ps.quantize(model, SPEC, example=X).eval()
    folded = ps.fold_batch_norm(qann).eval()
    assert norms(folded) == (0 if name in FOLDED else norms(qann))
    with qann.float_activations(), folded.float_activations(), torch.no_grad():
        torch.testing.assert_close(folded(X), qann(X), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(folded(X), copy.deepcopy(model).eval()(X), atol=1e-5, rtol=1e-5)


def test_a_folded_network_calibrates_converts_and_is_exact() -> None:
    qann = ps.fold_batch_norm(ps.quantize(FOLDED["two"], SPEC, example=X))
    ps.calibrate(qann, [X])
    proof = ps.verify(qann, ps.convert(qann), [X], scope=False)
    assert all(site.different == 0 for site in proof.sites.values())


def test_folding_copies_and_is_refused_after_calibration() -> None:
    qann = ps.quantize(FOLDED["two"], SPEC, example=X)
    before = copy.deepcopy(qann.network.state_dict())
    ps.fold_batch_norm(qann)
    assert norms(qann) == 2
    assert all(
        torch.equal(before[name], value) for name, value in qann.network.state_dict().items() if "start" not in name
    )
    ps.calibrate(qann, [X])
    with pytest.raises(SpecError, match="'2' is calibrated; fold first, then calibrate"):
        ps.fold_batch_norm(qann)
    with pytest.raises(SpecError, match=r"fold_batch_norm: expected what polarspike.quantize returns, got Sequential"):
        ps.fold_batch_norm(FOLDED["two"])  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"refine: expected what polarspike.quantize returns, got Sequential"):
        ps.refine(FOLDED["two"], 2)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("layer", ["convolution", "linear"])
def test_training_moves_what_was_folded(layer: str, bias: bool) -> None:
    model: nn.Sequential = nn.Sequential(
        *(
            [nn.Conv2d(4, 6, 3, bias=bias), norm(features=6)]
            if layer == "convolution"
            else [nn.Flatten(), nn.Linear(256, 6, bias=bias), norm(nn.BatchNorm1d, 6)]
        ),
        nn.ReLU(),
        nn.Flatten(),
        nn.LazyLinear(3),
    )
    model(X)
    qann = ps.fold_batch_norm(ps.quantize(model, SPEC, example=X))
    ps.calibrate(qann, [X])
    folded: Any = qann.network.get_submodule("0" if layer == "convolution" else "1")
    before = folded.weight.detach().clone(), folded.bias.detach().clone()
    ps.fit(qann, [(X, torch.tensor([0, 1, 2, 0]))], ps.TrainSpec(epochs=1))
    assert not torch.equal(folded.weight, before[0]) and not torch.equal(folded.bias, before[1])


def test_what_was_frozen_stays_frozen_when_it_is_folded() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, bias=False), norm(), nn.ReLU(), nn.Conv2d(4, 4, 1))
    model[0].requires_grad_(False)
    model[1].requires_grad_(False)
    folded = ps.fold_batch_norm(ps.quantize(model, SPEC, example=X)).network
    frozen = {name: not value.requires_grad for name, value in folded.named_parameters() if name[:1] in "03"}
    assert frozen == {"0.weight": True, "0.bias": True, "3.weight": False, "3.bias": False}


def test_a_norm_that_stays_in_evaluation_mode_is_folded_like_any_other() -> None:
    qann = ps.quantize(
        nn.Sequential(nn.Conv2d(4, 4, 3), norm(), nn.ReLU(), norm(), nn.Conv2d(4, 4, 1)), SPEC, example=X
    )
    qann.frozen = ("1", "3")
    folded = ps.fold_batch_norm(qann)
    assert qann.frozen == ("1", "3") and folded.frozen == ("3",)
    assert not folded.train().network.get_submodule("3").training and folded.network.get_submodule("0").training


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.conv, self.norm = nn.Embedding(5, 6), nn.Conv1d(6, 4, 3), norm(nn.BatchNorm1d)
        self.head = nn.Conv1d(4, 4, 1)

    def forward(self, ids: Tensor) -> Tensor:
        return self.head(torch.relu(self.norm(self.conv(self.table(ids).transpose(1, 2)))))


class Several(Shared):
    def forward(self, *xs: Tensor) -> Tensor:
        return self.norm(self.conv(xs[0])).relu() + self.other(xs[1])


def without_affine(features: int, bias: bool) -> nn.Sequential:
    part: Any = norm(nn.BatchNorm1d, features)
    part.weight, part.bias = None, nn.Parameter(part.bias.detach()) if bias else None
    return nn.Sequential(nn.Flatten(), nn.Linear(256, features), part, nn.ReLU(), nn.Linear(features, 3))


@pytest.mark.parametrize(
    ("model", "inputs"),
    [
        (Tokens(), (torch.arange(28).view(4, 7) % 5,)),
        (Several(), (X, X + 1)),
        (without_affine(8, bias=False), (X,)),
        (without_affine(8, bias=True), (X,)),
    ],
    ids=["integers", "any number of inputs", "no affine", "bias alone"],
)
def test_whatever_the_network_takes_its_norms_are_folded(model: nn.Module, inputs: tuple[Tensor, ...]) -> None:
    qann = ps.quantize(model, SPEC, example=inputs).eval()
    folded = ps.fold_batch_norm(qann).eval()
    assert norms(folded) == norms(qann) - 1
    with qann.float_activations(), folded.float_activations(), torch.no_grad():
        torch.testing.assert_close(folded(*inputs), qann(*inputs), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("copied", [lambda h: h.clone(), lambda h: h.detach().clone(), lambda h: h.repeat(1, 1, 1, 1)])
@pytest.mark.parametrize("route", ["fx", "export"])
def test_a_copy_is_no_view_of_what_is_altered_later(copied: Callable[[Tensor], Tensor], route: Any) -> None:
    def body(model: Body, x: Tensor) -> Tensor:
        h = model.conv(x)
        kept = copied(h)
        h.relu_()
        return h + kept

    model = Body(body).eval()
    network = capture(model, X, route)
    torch.testing.assert_close(network(X.clone()), model(X.clone()))


class FrozenNorm(nn.Module):
    """As detectors have it: statistics, weight and bias are constants."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        for name, value in (("weight", 0.5), ("bias", 0.1), ("running_mean", 0.2), ("running_var", 2.0)):
            self.register_buffer(name, torch.full((channels,), value))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, training=False)  # type: ignore[arg-type]


@pytest.mark.parametrize("route", ["fx", "export"])
def test_a_norm_of_constants_stays_one(route: Any) -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), FrozenNorm(4), nn.ReLU(), nn.Conv2d(4, 2, 1)).train()
    qann = ps.quantize(model, SPEC, example=X, route=route)
    ps.calibrate(qann, [X])
    before = {name: value.clone() for name, value in qann.state_dict().items()}
    trained = qann.train()(X)
    assert torch.equal(trained, qann.eval()(X))
    after = qann.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    norms = [module for module in qann.modules() if isinstance(module, nn.BatchNorm2d)]
    assert norms and not any(parameter.requires_grad for norm in norms for parameter in norm.parameters())
