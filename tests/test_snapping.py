"""Gains become zero or powers of two, the nearest ones, and stay there."""

from __future__ import annotations

import pytest
import torch

import polarspike as ps
from polarspike.errors import CalibrationError, SpecError
from tests.networks import calibrated, network, signal


def with_gain(gain: float, positive: int = 3) -> ps.QuantizedNetwork:
    spec = ps.QuantSpec(2, positive, gain="learned", signed="all")
    qann = calibrated(network("mlp"), spec, signal("mlp", 16))
    with torch.no_grad():
        for site in qann.sites().values():
            assert site.raw_gain is not None
            site.raw_gain.fill_(gain)
    return qann


@pytest.mark.parametrize(
    ("gain", "snapped"), [(0.3, 0.25), (0.8, 1.0), (0.74, 0.5), (0.5, 0.5), (1.0, 1.0), (0.01, 1 / 64), (0.001, 0.0)]
)
def test_the_nearest_power(gain: float, snapped: float) -> None:
    qann = with_gain(gain)
    moved = ps.snap_gains(qann)
    assert list(moved) == list(qann.sites())
    for before, after in moved.values():
        assert before == pytest.approx(gain) and after == snapped
    for site in qann.sites().values():
        assert site.raw_gain is None and not site.spec.learned_gain
        assert site.levels == ((0, 3) if snapped == 0 else (2, 3)) and (snapped == 0 or site.spec.gain == snapped)
    assert ps.snap_gains(qann) == {}
    snn = ps.convert(qann)
    assert ps.verify(qann, snn, [signal("mlp", 8)], scope=False).exact


def test_powers_end_where_a_byte_does() -> None:
    qann = with_gain(0.02, positive=100)  # 1/2 is the least: 2 + 2 * 100 <= 255
    assert {after for _, after in ps.snap_gains(qann).values()} == {0.0}
    qann = with_gain(0.4, positive=100)
    assert {after for _, after in ps.snap_gains(qann).values()} == {0.5}


def test_a_powers_answer_is_the_same_before_and_after() -> None:
    qann, x = with_gain(0.25), signal("mlp", 8)
    before = qann(x)
    assert ps.snap_gains(qann) and torch.equal(qann(x), before)


def test_refusals() -> None:
    with pytest.raises(SpecError, match="snap_gains"):
        ps.snap_gains(network("mlp"))  # type: ignore[arg-type]
    with pytest.raises(CalibrationError):
        ps.snap_gains(ps.quantize(network("mlp"), ps.QuantSpec(1, 2, signed="all"), example=signal("mlp")))


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_a_gain_that_is_a_power_of_two_stays(gain: float) -> None:
    qann = calibrated(network("mlp"), ps.QuantSpec(200, 200, gain=gain, signed="all"), signal("mlp", 16))
    assert ps.snap_gains(qann) == {}
    assert all(site.levels == (200, 200) for site in qann.sites().values())
