"""A quantized network and its spiking one: what the tests of the spiking network share."""

from __future__ import annotations

import polarspike as ps
from polarspike.quantized import QuantizedNetwork
from polarspike.spiking import SpikingNetwork
from tests.networks import calibrated, network, signal

SPEC = ps.QuantSpec(2, 4, gain=0.3, signed="all")


def pair(name: str = "branched", spec: ps.ConvertSpec | None = None) -> tuple[QuantizedNetwork, SpikingNetwork]:
    qann = calibrated(network(name), SPEC, signal(name, 16))
    return qann, ps.convert(qann, spec)
