"""Networks that are trained for several timesteps (TrainSpec.timesteps), by the share of the optimizer steps at T = 1.

    python benchmarks/studies/timesteps.py [--list] [--part 0 --parts 2]

14x14 images. A residual network with 7 sites (4 epochs from a float network of 8) at 4 levels and ternary, and a Transformer
of two blocks (3 epochs from a float network of 6) at levels (1, 2). ``share`` 1 is training for T = 1 alone; the others
train for T = 1, 2, 4 and 8. ``v1`` to ``v8`` are percentages right on the 10,000 validation images after T steps, ``t1``
to ``t8`` on the 10,000 test images, last epoch.
"""

from __future__ import annotations

from typing import Any

import torch
from _run import RECIPE, differing_codes, firing, quantized, tuned
from _setting import parent, setting
from _table import Row, carry_out, options

import polarspike as ps

TIMES = (1, 2, 4, 8)
#: Epochs of the float network (the parent of a Transformer has twice as many) and of fine-tuning.
COURSES = {"resnet": (8, 4), "vit": (3, 3)}
ASKED = ("network", "levels", "share", "seed")
FOUND = (*(f"{kind}{t}" for kind in "vt" for t in TIMES), "events", "spikes", "different")


def runs() -> list[Row]:
    """One seed of every share; then two more of training for T = 1 alone and of the default share."""
    places = (("vit", "(1, 2)"), ("resnet", "(0, 3)"), ("resnet", "(1, 1)"))
    return [
        {"network": network, "levels": levels, "share": share, "seed": seed}
        for seed in (0, 1, 2)
        for network, levels in places
        for share in ((1.0, 0.67, 0.33) if seed == 0 else (1.0, 0.67))
    ]


def run(asked: Row) -> Row:
    """Train and measure one row."""
    where, seed, network = setting("small"), asked["seed"], asked["network"]
    before, epochs = COURSES[network]
    negative, positive = (int(part) for part in asked["levels"].strip("()").split(","))
    start = parent(network, seed, where, before)
    signed: Any = "all" if network == "resnet" and negative else "by-nature"
    gain: Any = "learned" if network == "resnet" and negative else 1.0
    qann = quantized(start, where, ps.QuantSpec(negative, positive, gain, signed, init="mse"))
    several = {} if asked["share"] == 1.0 else {"timesteps": TIMES, "first_share": asked["share"]}
    tuned(qann, start, network, where, epochs, seed, **RECIPE, **several)
    snn = ps.convert(qann)
    assert where.validation is not None
    found: Row = {}
    for kind, part in (("v", where.validation), ("t", where.test)):
        accuracy = ps.evaluate(snn, where.batches(part), timesteps=TIMES).accuracy
        found |= {f"{kind}{t}": 100 * accuracy[t] for t in TIMES}
    fired = firing(qann, where.batches(where.test))
    return found | {key: fired[key] for key in ("events", "spikes")} | {"different": differing_codes(qann, where)}


def main() -> None:
    torch.set_num_threads(1)
    carry_out("timesteps", (*ASKED, *FOUND), runs(), run, **options(__doc__))


if __name__ == "__main__":
    main()
