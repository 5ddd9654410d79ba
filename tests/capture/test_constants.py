"""What depends on no input is folded: as a parameter where parameters went in, in the order of in-place operators."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarspike as ps
from polarspike.capture import capture

X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))


class Net(nn.Module):
    def __init__(self, body: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.weight, self.gain = nn.Parameter(torch.randn(4, 3, 3, 3)), nn.Parameter(torch.rand(4, 1, 1, 1) + 0.5)
        self.register_buffer("table", torch.arange(12.0).view(4, 3))
        self.register_buffer("index", torch.tensor([2, 0, 1, 1]))
        self.head, self.body = nn.Linear(4, 3), body

    def forward(self, x: Tensor) -> Any:
        return self.body(self, x)


def standardized_weight(n: Net, x: Tensor) -> Tensor:
    mean = n.weight.mean((1, 2, 3), keepdim=True)
    weight = n.gain * (n.weight - mean) / (n.weight.std((1, 2, 3), keepdim=True) + 1e-5)
    return n.head(F.relu(F.conv2d(x, weight)).mean((2, 3)))


def table_looked_up(n: Net, x: Tensor) -> Tensor:
    bias = n.table.t()[n.index].sum(1)
    return n.head(F.relu(F.conv2d(x, n.weight) + bias.view(4, 1, 1)).mean((2, 3)))


def built_in_place(n: Net, x: Tensor) -> Tensor:
    scale = torch.full((4, 1, 1), 2.0)
    scale.mul_(3.0)
    scale += 1.0
    return n.head(F.relu(F.conv2d(x, n.weight) * scale).mean((2, 3)))


def of_the_size_of_the_input(n: Net, x: Tensor) -> Tensor:
    ramp = torch.arange(x.shape[-1] - 2, device=x.device) / x.shape[-1]
    return n.head(F.relu(F.conv2d(x, n.weight) + ramp).mean((2, 3)))


BODIES = [standardized_weight, table_looked_up, built_in_place]


@pytest.mark.parametrize("route", ["fx", "export"])
@pytest.mark.parametrize("body", BODIES, ids=lambda body: body.__name__)
def test_what_depends_on_no_input_is_folded(body: Callable[..., Any], route: Any, tmp_path: Path) -> None:
    model = Net(body).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    qann = ps.quantize(model, ps.QuantSpec(), example=X, route=route)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    with qann.eval().float_activations():
        torch.testing.assert_close(qann(X), model(X), rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(qann(X[:1]), model(X[:1]), rtol=1e-5, atol=1e-6)
    ps.calibrate(qann, [X])
    ps.save(qann, tmp_path / "net.safetensors")
    again = ps.load(tmp_path / "net.safetensors")
    assert torch.equal(again(X), qann(X))
    snn = ps.convert(qann)
    ps.save(snn, tmp_path / "snn.safetensors")
    loaded = ps.load(tmp_path / "snn.safetensors")
    assert torch.equal(loaded(X, timesteps=3), snn(X, timesteps=3))


@pytest.mark.parametrize("route", ["fx", "export"])
def test_a_folded_weight_trains_as_it_is(route: Any) -> None:
    network = capture(Net(standardized_weight), X, route)
    (convolution,) = [part for part in network.modules() if isinstance(part, nn.Conv2d)]
    assert isinstance(convolution.weight, nn.Parameter) and convolution.weight.requires_grad
    network.train()(X).sum().backward()
    assert convolution.weight.grad is not None
    assert "gain" not in dict(network.named_parameters())  # nothing reads it any more


def test_a_folded_table_does_not_train() -> None:
    network = capture(Net(table_looked_up), X, "export")
    folded = [name for name, _ in network.named_buffers() if name.startswith("folded")]
    assert folded and not any("folded" in name for name, _ in network.named_parameters())
    assert not any(node.target in ("t", torch.t) for node in network.graph.nodes)


@pytest.mark.parametrize("route", ["fx", "export"])
def test_what_depends_on_the_size_of_an_input_is_not(route: Any) -> None:
    model = Net(of_the_size_of_the_input).eval()
    network = capture(model, X, route)
    torch.testing.assert_close(network(X), model(X), rtol=1e-5, atol=1e-6)
    if route == "fx":  # sizes stay free
        x = X[..., :6]
        torch.testing.assert_close(network(x), model(x), rtol=1e-5, atol=1e-6)
