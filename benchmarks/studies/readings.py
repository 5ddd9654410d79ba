"""The four readings of a sequence of event frames, each against its own float network, and a directly trained LIF network.

    python benchmarks/studies/readings.py [--list] [--only task=fashion seed=0]

Simulated events (see ``_events.py``), six frames, levels (0, 7), an event CNN of 16 to 64 channels::

    mean          (i)   the mean frame; the spiking network integrates the frames one by one
    frames        (ii)  every frame is a first timestep; the mean of the answers
    channels      (iii) the six frames side by side as channels, one timestep
    through-time  (iv)  membranes carried and leaking, trained on sequences, from the float network of (ii); ``leak`` is what
                        they keep of a frame at the start, the library's 0.2, and 0.9 with one seed (0 in other rows)
    lif           a LIF network of the same size, trained directly on sequences

Every reading has 8 epochs of float training and 4 of the quantized network or through time; the control is the float
network with the same 4 on top, from the same weights. LIF has 12 from the start, at two learning rates, of which the better
stands for it. All 10,000 test images, last epoch. ``snn`` is after all frames, ``half`` after three; spikes and events are
per neuron and sequence.
"""

from __future__ import annotations

import copy
import itertools
import time
from typing import Any

import torch
from _events import CLASSES, FRAMES, dataset
from _run import RECIPE
from _setting import RUNS, fine_tuning
from _table import Row, carry_out, options
from torch import Tensor, nn

import polarspike as ps
from polarspike import models
from polarspike.baselines import RivalSpec, prepare
from polarspike.readings import AtOnce, OverFrames, seen
from polarspike.runs import RunDirectory
from polarspike.specs import Reading
from polarspike.spiking.through_time import FIRST_LEAK

PARENT_EPOCHS, EPOCHS = 8, 4
PARENT_RATE, LIF_RATES = 0.2, (0.2, 0.05)
SPEC = ps.QuantSpec(0, 7, init="mse")
READINGS = ("channels", "mean", "frames", "through-time", "lif")
#: What membranes keep of a frame when training through time begins.
LEAKS = (FIRST_LEAK, 0.9)
ASKED = ("task", "reading", "seed", "rate", "leak")
FOUND = ("ann", "control", "qann", "snn", "half", "spikes", "events", "leaks", "minutes")


class OneTimestep(OverFrames):
    """A spiking network that reads all frames as channels."""

    def forward(self, frames: Tensor, *, timesteps: int | None = None, every_step: bool = False) -> Any:
        """The answer to the whole sequence."""
        return self.network(frames, time_dim=1, every_step=every_step)


def runs() -> list[Row]:
    """The rows, seed by seed."""
    return [
        {"task": task, "reading": reading, "seed": seed, "rate": rate, "leak": leak}
        for seed in (0, 1, 2)
        for task in ("fashion", "order")
        for reading in READINGS
        for rate in (LIF_RATES if reading == "lif" else (PARENT_RATE,))
        for leak in (LEAKS[: 2 if seed == 0 else 1] if reading == "through-time" else (0.0,))
    ]


def run(asked: Row) -> Row:
    """Train and measure one row."""
    started = time.perf_counter()
    how = {"lif": _lif, "through-time": _through_time}.get(asked["reading"], _at_once)
    return how(asked) | {"minutes": (time.perf_counter() - started) / 60}


def _at_once(asked: Row) -> Row:
    task, reading, seed = asked["task"], asked["reading"], asked["seed"]
    parent = _parent(task, reading, seed)
    tuning = fine_tuning("event_cnn", EPOCHS, seed, **RECIPE)
    control = _trained(_reading(copy.deepcopy(parent), reading), task, f"{reading}-{seed}-control", tuning)
    qann = _quantized(parent, task, reading)
    _trained(_reading(qann, reading), task, f"{reading}-{seed}-quantized", tuning)
    found = {
        "ann": _accuracy(_reading(parent, reading), task),
        "control": _accuracy(control, task),
        "qann": _accuracy(_reading(qann, reading), task),
    }
    snn = ps.convert(qann, ps.ConvertSpec(reading=_named(reading)))
    return found | _over_time(OneTimestep(snn) if reading == "channels" else OverFrames(snn), task)


def _through_time(asked: Row) -> Row:
    task, seed = asked["task"], asked["seed"]
    parent = _parent(task, "frames", seed)
    net = ps.unroll(ps.convert(_quantized(parent, task, "frames")), leak=asked["leak"])
    kept = f"through-time-{seed}-{asked['leak']:g}"
    _trained(net, task, kept, fine_tuning("event_cnn", EPOCHS, seed, **RECIPE))
    leaks = " ".join(f"{torch.as_tensor(site.leak).item():.2f}" for site in net.sites().values())
    return {"ann": _accuracy(_reading(parent, "frames"), task), "leaks": leaks, **_over_time(net, task)}


def _lif(asked: Row) -> Row:
    task, seed, rate = asked["task"], asked["seed"], asked["rate"]
    torch.manual_seed(seed)
    frames, _ = _few(task)[0]
    rival = prepare("lif", _model(task, "frames"), RivalSpec(timesteps=FRAMES.bins), example=frames[:2, 0])
    network = OverFrames(rival.network())
    spec = fine_tuning("event_cnn", PARENT_EPOCHS + EPOCHS, seed, learning_rate=rate, step_rate=0.0)
    return _over_time(_trained(network, task, f"lif-{seed}-{rate:g}", spec), task)


def _named(reading: str) -> Reading:
    """What the library calls a reading of this table."""
    names: dict[str, Reading] = {"mean": "integrate", "frames": "frames", "channels": "channels"}
    return names[reading]


def _reading(network: nn.Module, reading: str) -> nn.Module:
    return AtOnce(network, _named(reading))


def _model(task: str, reading: str) -> nn.Module:
    channels = 2 * FRAMES.bins if reading == "channels" else 2
    return models.create("event_cnn", num_classes=CLASSES[task], in_channels=channels, width=16, stages=3)


def _parent(task: str, reading: str, seed: int) -> nn.Module:
    torch.manual_seed(seed)
    model = _model(task, reading).to(memory_format=torch.channels_last)
    spec = fine_tuning("event_cnn", PARENT_EPOCHS, seed, learning_rate=PARENT_RATE, step_rate=0.0)
    _trained(_reading(model, reading), task, f"{reading}-{seed}-float", spec)
    return model


def _quantized(parent: nn.Module, task: str, reading: str) -> ps.QuantizedNetwork:
    batches = [seen(frames, _named(reading)) for frames, _ in _few(task)]
    qann = ps.quantize(parent, SPEC, example=batches[0][:2])
    ps.calibrate(qann, batches)
    return qann


def _trained(model: nn.Module, task: str, kept: str, spec: ps.TrainSpec) -> nn.Module:
    path = RUNS / f"events-{task}-{kept}-{spec.epochs}"
    ps.fit(model, _batches(task, True), spec, run=RunDirectory(path, resume=path.exists()), resume=True, progress=False)
    return model


def _batches(task: str, training: bool) -> Any:
    found = dataset(task)
    if training:
        return found.sequences("train", 128, shuffle=True, augmented=True)
    return found.sequences("test", 250)


def _few(task: str) -> list[tuple[Tensor, Tensor]]:
    """The first 1,000 training images."""
    return list(itertools.islice(dataset(task).sequences("train", 250), 4))


def _accuracy(network: nn.Module, task: str) -> float:
    return 100 * ps.evaluate(network, _batches(task, False)).accuracy[1]


def _over_time(network: nn.Module, task: str) -> Row:
    """Accuracy after half of the frames and after all, and spikes and events per neuron and sequence."""
    times = (1,) if isinstance(network, OneTimestep) else (FRAMES.bins // 2, FRAMES.bins)
    table = ps.evaluate(network, _batches(task, False), timesteps=times)
    assert table.firing is not None
    fired = table.firing[times[-1]]
    found: Row = {"snn": 100 * table.accuracy[times[-1]]}
    found |= {"spikes": fired.spikes_per_neuron, "events": fired.events_per_neuron}
    return found | ({"half": 100 * table.accuracy[times[0]]} if len(times) > 1 else {})


def main() -> None:
    torch.set_num_threads(1)
    carry_out("readings", (*ASKED, *FOUND), runs(), run, **options(__doc__))


if __name__ == "__main__":
    main()
