"""The first timestep without training, at several resolutions: Sinabs' neuron without a ceiling, and ours with levels.

    python benchmarks/resolutions.py     in an environment that has Sinabs: pip install 'polarspike[baselines]'

The float networks of the preset "small" (Fashion-MNIST at 14x14 pixels, one seed; trained now where ``runs/rivals`` lacks
them). A spike of Sinabs is worth 1 / scale and nothing bounds their number in a step; its membranes start at rest, and once
more at half a threshold, where ours start, too. Ours is calibrated on 2,000 images (``polarspike-free``). All have more
spikes and more accuracy where they are finer: every setting stands in ``benchmarks/results/resolutions.json``, none is
chosen. Ten minutes of one core, without training.
"""

from __future__ import annotations

from typing import Any

import torch
from _common import conditions, keep, require
from rivals import RUNS, TABLE

from polarspike.baselines import RivalSpec, prepare
from polarspike.baselines.contest import Contest
from polarspike.baselines.measurement import measured
from polarspike.baselines.peers import convert_with
from polarspike.baselines.presets import preset

NETWORKS = ("cnn-16", "resnet20-16-blocks1")
LEVELS = (4, 8, 16, 32, 64)
#: By whether membranes start at half a threshold.
SCALES = {False: (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), True: (1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 16.0)}


def rows_of(contest: Contest) -> list[dict[str, Any]]:
    """Accuracy, spikes and events of every setting on one network."""
    ann, accuracy = contest.trainings.control(0)
    calibration, test = contest.scene.calibration(), contest.scene.test()
    networks: list[tuple[str, float, Any]] = [
        (
            f"sinabs{', half a threshold' if half else ''}",
            scale,
            convert_with("sinabs", ann, calibration, scale=scale, half_threshold=half),
        )
        for half, scales in SCALES.items()
        for scale in scales
    ]
    for levels in LEVELS:
        rival = prepare("polarspike-free", ann, RivalSpec(levels), example=calibration[0][0][:2])
        rival.calibrate(calibration)
        networks.append(("polarspike-free", levels, rival.network()))
    rows = []
    for method, setting, network in networks:
        (row,) = measured(network, ann, test, {1: 1}, counted=False)
        found = {name: row[name] for name in ("accuracy", "spikes", "events")}
        rows.append({"network": contest.asked.network, "ann": accuracy, "method": method, "setting": setting, **found})
        print(", ".join(f"{name} {value}" for name, value in rows[-1].items()), flush=True)
    return rows


def main() -> None:
    torch.set_num_threads(1)
    installed = require("sinabs")
    asked = {part.comparison.network: part.comparison for part in preset("small")}
    rows = [row for name in NETWORKS for row in rows_of(Contest(asked[name], RUNS, table=TABLE))]
    keep("resolutions", {**conditions(0), "sinabs": installed, "rows": rows})


if __name__ == "__main__":
    main()
