"""Steps without data: the law that a batch norm promises, where one feeds the site."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import CalibrationError
from polarspike.information import NormalMixture, best_step
from tests.direct import Direct, Init, X, direct, normed, step


@pytest.mark.parametrize("init", ["entropy", "mse"])
def test_without_data_a_tensor_has_the_mixture_of_its_channels_laws(init: Init) -> None:
    qann, norm = normed(init)
    ps.calibrate(qann, None)
    law = NormalMixture(norm.bias.detach().double().view(1, 3), norm.weight.detach().abs().double().view(1, 3))
    torch.testing.assert_close(step(qann, "2").view(1), best_step((0, 4), init, law), rtol=1e-6, atol=0)
    single = NormalMixture(
        norm.bias.detach().double().mean().view(1, 1), norm.weight.detach().abs().double().mean().view(1, 1)
    )
    assert abs(float(step(qann, "2")) / float(best_step((0, 4), init, single)) - 1) > 0.02


@pytest.mark.parametrize("init", ["entropy", "mse"])
def test_without_data_a_channel_has_its_own_closed_form(init: Init) -> None:
    qann, norm = normed(init, granularity="channel")
    ps.calibrate(qann, None)
    law = NormalMixture(norm.bias.detach().double().view(3, 1), norm.weight.detach().abs().double().view(3, 1))
    torch.testing.assert_close(step(qann, "2"), best_step((0, 4), init, law), rtol=1e-6, atol=0)


def test_without_data_a_standard_normal_gives_the_tables_step() -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU())
    qann = ps.quantize(model, ps.QuantSpec(positive=4, init="entropy"), example=X[:2])
    (row,) = ps.calibrate(qann, None)
    assert float(step(qann, "2")) == pytest.approx(best_step(levels=(0, 4)), rel=1e-5) == pytest.approx(0.29, abs=0.01)
    qann = ps.quantize(model, ps.QuantSpec(positive=4), example=X[:2])
    ps.calibrate(qann, None)  # the default: least square error
    assert float(step(qann, "2")) == pytest.approx(best_step((0, 4), "mse"), rel=1e-5) == pytest.approx(0.53, abs=0.01)
    assert row.bits == pytest.approx(1.86, abs=0.01) and "2: step 0.29" in str(row)


def test_without_data_agrees_with_data_that_follow_the_law() -> None:
    free, norm = normed("mse", granularity="channel")
    ps.calibrate(free, None)
    with torch.no_grad():
        z = torch.randn(64, 3, 32, 32) * norm.weight.view(3, 1, 1) + norm.bias.view(3, 1, 1)
    fed = direct("mse", granularity="channel")
    ps.calibrate(fed, [z])
    torch.testing.assert_close(step(fed), step(free, "2"), rtol=0.03, atol=0)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x)) + x)


@pytest.mark.parametrize(
    ("model", "site"),
    [
        (Residual(), "relu"),
        (nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), "1"),
        (nn.Sequential(nn.BatchNorm2d(3, affine=False), nn.ReLU()), "1"),
        (nn.Sequential(nn.BatchNorm2d(3), nn.MaxPool2d(2), nn.ReLU()), "2"),
        (nn.ReLU(), "relu"),
    ],
    ids=["residual", "convolution", "no scale", "pooling", "input"],
)
def test_without_data_and_without_a_law_the_site_is_named(model: nn.Module, site: str) -> None:
    if isinstance(model, nn.ReLU):
        model, site = Direct(model), "site"
    qann = ps.quantize(model, ps.QuantSpec(), example=X[:2])
    with pytest.raises(
        CalibrationError, match=rf"site '{site}': no batch norm .* feeds it directly.*give calibration batches"
    ):
        ps.calibrate(qann, None)
    assert not any(part.calibrated for part in qann.sites().values())


@pytest.mark.parametrize("init", ["lsq", "percentile"])
def test_without_data_some_strategies_are_refused(init: Init) -> None:
    with pytest.raises(CalibrationError, match=rf"site '2': init='{init}' needs data; .*init='entropy' or 'mse'"):
        ps.calibrate(normed(init)[0], None)
