"""Is the one learning rate that every method of docs/rivals.md has somebody's disadvantage? Four trials for each.

    python benchmarks/rates.py [--list]

The plain network of the preset "small", one seed. Validation images, which are cut from the training images, choose one
of four rates for each method: fine-tuning .01, .02, .05 and .1, direct training .05, .2, .4 and .8. What they chose and how
each trial did there is in the column ``setting`` of ``benchmarks/results/rates.csv``; accuracy is on all 10,000 test images.
All trials have 27,500 training images, where the preset, which needs no validation, has 30,000.
"""

from __future__ import annotations

import argparse
import dataclasses

import torch
from _common import RESULTS
from rivals import RUNS

from polarspike.baselines.contest import Contest
from polarspike.baselines.cost import announcement
from polarspike.baselines.presets import preset

NETWORK = "cnn-16"
METHODS = ("ann", "polarspike", "scale-and-fire", "st-bif", "qcfs", "lsq", "lif", "integer-lif")
PLAIN = next(part.comparison for part in preset("small") if part.comparison.network == NETWORK)
TRIALS = dataclasses.replace(
    PLAIN,
    methods=METHODS,
    trained_steps=(1,),
    latencies=(1, 8),
    rates=(0.01, 0.02, 0.05, 0.1),
    direct_rates=(0.05, 0.2, 0.4, 0.8),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="what is to do, and what it will cost")
    given = parser.parse_args()
    torch.set_num_threads(1)
    contest = Contest(TRIALS, RUNS, table=RESULTS / "rates.csv", say=print)
    if given.list:
        print(announcement([contest]))
        return
    contest.carry_out()
    for row in contest.rows():
        print(f"{row['method']:15} T = {row['timesteps']}: {row['accuracy']} %, {row['setting']}")


if __name__ == "__main__":
    main()
