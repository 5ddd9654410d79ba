"""Whether a runtime gives the codes that whole numbers are defined to have, and if not, where a difference begins.

Integer kernels must give all of them. Behind float operators (softmax, layer norm, GELU) another order of sums may move a
value that lies next to a threshold; what follows from a moved code then differs for a reason. So differences are counted
twice: those of the first site of an image that has any (begun), with their distance from the threshold, and all.

    margin   |frac(x / step) - 1/2|, of the float value x that a differing code was made of, in steps
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polarspike import integer
from polarspike.exporters.description import KEY
from polarspike.exporters.onnx_int8 import model_of, zero_points
from polarspike.exporters.runtime import session
from polarspike.integer import IntegerNetwork
from polarspike.speed.runtimes import openvino_request

Array = NDArray[Any]
#: The bytes of every site, by the name of the value.
Reader = Callable[[Array], Mapping[str, Array]]


@dataclass
class Agreement:
    """Counts over batches.

    Args:
        compared: codes.
        different: of them.
        begun: of those, the ones of the first site of an image that has any.
        begun_at: sites, and how many began there.
        margin: the largest margin of those that began behind a float operator; NaN if none did.
        farthest: the largest distance of those that began, in codes.
    """

    compared: int = 0
    different: int = 0
    begun: int = 0
    begun_at: dict[str, int] | None = None
    margin: float = math.nan
    farthest: int = 0

    def row(self) -> dict[str, Any]:
        """Plain data."""
        return {
            "compared": self.compared,
            "different": self.different,
            "begun": self.begun,
            "begun_at": self.begun_at or {},
            "farthest": self.farthest,
            "margin": None if math.isnan(self.margin) else self.margin,
        }


@dataclass(frozen=True)
class Meaning:
    """The reference's codes of some images, and for each site the float values, in steps, that it was made of.

    Args:
        codes: by site, in the order in which they fire.
        positions: by site, (x - shift) / step where a float value was quantized.
    """

    codes: dict[str, Array]
    positions: dict[str, Array]


def meaning(network: IntegerNetwork, x: Array) -> Meaning:
    """Run the NumPy program."""
    sites = {value: site for site, value in network.sites.items()}
    quantized = {made.output: made for made in network.instructions if made.kind == "quantize"}
    sources = {made.inputs[0] for name, made in quantized.items() if name in sites}
    codes: dict[str, Array] = {}
    positions: dict[str, Array] = {}
    floats: dict[str, Array] = {}
    for name, value in integer.trace(network, {network.inputs[0][0]: x}):
        if name in sources:
            floats[name] = value
        if name not in sites:
            continue
        codes[sites[name]] = value.astype(np.int16)
        if name in quantized and quantized[name].inputs[0] in floats:
            made = quantized[name]
            shifted = floats[made.inputs[0]] - made.tensors.get("shift", np.float32(0))
            positions[sites[name]] = shifted / made.tensors["step"].astype(np.float32)
    return Meaning(codes, positions)


def onnxruntime_codes(network: IntegerNetwork, threads: int) -> Reader:
    """The codes that ONNX Runtime gives."""
    opened = session(model_of(network, KEY, codes=True), threads)
    names = [f"{site}/bytes" for site in network.sites]
    given = network.inputs[0][0]
    return lambda x: _codes(network, opened.run(names, {given: x}))


def openvino_codes(network: IntegerNetwork, threads: int) -> Reader:
    """The codes that OpenVINO gives."""
    model = model_of(network, KEY, codes=True).SerializeToString()
    outputs = len(network.outputs)
    requests: dict[tuple[int, ...], Any] = {}

    def read(x: Array) -> Mapping[str, Array]:
        if x.shape not in requests:
            requests[x.shape] = openvino_request(model, x.shape, threads)
        answers = requests[x.shape].infer({0: x})
        return _codes(network, [answers[outputs + index] for index in range(len(network.sites))])

    return read


def agreement(meant: Meaning, found: Mapping[str, Array], total: Agreement) -> Agreement:
    """Add one batch to the counts.

    Args:
        meant: what the reference gave.
        found: codes of the runtime, by site.
        total: so far; changed in place, and returned.
    """
    total.begun_at = total.begun_at if total.begun_at is not None else {}
    clean: Array | None = None
    for site, codes in meant.codes.items():
        wrong = found[site] != codes
        total.compared += codes.size
        total.different += int(wrong.sum())
        by_image = wrong.reshape(len(wrong), -1).any(axis=1)
        clean = np.ones(len(wrong), dtype=bool) if clean is None else clean
        fresh = by_image & clean
        clean &= ~by_image
        if not fresh.any():
            continue
        count = int(wrong[fresh].sum())
        total.begun += count
        apart = np.abs(found[site][fresh].astype(np.int64) - codes[fresh])
        total.farthest = max(total.farthest, int(apart.max()))
        total.begun_at[site] = total.begun_at.get(site, 0) + count
        if site in meant.positions:
            at = meant.positions[site][fresh][wrong[fresh]].astype(np.float64)
            worst = float(np.abs(at - np.floor(at) - 0.5).max())
            total.margin = worst if math.isnan(total.margin) else max(worst, total.margin)
    return total


def _codes(network: IntegerNetwork, values: list[Array]) -> dict[str, Array]:
    points = zero_points(network)
    return {
        site: bytes_.astype(np.int16) - points[value]
        for (site, value), bytes_ in zip(network.sites.items(), values, strict=True)
    }
