"""Accuracy against events and spikes: a curve over the weight of the activity regularizer.

    python benchmarks/studies/activity.py [--list] [--part 0 --parts 2]

ResNet with 7 sites, 14x14 images, 4 epochs of fine-tuning from a float network of 8, levels (0, 1) to (0, 15). Rivals
that spend less by other means: fewer levels, or ``allocate`` under a half or a quarter of the spikes, not regularized.
``regularizer, early`` quantizes after two of the twelve epochs, and trains for ten at the rate of a float network.
"""

from __future__ import annotations

from typing import Any

import torch
from _run import CALIBRATION_IMAGES, EARLY_RECIPE, RECIPE, accuracies, differing_codes, firing, quantized, tuned
from _setting import parent, setting
from _table import Row, carry_out, options

import polarspike as ps

NETWORK = "resnet"
#: Epochs of the float network, and of the quantized one, and how that is trained.
LATE: tuple[int, int, dict[str, Any]] = (8, 4, RECIPE)
EARLY: tuple[int, int, dict[str, Any]] = (2, 10, EARLY_RECIPE)
Weights = dict[int, tuple[float, ...]]
#: Weights of the activity by levels: the curve, with one seed, and what is confirmed with three.
WEIGHTS: dict[str, tuple[Weights, Weights]] = {
    "regularizer": (
        {15: (0.0, 0.02, 0.05, 0.1, 0.2, 0.5), 7: (0.0, 0.02, 0.05, 0.1, 0.2), 3: (0.0, 0.1), 2: (0.0,), 1: (0.0,)},
        {15: (0.0, 0.05, 0.1, 0.2), 7: (0.0, 0.02, 0.05, 0.1), 3: (0.0,)},
    ),
    "regularizer, early": ({15: (0.0, 0.02, 0.03, 0.05), 7: (0.0, 0.02)}, {15: (0.0, 0.02, 0.03)}),
}
ASKED = ("positive", "weight", "means", "seed")
FOUND = ("validation", "test", "events", "spikes", "density", "different")


def runs() -> list[Row]:
    """The curve with one seed; some of its points, and their rivals, with three."""
    curve = [
        {"positive": positive, "weight": weight, "means": means, "seed": seed}
        for seed in (0, 1, 2)
        for means, (screened, confirmed) in WEIGHTS.items()
        for positive, weights in (confirmed if seed else screened).items()
        for weight in weights
    ]
    rivals = [
        {"positive": 15, "weight": 0.0, "means": means, "seed": seed}
        for seed in (0, 1, 2)
        for means in ("allocate half", "allocate quarter")[: 2 if seed == 0 else 1]
    ]
    return sorted([*curve, *rivals], key=lambda row: row["seed"])


def run(asked: Row) -> Row:
    """Train and measure one row."""
    where, seed = setting("small"), asked["seed"]
    before, epochs, recipe = EARLY if asked["means"].endswith("early") else LATE
    start = parent(NETWORK, seed, where, before)
    qann = quantized(start, where, ps.QuantSpec(negative=0, positive=asked["positive"], init="mse"))
    if asked["means"].startswith("allocate"):
        calibration = [images for images, _ in where.batches(where.train, CALIBRATION_IMAGES)]
        fired = firing(qann, where.batches(where.train, CALIBRATION_IMAGES))
        share = 0.5 if asked["means"].endswith("half") else 0.25
        ps.allocate(qann, calibration, share * fired["spikes"] * fired["neurons"], answers="classes")
    tuned(qann, start, NETWORK, where, epochs, seed, **recipe, activity=asked["weight"])
    fired = firing(qann, where.batches(where.test))
    return {
        **accuracies(qann, where),
        **{key: fired[key] for key in ("events", "spikes", "density")},
        "different": differing_codes(qann, where),
    }


def main() -> None:
    torch.set_num_threads(1)
    carry_out("activity", (*ASKED, *FOUND), runs(), run, **options(__doc__))


if __name__ == "__main__":
    main()
