"""What one network of a comparison gives at each true latency: accuracy, firing, bits of its spikes, energy, time."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polarspike.baselines.counting import count_rival
from polarspike.baselines.settling import SettlingNetwork
from polarspike.energy import CostTable, System, estimate_energy
from polarspike.evaluation import evaluate

PRICED: tuple[System, ...] = ("ann", "qann", "a", "b", "c", "d")
#: The columns that this page fills.
MEASURED = (
    "latency", "timesteps", "accuracy", "events", "spikes", "negative_spikes", "spike_bits", "weight_bits", "bits",
    *(f"nj_{system}" for system in PRICED), "nj_input_again", "time_ratio", "ms_per_image",
)  # fmt: skip
FLOAT_BITS = 32  # of weights, which no method of the comparison rounds, and of the float network's activations
COUNTED = 16  # images whose operations are counted
TIMED = 64  # images of a timing
_ROUNDS = 5


class Range:
    """An observer of the spikes of single steps: how many bits a spike of steps 1..T needs."""

    def __init__(self) -> None:
        self._least: dict[int, float] = {}
        self._most: dict[int, float] = {}

    def __call__(self, site: str, t: int, spikes: Tensor) -> None:
        """See the spikes (batch, ...) of one step."""
        del site
        self._least[t] = min(self._least.get(t, 0.0), float(spikes.min()))
        self._most[t] = max(self._most.get(t, 0.0), float(spikes.max()))

    def bits(self, timesteps: int) -> int:
        """Of the whole range that was seen until then, a sign included."""
        steps = [t for t in self._most if t <= timesteps]
        codes = max(self._most[t] for t in steps) - min(self._least[t] for t in steps) + 1
        return max(1, (int(codes) - 1).bit_length())


def measured(
    network: nn.Module, ann: nn.Module, test: Any, steps: Mapping[int, int], *, counted: bool = True
) -> list[dict[str, Any]]:
    """One row for each true latency.

    Args:
        network: a spiking network that :func:`polarspike.evaluate` takes.
        ann: the float network, for times; it takes the first frame where the batches hold sequences.
        test: batches; the first of them is counted and timed, too.
        steps: true latency -> T.
        counted: the network is one whose operations can be counted.
    """
    reach = Range()
    with network.observe(reach):  # type: ignore[operator]
        found = evaluate(network, test, tuple(steps.values()))
    assert found.firing is not None
    inputs, _ = next(iter(test))
    rows = []
    for latency, timesteps in steps.items():
        fired = found.firing[timesteps]
        row: dict[str, Any] = {
            "latency": latency,
            "timesteps": timesteps,
            "accuracy": 100 * found.accuracy[timesteps],
            "events": fired.events_per_neuron,
            "spikes": fired.spikes_per_neuron,
            "negative_spikes": fired.negative_spikes_per_neuron,
            "spike_bits": reach.bits(timesteps),
        }
        ratio, seconds = _timed(network, ann, inputs[:TIMED], timesteps)
        row |= {"time_ratio": ratio, "ms_per_image": 1e3 * seconds / len(inputs[:TIMED])}
        row |= with_bits(row)
        rows.append(row | (_prices(network, inputs[:COUNTED], timesteps) if counted else {}))
    return rows


def with_bits(row: Mapping[str, Any]) -> dict[str, int]:
    """Bits of weights, and those that one synapse multiplies in all: weight bits x bits of a spike x true latency."""
    return {"weight_bits": FLOAT_BITS, "bits": FLOAT_BITS * int(row["spike_bits"]) * int(row["latency"])}


def _prices(network: nn.Module, inputs: Tensor, timesteps: int) -> dict[str, float]:
    """Nanojoules an image at int8; ``nj_input_again`` is what they hold of a first layer that is computed at every step.

    Where an image enters once by definition (ST-BIF+), that and the biases of later steps are taken off.
    """
    counts = count_rival(network, inputs, timesteps)
    energy = estimate_energy(counts, CostTable.cmos45())
    prices = {}
    again = 0.0
    for system in PRICED:
        row = energy.row(system)
        total = row.total_pj
        if system not in ("ann", "qann"):
            again = row.input_once_pj
            if isinstance(network, SettlingNetwork):
                total -= again + row.biases_pj * (1 - 1 / counts.timesteps)
        prices[f"nj_{system}"] = total / energy.images * 1e-3
    return {**prices, "nj_input_again": again / energy.images * 1e-3}


@torch.no_grad()
def _timed(network: nn.Module, ann: nn.Module, inputs: Tensor, timesteps: int) -> tuple[float, float]:
    """Median over interleaved rounds of the time of T steps over that of the float network; and of the time itself."""
    image = inputs[:, 0] if inputs.dim() == 5 else inputs
    ratios, times = [], []
    for _ in range(_ROUNDS + 1):
        marks = [time.process_time()]
        ann(image)
        marks.append(time.process_time())
        network(inputs, timesteps=timesteps)
        marks.append(time.process_time())
        ratios.append((marks[2] - marks[1]) / (marks[1] - marks[0]))
        times.append(marks[2] - marks[1])
    return statistics.median(ratios[1:]), statistics.median(times[1:])  # the first round warms up
