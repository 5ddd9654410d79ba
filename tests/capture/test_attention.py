"""Attention written out: every form computes what the fused one computes, and keeps its sites; what it cannot is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarspike as ps
from polarspike.capture import capture
from polarspike.errors import OperatorError
from tests.networks import codes_of

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(4))
BLOCKED = torch.ones(5, 5).triu(1).bool()


class Fused(nn.Module):
    def __init__(self, call: Callable[..., Tensor]) -> None:
        super().__init__()
        self.qkv, self.head = nn.Linear(8, 24), nn.Linear(8, 3)
        self.register_buffer("blocked", BLOCKED)
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4).unbind(0)
        return self.head(self.call(self, q, k, v).transpose(1, 2).flatten(2))


CALLS: dict[str, Callable[..., Tensor]] = {
    "plain": lambda n, q, k, v: F.scaled_dot_product_attention(q, k, v),
    "keywords": lambda n, q, k, v: F.scaled_dot_product_attention(key=k, query=q, value=v, scale=0.3),
    "causal": lambda n, q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True),
    "boolean": lambda n, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=~n.blocked),
    "added": lambda n, q, k, v: F.scaled_dot_product_attention(q, k, v, torch.where(n.blocked, -torch.inf, 0.5)),
    "dropout that follows the mode": lambda n, q, k, v: F.scaled_dot_product_attention(
        q, k, v, dropout_p=0.1 if n.training else 0.0
    ),
}


@pytest.mark.parametrize("route", ["fx", "export"])
@pytest.mark.parametrize("name", CALLS)
def test_written_out_it_computes_the_same(name: str, route: Any) -> None:
    model = Fused(CALLS[name]).eval()
    network = capture(model, X, route)
    assert not any(node.target is F.scaled_dot_product_attention for node in network.graph.nodes)
    torch.testing.assert_close(network(X), model(X), rtol=1e-5, atol=1e-6)
    x = X[:1, :3] if name in ("plain", "causal") and route == "fx" else X[:1]  # torch.fx keeps the length free, too
    torch.testing.assert_close(network(x), model(x))
    roles = [site.name for site in ps.inspect(model, ps.QuantSpec(), X, route=route).sites]
    assert set(roles) == {"query", "key", "probabilities", "value", "head_input"} and len(roles) == 5


@torch.no_grad()
@pytest.mark.parametrize("name", ["causal", "boolean", "added"])
@pytest.mark.parametrize(
    "spec", [ps.ConvertSpec(), ps.ConvertSpec(max_spikes_per_step=2), ps.ConvertSpec(neuron="holding")]
)
def test_masked_attention_over_time(name: str, spec: ps.ConvertSpec) -> None:
    qann = ps.quantize(Fused(CALLS[name]).eval(), ps.QuantSpec(3, 4), example=X)
    ps.calibrate(qann, [X])
    qann.double().eval()
    snn = ps.convert(qann, spec)
    frames = torch.randn(3, 4, 5, 8, dtype=torch.float64)
    state = None
    for t in range(4):
        answer, state = snn.step(frames[:, t], state)
    answer, state = snn.drain(frames[:, 0], state)
    holding = spec.neuron == "holding"
    fine = qann if holding else ps.refine(qann, 4)
    assert bool(answer.isfinite().all())
    for site, codes in codes_of(fine, frames.mean(1)).items():
        assert torch.equal(state.neurons[site].codes / (4 if holding else 1), codes), site
    torch.testing.assert_close(answer, fine(frames.mean(1)), rtol=1e-9, atol=1e-9)
    still = snn(X.double(), timesteps=3)
    torch.testing.assert_close(still, (qann if holding else ps.refine(qann, 3))(X.double()), rtol=1e-9, atol=1e-9)


def test_what_is_not_written_out_is_refused() -> None:
    grouped = Fused(lambda n, q, k, v: F.scaled_dot_product_attention(q, k[:, :1], v[:, :1], enable_gqa=True))
    with pytest.raises(
        OperatorError, match=r"test_attention.py.*grouped-query attention.*repeat_interleave before the call"
    ):
        capture(grouped.eval(), X, "fx")
    random = Fused(lambda n, q, k, v: F.scaled_dot_product_attention(q, k, v, dropout_p=0.1))
    with pytest.raises(OperatorError, match=r"dropout_p=0.1 stays random in evaluation mode; pass dropout_p=self.p if"):
        capture(random.eval(), X, "fx")


def test_attention_of_an_object_with_its_own_dropout_trains() -> None:
    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.mha, self.head = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            y, _ = self.mha(x, x, x)
            return self.head(y)

    qann = ps.quantize(Block().train(), ps.QuantSpec(), example=X)
    ps.calibrate(qann, [X])
    assert not torch.equal(qann(X), qann(X))
    qann(X).sum().backward()
    assert all(value.grad is not None for value in qann.parameters())
    qann.eval()
    assert torch.equal(qann(X), qann(X))
