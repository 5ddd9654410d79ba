"""A convolution, its ReLU and the mean behind them in front of a site: one neuron of whole numbers, no float operator."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import polarspike as ps
from polarspike import integer
from polarspike.errors import ExportError
from polarspike.exporters.integer import integer_network
from polarspike.integer import IntegerNetwork, rounding
from polarspike.integer.lattice import fire

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from polarspike.exporters import onnx_int8
from tests.exporters.test_integer import apart, spiking, wrong

pytestmark = pytest.mark.filterwarnings("ignore:channels that never carry a signal")


class Pooled(nn.Module):
    """Two convolutions, ``pool`` between them, and the mean in front of the head."""

    def __init__(self, pool: Callable[[Tensor], Tensor], **options: int) -> None:
        super().__init__()
        self.pool = pool
        self.zero, self.one = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, **options)
        self.norm, self.two, self.head = nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3, padding=1), nn.Linear(6, 3)
        self.act = nn.LeakyReLU(0.5)
        with torch.no_grad():
            self.norm.running_mean.normal_()  # type: ignore[union-attr]
            self.norm.weight.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(self.act(self.zero(x)))))
        return self.head(torch.relu(self.two(self.pool(x))).mean((2, 3)))  # type: ignore[no-any-return]


POOLS: dict[str, Callable[[Tensor], Tensor]] = {
    "two": lambda x: functional.avg_pool2d(x, 2),
    "nine, overlapping": lambda x: functional.avg_pool2d(x, 3, 1, 1),
    "uneven": lambda x: functional.avg_pool2d(x, (2, 3), (1, 2), (1, 0)),
    "adaptive": lambda x: functional.adaptive_avg_pool2d(x, 2),
    "ceil mode that changes nothing": lambda x: functional.avg_pool2d(x, 2, ceil_mode=True),
    "dropout behind": lambda x: functional.dropout(functional.avg_pool2d(x, 2), 0.5, training=False),
}


def kinds(made: IntegerNetwork) -> list[str]:
    return [part.kind for part in made.instructions]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("pool", POOLS)
def test_the_mean_in_front_of_a_convolution_is_of_whole_numbers(pool: str, granularity: str) -> None:
    torch.manual_seed(0)
    x = torch.randn(24, 2, 8, 8)
    snn = spiking(Pooled(POOLS[pool]), x, ps.QuantSpec(3, 7, granularity=granularity))  # type: ignore[arg-type]
    made = integer_network(snn, x, [x])
    assert kinds(made).count("averaged") == 1 and not made.float_operators()
    assert apart(snn, made, x) < 0.06
    for values in (x, 30 * x):  # also where sums saturate
        assert wrong(made, {made.inputs[0][0]: values.numpy()}) == 0


@pytest.mark.parametrize("options", [{"groups": 2}, {"dilation": 2}, {"stride": 2}], ids=str)
def test_convolutions_of_all_kinds(options: dict[str, int]) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 2, 9, 9)
    model = Pooled(POOLS["two"], **options)
    with torch.no_grad():
        model.one.weight[1] = 0.0  # a channel that only its bias moves
    snn = spiking(model, x, ps.QuantSpec(3, 7))
    made = integer_network(snn, x, [x])
    assert kinds(made).count("averaged") == 1 and apart(snn, made, x) < 0.06
    assert wrong(made, {made.inputs[0][0]: x.numpy()}) == 0


def test_the_kernel_is_one_of_integers() -> None:
    x = torch.randn(12, 2, 8, 8)
    made = integer_network(spiking(Pooled(POOLS["two"]), x, ps.QuantSpec(3, 7)), x, [x])
    nodes = [node.op_type for node in onnx_int8.model_of(made, "polarspike").graph.node]
    assert nodes.count("ConvInteger") == 1 and nodes.count("Conv") == 2  # between quantization nodes: fused


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: functional.avg_pool2d(x, 2) + 0.1,
        lambda x: functional.avg_pool2d(x, 2).flatten(1).unflatten(1, (6, 4, 4)),
        lambda x: functional.avg_pool2d(functional.avg_pool2d(x, 2), 2),
        lambda x: functional.avg_pool2d(x, 8),  # too coarse in whole numbers
        lambda x: torch.cat([functional.avg_pool2d(x, 2), functional.avg_pool2d(x, 2)], 1)[:, 3:9],
        lambda x: functional.max_pool2d(functional.avg_pool2d(x, 2), 2),
    ],
    ids=["constant", "layout", "twice", "large window", "concatenation", "largest"],
)
def test_what_else_stands_behind_the_mean_sees_its_float_value(pool: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.randn(12, 2, 8, 8)
    snn = spiking(Pooled(pool), x, ps.QuantSpec(3, 7))
    made = integer_network(snn, x, [x])
    assert "AveragePool" in made.float_operators() and apart(snn, made, x) < 0.06
    assert wrong(made, {made.inputs[0][0]: x.numpy()}) == 0


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"ceil_mode": True}, "use ceil_mode=False"),
        ({"divisor_override": 4}, "divisor_override; leave it out"),
        ({"padding": 1, "count_include_pad": False}, "use count_include_pad=True, or no padding"),
    ],
)
def test_windows_that_do_not_count_alike_are_refused(options: dict[str, int], why: str) -> None:
    x = torch.randn(4, 2, 8, 8)
    snn = spiking(Pooled(lambda x: functional.avg_pool2d(x, 3, 2, **options)), x, ps.QuantSpec(3, 7))  # type: ignore[arg-type]
    with pytest.raises(ExportError, match=why):
        integer_network(snn, x, [x])


def test_the_mean_is_an_output_too() -> None:
    class Two(Pooled):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
            x = functional.avg_pool2d(torch.relu(self.one(self.act(self.zero(x)))), 2)
            return self.head(torch.relu(self.two(x)).mean((2, 3))), x

    x = torch.randn(12, 2, 8, 8)
    snn = spiking(Two(POOLS["two"]), x, ps.QuantSpec(3, 7))
    made = integer_network(snn, x, [x])
    outputs = integer.run(made, {made.inputs[0][0]: x.numpy()})
    with torch.no_grad():
        meant = snn(x)
    for one, other in zip(outputs, meant, strict=True):
        assert float((torch.from_numpy(one) - other).abs().mean()) < 0.1 * float(other.std())


@pytest.mark.parametrize("count", [4, 9])
def test_halves_of_whole_weights_go_up(count: int) -> None:
    generator = np.random.default_rng(0)
    units, bias = generator.integers(-3, 4, (20, 9)) / 2.0, generator.integers(-4, 5, 20) / 2.0
    made = rounding.averaging(units, bias, 7, 4001)
    assert made is not None
    codes = generator.integers(-3, 8, (500, count, 9))
    exact = np.floor(np.maximum(codes @ units.T + bias, 0).sum(1) / count + 0.5)
    sums = np.maximum(codes @ made.weight.T.astype(np.int64) + made.bias.astype(np.int64), 0).sum(1)
    assert count == 9 or (2 * np.maximum(codes @ units.T + bias, 0).sum(1) / count % 2 == 1).any()
    assert np.array_equal(fire(sums, made.divisor * count, 0, 10**6), exact)
