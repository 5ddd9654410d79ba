"""Negative levels without value are taken away, and nothing else changes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import CalibrationError, SpecError


def network() -> tuple[ps.QuantizedNetwork, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(6, 12), nn.ReLU(), nn.Linear(12, 12), nn.ReLU(), nn.Linear(12, 12), nn.GELU(), nn.Linear(12, 3)
    )
    x = torch.randn(64, 6)
    qann = ps.quantize(model.eval(), ps.QuantSpec(2, 5, signed="all", gain="learned"), example=x)
    ps.calibrate(qann, [x])
    return qann, x


def set_gains(qann: ps.QuantizedNetwork, *gains: float) -> None:
    for site, gain in zip(qann.sites().values(), gains, strict=True):
        site.raw_gain.data.fill_(gain)


def events(qann: ps.QuantizedNetwork, x: Tensor) -> int:
    return sum(site.events for site in ps.count_operations(ps.convert(qann), x).sites)


def test_a_gain_of_zero_goes_without_a_trace() -> None:
    qann, x = network()
    set_gains(qann, -0.3, 0.5, 0.9)  # the first one is held at zero
    qann.train()
    before, fired = qann(x), events(qann, x)
    first, second, _ = qann.sites()
    snn = ps.convert(qann)
    assert ps.prune(qann, 0.0) == (first,)
    assert torch.equal(qann(x), before) and events(qann, x) < fired
    assert [site.levels for site in qann.sites().values()] == [(0, 5), (2, 5), (2, 5)]
    assert all(site.training for site in qann.sites().values())
    assert qann.sites()[first].raw_gain is None and qann.sites()[second].raw_gain is not None
    # Also over time: a code below zero never had a value.
    torch.testing.assert_close(ps.convert(qann)(x, timesteps=4), snn(x, timesteps=4))
    assert ps.prune(qann, 0.0) == ()


def test_a_small_gain_goes_and_training_goes_on(tmp_path: object) -> None:
    qann, x = network()
    set_gains(qann, 0.04, 0.06, 1.0)
    learned = next(iter(qann.sites().values()))
    learned.offset.data.fill_(0.1)
    step = learned.step.detach().clone()
    first, *_ = qann.sites()
    assert ps.prune(qann) == (first,)
    assert torch.equal(qann.sites()[first].step.detach(), step) and qann.sites()[first].offset.requires_grad
    ps.fit(qann, [(x, torch.arange(64) % 3)] * 2, ps.TrainSpec(epochs=1, learning_rate=0.01), progress=False)
    ps.save(qann, f"{tmp_path}/q.safetensors")
    assert torch.equal(ps.load(f"{tmp_path}/q.safetensors")(x), qann(x))
    assert ps.verify(qann, ps.convert(qann), [x], timesteps=4).within_rounding


def test_refusals() -> None:
    qann, x = network()
    for wrong in (-0.1, 1.0, "0", True):
        with pytest.raises(SpecError, match=r"gain: expected a number in \[0, 1\)"):
            ps.prune(qann, wrong)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"expected what polarspike\.quantize returns"):
        ps.prune(nn.ReLU())  # type: ignore[arg-type]
    fresh = ps.quantize(
        nn.Sequential(nn.Linear(6, 3), nn.ReLU(), nn.Linear(3, 2)).eval(), ps.QuantSpec(1, 1), example=x
    )
    with pytest.raises(CalibrationError, match="has no step yet"):
        ps.prune(fresh)
