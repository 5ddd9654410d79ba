"""What each start of the steps is worth before any training: the float network of :mod:`sensitivity`, quantized.

    python benchmarks/studies/starts.py [--list] [--only seed=0]

ResNet with 7 sites, 14x14 images, levels (0, P). 2,000 training images calibrate; percentages right on the 10,000 validation
and the 10,000 test images.
"""

from __future__ import annotations

from typing import Any

import torch
from _run import accuracies, firing, quantized
from _setting import parent, setting
from _table import Row, carry_out, options

import polarspike as ps

NETWORK, PARENT_EPOCHS = "resnet", 8
STRATEGIES = ("mse", "entropy", "lsq", "percentile", "qcfs")
LEVELS = (3, 15)
ASKED = ("network", "positive", "strategy", "seed")
FOUND = ("float", "validation", "test", "events", "spikes")


def runs() -> list[Row]:
    """Every strategy at every number of levels."""
    return [
        {"network": NETWORK, "positive": positive, "strategy": strategy, "seed": seed}
        for seed in (0, 1, 2)
        for positive in LEVELS
        for strategy in STRATEGIES
    ]


def run(asked: Row) -> Row:
    """Quantize and measure one row."""
    where, positive = setting("small"), asked["positive"]
    start = parent(asked["network"], asked["seed"], where, PARENT_EPOCHS)
    chosen: Any = asked["strategy"]
    qann = quantized(start, where, ps.QuantSpec(negative=0, positive=positive, init=chosen))
    fired = firing(qann, where.batches(where.test))
    kept = {key: fired[key] for key in ("events", "spikes")}
    return {"float": accuracies(start, where)["test"], **accuracies(qann, where), **kept}


def main() -> None:
    torch.set_num_threads(1)
    carry_out("starts", (*ASKED, *FOUND), runs(), run, **options(__doc__))


if __name__ == "__main__":
    main()
