"""Spiking networks in whole numbers: near the spiking network, and in ONNX Runtime exactly what NumPy defines."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import integer, models
from polarspike.errors import ExportError
from polarspike.exporters.description import KEY
from polarspike.exporters.formats import _against, _meaning
from polarspike.exporters.integer import as_arrays, integer_network
from polarspike.integer import IntegerNetwork
from polarspike.quantized import parameters_of
from tests.networks import calibrated, learned_like, network, signal

pytestmark = pytest.mark.filterwarnings("ignore:channels that never carry a signal")

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from polarspike.exporters.onnx_int8 import model_of, zero_points  # noqa: E402 (needs onnx)

SIGNED = ("leaky", "group", "attention", "bottleneck", "smooth", "concatenated")  # by nature: no levels (0, P)
NETWORKS = [
    "plain",
    "branched",
    "mlp",
    "leaky",
    "group",
    "squeeze",
    "attention",
    "bottleneck",
    "smooth",
    "concatenated",
]
SPECS = {
    "rectified": ps.QuantSpec(0, 7),
    "signed": ps.QuantSpec(2, 5, signed="all"),
    "gain": ps.QuantSpec(1, 3, gain=0.25, signed="all"),
    "channel": ps.QuantSpec(2, 5, granularity="channel"),
}


def converted(name: str, spec: ps.QuantSpec) -> ps.SpikingNetwork:
    qann = learned_like(calibrated(network(name), spec, signal(name, 32)))
    ps.snap_gains(qann)
    return ps.convert(qann)


def whole(snn: ps.SpikingNetwork, x: Tensor) -> IntegerNetwork:
    return integer_network(snn, x[:2], [x])


def session(model: Any, threads: int = 1, optimized: Path | None = None) -> Any:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def kernels(model: Any, folder: Path) -> dict[str, int]:
    """How often each operator is in what ONNX Runtime makes of a model."""
    session(model, optimized=folder / "optimized.onnx")
    counts: dict[str, int] = {}
    for node in onnx.load(folder / "optimized.onnx").graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return counts


def different(made: IntegerNetwork, x: np.ndarray, opened: Any) -> int:
    """Codes that ONNX Runtime places otherwise than NumPy."""
    given = {made.inputs[0][0]: x}
    meant = dict(integer.trace(made, given))
    found = dict(zip(made.sites, opened.run([f"{site}/bytes" for site in made.sites], given), strict=True))
    points = zero_points(made)
    return sum(
        int((found[site].astype(np.int64) - points[value] != meant[value]).sum()) for site, value in made.sites.items()
    )


def near(snn: ps.SpikingNetwork, answer: np.ndarray, x: Tensor) -> bool:
    """Whether an answer in whole numbers is the float32 network's but for the rounding of weights and inputs."""
    with torch.no_grad():
        meant = snn(x)
    return float((torch.from_numpy(answer) - meant).abs().mean()) < 0.15 * float(meant.std()) + 0.02


@pytest.mark.slow
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", NETWORKS)
def test_runtimes_compute_what_whole_numbers_mean_and_that_is_near_the_network(name: str, spec: str) -> None:
    if spec == "rectified" and name in SIGNED:
        pytest.skip("its signals are negative, too")
    snn = converted(name, SPECS[spec])
    x = signal(name, 64, seed=5)
    made = whole(snn, x)
    parameters = parameters_of(snn.network)
    compared, apart = _against(snn, made, x, _meaning(made, as_arrays(made, x, parameters)))
    assert compared > 2000 and apart < 0.12 * compared
    opened = session(model_of(made, KEY, codes=True))
    allowed = 0 if not made.float_operators() else 3  # the last bit of a softmax may move a code
    assert different(made, x.numpy(), opened) <= allowed
    (answer,) = integer.run(made, {made.inputs[0][0]: x.numpy()})
    assert near(snn, answer, x)


def of_registry(name: str, *, biased: bool = False, **options: Any) -> tuple[ps.SpikingNetwork, Tensor]:
    """A fresh network of the registry; ``biased`` as training leaves it, with biases other than zero."""
    torch.manual_seed(0)
    if models.describe(name).needs_image_size:
        options["image_size"] = 16
    model = models.create(name, num_classes=10, in_channels=3, width=8, **options).train()
    x = torch.randn(16, 3, 16, 16)
    for part in model.modules():
        if hasattr(part, "running_mean"):
            part.momentum = None  # type: ignore[assignment]
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if biased and key.endswith("bias"):
                parameter.normal_(0, 0.1)
        model(x)
    qann = ps.quantize(model.eval(), ps.QuantSpec(init="mse"), example=x)
    ps.calibrate(qann, [x])
    return ps.convert(qann), x


FUSED = {
    "cnn": {"QLinearConv": 4},
    "resnet20": {"QLinearConv": 21, "QLinearAdd": 9},
    "mlp": {"QGemm": 3},
    # A dequantization that a fusion leaves behind would cost its time, and its memory to the end of the run. The biases
    # of a fresh network are zero, so that the six layers with float answers are products.
    "vit": {"QGemm": 7, "QLinearMatMul": 2, "MatMulIntegerToFloat": 8, "DequantizeLinear": 0},
    "vit with biases": {"QGemm": 13, "QLinearMatMul": 2, "MatMulIntegerToFloat": 2, "DequantizeLinear": 0},
}


@pytest.mark.parametrize("name", FUSED)
def test_integer_kernels_are_chosen(name: str, tmp_path: Path) -> None:
    snn, x = of_registry(name.split()[0], biased=name.endswith("with biases"))
    made = whole(snn, x)
    counts = kernels(model_of(made, KEY), tmp_path)
    assert {kind: counts.get(kind, 0) for kind in FUSED[name]} == FUSED[name], counts
    # The patches of the ViT enter a float layer norm, so that their sums are float; nothing else is.
    assert counts.get("Conv", 0) == (1 if name.startswith("vit") else 0) and "FusedConv" not in counts, counts
    assert counts.get("Gemm", 0) <= 1 and "MatMul" not in counts, counts  # the head of averages: exact in float32


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cnn", "resnet20", "vit"])
def test_codes_do_not_depend_on_batch_size_or_threads(name: str) -> None:
    snn, x = of_registry(name)
    made = whole(snn, x)
    model = model_of(made, KEY, codes=True)
    names = [f"{site}/bytes" for site in made.sites]
    first = None
    for threads in (1, 2):
        opened = session(model, threads)
        for size in (1, 5, 16):
            parts = [opened.run(names, {made.inputs[0][0]: part.numpy()}) for part in x.split(size)]
            codes = [np.concatenate(values) for values in zip(*parts, strict=True)]
            first = first or codes
            assert all(np.array_equal(a, b) for a, b in zip(first, codes, strict=True)), (threads, size)


class Uneven(nn.Module):
    """Pooling that stands out, dilation, groups, a flattened image, a slice, and a product with a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(2, 8, 3, padding="same", dilation=2)
        self.two = nn.Conv2d(8, 8, 3, stride=2, padding=1, groups=4)
        self.pool = nn.MaxPool2d(2, ceil_mode=True)
        self.scale = nn.Parameter(torch.rand(8, 1, 1) + 0.5)
        self.head = nn.Linear(6 * 9, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x) * self.scale)
        x = self.pool(torch.relu(self.two(x) + 0.1))
        return self.head(x[:, 1:7].flatten(1))  # type: ignore[no-any-return]


def test_layouts_and_windows_of_all_kinds() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 2, 9, 9)
    qann = calibrated(Uneven().eval(), ps.QuantSpec(0, 7), x)
    snn = ps.convert(qann)
    made = whole(snn, x)
    assert different(made, x.numpy(), session(model_of(made, KEY, codes=True))) == 0 and not made.float_operators()
    (answer,) = integer.run(made, {made.inputs[0][0]: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(answer), snn(x), atol=0.15, rtol=0.1)


def test_bytes_of_pixels_are_kept_where_the_normalization_is_known() -> None:
    snn, _ = of_registry("cnn")
    snn.notes["normalization"] = {"mean": [0.3] * 3, "std": [0.25, 0.2, 0.3]}
    pixels = torch.randint(0, 256, (8, 3, 16, 16)).float()
    x = (pixels / 255 - 0.3) / torch.tensor([0.25, 0.2, 0.3]).view(3, 1, 1)
    made = whole(snn, x)
    first = made.instructions[0]
    codes = dict(integer.trace(made, {made.inputs[0][0]: x.numpy()}))[first.output]
    assert first.kind == "quantize" and np.array_equal(
        codes, (pixels - 76).numpy()
    )  # 255 * 0.3 = 76.5, rounded to even


@pytest.mark.parametrize("format_name", ["integer", "onnx-int8"])
def test_an_export_says_what_it_is_and_what_it_moves(format_name: Any, tmp_path: Path) -> None:
    snn = converted("branched", SPECS["rectified"])
    snn.notes = {"classes": ["a", "b", "c", "d"]}
    x = signal("branched", 20)
    made = ps.export(snn, tmp_path / "net", format_name, x[:2], iter([x[:10], x[10:]]))
    assert made.samples == 20 and made.codes and 0 < made.codes_rounded < made.codes / 8 and made.codes_wrong == 0
    assert "moved by writing in whole numbers, 0 differ" in str(made)
    if format_name == "integer":
        told = json.loads(integer.load(tmp_path / "net").description)
    else:
        properties = onnx.load(tmp_path / "net").metadata_props
        told = json.loads(next(entry.value for entry in properties if entry.key == KEY))
    assert told["notes"] == snn.notes and told["timesteps"] == 1
    assert told["sites"].keys() == snn.sites().keys() and told["sites"]["relu"]["levels"] == [0, 7]
    assert [path.name for path in tmp_path.iterdir()] == ["net"]


def test_a_gain_that_is_no_power_of_two_is_refused_by_site() -> None:
    snn = ps.convert(calibrated(network("mlp"), ps.QuantSpec(1, 3, gain=0.3, signed="all"), signal("mlp")))
    with pytest.raises(ExportError, match=r"site 'act1': a gain of 0\.3 .*snap_gains"):
        whole(snn, signal("mlp"))


class Odd(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what, self.conv, self.head = what, nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.what(torch.relu(self.conv(x)))
        return self.head(x.mean((2, 3)))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda x: torch.nn.functional.softplus(x), "no rule for softplus"),
        (lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="bilinear"), "no rule for upsample_bilinear2d"),
        (
            lambda x: nn.functional.interpolate(x, scale_factor=2.0, mode="nearest-exact"),
            "no rule for _upsample_nearest_ex",
        ),
        (lambda x: nn.functional.avg_pool2d(x, 3, 2, 1, count_include_pad=False), "use count_include_pad=True"),
        (
            lambda x: nn.functional.pad(x, (1, 1, 1, 1), value=0.3),
            r"expected padding with zeros, .* got value=0\.3; pad ",
        ),
        (lambda x: torch.roll(x, 1), "a roll over the batch"),
        (lambda x: x.amax((0, 2), keepdim=True) + x, "the largest over the batch"),
        (lambda x: nn.functional.adaptive_avg_pool2d(x, 5), "differ in size"),
    ],
    ids=[
        "softplus",
        "upsampling",
        "nearest-exact",
        "average at the border",
        "padding",
        "roll",
        "largest",
        "uneven windows",
    ],
)
def test_what_whole_numbers_do_not_hold_is_refused_by_name(what: Any, message: str) -> None:
    x = torch.randn(4, 2, 8, 8)
    snn = ps.convert(calibrated(Odd(what).eval(), ps.QuantSpec(1, 3), x))
    with pytest.raises(ExportError, match=message):
        whole(snn, x)


def test_inputs_that_never_vary_are_refused() -> None:
    x = signal("plain")
    with pytest.raises(ExportError, match="give some that vary"):
        whole(converted("plain", SPECS["rectified"]), torch.zeros_like(x))


class Causal(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Linear(8, 24), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.embed(x).chunk(3, -1)
        seen = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.head(seen)  # type: ignore[no-any-return]


def test_causal_attention_is_written_with_its_mask() -> None:
    torch.manual_seed(0)
    x = torch.randn(32, 5, 8)
    snn = ps.convert(calibrated(Causal().eval(), ps.QuantSpec(7, 7), x))
    made = whole(snn, x)
    assert different(made, x.numpy(), session(model_of(made, KEY, codes=True))) <= 3  # behind a softmax
    later = x.clone()
    later[:, 3:] += 1.0
    first, second = (integer.run(made, {made.inputs[0][0]: given.numpy()})[0] for given in (x, later))
    assert np.array_equal(first[:, :3], second[:, :3]) and not np.array_equal(first[:, 3:], second[:, 3:])
    assert near(snn, first, x)
