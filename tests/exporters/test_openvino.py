"""The file in whole numbers has the same codes in OpenVINO, whose graph is rewritten before it runs."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import polarspike as ps
from polarspike import integer
from polarspike.exporters.integer import integer_network
from polarspike.integer import IntegerNetwork
from tests.exporters.test_integer import spiking
from tests.exporters.test_integer import wrong as in_runtime
from tests.exporters.test_wide import Head

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from polarspike.exporters import onnx_int8


def operators(made: IntegerNetwork) -> dict[str, str]:
    """The operator behind every name of the ONNX graph."""
    graph = onnx_int8.model_of(made, "polarspike").graph
    return {node.output[0]: node.op_type for node in graph.node}


def wrong(made: IntegerNetwork, x: Tensor) -> int:
    """Codes that OpenVINO places otherwise than NumPy."""
    openvino = pytest.importorskip("openvino")
    model = onnx_int8.model_of(made, "polarspike", codes=True).SerializeToString()
    core = openvino.Core()
    found = core.compile_model(core.read_model(model), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([x.numpy()])
    values, points = dict(integer.trace(made, {made.inputs[0][0]: x.numpy()})), onnx_int8.zero_points(made)
    return sum(
        int((found[f"{site}/bytes"].astype(np.int64) - points[value] != values[value]).sum())
        for site, value in made.sites.items()
    )


def whole_pixels(*shape: int) -> Tensor:
    """Images on the grid of bytes that the network's first quantizer gets, so that no pixel is near a boundary."""
    return torch.randint(0, 256, shape) / 255


@pytest.mark.parametrize("name", ["cnn", "resnet20"])
def test_trained_kinds_of_networks(name: str) -> None:
    model, x = ps.models.create(name, num_classes=10, in_channels=1, width=8), whole_pixels(16, 1, 16, 16)
    snn = spiking(model, (x - 0.3) / 0.3, ps.QuantSpec(0, 7))
    snn.notes = {"normalization": {"mean": [0.3], "std": [0.3]}}
    x = (x - 0.3) / 0.3
    assert wrong(integer_network(snn, x, [x]), x) == 0


class Summed(nn.Module):
    """A sum of codes and what several convolutions make of it, in front of a site."""

    def __init__(self, branches: int, curve: Callable[[Tensor], Tensor], codes_first: bool) -> None:
        super().__init__()
        self.stem, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(6, 3)
        self.branches = nn.ModuleList([nn.Conv2d(6, 6, 3, padding=1) for _ in range(branches)])
        self.curve, self.codes_first = curve, codes_first

    def forward(self, x: Tensor) -> Tensor:
        x = self.curve(self.stem(x))
        for branch in self.branches:
            x = x + branch(x) if self.codes_first else branch(x) + x
        return self.head(torch.relu(x).mean((2, 3)))  # type: ignore[no-any-return]


CURVES: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": torch.relu,
    "leaky": lambda x: functional.leaky_relu(x, 0.25),
}


@pytest.mark.parametrize("codes_first", [True, False])
@pytest.mark.parametrize("branches", [1, 2, 3])
@pytest.mark.parametrize("curve", CURVES)
def test_sums_of_codes_and_several_convolutions(curve: str, branches: int, codes_first: bool) -> None:
    x = whole_pixels(32, 2, 8, 8)
    snn = spiking(Summed(branches, CURVES[curve], codes_first), x, ps.QuantSpec(3, 8))
    snn.notes = {"normalization": {"mean": [0.0], "std": [1.0]}}
    made = integer_network(snn, x, [x])
    assert any(part.kind == "combine" and len(part.inputs) == branches + 1 for part in made.instructions)
    assert wrong(made, x) == 0


def test_codes_are_added_last_and_no_larger_of_two_stands_behind_a_dequantization() -> None:
    x = whole_pixels(8, 2, 8, 8)
    made = integer_network(spiking(Summed(2, CURVES["leaky"], True), x, ps.QuantSpec(3, 8)), x, [x])
    graph, by = onnx_int8.model_of(made, "polarspike").graph, operators(made)
    (largest,) = [node for node in graph.node if node.op_type == "Max"]
    assert sorted(by[name] for name in largest.input) == ["Mul", "Sub"]
    last = [node for node in graph.node if node.op_type == "Add" and by.get(node.input[0]) == "Add"]
    assert (
        len(last) == 1
        and {node.output[0]: node.input[0] for node in graph.node}[last[0].input[1]] == "leaky_relu_stretched"
    )


@pytest.mark.parametrize(("channels", "size"), [(32, 112), (512, 14)])
def test_sums_of_very_many_codes(channels: int, size: int) -> None:
    torch.manual_seed(0)
    x = whole_pixels(3, 1, size, size)
    snn = spiking(Head(channels), x, ps.QuantSpec(0, 15))
    snn.notes = {"normalization": {"mean": [0.0], "std": [1.0]}}
    assert wrong(integer_network(snn, x, [x]), x) == 0


class Unbiased(nn.Module):
    """A layer on tokens whose answer stays float, for the norm behind it."""

    def __init__(self, bias: bool) -> None:
        super().__init__()
        self.one, self.two, self.norm = nn.Linear(6, 8), nn.Linear(8, 8, bias=bias), nn.LayerNorm(8)
        self.three, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.two(torch.relu(self.one(x))))
        return self.head(torch.relu(self.three(x)).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("tokens", [8, 9])
def test_scales_of_features_are_not_those_of_tokens(tokens: int) -> None:
    """As many tokens as features was wrong without an error; another number was an error."""
    torch.manual_seed(0)
    x = torch.randn(16, tokens, 6)
    made = integer_network(spiking(Unbiased(False), x, ps.QuantSpec(7, 8)), x, [x])
    assert wrong(made, x) == 0


@pytest.mark.parametrize("bias", [False, True])
def test_no_layout_behind_sums_without_a_bias(bias: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 8, 6)
    made = integer_network(spiking(Unbiased(bias), x, ps.QuantSpec(7, 8)), x, [x])
    graph, by = onnx_int8.model_of(made, "polarspike").graph, operators(made)
    behind = [by.get(node.input[0]) for node in graph.node if node.op_type == "Reshape"]
    assert behind.count("Gemm") == int(bias)
    assert in_runtime(made, {made.inputs[0][0]: x.numpy()}) == 0
