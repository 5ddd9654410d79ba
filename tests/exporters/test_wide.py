"""Means of very many codes, and what reads them: no digit of the weights is lost, and no sum leaves its type."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import polarspike as ps
from polarspike import integer
from polarspike.errors import ExportError
from polarspike.exporters.integer import integer_network
from polarspike.integer import IntegerNetwork

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from polarspike.exporters import onnx_int8, runtime
from tests.exporters.test_integer import apart, spiking, wrong


class Head(nn.Module):
    """A layer with a site behind the mean over the whole image, and the answers."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, channels, 1), nn.Linear(channels, 16), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.hidden(torch.relu(self.conv(x)).mean((2, 3)))))  # type: ignore[no-any-return]


class Read(nn.Module):
    """Codes that a layer reads and means of which ``mode`` reads: a sum, or a convolution."""

    def __init__(self, mode: str) -> None:
        super().__init__()
        self.mode = mode
        self.stem, self.side = nn.Conv2d(1, 6, 1), nn.Conv2d(6, 6, 1, stride=8)
        self.conv, self.hidden, self.head = nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 6), nn.Linear(6, 3)
        self.act = nn.LeakyReLU(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        side = self.head(torch.relu(self.side(x)).mean((2, 3)))
        if self.mode == "sum":
            made = self.act(x.mean((2, 3)) - 0.2)
        else:
            made = torch.relu(self.conv(functional.avg_pool2d(x, 28))).mean((2, 3))
        return self.head(torch.relu(self.hidden(made))) + side  # type: ignore[no-any-return]


def images(count: int, size: int) -> Tensor:
    """Images of different brightness, whose means differ."""
    return torch.randn(count, 1, size, size) * (torch.rand(count, 1, 1, 1) + 0.5) + torch.randn(count, 1, 1, 1)


def synapses(made: IntegerNetwork) -> list[integer.Instruction]:
    return [part for part in made.instructions if part.kind == "synapse"]


def operators(made: IntegerNetwork) -> list[str]:
    return [node.op_type for node in onnx_int8.model_of(made, "polarspike").graph.node]


@pytest.mark.parametrize(("channels", "size", "shrinks"), [(32, 28, False), (32, 112, True), (512, 28, True)])
def test_weights_behind_a_large_mean_keep_their_digits(channels: int, size: int, shrinks: bool) -> None:
    torch.manual_seed(0)
    x = images(4, size)
    snn = spiking(Head(channels), x, ps.QuantSpec(0, 15))
    made = integer_network(snn, x, [x])
    hidden = synapses(made)[1]
    assert np.abs(hidden.tensors["weight"]).max() >= 64 and (hidden.tensors["weight"] == 0).mean() < 0.03
    assert any(part.kind == "shrink" for part in made.instructions) == shrinks
    assert apart(snn, made, x) < 0.06
    for values in (x, 30 * x, -30 * x):
        assert wrong(made, {made.inputs[0][0]: values.numpy()}) == 0


def test_answers_behind_a_large_mean_are_near_and_whole_sums_beyond_float32_are_exact() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 512, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 5))
    x = images(6, 14)
    snn = spiking(model, x, ps.QuantSpec(0, 15))
    made = integer_network(snn, x, [x])
    assert operators(made).count("MatMul") == 2  # one for each digit
    y, given = snn(x).detach().numpy(), {made.inputs[0][0]: x.numpy()}
    meant = dict(integer.trace(made, given))[made.outputs[0][0]]
    assert np.sqrt(((meant - y) ** 2).mean()) < 0.02 * y.std()
    found = runtime.session(onnx_int8.model_of(made, "polarspike"), 1).run(None, given)[0]
    assert np.array_equal(found, meant)


@pytest.mark.parametrize("mode", ["sum", "convolution"])
def test_means_of_codes_enter_sums_and_convolutions(mode: str) -> None:
    torch.manual_seed(0)
    x = images(3, 112)
    snn = spiking(Read(mode), x, ps.QuantSpec(15, 15))
    made = integer_network(snn, x, [x])
    assert apart(snn, made, x) < 0.12
    for values in (x, 30 * x):
        assert wrong(made, {made.inputs[0][0]: values.numpy()}) == 0


def test_dyadic_networks_stay_exact() -> None:
    torch.manual_seed(0)
    x = images(4, 32)
    qann = ps.quantize(Head(8).eval(), ps.QuantSpec(7, 15, inputs=True), example=x)
    ps.calibrate(qann, [x])
    ps.snap_steps(qann, [x])
    ps.quantize_weights(qann, 6, dyadic=True)
    snn = ps.convert(qann)
    made = integer_network(snn, x, [x])
    assert any(made.ranges[name][1] == 15 * 32 * 32 for name in made.ranges)  # more than the parts that a mean may have
    assert apart(snn, made, x) == 0.0 and not any(part.kind == "shrink" for part in made.instructions)
    assert wrong(made, {made.inputs[0][0]: x.numpy()}) == 0


def test_sums_that_float32_cannot_divide_are_refused_by_name() -> None:
    x = images(1, 600)
    snn = spiking(Head(2), x, ps.QuantSpec(0, 15))
    with pytest.raises(
        ExportError, match="sums of codes up to 5,400,000, more than 4,194,304; take the mean in two stages"
    ):
        integer_network(snn, x, [x])


class Both(nn.Module):
    """The mean and the maximum of every channel, side by side in front of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.hidden, self.head = nn.Conv2d(1, 32, 3, padding=1), nn.Linear(64, 16), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.conv(x))
        x = torch.cat([x.mean((2, 3)), functional.max_pool2d(x, x.shape[-1]).flatten(1)], 1)
        return self.head(torch.relu(self.hidden(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("size", [4, 28])
def test_means_beside_codes_keep_their_digits(size: int) -> None:
    torch.manual_seed(0)
    x = images(8, size)
    snn = spiking(Both(), x, ps.QuantSpec(0, 15))
    made = integer_network(snn, x, [x])
    assert ("MatMul" in made.float_operators()) == (size == 28)  # steps too far apart for one grid of weights
    meant = dict(integer.trace(made, {made.inputs[0][0]: x.numpy()}))[made.outputs[0][0]]
    y = snn(x).detach().numpy()
    assert np.sqrt(((meant - y) ** 2).mean()) < 0.15 * y.std() and (meant.argmax(1) == y.argmax(1)).all()


@pytest.mark.parametrize(("weight", "bias", "what"), [(1e-9, 50.0, "ends"), (1.0, 0.0, "is refused")])
def test_extreme_sums_end_or_are_refused(weight: float, bias: float, what: str) -> None:
    from polarspike.integer import Instruction

    inputs = 70_000 if what == "is refused" else 4
    tensors = {
        "weight": np.full((1, inputs), 127 if weight == 1.0 else 0, np.int8),
        "bias": np.array([round(bias * 2**20)], np.int32),
        "divisor": np.array([2**20 - 1], np.int32),
    }
    parts = (
        Instruction("quantize", ("x",), "q", {}, {"step": np.ones((), np.float32)}, (0, 60)),
        Instruction("window_sum", ("q",), "w", {"axes": [2], "keepdims": False}, {}, (0, 120)),
        Instruction("synapse", ("w",), "s", {"operator": "linear", "axis": 1, "shape": [1]}, tensors, (0, 1)),
        Instruction("decode", ("s",), "y", {}, {"step": np.ones((), np.float32)}),
    )
    made = IntegerNetwork((("x", (inputs, 2)),), (("y", (1,)),), parts, {}, {"s": "s"}, "{}")
    if what == "is refused":
        with pytest.raises(ExportError, match="a sum of 70,000 wide codes, too many for float32; take them in parts"):
            onnx_int8.model_of(made, "polarspike")
    else:
        assert wrong(made, {"x": np.ones((2, inputs, 2), np.float32)}) == 0
