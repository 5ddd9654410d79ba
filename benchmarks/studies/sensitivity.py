"""Does a good start make the result independent of the start? Accuracy at 4 levels over a 16-fold range of first steps.

    python benchmarks/studies/sensitivity.py [--list] [--part 0 --parts 2]

ResNet with 7 sites, 14x14 images, levels (0, 3), 4 epochs of fine-tuning from a float network of 8. Every step is multiplied
by the factor after initialization, and nothing estimates it again. ``plain steps`` leave the steps to the optimizer of the
weights, with the gradient of learned-step-size quantization; otherwise ``TrainSpec.step_rate`` moves them.
"""

from __future__ import annotations

from typing import Any

import torch
from _run import RECIPE, outcome, quantized, site_statistics, tuned
from _setting import parent, setting
from _table import Row, carry_out, options

import polarspike as ps

NETWORK, PARENT_EPOCHS, EPOCHS = "resnet", 8, 4
FACTORS = (0.25, 0.5, 1.0, 2.0, 4.0)
STRATEGIES = ("mse", "qcfs", "mse, plain steps", "qcfs, plain steps", "entropy", "lsq", "percentile")
CONFIRMED = ("mse", "qcfs")
ASKED = ("strategy", "factor", "seed")
FOUND = (
    "validation", "test", "events", "spikes", "bits_start", "bits_end", "error_start", "error_end", "used_end", "kurtosis",
    "bits_law", "sites",
)  # fmt: skip


def runs() -> list[Row]:
    """Every strategy with one seed; those that claims rest on with three."""
    confirmed = [(seed, strategy) for strategy in CONFIRMED for seed in (0, 1, 2)]
    screened = [(0, strategy) for strategy in STRATEGIES if strategy not in CONFIRMED]
    return [
        {"strategy": strategy, "factor": factor, "seed": seed}
        for seed, strategy in [*confirmed, *screened]
        for factor in FACTORS
    ]


def run(asked: Row) -> Row:
    """Train and measure one row."""
    where, seed = setting("small"), asked["seed"]
    start = parent(NETWORK, seed, where, PARENT_EPOCHS)
    init, _, plain = asked["strategy"].partition(", ")
    chosen: Any = init
    qann = quantized(start, where, ps.QuantSpec(negative=0, positive=3, init=chosen), asked["factor"])
    before = site_statistics(qann, where, promised=True)
    recipe = {**RECIPE, "step_rate": 0.0} if plain else RECIPE
    tuned(qann, start, NETWORK, where, EPOCHS, seed, **recipe)
    found = outcome(qann, where, before) | {key: before[key] for key in ("kurtosis", "bits_law", "sites")}
    return {key: found[key] for key in FOUND}


def main() -> None:
    torch.set_num_threads(1)
    carry_out("sensitivity", (*ASKED, *FOUND), runs(), run, **options(__doc__))


if __name__ == "__main__":
    main()
