"""Other tools' converters on the networks on which they were first measured, beside what was seen then.

    python benchmarks/train_peers.py --trainings brief --seeds 0 1 2   # once: the weights
    python benchmarks/peers.py               # in an environment that has SpikingJelly: pip install 'polarspike[baselines]'
    python benchmarks/peers.py --seeds 0 --networks avg-pool  # a look

Fashion-MNIST, brief training (one epoch), calibration on the first 1,024 training images in 8 batches, as then. The weights
of then are not kept: those here are of three other seeds, whose least and most accuracy show how much one training differs
from another. About half an hour of one core; results in ``benchmarks/results/peers.json``.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from _common import conditions, keep, kept, require
from peer_networks import TRAININGS, load
from torch import nn

import polarspike as ps
from polarspike import data
from polarspike.baselines.peers import convert_with

TIMES = (1, 2, 4, 8, 16, 32, 64)
#: (network, images then): (peer, settings) -> percent right at these timesteps, seen on 2026-11-23 with SpikingJelly 2.0.
SEEN: dict[tuple[str, int], list[tuple[str, dict[str, Any], tuple[float, ...]]]] = {
    ("max-pool", 2000): [
        ("spikingjelly-rate", {"mode": "Max"}, (10.0, 10.0, 12.0, 18.2, 68.1, 66.0, 54.7)),
        ("spikingjelly-rate", {"mode": "99.9%"}, (10.0, 12.0, 12.7, 53.5, 73.8, 61.2, 53.6)),
        ("spikingjelly-rate", {"mode": "99%"}, (9.8, 14.5, 49.0, 78.0, 74.1, 61.9, 56.3)),
        ("spikingjelly-rate", {"mode": "Max", "channel_wise": True, "half_threshold": True},
         (48.6, 60.4, 65.4, 65.8, 63.4, 59.4, 57.1)),
        ("spikingjelly-rate",
         {"mode": "99.9%", "channel_wise": True, "half_threshold": True, "pre_spike_maxpool": True},
         (64.1, 60.2, 62.7, 62.0, 61.5, 61.0, 61.3)),
        ("spikingjelly-balanced", {}, (41.6, 69.8, 78.1, 79.1, 78.7, 77.9, 77.4)),
    ],
    ("avg-pool", 1000): [
        ("spikingjelly-rate", {"mode": "Max"}, (9.7, 9.7, 17.0, 23.8, 30.7, 65.2, 81.8)),
        ("spikingjelly-rate", {"mode": "99.9%"}, (9.7, 16.1, 22.2, 29.1, 64.0, 81.0, 83.9)),
        ("spikingjelly-rate", {"mode": "99.9%", "channel_wise": True, "half_threshold": True},
         (37.4, 54.3, 71.3, 80.3, 83.6, 84.5, 84.8)),
        ("spikingjelly-balanced", {}, (60.8, 45.2, 61.5, 66.2, 66.6, 65.9, 66.7)),
    ],
    # Converted anew for each of the timesteps, which its thresholds depend on.
    ("vit", 500): [("spikingjelly-sta", {}, (68.2, 78.4, 79.8, 81.2, 81.0))],
}  # fmt: skip


def measured(ann: nn.Module, images: int, peer: str, settings: dict[str, Any]) -> list[float]:
    """Percent right after T timesteps of a network that the peer converts."""
    fashion = data.load("fashion-mnist")
    calibration = list(itertools.islice(fashion.evaluation(128, "train"), 8))
    test = fashion.evaluation(250, images=images)
    if peer == "spikingjelly-sta":
        made = [(time, convert_with(peer, ann, calibration, time_steps=time)) for time in TIMES[:5]]
        return [100 * ps.evaluate(snn, test, time).accuracy[time] for time, snn in made]
    accuracy = ps.evaluate(convert_with(peer, ann, calibration, **settings), test, TIMES).accuracy
    return [100 * accuracy[time] for time in TIMES]


def rows_of(network: str, images: int, anns: dict[int, nn.Module]) -> Iterator[dict[str, Any]]:
    """What the peers made of a network then, and of the same one with other weights now, seed by seed."""
    test = data.load("fashion-mnist").evaluation(250, images=images)
    right = {seed: 100 * ps.evaluate(ann, test).accuracy[1] for seed, ann in anns.items()}
    print(f"{network}: float networks {_line(list(right.values()))} %; T = {', '.join(map(str, TIMES))}")
    for peer, settings, seen in SEEN[network, images]:
        found = {seed: measured(ann, images, peer, settings) for seed, ann in anns.items()}
        low, high = ([each(values) for values in zip(*found.values(), strict=True)] for each in (min, max))
        print(f"  {peer} {settings}")
        for name, values in {"seen": list(seen), "least": low, "most": high}.items():
            print(f"    {name:6}{_line(values)}", flush=True)
        yield {"network": network, "images": images, "peer": peer, "settings": settings, "ann": right, "seen": seen,
               "here": found}  # fmt: skip


def _line(values: list[float]) -> str:
    return " ".join(f"{value:6.1f}" for value in values)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", default=[network for network, _ in SEEN])
    parser.add_argument("--training", choices=TRAININGS, default="brief", help="of the weights; then it was brief")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    given = parser.parse_args()
    torch.set_num_threads(1)
    versions = {"spikingjelly": require("spikingjelly")}
    asked = [key for key in SEEN if key[0] in given.networks]
    # All weights before the first measurement: one that is missing costs no work.
    anns = {key: {seed: load(key[0], given.training, seed) for seed in given.seeds} for key in asked}
    for key in asked:
        rows = list(rows_of(*key, anns[key]))
        if (given.training, given.seeds) == ("brief", [0, 1, 2]):
            found = {**conditions(0), "versions": versions, "timesteps": TIMES, "rows": rows}
            keep("peers", {"results": kept("peers") | {key[0]: found}})  # each network as soon as it is there


if __name__ == "__main__":
    main()
