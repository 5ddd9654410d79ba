"""What the runs of comparisons will cost, before the first of them.

    CPU seconds = sum over trainings (epochs x images x T x ms of a training step per image) + test images x T x ms of a step

A training that several runs share is counted with the first of them. The milliseconds are measured here, on a few batches
of each network; once runs are done, the sum is corrected by the CPU time that those took.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from polarspike.baselines.comparison import described, key_of
from polarspike.baselines.contest import Contest
from polarspike.baselines.methods import METHODS
from polarspike.baselines.peers import PEERS
from polarspike.baselines.rival import RivalSpec, prepare
from polarspike.baselines.stages import StageKind, stages_of, steps_read
from polarspike.common.modules import apply
from polarspike.errors import OperatorError

_BATCH, _ROUNDS = 64, 2
_CALIBRATION = 2000  # images on which settings are tried
_OVERHEAD = 5.0  # seconds of a run for timings and counts


@dataclass(frozen=True)
class Pace:
    """How fast a network is here, in CPU milliseconds per image.

    Attributes:
        training: of a training step; of direct training per timestep.
        answer: of the float network.
        timestep: of a rival's network.
        refused: methods that cannot take the network, which costs nothing.
    """

    training: dict[StageKind, float]
    answer: float
    timestep: float
    refused: frozenset[str] = frozenset()


_NO_PACE = Pace({"float": 0.0, "quantized": 0.0, "direct": 0.0}, 0.0, 0.0)


def measured_pace(contest: Contest) -> Pace:
    """The pace of a contest's network on this machine, in a few seconds."""
    inputs = contest.scene.calibration(_BATCH)[0][0]
    labels = torch.zeros(len(inputs), dtype=torch.int64)

    def fresh() -> nn.Module:
        return contest.trainings.model(0)

    ours = prepare("polarspike", fresh().eval(), RivalSpec(contest.asked.levels[0]), example=inputs[:2])
    ours.calibrate([inputs])
    leaky = prepare("lif", fresh().eval(), RivalSpec(timesteps=2), example=inputs[:2])
    networks: dict[StageKind, nn.Module] = {"float": fresh(), "quantized": ours.trained, "direct": leaky.trained}

    def step(network: nn.Module) -> None:
        network.zero_grad()
        functional.cross_entropy(apply(network, inputs), labels).backward()

    training = {kind: _ms(functools.partial(step, network.train()), inputs) for kind, network in networks.items()}
    training["direct"] /= 2  # it was run for two timesteps
    with torch.no_grad():
        answer = _ms(lambda: apply(networks["float"].eval(), inputs), inputs)
        spiking = leaky.network()
        timestep = _ms(lambda: apply(spiking, inputs, timesteps=4, every_step=True), inputs) / 4
    names = [name for name in contest.asked.methods if name in METHODS]
    refused = frozenset(name for name in names if not _takes(name, contest, inputs[:2]))
    return Pace(training, answer, timestep, refused)


def _takes(name: str, contest: Contest, example: Tensor) -> bool:
    spec = RivalSpec(contest.asked.levels[0])
    try:
        prepare(name, contest.trainings.model(0).eval(), spec, example=example)
    except OperatorError:
        return False
    return True


def _ms(action: Callable[[], object], inputs: Tensor) -> float:
    action()
    start = time.process_time()
    for _ in range(_ROUNDS):
        action()
    return 1e3 * (time.process_time() - start) / _ROUNDS / len(inputs)


def estimates(
    contest: Contest,
    pace: Pace,
    trained: set[tuple[str, str]],
    waiting: Collection[tuple[str, ...]] = (),
) -> Iterator[tuple[dict[str, Any], float]]:
    """All runs of a contest with their seconds, in order.

    Args:
        contest: whose runs.
        pace: of its network.
        trained: what is trained already; what the runs train is added.
        waiting: runs that are to be done, in the words of the table: their trainings go on from what is kept.
    """
    asked, images = contest.asked, contest.scene.images()
    # What is done first: its time, with which all is corrected, has the trainings in it that those behind it share.
    for run in sorted(asked.runs(), key=lambda run: key_of(run) in waiting):
        if run["method"] in pace.refused:
            yield run, 0.0
            continue
        method = METHODS.get(run["method"])
        ms = images["test"] * pace.answer
        for stage in stages_of(asked, run, method):
            key = f"{asked.network}-{asked.training}", stage.name
            if key in trained:
                continue
            trained.add(key)
            step = pace.training[stage.kind] * (stage.timesteps if stage.kind == "direct" else 1)
            teaching = pace.answer if asked.distillation and not stage.name.startswith("float-") else 0.0
            kept = contest.trainings.epochs_of(stage) if key_of(run) in waiting else 0
            ms += max(0, stage.epochs - kept) * images["train"] * (step + teaching)
        if method is not None:
            steps = max(steps_read(asked, method, run["trained_steps"] or 1).values(), default=0)
            tried = min(_CALIBRATION, images["train"]) * len(asked.rehearsals) if method.rehearses else 0
            ms += (images["test"] + tried) * steps * pace.timestep
        elif run["method"] in PEERS:
            tried = min(_CALIBRATION, images["train"]) * len(PEERS[run["method"]].settings)
            ms += (images["test"] + tried) * max(asked.latencies) * pace.timestep
        yield run, ms / 1e3 + _OVERHEAD


def announcement(contests: Sequence[Contest], titles: Sequence[str] = ()) -> str:
    """The runs that are missing, each with its cost, and the sums; ``titles`` of the contests stand above theirs."""
    paces: dict[str, Pace] = {}
    asked_of: dict[str, tuple[str, ...]] = {}
    trained: set[tuple[str, str]] = set()
    rest: list[tuple[str, list[tuple[str, float]]]] = []
    spent, expected, finished = 0.0, 0.0, 0
    for index, contest in enumerate(contests):
        name = f"{contest.asked.data} {contest.asked.network}"
        done = {key_of(row): float(row["cpu_seconds"]) for row in contest.rows()}
        waiting = [key_of(run) for run in contest.missing()]
        if not waiting:  # its pace is nobody's concern, what it has trained is
            finished += len(done)
            for _ in estimates(contest, _NO_PACE, trained):
                pass
            rest.append((titles[index] if titles else "", []))
            continue
        if name not in paces or not {*contest.asked.methods} <= {*asked_of[name]}:
            paces[name], asked_of[name] = measured_pace(contest), contest.asked.methods
        part = []
        for run, seconds in estimates(contest, paces[name], trained, waiting):
            key = key_of(run)
            if key in waiting:
                part.append((described(run), seconds))
            elif key in done:
                finished, spent, expected = finished + 1, spent + done[key], expected + seconds
        rest.append((titles[index] if titles else "", part))
    factor = spent / expected if expected else 1.0
    lines: list[str] = []
    for title, part in rest:
        if title:
            lines.append(f"{title}: {len(part)} runs, about {_minutes(factor * sum(s for _, s in part))}")
        lines += [f"{'  ' if title else ''}{run}: {_minutes(factor * seconds)}" for run, seconds in part]
    waiting_for = [seconds for _, part in rest for _, seconds in part]
    total, missing = factor * sum(waiting_for), len(waiting_for)
    source = f", corrected by what was done (x {factor:.2f})" if expected else ""
    lines.append(f"{missing} runs to do, {finished} done; cost of the rest: about {_minutes(total)}{source}")
    return "\n".join(lines)


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.1f} min"
