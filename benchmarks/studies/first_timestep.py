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

The float network itself (the control) goes on for the same epochs from the same weights, with the same schedule,
augmentation and seed. ``activity`` is the weight of the spikes in the loss.

Accuracy of all 10,000 test images at the last epoch. ``t1`` to ``t8`` are of the polarity neuron on the repeated image,
``h`` of the holding neuron, ``f`` and ``g`` of the two on 2,000 sequences of noisy frames (each frame the image plus its own
normal noise of 0.3 standard deviations of the pixels), which are integrated.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from _run import EARLY_RECIPE, RECIPE, accuracies, differing_codes, firing, quantized, tuned
from _setting import Setting, parent, setting
from _table import Row, carry_out, options
from torch import Tensor, nn

import polarspike as ps


class Course(NamedTuple):
    """A float network, its epochs, those of what follows it and how that is trained; levels and activities, and seeds.

    In place of a number of epochs stands the course whose control is the float network.
    """

    network: str
    before: int | str
    after: int
    recipe: dict[str, Any]
    rows: tuple[tuple[str, float], ...]
    seeds: tuple[int, ...] = (0, 1, 2)


FLOAT, TERNARY = ("float", 0.0), ("(1, 1)", 0.0)
SIXTEEN, EIGHT, FOUR = ("(0, 15)", 0.0), ("(0, 7)", 0.0), ("(0, 3)", 0.0)
SMOOTHED, SETTLED = ({**usual, "label_smoothing": 0.1} for usual in (EARLY_RECIPE, RECIPE))
COURSES = {
    "resnet9": Course("resnet9", 8, 3, RECIPE, (FLOAT, EIGHT, FOUR, TERNARY)),
    "resnet9-long": Course("resnet9", 8, 8, RECIPE, (FLOAT, FOUR), (0,)),
    "resnet9-wide": Course("resnet9-wide", 10, 5, RECIPE, (FLOAT,), (0, 1)),
    "resnet9-early": Course("resnet9", 2, 10, SMOOTHED, (FLOAT, EIGHT, FOUR, TERNARY, SIXTEEN, ("(0, 7)", 0.05))),
    "resnet9-settled": Course("resnet9", "resnet9-early", 3, SETTLED, (FLOAT, EIGHT, FOUR, TERNARY)),
    "resnet9-largest": Course("resnet9-largest", 2, 12, SMOOTHED, (EIGHT, FLOAT)),
    "resnet9-largest-settled": Course("resnet9-largest", "resnet9-largest", 3, SETTLED, (SIXTEEN, EIGHT, FLOAT)),
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
    network, _, epochs, recipe, *_ = COURSES[name]
    start = _started(name, seed, where)
    found: Row = {"parent": accuracies(start, where)["test"]}
    if levels == "float":
        return found | accuracies(_control(name, seed, where), where)
    negative, positive = (int(part) for part in levels.strip("()").split(","))
    gain: Any = "learned" if negative else 1.0
    signed: Any = "all" if negative else "by-nature"
    qann = quantized(start, where, ps.QuantSpec(negative, positive, gain, signed, init="mse"))
    kept = _kept(name, seed, levels, asked["activity"])
    tuned(qann, start, network, where, epochs, seed, kept=kept, **recipe, activity=asked["activity"])
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
    network, _, epochs, recipe, *_ = COURSES[name]
    start = _started(name, seed, where)
    recipe = {**recipe, "step_rate": 0.0}
    kept = _kept(name, seed, "float", 0.0)
    return tuned(copy.deepcopy(start), start, network, where, epochs, seed, kept=kept, **recipe).eval()


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
