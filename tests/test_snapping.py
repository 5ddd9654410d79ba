"""Gains of sites with more codes than a byte."""

from __future__ import annotations

import pytest

import polarspike as ps
from tests.networks import calibrated, network, signal


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_a_gain_that_is_a_power_of_two_stays(gain: float) -> None:
    qann = calibrated(network("mlp"), ps.QuantSpec(200, 200, gain=gain, signed="all"), signal("mlp", 16))
    assert ps.snap_gains(qann) == {}
    assert all(site.levels == (200, 200) for site in qann.sites().values())
