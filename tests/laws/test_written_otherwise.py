"""The same operators written in other ways mean the same: keywords, attributes, clipping, writes, masks of infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarspike as ps
from tests.forms import Around, Form, converted, holds_over_time, rows, weights

PRODUCTS: dict[str, tuple[Form, dict[str, Any]]] = {
    "einsum over lists": (lambda s, y: torch.einsum(y, [0, 1, 2], y.relu(), [0, 3, 2], [0, 1, 3]) @ y, {}),
    "outer": (lambda s, y: y + torch.outer(y.mean((0, 1)), y.amax((0, 1))).mean(0), {}),
    "addcmul": (lambda s, y: torch.addcmul(y, value=0.5, tensor1=y.tanh(), tensor2=y.relu()), {}),
    "division by keyword": (lambda s, y: torch.div(other=y.relu() + 1, input=s.w), {"w": weights(8)}),
    "lerp by keyword": (lambda s, y: torch.lerp(weight=y.sigmoid(), input=y, end=s.w), {"w": weights(8)}),
    "baddbmm": (
        lambda s, y: torch.baddbmm(y, alpha=0.3, batch1=torch.softmax(y @ y.transpose(1, 2), -1), batch2=y),
        {},
    ),
    "linear to one number": (lambda s, y: y + F.linear(y, s.w).unsqueeze(-1), {"w": weights(8)}),
    "T": (lambda s, y: y @ s.w.T, {"w": weights(8, 8)}),
    "mT": (lambda s, y: (y @ y.mT) @ y, {}),
    "batch norm of rows": (
        lambda s, y: F.batch_norm(y.transpose(1, 2), s.mean, s.var).transpose(1, 2),
        {"mean": torch.zeros(8), "var": torch.ones(8)},
    ),
    "RReLU": (lambda s, y: s.act(y), {"act": nn.RReLU()}),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_seen_however_they_are_called(name: str) -> None:
    form, held = PRODUCTS[name]
    torch.manual_seed(0)
    holds_over_time(Around(form, **held), rows())


# --- writes -------------------------------------------------------------------------------------------------------------


def _banded(_: nn.Module, y: Tensor) -> Tensor:
    mask = torch.zeros(y.shape[0], 1, 8, device=y.device, dtype=y.dtype)
    mask[:, :, 2:6] = 1
    return y * mask


def _shifted(_: nn.Module, y: Tensor) -> Tensor:
    moved = torch.zeros_like(y)
    moved[:, 1:] = y[:, :-1]
    return moved + y


def _filled(_: nn.Module, y: Tensor) -> Tensor:
    constant = torch.zeros_like(y)
    constant.fill_(2.0)
    return y + constant


@pytest.mark.parametrize("form", [_banded, _shifted, _filled])
def test_writes_into_a_part_are_captured(form: Form) -> None:
    torch.manual_seed(0)
    holds_over_time(Around(form), rows())


class BehindNorm(nn.Module):
    """A form on images, behind a batch norm and in front of a convolution."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.head, self.form = nn.Linear(6, 3), form

    def forward(self, x: Tensor) -> Tensor:
        y = self.form(F.relu(self.norm(self.first(x))))
        return self.head(F.relu(self.second(y)).mean((2, 3)))


def _scaled_view(y: Tensor) -> Tensor:
    flat = y.view(y.shape[0], 6, -1)
    flat.mul_(2.0)
    return flat.view(y.shape)


def _moved_down(y: Tensor) -> Tensor:
    moved = torch.zeros_like(y)
    moved[:, :, 1:] = y[:, :, :-1]
    return moved


def _without_first_channel(y: Tensor) -> Tensor:
    other = y.clone()
    other[:, 0].zero_()
    return other


@pytest.mark.parametrize("form", [_scaled_view, _moved_down, _without_first_channel])
def test_writes_behind_a_batch_norm_are_captured_and_counted(form: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = BehindNorm(form), torch.randn(4, 3, 8, 8)
    holds_over_time(model, x, ps.QuantSpec(0, 7))
    _, snn = converted(model, x, ps.QuantSpec(0, 7))
    counts = ps.count_operations(snn, x)
    assert 0 < counts.totals["acs_by_event"] < counts.totals["ann_macs"]


def test_a_written_part_brings_its_own_spikes() -> None:
    """One row of ones in a zero image: the events of the part, and no others, reach the convolution."""

    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
            nn.init.eye_(self.first.weight)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x))
            return self.second(torch.select_scatter(y, y[:, 0] * 0.0 + y[:, 1], 1, 0))

    x = torch.tensor([[[0.0, 0, 0, 0], [1.0, 1, 1, 0], [0.0, 0, 0, 1]]])
    qann, snn = converted(Row(), x, ps.QuantSpec(0, 1), x)
    for site in [*qann.sites().values(), *snn.sites().values()]:
        site.set_step(1.0)
    counts = ps.count_operations(snn, x)
    # rows 0 (a copy of row 1), 1 and 2 of the written signal: 3 + 3 + 1 events, each to two outputs
    assert counts.totals["acs_by_event"] == 7 * 2


# --- rectifiers ---------------------------------------------------------------------------------------------------------

RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda y: y.clamp(min=0),
    "clamp in place": lambda y: y.clamp_(min=0),
    "clamp_min": lambda y: y.clamp_min(0),
    "clamp to 6": lambda y: y.clamp(0, 6),
    "clip to 1": lambda y: torch.clip(y, 0.0, 1.0),
    "clamp to infinity": lambda y: y.clamp(0, math.inf),
    "hardtanh": lambda y: F.hardtanh(y, 0, 1),
    "hardtanh to infinity": lambda y: F.hardtanh(y, 0, math.inf),
    "Hardtanh": nn.Hardtanh(0, 2),
    "threshold": lambda y: F.threshold(y, 0, 0),
    "Threshold": nn.Threshold(0, 0),
}


class Rectified(nn.Module):
    def __init__(self, rectifier: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)
        self.rectifier = rectifier

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.rectifier(self.first(x)))).mean((2, 3)))


@pytest.mark.parametrize("name", RECTIFIERS)
def test_clipping_at_zero_becomes_a_site(name: str) -> None:
    torch.manual_seed(0)
    model, x = Rectified(RECTIFIERS[name]), torch.randn(4, 3, 8, 8)
    plan = ps.inspect(model, ps.QuantSpec(0, 7), x)
    assert len(plan.sites) == 2 and "rectified" in str(plan)
    holds_over_time(model, x, ps.QuantSpec(0, 7))


@pytest.mark.parametrize(
    "form",
    [
        lambda y: F.relu(y).pow(exponent=2),
        lambda y: y.sigmoid().amax(1, keepdim=True) + F.relu(y),
        lambda y: F.softplus(y) + 1,
    ],
)
def test_what_is_never_negative_gets_no_negative_levels(form: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    qann, _ = converted(Rectified(form), torch.randn(4, 3, 8, 8), ps.QuantSpec(0, 7))
    assert all(site.levels == (0, 7) for site in qann.sites().values())
