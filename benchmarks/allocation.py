"""Levels under a budget against the same levels everywhere, at the same events, spikes or joules, without training.

    python benchmarks/allocation.py [--networks max-pool avg-pool vit]

The networks of :mod:`peer_networks`, properly trained (``python benchmarks/train_peers.py`` makes their weights). Uniform
levels P = 3 and P = 7 (N = P where the signal is signed) with the ``mse`` start give a budget and an accuracy; ``allocate``
spends the same budget among at most 15 levels of either sign. 1,024 training images calibrate both; accuracy, events and
spikes are those of all 10,000 test images. The spiking network is compared with the quantized one, code for code, on 256 of
them.
"""

from __future__ import annotations

import argparse
import copy
from typing import Any

import torch
from _common import conditions, keep
from peer_networks import NETWORKS, load

import polarspike as ps
from polarspike import data

MOST, UNIFORM = 15, (3, 7)
RESOURCES = ("spikes", "events", "joules")


def measure(qann: ps.QuantizedNetwork, test: Any, images: int, first: Any) -> dict[str, float]:
    """Accuracy, and what an image costs on average; joules of convention (b), int8, on the first batch."""
    snn = ps.convert(qann)
    found = ps.evaluate(snn, test)
    assert found.firing is not None
    counts = ps.count_operations(snn, first)
    return {
        "accuracy": 100 * found.accuracy[1],
        "events": found.firing[1].events / images,
        "spikes": found.firing[1].spikes / images,
        "joules": ps.estimate_energy(counts).row("b").joules / counts.images,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    args = parser.parse_args()
    dataset = data.load("fashion-mnist")
    torch.manual_seed(0)
    chosen = torch.randperm(len(dataset.train))[:1024]
    calibration = list(data.batches(dataset.train.subset(chosen), 128, normalization=dataset.normalization))
    test = data.batches(dataset.test, 250, normalization=dataset.normalization)
    proof = list(data.batches(dataset.test.subset(torch.arange(256)), 128, normalization=dataset.normalization))
    first, images = calibration[0], len(dataset.test)
    rows: list[dict[str, Any]] = []
    for name in args.networks:
        model = load(name, "proper")
        rows.append({"network": name, "levels": "float", "accuracy": 100 * ps.evaluate(model, test).accuracy[1]})
        print(rows[-1], flush=True)
        most = _calibrated(model, MOST, calibration)
        for positive in UNIFORM:
            uniform = _calibrated(model, positive, calibration)
            found = measure(uniform, test, images, first)
            rows.append({"network": name, "levels": f"uniform {positive}", **found})
            print(rows[-1], flush=True)
            for resource in RESOURCES:
                kind: Any = resource
                qann = copy.deepcopy(most)
                # The budget is what the uniform levels need on the images that allocate sees.
                budget = _needed(uniform, calibration, resource)
                ps.allocate(qann, calibration if resource != "joules" else [first], budget, kind, answers="classes")
                different = ps.verify(qann, ps.convert(qann), proof).different
                rows.append(
                    {
                        "network": name,
                        "levels": f"allocated, {resource} of uniform {positive}",
                        **measure(qann, test, images, first),
                        "different_codes": different,
                    }
                )
                print(rows[-1], flush=True)
    keep("allocation", {"conditions": conditions(0), "rows": rows})


def _calibrated(model: torch.nn.Module, positive: int, calibration: Any) -> ps.QuantizedNetwork:
    qann = ps.quantize(model, ps.QuantSpec(negative=positive, positive=positive), example=calibration[0][0][:2])
    ps.calibrate(qann, calibration)
    return qann


def _needed(qann: ps.QuantizedNetwork, calibration: Any, resource: str) -> float:
    snn = ps.convert(qann)
    if resource == "joules":
        counts = ps.count_operations(snn, calibration[0])
        return ps.estimate_energy(counts).row("b").joules / counts.images
    firing = ps.evaluate(snn, calibration).firing
    assert firing is not None
    return float(getattr(firing[1], resource)) / sum(len(images) for images, _ in calibration)


if __name__ == "__main__":
    main()
