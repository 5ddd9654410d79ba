"""NIR: banks of strict thresholds that fire the codes of the encoder, also on ties; run through nirtorch."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import ops
from polarspike.errors import ExportError
from polarspike.exporters import nir_modules
from polarspike.exporters.description import KEY
from polarspike.exporters.nir_graph import thresholds
from polarspike.neurons import PolarityNeuron
from polarspike.specs import SiteSpec
from tests.networks import calibrated, learned_like, network, signal

h5py = pytest.importorskip("h5py")
nir = pytest.importorskip("nir")
pytest.importorskip("nirtorch")


class Residual(nn.Module):
    """What NIR holds: convolutions with groups, batch norms, a residual sum, average pooling, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.one, self.norm1 = nn.Conv2d(6, 6, 3, padding=1, groups=3, bias=False), nn.BatchNorm2d(6)
        self.two = nn.Conv2d(6, 6, 3, padding=1)
        self.last, self.head = nn.Conv2d(6, 8, 3, stride=2), nn.Linear(8, 4)
        self.relu1, self.relu2, self.relu3, self.relu4 = (nn.ReLU() for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu1(self.norm(self.stem(x)))
        x = self.relu3(x + self.two(self.relu2(self.norm1(self.one(x)))))
        x = self.relu4(self.last(x))
        return self.head(nn.functional.adaptive_avg_pool2d(x, 1).flatten(1))  # type: ignore[no-any-return]


SPECS = {
    "rectified": ps.QuantSpec(0, 3),
    "gain": ps.QuantSpec(2, 4, gain=0.25, signed="all"),
    "channel": ps.QuantSpec(1, 3, granularity="channel", signed="all"),
}


@pytest.mark.parametrize("spec", SPECS)
def test_answers_are_those_of_the_spiking_network(spec: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 2, 8, 8)
    snn = ps.convert(learned_like(calibrated(Residual().eval(), SPECS[spec], x)))
    made = ps.export(snn, tmp_path / "net.nir", "nir", x[:2], [x])
    assert made.samples == 16 and made.largest < 1e-5 and made.decisions == 0
    graph = nir.read(str(tmp_path / "net.nir"))
    kinds = {name: type(node).__name__ for name, node in graph.nodes.items()}
    assert kinds["relu2_repeat"] == "Conv2d" and kinds["relu2"] == "Threshold" and kinds["head"] == "Affine"
    negative, positive = next(iter(snn.sites().values())).levels
    assert graph.nodes["relu2"].threshold.shape == (6 * (negative + positive), 8, 8)
    told = json.loads(str(np.asarray(graph.metadata[KEY])))
    assert told["sites"]["relu2"]["levels"] == [negative, positive]


@pytest.mark.parametrize("gain", [1.0, 0.25])
def test_vectors_too(gain: float, tmp_path: Path) -> None:
    spec = ps.QuantSpec(2, 4, gain=gain, signed="all")
    snn = ps.convert(calibrated(network("mlp"), spec, signal("mlp", 16)))
    made = ps.export(snn, tmp_path / "net.nir", "nir", signal("mlp", 2), [signal("mlp", 40, seed=3)])
    assert made.largest < 1e-6 and made.decisions == 0


@pytest.mark.parametrize("step", [0.1, 0.5, 0.3337, 1.7e-3])
def test_strict_thresholds_fire_the_codes_of_the_encoder_on_ties(step: float) -> None:
    neuron = PolarityNeuron(SiteSpec(3, 5), "site")
    neuron.set_step(step)
    s = neuron.step.detach()
    ties = (torch.arange(-6, 9) + 0.5) * s
    around = torch.cat([ties, torch.nextafter(ties, torch.tensor(9.0)), torch.nextafter(ties, torch.tensor(-9.0))])
    bank = sum((around > thresholds(neuron, code)).int() for code in range(-2, 6)) - 3  # type: ignore[operator]
    assert torch.equal(bank, ops.encode(around, s, 3, 5).int())


class With(nn.Module):
    def __init__(self, what: Any) -> None:
        super().__init__()
        self.conv, self.what, self.head = nn.Conv2d(2, 4, 3, padding=1), what, nn.LazyLinear(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.what(torch.relu(self.conv(x))).flatten(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (nn.MaxPool2d(2), "NIR has no node for max_pool2d"),
        (nn.Softmax(1), "NIR has no node for .*as onnx-int8 instead"),
        (nn.Softplus(), "NIR has no node for .*as onnx-float instead"),
        (nn.AvgPool2d(2, 2, 1, count_include_pad=False), "use count_include_pad=True"),
    ],
    ids=["max pooling", "softmax", "softplus", "average at the border"],
)
def test_what_nir_does_not_hold_is_refused_by_name(what: nn.Module, message: str, tmp_path: Path) -> None:
    x = torch.randn(4, 2, 8, 8)
    model = With(what)
    model(x)
    snn = ps.convert(calibrated(model.eval(), ps.QuantSpec(1, 3), x))
    with pytest.raises(ExportError, match=message):
        ps.export(snn, tmp_path / "net.nir", "nir", x)
    assert not list(tmp_path.iterdir())


def test_a_site_behind_an_average_is_refused_with_what_to_do(tmp_path: Path) -> None:
    body = [nn.Conv2d(2, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU()]
    x = torch.randn(4, 2, 8, 8)
    snn = ps.convert(calibrated(nn.Sequential(*body, nn.Flatten(), nn.Linear(16, 3)).eval(), ps.QuantSpec(1, 3), x))
    with pytest.raises(
        ExportError, match=r"module '1': .*relu alone: its site stands behind module '2', which averages"
    ):
        ps.export(snn, tmp_path / "net.nir", "nir", x)


def test_a_changed_graph_is_not_run(tmp_path: Path) -> None:
    path, x = tmp_path / "net.nir", torch.randn(4, 2, 8, 8)
    body = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)]
    snn = ps.convert(calibrated(nn.Sequential(*body).eval(), ps.QuantSpec(0, 3), x))
    ps.export(snn, path, "nir", x)
    for place, of in (("0/weight", np.float32), ("4/bias", np.float32), ("0/stride", np.int64)):
        with h5py.File(path, "r+") as file:
            before = file[f"node/nodes/{place}"][()]
            file[f"node/nodes/{place}"][...] = before + np.ones((), of)
        with pytest.raises(ExportError, match=r"the file is damaged|cannot be read"):
            nir_modules.runner(path)
        with h5py.File(path, "r+") as file:
            file[f"node/nodes/{place}"][...] = before
        nir_modules.runner(path)
    path.write_bytes(b"text")
    with pytest.raises(ExportError, match=r"cannot be read: .*; export it again"):
        nir_modules.runner(path)


def test_tokens_are_refused(tmp_path: Path) -> None:
    snn = ps.convert(calibrated(network("attention"), ps.QuantSpec(1, 3), signal("attention")))
    with pytest.raises(ExportError, match=r"NIR|tokens"):
        ps.export(snn, tmp_path / "net.nir", "nir", signal("attention"))


# What once went wrong


def exported(model: nn.Module, x: Tensor, folder: Path) -> ps.ExportReport:
    snn = ps.convert(calibrated(model.eval(), ps.QuantSpec(2, 4), x))
    return ps.export(snn, folder / "net.nir", "nir", x)


def test_a_site_behind_a_convolution(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 3))
    assert exported(model, torch.randn(4, 2, 8, 8), tmp_path).largest < 1e-5


class Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.left, self.right = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.one(x))
        return self.left(x) + self.right(x)  # type: ignore[no-any-return]


def test_an_output_that_is_a_sum(tmp_path: Path) -> None:
    assert exported(Branches(), torch.randn(6, 6), tmp_path).largest < 1e-5


class Mean(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x)
        return self.head(torch.relu(x + x.mean()))  # type: ignore[no-any-return]


def test_a_mean_over_everything_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="mean"):
        exported(Mean(), torch.randn(6, 6), tmp_path)


def test_float64_is_refused(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    with pytest.raises(ExportError, match="float32"):
        exported(model, torch.randn(4, 6).double(), tmp_path)


def test_modules_named_like_the_ends_of_a_graph(tmp_path: Path) -> None:
    model = nn.Sequential()
    for name, part in (("input", nn.Linear(6, 5)), ("act", nn.ReLU()), ("output", nn.Linear(5, 3))):
        model.add_module(name, part)
    assert exported(model, torch.randn(4, 6), tmp_path).largest < 1e-6
