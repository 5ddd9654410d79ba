"""Where NIR went wrong, one small network each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import ExportError
from tests.networks import calibrated

pytest.importorskip("nir")
pytest.importorskip("nirtorch")


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
    try:
        made = exported(Branches(), torch.randn(6, 6), tmp_path)
    except ExportError:
        return
    assert made.largest < 1e-5


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
