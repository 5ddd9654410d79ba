"""The running-mean contract without sites: the mean of T answers is the answer to the mean input, whatever the operator."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

from polarspike.capture import capture
from polarspike.common.signatures import Signature
from polarspike.specs import ConvertSpec
from polarspike.spiking import SpikingNetwork

pytestmark = pytest.mark.usefixtures("no_grad")
TOTALS = (1, 2, 5, 16)


class Body(nn.Module):
    """A function of one or two signals (4, 6, 8), with some constants."""

    def __init__(self, function: Callable[..., Any], count: int, **parts: nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.function, self.count = function, count
        self.weight = nn.Parameter(torch.randn(8, 8, generator=generator) / 3)
        self.positive = nn.Parameter(torch.rand(8, generator=generator) + 0.5)
        self.register_buffer("mask", torch.rand(6, 6, generator=generator) < 0.4)
        self.register_buffer("ahead", torch.ones(6, 6).triu(1).bool())
        self.norm, self.group = nn.LayerNorm(8), nn.GroupNorm(3, 6)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.instance, self.rms, self.prelu = nn.InstanceNorm1d(6, affine=True), nn.RMSNorm(8), nn.PReLU(6, 0.4)
        for module in (self.norm, self.group, self.instance):
            nn.init.uniform_(module.weight, 0.5, 1.5)

    def forward(self, x: Tensor, y: Tensor | None = None) -> Any:
        return self.function(self, x) if y is None else self.function(self, x, y)


def masked_softmax(n: Any, x: Tensor, y: Tensor) -> Tensor:
    scores = torch.matmul(x, y.transpose(1, 2)).masked_fill(n.ahead, -math.inf)
    return torch.softmax(scores, dim=-1)


def added_mask(n: Any, x: Tensor) -> Tensor:
    return torch.softmax(x + torch.zeros(6, 1).masked_fill(n.mask[:, :1], -math.inf), dim=1)


ONE: dict[str, Callable[..., Any]] = {
    "softmax": lambda n, x: torch.softmax(x, -1),
    "log softmax": lambda n, x: F.log_softmax(x, 1),
    "added mask": added_mask,
    "layer norm": lambda n, x: n.norm(x),
    "group norm": lambda n, x: n.group(x),
    "instance norm": lambda n, x: n.instance(x),
    "rms norm": lambda n, x: n.rms(x),
    "normalize": lambda n, x: F.normalize(x, dim=-1),
    "gelu": lambda n, x: F.gelu(x),
    "silu": lambda n, x: F.silu(x),
    "tanh": lambda n, x: torch.tanh(x),
    "elu": lambda n, x: F.elu(x),
    "hardswish": lambda n, x: F.hardswish(x),
    "prelu": lambda n, x: n.prelu(x),
    "relu": lambda n, x: F.relu(x),
    "glu": lambda n, x: F.glu(x, -1),
    "threshold": lambda n, x: F.hardshrink(x, 0.3),
    "pow": lambda n, x: x**3,
    "square root": lambda n, x: torch.sqrt(x.abs() + 0.1),
    "exp": lambda n, x: torch.exp(-x),
    "clamp": lambda n, x: x.clamp(-0.5, 0.5),
    "power of a constant": lambda n, x: 2.0**x,
    "reciprocal": lambda n, x: n.weight.sum() / (x * x + 1),
    "self product": lambda n, x: x * x,
    "max with dim": lambda n, x: torch.max(x, 1)[0],
    "max": lambda n, x: x.amax((1, 2)),
    "max pooling": lambda n, x: F.max_pool1d(x, 3, 2, 1),
    "norm": lambda n, x: torch.linalg.vector_norm(x, dim=-1),
    "variance": lambda n, x: x.var(1),
    "variance and mean": lambda n, x: torch.var_mean(x, dim=1),
    "logsumexp": lambda n, x: torch.logsumexp(x, 1),
    "product of a row": lambda n, x: x[:, :3].prod(1),
    "cumsum": lambda n, x: torch.cumsum(x, 1),
    "interpolate": lambda n, x: F.interpolate(x, scale_factor=1.5, mode="linear", align_corners=False),
    "linear": lambda n, x: F.linear(x, n.weight, n.positive),
    "einsum with a constant": lambda n, x: torch.einsum("bij,jk->bik", x, n.weight),
    "pad": lambda n, x: F.pad(x, (1, 2), value=0.7),
    "where": lambda n, x: torch.where(n.mask[:, :1], x, 2 * x + 1),
    "triangle": lambda n, x: x[:, :6, :6].tril(),
    "roll": lambda n, x: torch.roll(x, 2, 1).flip(2),
    "self attention": lambda n, x: n.attention(x, x, x, need_weights=False)[0],
    "attention with weights": lambda n, x: n.attention(x, x, x, attn_mask=n.ahead),
    "fused attention": lambda n, x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    "chain": lambda n, x: F.gelu(n.norm(torch.softmax(x, -1) @ n.weight)) * x.sigmoid(),
    "tree": lambda n, x: {"a": torch.tanh(x), "b": [x, (x.mean(1), 2)]},
}
TWO: dict[str, Callable[..., Any]] = {
    "product": lambda n, x, y: x * y,
    "quotient": lambda n, x, y: x / (y * y + 1),
    "matmul": lambda n, x, y: torch.matmul(x, y.transpose(1, 2)),
    "einsum": lambda n, x, y: torch.einsum("bij,bkj->bik", x, y),
    "addcmul": lambda n, x, y: torch.addcmul(n.positive, x, y, value=0.5),
    "baddbmm": lambda n, x, y: torch.baddbmm(y[:, :, :6], x, y.transpose(1, 2)),
    "lerp": lambda n, x, y: torch.lerp(x, y, n.positive),
    "lerp by a signal": lambda n, x, y: torch.lerp(n.positive, x, y),
    "maximum": lambda n, x, y: torch.maximum(x, y),
    "hypotenuse": lambda n, x, y: torch.hypot(x, y),
    "masked softmax": masked_softmax,
    "cross attention": lambda n, x, y: n.attention(x, y, y, attn_mask=n.ahead, need_weights=False)[0],
    "cosine": lambda n, x, y: F.cosine_similarity(x, y, dim=-1),
    "cat": lambda n, x, y: torch.cat([x, y, n.positive.expand(4, 1, 8)], 1),
    "sum": lambda n, x, y: 2 * x - y / 3 + n.positive,
}


def made(name: str, route: str = "fx") -> tuple[SpikingNetwork, nn.Module, tuple[Tensor, ...]]:
    function, count = (ONE[name], 1) if name in ONE else (TWO[name], 2)
    model = Body(function, count).eval()
    frames = tuple(torch.randn(max(TOTALS), 4, 6, 8) for _ in range(count))
    example = tuple(x[0] for x in frames)
    return SpikingNetwork(capture(model, example, route), Signature.of(example), ConvertSpec()), model, frames  # type: ignore[arg-type]


def leaves(answer: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor)]


def close(got: Any, want: Any, bound: float) -> None:
    assert len(leaves(got)) == len(leaves(want))
    for have, expected in zip(leaves(got), leaves(want), strict=True):
        finite = expected.isfinite()
        assert torch.equal(have[~finite], expected[~finite])
        gap = (have - expected)[finite].abs().max() / expected[finite].abs().max()
        assert float(gap) <= bound


@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_the_mean_answer_to_varying_inputs_is_the_answer_to_their_mean(name: str) -> None:
    snn, model, frames = made(name)
    close(snn.network(*(x[0] for x in frames)), model(*(x[0] for x in frames)), 1e-6)
    state = None
    for t in range(1, max(TOTALS) + 1):
        answer, state = snn.step(tuple(x[t - 1] for x in frames), state)
        if t in TOTALS:
            want = model(*(x[:t].mean(0) for x in frames))
            close(answer, want, 1e-5)
            close(snn(*(x[:t] for x in frames), time_dim=0, execution="mean"), want, 1e-5)


@pytest.mark.parametrize("name", [*ONE, *TWO])
def test_a_repeated_input_gets_the_same_answer_at_every_step(name: str) -> None:
    snn, _, frames = made(name)
    x = tuple(frame[0] for frame in frames)
    first = snn(*x)
    on_sums = "max pooling" in name or name in ("relu", "prelu", "max", "square root")  # f(t x) - f((t - 1) x) rounds
    for timesteps in TOTALS:
        for got, want in zip(leaves(snn(*x, timesteps=timesteps)), leaves(first), strict=True):
            if on_sums:
                torch.testing.assert_close(got, want, rtol=1e-6, atol=1e-6)
            else:
                assert torch.equal(got, want)


@pytest.mark.parametrize("name", ["masked softmax", "attention with weights", "group norm", "max with dim", "einsum"])
def test_the_contract_holds_for_exported_graphs(name: str) -> None:
    snn, model, frames = made(name, "export")
    close(snn(*(x[:5] for x in frames), time_dim=0), model(*(x[:5].mean(0) for x in frames)), 1e-5)


def test_a_long_stream_does_not_drift() -> None:
    snn, model, frames = made("chain")
    state, total = None, torch.zeros_like(frames[0][0])
    for t in range(200):
        x = frames[0][t % 16]
        total += x
        answer, state = snn.step(x, state)
    close(answer, model(total / 200), 1e-5)
