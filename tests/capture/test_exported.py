"""Exported programs: overloads become operators of the table, names and free batches come back, modes are followed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils import _pytree as pytree

import polarspike as ps
from polarspike.capture import capture
from polarspike.errors import CaptureError, OperatorError
from polarspike.graph.operators import meaning_of

X = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(9))


class Net(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.peak = nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AdaptiveMaxPool2d(2)
        self.register_buffer("places", torch.tensor([0, 2]))
        self.plain = torch.tensor([0.5, -0.5, 1.0, 2.0]).view(4, 1, 1)  # no buffer
        self.body = body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, torch.relu(self.norm(self.conv(x))))


def turned(angle: Tensor, dims: int) -> Tensor:
    """Affine maps, one a sample, near the identity."""
    return torch.eye(dims, dims + 1) + 0.1 * angle.view(-1, 1, 1)


def sampled(x: Tensor, angle: Tensor, mode: str, padding: str, align: bool) -> Tensor:
    grid = F.affine_grid(turned(angle, 2), [*x.shape[:2], 6, 5], align)
    return F.grid_sample(x, 1.3 * grid, mode=mode, padding_mode=padding, align_corners=align)


BODIES: dict[str, Callable[[Any, Tensor], Any]] = {
    "pooling": lambda n, x: n.peak(F.max_pool2d(x, 2)) + F.adaptive_max_pool2d(x, 2),
    "flat pooling": lambda n, x: F.adaptive_max_pool1d(F.max_pool1d(x.flatten(2), 2), 3),
    "maximum": lambda n, x: torch.max(x, dim=1)[0] + x.amax(1) + x.max(dim=1, keepdim=True)[0].sum(1),
    "slices": lambda n, x: x[:, -2:, ::2, 1:] + x[:, :2, 1::2, :-1],
    "indexing": lambda n, x: x[:, n.places] * x[..., [1, 0]].sum(),
    "interpolation": lambda n, x: F.interpolate(x, scale_factor=2, mode="bilinear") + F.interpolate(x, size=(16, 16)),
    "sampling": lambda n, x: (
        sampled(x, x.flatten(1).mean(1), "bilinear", "zeros", False)
        + sampled(x, x.flatten(1).mean(1), "nearest", "border", True)
        + sampled(x, x.flatten(1).mean(1), "bicubic", "reflection", False)
    ),
    "sampling of volumes": lambda n, x: F.grid_sample(
        x[:, None], F.affine_grid(turned(x[:, 0, 0, 0], 3), [x.shape[0], 1, 3, 5, 4], False), align_corners=False
    ),
    "statistics": lambda n, x: torch.var_mean(x, dim=(2, 3)),
    "norms": lambda n, x: F.normalize(x, dim=1) + torch.linalg.vector_norm(x, dim=1, keepdim=True),
    "einsum": lambda n, x: torch.einsum("bchw,bdhw->bcd", x, x),
    "constant": lambda n, x: x * n.plain,
    "types": lambda n, x: (x.float() * 2).to(torch.float32).type_as(x),
    "in place": lambda n, x: (2 * x).sub_(1).clamp_(-0.5, 0.5).exp_() + F.silu(x + 1, inplace=True),
    "activations": lambda n, x: (
        F.hardswish(x) + F.mish(x) + F.elu(x) + F.hardtanh(x) + F.leaky_relu(-x) + F.glu(x, 1).sum()
    ),
    "chunks": lambda n, x: torch.cat([part.flip(1) for part in x.chunk(2, 1)], 1) + torch.stack(x.unbind(1), 1),
    "shapes": lambda n, x: x.permute(0, 2, 3, 1).reshape(x.shape[0], -1, 2).transpose(1, 2).roll(1, 2),
    "mapping": lambda n, x: {"a": [x, (x.mean((2, 3)),)], "b": 2},
}


def leaves(answer: Any) -> list[Any]:
    return pytree.tree_leaves(answer)


@torch.no_grad()
@pytest.mark.parametrize("name", BODIES)
def test_an_exported_graph_computes_the_model_at_any_batch(name: str) -> None:
    model = Net(BODIES[name]).eval()
    network = capture(model, X, "export")
    assert [node.target for node in network.graph.nodes if node.op == "placeholder"] == ["x"]
    for x in (X, X[:1], torch.cat([X, X[:3]])):
        for got, want in zip(leaves(network(x.clone())), leaves(model(x.clone())), strict=True):
            torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for node in network.graph.nodes:
        assert not node.op.startswith("call") or meaning_of(network, node) is not None
    names = {name for name, _ in network.named_parameters()}
    assert names == {"conv.weight", "conv.bias", "norm.weight", "norm.bias"}
    assert network.get_submodule("norm").num_batches_tracked.numel() == 1  # type: ignore[union-attr]


def test_inputs_keep_their_names_defaults_and_nesting() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, a: Tensor, flag: bool = True, *, rest: Any, mask: Tensor | None = None) -> Tensor:
            y = torch.relu(self.one(a) + rest["b"][0] * 2)
            y = self.two(y if flag else -y)
            return y if mask is None else y + mask

    model = Several().eval()
    inputs = {"a": torch.randn(4, 4), "rest": {"b": [torch.randn(4, 4)]}, "mask": torch.randn(4, 4)}
    for given in (inputs, {key: inputs[key] for key in ("a", "rest")}):
        one, other = (capture(model, given, route) for route in ("fx", "export"))
        assert [node.target for node in one.graph.nodes if node.op == "placeholder"] == [
            node.target for node in other.graph.nodes if node.op == "placeholder"
        ]
        torch.testing.assert_close(other(**given), model(**given))


def test_integer_inputs_are_the_same_at_every_step() -> None:
    class Words(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.norm = nn.Embedding(9, 8, padding_idx=0), nn.LayerNorm(8)
            self.mha, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            x = self.norm(self.table(ids))
            x = x + self.mha(x, x, x, key_padding_mask=ids == 0, need_weights=False)[0]
            return self.head(torch.tanh(x)[:, 0])

    model, ids = Words().eval(), torch.randint(0, 9, (4, 5), generator=torch.Generator().manual_seed(1))
    ids[:, 0] = 3
    names = []
    for route in ("auto", "export"):
        qann = ps.quantize(model, ps.QuantSpec(3, 4), example=ids, route=route)  # type: ignore[arg-type]
        ps.calibrate(qann, [ids])
        snn = ps.convert(qann.eval())
        names.append(list(qann.sites()))
        with torch.no_grad():
            assert torch.equal(snn(ids), qann(ids))
            wide = ps.convert(qann.double())
            torch.testing.assert_close(wide(ids, timesteps=3), ps.refine(qann, 3)(ids), rtol=1e-9, atol=1e-9)
            assert torch.equal(wide(ids[:2], timesteps=3), wide(ids[:2], timesteps=3))
    assert names[0] == names[1]


def test_what_an_overload_cannot_say_is_refused_by_name() -> None:
    with pytest.raises(OperatorError, match=r"test_exported.py.*max pooling with return_indices=True"):
        capture(Net(lambda n, x: F.max_pool2d(x, 2, return_indices=True)[1].float()), X, "export")
    assert capture(Net(lambda n, x: F.max_pool2d(x, 2, return_indices=True)[0]), X, "export")
    with pytest.raises(OperatorError, match=r"test_exported.py.*no rule for .*cummax"):
        capture(Net(lambda n, x: x.cummax(1)[0]), X, "export")
    with pytest.raises(CaptureError, match=r"torch.export at .*test_exported.py.*Control flow"):
        capture(Net(lambda n, x: x if x.sum() > 0 else -x), X, "export")
