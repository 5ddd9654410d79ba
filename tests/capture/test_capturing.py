"""Both ways to capture: the same sites and codes, a logged reason, and refusals that name place and remedy."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import polarspike as ps
from polarspike.capture import capture
from polarspike.errors import CaptureError, InputError, OperatorError, SpecError
from tests.networks import CURVED, NETWORKS, codes_of, network, signal, trained_like

SPEC = ps.QuantSpec(3, 5)
X = torch.randn(4, 2, 8, 8, generator=torch.Generator().manual_seed(7))
TOKENS = torch.randn(4, 5, 8, generator=torch.Generator().manual_seed(8))


class Pair(NamedTuple):
    scores: Tensor
    hidden: Tensor


class Net(nn.Module):
    """Parts for a body."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Linear(4, 3)
        self.norm, self.act, self.drop = nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Dropout(0.5)
        self.peak = nn.AdaptiveMaxPool2d(2)
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)

    def score(self, x: Tensor) -> Tensor:
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """Parts for a body on tokens."""

    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.mha, self.packed = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 24)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)
        self.register_buffer("ahead", torch.ones(5, 5).triu(1).bool())
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def functional(n: Net, x: Tensor) -> Tensor:
    x = F.relu(n.norm(n.one(x)))
    x = F.max_pool2d(F.leaky_relu(n.two(x), 0.2), 2)
    return n.head(F.adaptive_avg_pool2d(F.silu(n.two(x)), 1).flatten(1))


def shared(n: Net, x: Tensor) -> Tensor:
    x = n.act(n.norm(n.one(x)))
    return n.score(n.act(n.two(n.act(n.two(x)))))


def residual(n: Net, x: Tensor) -> Tensor:
    x = n.act(n.one(x))
    y = n.norm(n.two(x))
    y += x
    return n.score(n.two(n.act(y)) * 0.5 + x)


def answered_in_place(n: Net, x: Tensor) -> OrderedDict[str, Tensor]:
    x = torch.relu_(n.one(x))
    return OrderedDict(b=n.score(x), a=n.peak(n.two(x)))


def as_a_pair(n: Net, x: Tensor) -> Pair:
    x = n.act(n.one(x))
    return Pair(n.score(x), n.two(x))


def plain_attention(n: Tokens, x: Tensor) -> Tensor:
    return n.head(n.mha(x, x, x)[0].mean(1))


def with_weights(n: Tokens, x: Tensor) -> Tensor:
    y = n.norm(x)
    y, _ = n.mha(y, y, y, attn_mask=n.ahead)
    return n.head(x + y)


def fused(n: Tokens, x: Tensor) -> Tensor:
    q, k, v = n.packed(n.norm(x)).view(x.shape[0], 5, 3, 2, 4).permute(2, 0, 3, 1, 4)
    y = F.scaled_dot_product_attention(q, k, v, attn_mask=~n.ahead)
    return n.head(y.transpose(1, 2).reshape(x.shape[0], 5, 8).mean(1))


MODELS: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    **{body.__name__: (lambda body=body: Net(body), X) for body in
       (functional, shared, residual, answered_in_place, as_a_pair)},
    **{body.__name__: (lambda body=body: Tokens(body), TOKENS) for body in (plain_attention, with_weights, fused)},
    **{name: (lambda name=name: network(name), signal(name, 4)) for name in [*NETWORKS, *CURVED]},
}  # fmt: skip


def steps(qann: ps.QuantizedNetwork) -> ps.QuantizedNetwork:
    for index, site in enumerate(qann.sites().values()):
        site.set_step(0.2 + 0.03 * index)
    return qann.eval()


def leaves(answer: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


@pytest.mark.parametrize("name", MODELS)
def test_both_ways_give_the_same_sites_and_codes(name: str) -> None:
    make, x = MODELS[name]
    torch.manual_seed(0)
    model = trained_like(make())
    one, other = (steps(ps.quantize(model, SPEC, example=x, route=route)) for route in ("fx", "export"))
    assert [(path, site.spec) for path, site in one.sites().items()] == [
        (path, site.spec) for path, site in other.sites().items()
    ]
    with torch.no_grad(), one.float_activations(), other.float_activations():
        for got, again, want in zip(leaves(one(x)), leaves(other(x)), leaves(model(x.clone())), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(again, want, rtol=1e-5, atol=1e-6)
    for batch in (x, x[:1], x[:3], torch.cat([x, x])):  # the batch size stays free
        mine, theirs = codes_of(one.double(), batch.double()), codes_of(other.double(), batch.double())
        for site, codes in mine.items():
            assert torch.equal(codes, theirs[site]), site


@pytest.mark.parametrize("route", ["fx", "export"])
@pytest.mark.parametrize("name", ["residual", "with_weights", "group"])
def test_an_example_of_one_sample_leaves_the_batch_free(name: str, route: Any) -> None:
    make, x = MODELS[name]
    qann = steps(ps.quantize(trained_like(make()), SPEC, example=x[:1], route=route))
    snn = ps.convert(qann)
    for size in (1, 3):
        for got, want in zip(leaves(snn(x[:size])), leaves(qann(x[:size])), strict=True):
            assert got.shape[0] == size and torch.equal(got, want)


def by_shape(n: Net, x: Tensor) -> Tensor:
    x = n.act(n.one(x))
    for _ in range(x.shape[1] // 2):
        x = n.act(n.two(x))
    return n.score(x if x.size(-1) > 4 else -x)


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True, activation="gelu")
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x)[:, 0])


@pytest.mark.parametrize(
    ("model", "x", "way"),
    [
        (Net(by_shape), X, "export"),
        (Encoder(), TOKENS, "export"),
        (Net(shared), X, "fx"),
        (Tokens(fused), TOKENS, "fx"),
    ],
    ids=["control flow on shapes", "encoder layer", "modules", "fused attention"],
)
def test_the_way_and_its_reason_are_logged_and_kept(
    model: nn.Module, x: Tensor, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    model.eval()
    with caplog.at_level(logging.INFO, logger="polarspike"):
        qann = ps.quantize(model, SPEC, example=x)
    route = qann.network.meta["route"]
    assert route.startswith(way) and f"{type(model).__name__} captured by torch.{route}" in caplog.text
    assert ("; torch.fx: " in route) is (way == "export")
    assert f"captured by torch.{way}" in str(ps.inspect(model, SPEC, x))
    steps(qann)
    snn, y = ps.convert(qann), x[:3]
    assert ps.verify(qann, snn, [y], scope=False).exact
    assert ps.verify(qann.double(), snn.double(), [y.double()], timesteps=2, scope=False).exact
    if way == "export":
        with pytest.raises((CaptureError, OperatorError), match=r"torch\.fx|no rule for"):
            ps.quantize(model, SPEC, example=x, route="fx")


def test_the_sites_of_an_encoder_layer_are_named_after_its_parts() -> None:
    sites = ps.quantize(Encoder().eval(), SPEC, example=TOKENS).sites()
    roles = {name.rpartition(".")[2] for name in sites}
    assert {"query", "key", "value", "probabilities"} <= roles
    assert {name for name in sites if name.startswith("layer.linear")} == {"layer.linear1_input", "layer.linear2_input"}


def test_an_unknown_way_is_refused() -> None:
    with pytest.raises(SpecError, match="route: expected one of 'auto', 'fx', 'export', got 'jit'"):
        capture(Net(shared), X, route="jit")  # type: ignore[arg-type]


# --- what is refused: one error, its place and a remedy ------------------------------------------------------------------


def branching(n: Net, x: Tensor) -> Tensor:
    x = n.act(n.one(x))
    if x.mean() > 0.1:
        x = 2 * x
    return n.score(x)


def viewed(n: Net, x: Tensor) -> Tensor:
    x = n.one(x)
    flat = x.view(x.shape[0], -1)
    x.relu_()
    return n.score(n.two(x)) + flat.sum()


def dropped(n: Net, x: Tensor) -> Tensor:
    return n.score(F.dropout(n.act(n.one(x)), 0.1))


def noisy(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x) + 0.1 * torch.randn_like(x[:, :1])))


def noise_of_fixed_size(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x) + torch.rand(4, 1, 1)))


def noise_of_free_size(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x) + torch.rand(x.shape[0], 1, 1, 1)))


def random_choice(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x))[:, torch.randperm(4)])


def first(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x))).argmax(1)


def best(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x))).topk(2)[0]


def place_of_the_best(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x))).max(1)[1]


def indices_of_the_best(n: Net, x: Tensor) -> Tensor:
    return torch.max(n.score(n.act(n.one(x))), 1).indices


def compared(n: Net, x: Tensor) -> Tensor:
    x = n.act(n.one(x))
    return n.score(x * (x > 0.5))


def compared_to_select(n: Net, x: Tensor) -> Tensor:
    x = n.act(n.one(x))
    return n.score(torch.where(x > x.mean(), x, torch.zeros_like(x)))


def truncated(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x)).to(torch.int64).float())


def shortened(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x)).long().float())


def imaginary(n: Net, x: Tensor) -> Tensor:
    return n.score(torch.fft.fft(n.act(n.one(x))).abs())


def turned_complex(n: Net, x: Tensor) -> Tensor:
    return n.score(n.act(n.one(x)).to(torch.complex64).abs())


def sparse(n: Net, x: Tensor) -> Tensor:
    x = n.act(n.one(x)).mean((2, 3))
    return n.head(x.to_sparse().to_dense())


REFUSED = {
    branching: "Control flow must not depend on the values of a signal.*move the branch out",
    viewed: r"relu_ alters memory in place that .* reads afterwards through another view.*write y = f\(x\) and use y",
    dropped: "stays random in evaluation mode; pass training=self.training, or use nn.Dropout",
    noisy: "stays random in evaluation mode.*keep them as a buffer",
    noise_of_fixed_size: "random",
    noise_of_free_size: r"stays random in evaluation mode.*keep them as a buffer|torch.fx at .*torch.rand\(x.shape",
    random_choice: "random",
    first: "argmax turns a signal into integers or truth values.*take this step outside",
    best: "topk turns a signal into integers or truth values.*take this step outside",
    place_of_the_best: "integers",
    indices_of_the_best: "integers|no rule for",
    compared: "gt turns a signal into integers or truth values.*a product in place of a comparison",
    compared_to_select: "gt turns a signal into integers or truth values",
    truncated: "integers|as another type",
    shortened: "integers|as another type",
    imaginary: "no rule for .*fft",
    turned_complex: "complex",
    sparse: "no rule for .*to_sparse|to_sparse.*torch.export|torch.export.*to_sparse",
}


@pytest.mark.parametrize("route", ["auto", "fx", "export"])
@pytest.mark.parametrize("body", REFUSED, ids=lambda body: body.__name__)
def test_what_cannot_be_converted_is_refused_with_place_and_remedy(body: Callable[..., Any], route: Any) -> None:
    with pytest.raises((CaptureError, OperatorError), match=REFUSED[body]) as caught:
        ps.quantize(Net(body).eval(), SPEC, example=X, route=route)
    if route == "auto":
        assert "test_capturing.py" in str(caught.value), "the error names no place"


class Recurrent(nn.Module):
    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.inner, self.head = cell, nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x if isinstance(self.inner, nn.RNNBase) else x[:, 0])
        return self.head(y[0][:, -1] if isinstance(y, tuple) else y)


@pytest.mark.parametrize("route", ["auto", "fx", "export"])
@pytest.mark.parametrize("cell", [nn.LSTM(8, 8, batch_first=True), nn.GRU(8, 8, batch_first=True), nn.GRUCell(8, 8)],
                         ids=["LSTM", "GRU", "GRUCell"])  # fmt: skip
def test_recurrent_layers_are_refused(cell: nn.Module, route: Any) -> None:
    with pytest.raises(
        OperatorError, match=r"(?i)module 'inner'.* no rule for .*(lstm|gru).*a recurrent layer has a state"
    ):
        ps.quantize(Recurrent(cell).eval(), SPEC, example=TOKENS, route=route)


def test_complex_and_sparse_inputs_are_refused() -> None:
    with pytest.raises(InputError, match=r"expected real numbers, got torch.complex64"):
        capture(Net(shared), X.to(torch.complex64))
    with pytest.raises(InputError, match=r"expected a dense tensor, got torch.sparse_coo; call x.to_dense\(\)"):
        capture(Net(shared), X.to_sparse())


# --- training ------------------------------------------------------------------------------------------------------------


class Trained(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.5), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.drop(F.relu(self.norm(self.conv(x))).mean((2, 3))))


@pytest.mark.parametrize("route", ["fx", "export"])
def test_a_quantized_network_of_either_way_trains(route: Any) -> None:
    qann = ps.quantize(Trained().train(), SPEC, example=X, route=route)
    ps.calibrate(qann, [X])
    assert qann.training
    before = {name: value.clone() for name, value in qann.state_dict().items()}
    assert not torch.equal(qann(X), qann(X))  # dropout is on
    optimizer = torch.optim.SGD(qann.parameters(), 0.1)
    F.cross_entropy(qann(X), torch.tensor([0, 1, 2, 0])).backward()
    optimizer.step()
    after = qann.state_dict()
    for name in ("conv.weight", "norm.weight", "head.bias", "norm.running_mean", "norm.running_var"):
        assert not torch.equal(before[f"network.{name}"], after[f"network.{name}"]), name
    assert int(after["network.norm.num_batches_tracked"]) >= 3
    assert all(site.offset.grad is not None for site in qann.sites().values())
    qann.eval()
    with torch.no_grad():
        assert torch.equal(qann(X), qann(X))
        assert torch.equal(ps.convert(qann)(X), qann(X))
