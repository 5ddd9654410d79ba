"""Levels under a budget against the same levels everywhere, at the same events, spikes or joules, without training.

    python benchmarks/studies/allocation.py [--list] [--only network=vit]

The float networks of the small setting. Uniform levels P = 3 and P = 7 (N = P where the signal is signed) with the ``mse``
start give a budget and an accuracy; ``allocate`` spends the same budget among at most 15 levels of either sign. 2,000
training images calibrate both and show what is spent; accuracy, events and spikes are those of the 10,000 test images,
joules (convention (b), int8) of the first 250. Codes are compared with the spiking network's.
"""

from __future__ import annotations

from typing import Any

import torch
from _run import CALIBRATION_IMAGES, accuracies, differing_codes, firing, quantized
from _setting import Setting, parent, setting
from _table import Row, carry_out, options
from torch import nn

import polarspike as ps

PARENT_EPOCHS, MOST = 8, 15
UNIFORM = (3, 7)
ASKED = ("network", "uniform", "budget", "seed")
FOUND = ("float", "test", "events", "spikes", "nanojoules", "levels", "different")


def runs() -> list[Row]:
    """Each kind of budget beside the uniform levels that give it."""
    return [
        {"network": network, "uniform": positive, "budget": budget, "seed": seed}
        for seed in (0, 1, 2)
        for network in ("resnet", "plain", "vit")
        for positive in UNIFORM
        for budget in ("none", "spikes", "events", "joules")
    ]


def run(asked: Row) -> Row:
    """Quantize and measure one row."""
    where, network = setting("small"), asked["network"]
    model = parent(network, asked["seed"], where, PARENT_EPOCHS)
    qann = _uniform(model, where, asked["uniform"])
    if asked["budget"] != "none":
        kind: Any = asked["budget"]
        calibration = [images for images, _ in where.batches(where.train, CALIBRATION_IMAGES)]
        budget = _joules(qann, where, where.train) if kind == "joules" else _fired(qann, where, kind)
        qann = _uniform(model, where, MOST)
        ps.allocate(qann, calibration, budget, kind, answers="classes")
    fired = firing(qann, where.batches(where.test))
    return {
        "float": accuracies(model, where)["test"],
        "test": accuracies(qann, where)["test"],
        "events": fired["events"],
        "spikes": fired["spikes"],
        "nanojoules": 1e9 * _joules(qann, where, where.test),
        "levels": " ".join(f"{name}:{site.levels[0]}/{site.levels[1]}" for name, site in qann.sites().items()),
        "different": differing_codes(qann, where),
    }


def _uniform(model: nn.Module, where: Setting, positive: int) -> ps.QuantizedNetwork:
    return quantized(model, where, ps.QuantSpec(positive, positive, init="mse"))


def _fired(qann: ps.QuantizedNetwork, where: Setting, kind: str) -> float:
    """Events or spikes per image of the images that ``allocate`` sees."""
    found = firing(qann, where.batches(where.train, CALIBRATION_IMAGES))
    return float(found[kind] * found["neurons"])


def _joules(qann: ps.QuantizedNetwork, where: Setting, split: Any) -> float:
    """Per image of one batch."""
    first, _ = next(iter(where.batches(split)))
    counts = ps.count_operations(ps.convert(qann), first)
    return ps.estimate_energy(counts).row("b").joules / counts.images


def main() -> None:
    torch.set_num_threads(1)
    carry_out("allocation", (*ASKED, *FOUND), runs(), run, **options(__doc__))


if __name__ == "__main__":
    main()
