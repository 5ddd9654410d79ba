"""ANN, QANN and SNN at the first timestep and later, on Fashion-MNIST at full size.

    python benchmarks/studies/first_timestep.py [--list] [--only seed=0] [--device cuda]

    resnet9          ResNet-9 of 16 channels: 8 epochs as a float network, then 3 for the quantized one
    resnet9-long     8 epochs, then 8
    resnet9-wide     of 24 channels: 10 epochs, then 5
    resnet9-early    the same, quantized after 2 epochs and then trained for 10, at the rate of a float network and with
                     smoothed labels
    resnet9-settled  the float network of resnet9-early, quantized when it has had all of its 12 epochs, then trained for 3
    resnet9-largest  of 32 channels, quantized after 2 epochs and then trained for 12; about two hours of one core
    resnet9-largest-settled  the float network of that, quantized when it has had all 14, then trained for 3
    longest          of 20 channels, 24 epochs in one schedule with smoothed labels, then 3 at rate .05
    recipe           the same, but the last 3 at rate .01: what ``polarspike train --data fashion-mnist`` does

The float network itself (the control) goes on for the same epochs from the same weights, with the same schedule,
augmentation and seed. ``activity`` is the weight of the spikes in the loss.

Accuracy of all 10,000 test images at the last epoch. ``t1`` to ``t8`` are of the polarity neuron on the repeated image,
``h`` of the holding neuron, ``f`` and ``g`` of the two on 2,000 sequences of noisy frames (each frame the image plus its own
normal noise of 0.3 standard deviations of the pixels), which are integrated.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from _run import EARLY_RECIPE, RECIPE, accuracies, differing_codes, firing, quantized, trained
from _setting import Setting, fine_tuning, parent, setting
from _table import Row, carry_out, options
from torch import Tensor, nn

import polarspike as ps
from polarspike.experiments.recipes import FASHION_MNIST
from polarspike.training_spec import TrainSpec


class Course(NamedTuple):
    """A float network, its training, that of what follows it; levels and activities, and seeds.

    In place of a training stand its epochs at the usual rate, or the course whose control is the float network.
    """

    network: str
    before: int | str | TrainSpec
    after: TrainSpec
    rows: tuple[tuple[str, float], ...]
    seeds: tuple[int, ...] = (0, 1, 2)


def _early(epochs: int) -> TrainSpec:
    return fine_tuning("resnet9", epochs, 0, **EARLY_RECIPE, label_smoothing=0.1)


FLOAT, TERNARY = ("float", 0.0), ("(1, 1)", 0.0)
SIXTEEN, EIGHT, FOUR = ("(0, 15)", 0.0), ("(0, 7)", 0.0), ("(0, 3)", 0.0)
BRIEF, LONG, WIDE = (fine_tuning("resnet9", epochs, 0, **RECIPE) for epochs in (3, 8, 5))
WARMER = dataclasses.replace(FASHION_MNIST.qann, learning_rate=0.05)
SETTLED = dataclasses.replace(BRIEF, label_smoothing=0.1)
COURSES = {
    "resnet9": Course("resnet9", 8, BRIEF, (FLOAT, EIGHT, FOUR, TERNARY)),
    "resnet9-long": Course("resnet9", 8, LONG, (FLOAT, FOUR), (0,)),
    "resnet9-wide": Course("resnet9-wide", 10, WIDE, (FLOAT,), (0, 1)),
    "resnet9-early": Course("resnet9", 2, _early(10), (FLOAT, EIGHT, FOUR, TERNARY, SIXTEEN, ("(0, 7)", 0.05))),
    "resnet9-settled": Course("resnet9", "resnet9-early", SETTLED, (FLOAT, EIGHT, FOUR, TERNARY)),
    "resnet9-largest": Course("resnet9-largest", 2, _early(12), (EIGHT, FLOAT)),
    "resnet9-largest-settled": Course("resnet9-largest", "resnet9-largest", SETTLED, (SIXTEEN, EIGHT, FLOAT)),
    "longest": Course("recipe", FASHION_MNIST.ann, WARMER, (SIXTEEN, EIGHT, FLOAT), (0,)),
    "recipe": Course("recipe", FASHION_MNIST.ann, FASHION_MNIST.qann, (SIXTEEN, FLOAT, EIGHT, FOUR, TERNARY)),
}
TIMES = (1, 2, 4, 8)
SEQUENCES, NOISE = 2000, 0.3
ASKED = ("network", "levels", "activity", "seed")
FOUND = (
    "parent", "test", "events", "spikes", "density", "different",
    *(f"{kind}{t}" for kind in "thfg" for t in TIMES),
)  # fmt: skip


def runs() -> list[Row]:
    """Network by network, seed by seed."""
    return [
        {"network": name, "levels": levels, "activity": activity, "seed": seed}
        for name, course in COURSES.items()
        for seed in course.seeds
        for levels, activity in course.rows
    ]


def run(asked: Row, device: str) -> Row:
    """Train and measure one row."""
    where, name, seed, levels = setting("full", device), asked["network"], asked["seed"], asked["levels"]
    start = _started(name, seed, where)
    found: Row = {"parent": accuracies(start, where)["test"]}
    if levels == "float":
        return found | accuracies(_control(name, seed, where), where)
    negative, positive = (int(part) for part in levels.strip("()").split(","))
    gain: Any = "learned" if negative else 1.0
    signed: Any = "all" if negative else "by-nature"
    qann = quantized(start, where, ps.QuantSpec(negative, positive, gain, signed, init="mse"))
    spec = dataclasses.replace(COURSES[name].after, seed=seed, activity=asked["activity"])
    trained(qann, spec, where, start, _kept(name, seed, levels, asked["activity"]))
    fired = firing(qann, where.batches(where.test))
    found |= accuracies(qann, where) | {key: fired[key] for key in ("events", "spikes", "density")}
    found["different"] = differing_codes(qann, where)
    for kind, neuron in (("t", "polarity"), ("h", "holding")):
        chosen: Any = neuron
        snn = ps.convert(qann, ps.ConvertSpec(neuron=chosen))
        table = ps.evaluate(snn, where.batches(where.test), timesteps=TIMES)
        found |= {f"{kind}{t}": 100 * table.accuracy[t] for t in TIMES}
        correct = _on_sequences(snn, where)
        found |= {f"{'f' if kind == 't' else 'g'}{t}": 100 * correct[t] for t in TIMES}
    return found


def _started(name: str, seed: int, where: Setting) -> nn.Module:
    """The float network from which a course's other networks start."""
    network, before, *_ = COURSES[name]
    return _control(before, seed, where) if isinstance(before, str) else parent(network, seed, where, before)


def _control(name: str, seed: int, where: Setting) -> nn.Module:
    """The float network that went on for a course's epochs itself."""
    start = _started(name, seed, where)
    spec = dataclasses.replace(COURSES[name].after, seed=seed)
    return trained(copy.deepcopy(start), spec, where, start, _kept(name, seed, "float", 0.0)).eval()


def _kept(name: str, seed: int, levels: str, activity: float) -> str:
    return f"full-{name}-{seed}-{levels.replace(' ', '').strip('()').replace(',', '-')}-{activity:g}"


@torch.no_grad()
def _on_sequences(snn: ps.SpikingNetwork, where: Setting) -> dict[int, float]:
    """Share of right answers after T noisy frames."""
    right = dict.fromkeys(TIMES, 0)
    for frames, labels in _sequences(where):
        answers = snn(frames, time_dim=1, every_step=True)
        for t in TIMES:
            right[t] += int((answers[t - 1].argmax(1) == labels).sum())
    return {t: count / SEQUENCES for t, count in right.items()}


def _sequences(where: Setting) -> Iterator[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    for images, labels in where.batches(where.test, SEQUENCES):
        noise = torch.randn((len(images), max(TIMES), *images.shape[1:]), generator=generator)
        yield images.unsqueeze(1) + NOISE * noise.to(images), labels


def main() -> None:
    torch.set_num_threads(1)
    given = options(__doc__, device=True)
    device = given.pop("device")
    carry_out("first_timestep", (*ASKED, *FOUND), runs(), lambda asked: run(asked, device), **given)


if __name__ == "__main__":
    main()
