"""Where whole numbers and their ONNX file went wrong, one small network each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from tests.networks import calibrated

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from polarspike.exporters import onnx_int8, runtime

IMAGES = (6, 2, 8, 8)
CHANNEL = ps.QuantSpec(0, 3, granularity="channel")


class Net(nn.Module):
    """A convolution with ReLU, then ``what``, which sees the codes, then a convolution with ReLU and the mean."""

    def __init__(self, what: Callable[[Tensor], Tensor], channels: int = 6) -> None:
        super().__init__()
        self.what = what
        self.one, self.two = nn.Conv2d(2, 6, 3, padding=1), nn.Conv2d(channels, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.what(torch.relu(self.one(x)))
        return self.head(torch.relu(self.two(x)).mean((2, 3)))  # type: ignore[no-any-return]


def spiking(model: nn.Module, x: Tensor, spec: ps.QuantSpec) -> ps.SpikingNetwork:
    return ps.convert(calibrated(model.eval(), spec, x))


def apart(snn: ps.SpikingNetwork, made: IntegerNetwork, x: Tensor) -> float:
    """The largest share of a site's codes that differ between the spiking network and whole numbers."""
    fired: dict[str, Tensor] = {}
    with torch.no_grad(), snn.observe(lambda site, t, spikes: fired.update({site: spikes})):
        snn(x)
    values = dict(integer.trace(made, {made.inputs[0][0]: x.numpy()}))
    return max(float((values[value] != fired[site].numpy()).mean()) for site, value in made.sites.items())


def wrong(made: IntegerNetwork, given: dict[str, Any]) -> int:
    """Codes that ONNX Runtime places otherwise than NumPy."""
    session = runtime.session(onnx_int8.model_of(made, "polarspike", codes=True), 1)
    found = session.run([f"{site}/bytes" for site in made.sites], given)
    values, points = dict(integer.trace(made, given)), onnx_int8.zero_points(made)
    pairs = zip(found, made.sites.values(), strict=True)
    return sum(int((codes.astype(np.int64) - points[value] != values[value]).sum()) for codes, value in pairs)


def check(model: nn.Module, x: Tensor, spec: ps.QuantSpec) -> None:
    """Exact in the runtime and near the network; what is refused is an ExportError."""
    snn = spiking(model, x, spec)
    made = integer_network(snn, x, [x])
    assert apart(snn, made, x) < 0.12
    assert wrong(made, {made.inputs[0][0]: x.numpy()}) == 0


def test_a_convolution_of_scaled_codes_has_no_weights_that_the_runtime_may_round() -> None:
    check(Net(lambda x: x * 2.0), torch.randn(IMAGES), ps.QuantSpec(0, 3))


def test_an_averaged_shortcut_with_steps_per_channel() -> None:
    class Shortcut(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))
            return self.head(torch.relu(self.two(x) + functional.avg_pool2d(x, 3, 1, 1)).mean((2, 3)))  # type: ignore[no-any-return]

    check(Shortcut(torch.relu), torch.randn(IMAGES), CHANNEL)


def test_averages_and_largest_side_by_side_as_in_inception() -> None:
    pools = lambda x: torch.cat([functional.avg_pool2d(x, 2), functional.max_pool2d(x, 2)], 1)  # noqa: E731
    check(Net(pools, 12), torch.randn(IMAGES), ps.QuantSpec(0, 3))


def test_averages_and_largest_side_by_side_in_front_of_the_head() -> None:
    class Head(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(2, 6, 3, padding=1), nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.conv(x))
            x = torch.cat([functional.adaptive_avg_pool2d(x, 1), functional.max_pool2d(x, 8)], 1)
            return self.head(x.flatten(1))  # type: ignore[no-any-return]

    check(Head(), torch.randn(IMAGES), ps.QuantSpec(0, 3))


@pytest.mark.parametrize(
    "spec",
    [ps.QuantSpec(0, 400), ps.QuantSpec(2, 100, gain=1 / 64, signed="all")],
    ids=["levels", "stretched by a gain"],
)
def test_codes_beyond_a_byte_are_refused_by_site(spec: ps.QuantSpec, tmp_path: Path) -> None:
    x = torch.randn(IMAGES)
    snn = spiking(Net(lambda x: x), x, spec)
    with pytest.raises(ExportError, match=r"site|relu"):
        ps.export(snn, tmp_path / "net.onnx", "onnx-int8", x)


def test_sites_with_many_negative_and_many_positive_codes() -> None:
    class Mixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.head = nn.Conv2d(2, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)
            self.relu, self.leaky = nn.ReLU(), nn.LeakyReLU(0.5)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.leaky(self.two(self.relu(self.one(x)))).mean((2, 3)))  # type: ignore[no-any-return]

    x = torch.randn(IMAGES)
    snn = spiking(Mixed(), x, ps.QuantSpec(0, 200, overrides={"leaky": ps.QuantSpec(100, 20)}))
    made = integer_network(snn, x, [x])
    assert wrong(made, {made.inputs[0][0]: x.numpy()}) == 0


def test_a_sum_of_codes_with_much_larger_steps() -> None:
    """The margin of a sum is that of its largest term, not of its codes."""

    class Shortcut(Net):
        def forward(self, x: Tensor) -> Tensor:
            x = torch.relu(self.one(x))
            return self.head(torch.relu(x * 30.0 - self.two(x) * 0.1).mean((2, 3)))  # type: ignore[no-any-return]

    x = torch.randn(IMAGES)
    qann = calibrated(Shortcut(torch.relu).eval(), ps.QuantSpec(0, 7), x)
    last = list(qann.sites().values())[-1]
    last.set_step(float(last.step.detach()) / 30)  # far below its terms
    made = integer_network(ps.convert(qann), x, [x])
    (combined,) = (part for part in made.instructions if part.kind == "combine")
    divisor = int(combined.tensors["divisor"])
    ends = [max(map(abs, made.ranges[name])) for name in combined.inputs]
    terms = [abs(int(combined.tensors[f"factor{index}"])) * end / divisor for index, end in enumerate(ends)]
    assert max(terms) > 20 and (2 * max(terms) + 1) * divisor <= 2**21 * 1.01
    assert wrong(made, {made.inputs[0][0]: x.numpy()}) == 0


class Tokens(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(6, features), nn.Linear(features, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.one(x)).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "features",
    [
        5,
        8,
    ],
)
def test_steps_per_token_are_no_steps_per_feature(features: int) -> None:
    x = torch.randn(16, 8, 6)
    qann = calibrated(Tokens(features).eval(), ps.QuantSpec(0, 7, granularity="channel"), x)
    (site,) = qann.sites().values()
    assert site.spec.channel_dim == 1 and site.spec.channels == 8
    site.set_step(site.start * torch.linspace(0.3, 2, 8))
    snn = ps.convert(qann)
    assert apart(snn, integer_network(snn, x, [x]), x) < 0.12


class Products(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.two, self.head = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(5, 3)
        self.scale = nn.Parameter(torch.rand(5) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        products = (self.one(x) @ self.two(x).transpose(1, 2)) * self.scale
        return self.head(torch.relu(products).mean(1))  # type: ignore[no-any-return]


def test_a_product_with_a_factor_per_channel() -> None:
    check(Products(), torch.randn(6, 5, 8), ps.QuantSpec(7, 7))


def test_a_mean_over_the_batch_without_dimensions_is_refused() -> None:
    x = torch.randn(IMAGES)
    made = None
    with pytest.raises(ExportError, match="mean over the batch"):
        made = integer_network(spiking(Net(lambda x: x - x.mean()), x, ps.QuantSpec(7, 7)), x, [x])
        integer.run(made, {made.inputs[0][0]: x.numpy()})


def test_a_division_that_rounds_is_refused() -> None:
    x = torch.randn(IMAGES)
    snn = spiking(Net(lambda x: torch.div(x, 0.3, rounding_mode="floor")), x, ps.QuantSpec(7, 7))
    with pytest.raises(ExportError, match=r"a division that rounds \(floor\)"):
        integer_network(snn, x, [x])


class Also(nn.Module):
    def __init__(self, more: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.more, self.one, self.head = more, nn.Linear(6, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.one(x))), self.more(x)


def test_an_input_may_be_an_output_and_a_size_may_not() -> None:
    x = torch.randn(4, 6)
    made = integer_network(spiking(Also(lambda x: x), x, ps.QuantSpec(0, 3)), x, [x])
    scores, same = integer.run(made, {made.inputs[0][0]: x.numpy()})
    assert scores.shape == (4, 3) and np.array_equal(same, x.numpy())
    with pytest.raises(ExportError, match="which is no float signal"):
        integer_network(spiking(Also(lambda x: x.shape[0]), x, ps.QuantSpec(0, 3)), x, [x])


@pytest.mark.parametrize(
    ("mean", "std"),
    [
        ([0.5] * 3, [0.5] * 3),  # 127.5
        ([0.4], [0.3]),
        ([0.1307], [0.3081]),
        ([0.0], [1.0]),
    ],
)
def test_all_256_pixels_keep_their_values_where_the_normalization_is_known(mean: list[float], std: list[float]) -> None:
    channels = len(mean)
    pixels = torch.arange(256.0).reshape(1, 1, 16, 16).expand(1, channels, 16, 16)
    x = (pixels / 255 - torch.tensor(mean).view(-1, 1, 1)) / torch.tensor(std).view(-1, 1, 1)
    model = nn.Sequential(nn.Conv2d(channels, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 2))
    snn = spiking(model, x, ps.QuantSpec(0, 7))
    snn.notes = {"normalization": {"mean": mean, "std": std}}
    made = integer_network(snn, x, [x])
    first = made.instructions[0]
    codes = dict(integer.trace(made, {made.inputs[0][0]: x.numpy()}))[first.output]
    assert np.array_equal(np.diff(codes[0, 0].reshape(-1)), np.ones(255))


@pytest.mark.parametrize(
    "scaling",
    [
        {"mean": [0.5] * 3},
        {"mean": 0.5, "std": 0.5},
        {"mean": [0.5] * 3, "std": [0.5]},
        {"mean": [0.5] * 3, "std": [0.0] * 3},
    ],
)
def test_a_normalization_that_makes_no_sense_is_refused(scaling: Any) -> None:
    x = torch.randn(4, 3, 8, 8)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 2))
    snn = spiking(model, x, ps.QuantSpec(0, 7))
    snn.notes = {"normalization": scaling}
    with pytest.raises(ps.PolarspikeError, match="normalization"):
        integer_network(snn, x, [x])


@pytest.mark.parametrize("format_name", ["integer", "onnx-int8"])
def test_batches_without_samples_are_refused(format_name: Any, tmp_path: Path) -> None:
    x = torch.randn(4, 6)
    snn = spiking(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)), x, ps.QuantSpec(0, 3))
    with pytest.raises(ExportError, match=r"no output value was compared|samples"):
        ps.export(snn, tmp_path / "net", format_name, x, [x[:0]])


def test_float64_is_refused_as_by_onnx_float(tmp_path: Path) -> None:
    x = torch.randn(4, 6).double()
    snn = spiking(nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double(), x, ps.QuantSpec(0, 3))
    with pytest.raises(ExportError, match="float32"):
        ps.export(snn, tmp_path / "net.onnx", "onnx-int8", x)


class Sum(nn.Module):
    """Two branches whose biases cancel: the same function for every ``shift``."""

    def __init__(self, shift: float, ending: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.ending = ending
        self.stem, self.one, self.two = (nn.Conv2d(n, 6, 3, padding=1) for n in (2, 6, 6))
        self.norm, self.head = nn.BatchNorm2d(6), nn.Linear(6, 3)
        with torch.no_grad():
            self.one.bias += shift  # type: ignore[operator]
            self.two.bias -= shift  # type: ignore[operator]
            self.norm.running_mean.normal_()  # type: ignore[union-attr]
            self.norm.weight.uniform_(0.5, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.stem(x))
        x = torch.relu(self.ending(self.one(x), self.two(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("shift", [0.0, 0.5, 3.0, -3.0])
def test_biases_stay_with_the_branch_whose_values_they_move(shift: float) -> None:
    torch.manual_seed(0)
    check(Sum(shift, torch.add), torch.randn(IMAGES), ps.QuantSpec(0, 7))


@pytest.mark.parametrize("swapped", [False, True])
def test_the_order_of_branches_does_not_matter(swapped: bool) -> None:
    torch.manual_seed(0)
    model = Sum(0.0, lambda a, b: a)
    model.ending = lambda a, b: b + model.norm(a) if swapped else model.norm(a) + b
    check(model, torch.randn(IMAGES), ps.QuantSpec(0, 7))


@pytest.mark.parametrize("behind", ["norm", "constant", "negated", "reversed"])
def test_what_comes_behind_a_sum(behind: str) -> None:
    torch.manual_seed(0)
    model = Sum(0.0, torch.add)
    shift = torch.randn(6, 1, 1)
    endings: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
        "norm": lambda a, b: model.norm(a + b),
        "constant": lambda a, b: a + b + shift,
        "negated": lambda a, b: -(a + b),
        "reversed": lambda a, b: 0.3 - (a + b),
    }
    model.ending = endings[behind]
    check(model, torch.randn(IMAGES), ps.QuantSpec(0, 7))


def test_a_branch_of_zeros_as_zero_initialization_makes_it() -> None:
    model = Sum(0.0, torch.add)
    nn.init.zeros_(model.one.weight)
    nn.init.zeros_(model.two.weight)
    nn.init.zeros_(model.two.bias)  # type: ignore[arg-type]
    check(model, torch.randn(IMAGES), ps.QuantSpec(0, 7))


@pytest.mark.parametrize(
    "what",
    [
        lambda x: functional.max_pool2d(-x, 3, 1, 1),  # padding never wins over negative codes
        lambda x: x.clamp(0.1, 0.4),
        lambda x: torch.relu(functional.max_pool2d(x, 2)),
    ],
    ids=["negative codes", "clamp", "relu behind pooling"],
)
def test_between_two_convolutions(what: Callable[[Tensor], Tensor]) -> None:
    check(Net(what), torch.randn(IMAGES), ps.QuantSpec(3, 5))


def test_an_argument_that_is_not_given() -> None:
    class Optional(Net):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return super().forward(x if mask is None else x * mask)

    check(Optional(lambda x: x), torch.randn(IMAGES), ps.QuantSpec(0, 3))


@pytest.mark.parametrize("shape", [(4, 2, 9, 9), (4, 3, 8, 8), (4, 2, 8)])
@pytest.mark.parametrize("format_name", ["integer", "onnx-int8"])
def test_batches_of_another_shape_are_refused(format_name: Any, shape: tuple[int, ...], tmp_path: Path) -> None:
    x = torch.randn(IMAGES)
    snn = spiking(Net(lambda x: x), x, ps.QuantSpec(0, 3))
    with pytest.raises(ps.PolarspikeError, match=r"input .*expected \(batch, 2, 8, 8\)"):
        ps.export(snn, tmp_path / "net", format_name, x, [torch.randn(shape)])
    with pytest.raises(ExportError, match="the example holds no samples"):
        ps.export(snn, tmp_path / "net", format_name, x[:0])


def test_a_normalization_that_the_batches_contradict_is_not_believed() -> None:
    x = 3 * torch.randn(6, 1, 8, 8)
    snn = spiking(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)), x, ps.QuantSpec(0, 7))
    snn.notes = {"normalization": {"mean": [0.5], "std": [0.5]}}  # pixels would lie within -1 and 1
    assert apart(snn, integer_network(snn, x, [x]), x) < 0.12
