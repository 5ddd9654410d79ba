"""What each of several processes does in these tests; what came of it as plain data."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import polarspike as ps
from polarspike import data
from polarspike.analysis.observation import observe
from polarspike.cli.command import ending_together
from polarspike.data.events import EventDataset, FrameSpec
from polarspike.errors import InputError, RunError
from polarspike.parallel import distributed
from polarspike.runs import RunDirectory
from polarspike.training_spec import TrainSpec


def network(norm: bool = False) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = [nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6)] if norm else [nn.Conv2d(1, 6, 3)]
    return nn.Sequential(*layers, nn.ReLU(), nn.Flatten(), nn.Linear(216, 16), nn.ReLU(), nn.Linear(16, 10))


def quantized(batches: Any) -> ps.QuantizedNetwork:
    example, _ = next(iter(batches))
    qann = ps.quantize(network(), ps.QuantSpec(0, 7, granularity="channel"), example=example)
    ps.calibrate(qann, batches)
    return qann


def spec(epochs: int = 3) -> TrainSpec:
    return TrainSpec(epochs=epochs, learning_rate=0.05, warmup_epochs=0.5)


def train(place: Path) -> dict[str, Any]:
    """Calibrate, train and evaluate."""
    digits = data.load("digits")
    qann = quantized(digits.evaluation(100, "train"))
    floating = network()
    curve = ps.fit(floating, digits.training(50, augmented=False), spec(2), progress=False)
    seen = observe(qann, digits.evaluation(100, "train"))
    untrained = ps.convert(qann)  # which is the same network in all of them; what is trained from there need not be
    table = ps.evaluate(untrained, digits.evaluation(37), timesteps=(1, 4))
    history = ps.fit(qann, digits.training(50, augmented=False), spec(3), run=RunDirectory(place), progress=False)
    return {
        "steps": {name: site.step.flatten().tolist() for name, site in untrained.sites().items()},
        "counts": {name: part.by_step.counts().flatten().tolist() for name, part in seen.items()},
        "extrema": {name: part.by_step.maximum.tolist() for name, part in seen.items()},
        "moments": {
            name: [*part.by_step.mean.tolist(), *part.by_step.variance.tolist()] for name, part in seen.items()
        },
        "float losses": [epoch.loss for epoch in curve.epochs],
        "losses": [epoch.loss for epoch in history.epochs],
        "table": table.to_dict(),  # right answers, events, spikes and pairs, after 1 and after 4 steps
    }


def long(place: Path) -> dict[str, Any]:
    """Train for some epochs, or go on where ``place`` says that a training was stopped."""
    digits, begun = data.load("digits"), place.exists()
    qann = quantized(digits.evaluation(100, "train"))
    run = RunDirectory(place, resume=begun)
    history = ps.fit(qann, digits.training(50, augmented=False), spec(8), run=run, resume=begun, progress=False)
    return outcome(qann, history)


def outcome(model: nn.Module, history: ps.History) -> dict[str, Any]:
    """Every weight and every loss of a training, to the last bit."""
    return {
        "losses": [epoch.loss for epoch in history.epochs],
        "weights": [parameter.flatten().tolist() for parameter in model.parameters()],
    }


def own_loader(place: Path) -> dict[str, Any]:
    """A loader of the user's: every process reads it whole and takes its rows."""
    torch.manual_seed(1)
    x, y = torch.randn(48, 1, 8, 8), torch.arange(48) % 10
    batches: list[tuple[Tensor, Tensor]] = [(x[i : i + 12], y[i : i + 12]) for i in range(0, 48, 12)]
    model = network()
    accumulated = network()
    history = ps.fit(model, batches, spec(2), progress=False)
    ps.fit(accumulated, batches, dataclasses.replace(spec(2), accumulation=3), progress=False)
    return {
        "losses": [epoch.loss for epoch in history.epochs],
        "apart": max(
            float((a - b).abs().max()) for a, b in zip(model.parameters(), accumulated.parameters(), strict=True)
        ),
        "correct": ps.evaluate(model, batches).correct,
    }


class Spy(nn.Module):
    """A linear network that keeps the first value of every row that it sees."""

    def __init__(self, inputs: int, classes: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.seen = nn.Linear(inputs, classes), list[float]()

    def forward(self, x: Tensor) -> Tensor:
        self.seen += x.flatten(1)[:, 0].tolist()
        answer: Tensor = self.linear(x.flatten(1))
        return answer


def loss_of(loader: Any, inputs: int, classes: int, accumulation: int = 1) -> tuple[float, Spy]:
    model, one = Spy(inputs, classes), dataclasses.replace(spec(1), warmup_epochs=0.0, accumulation=accumulation)
    return ps.fit(model, loader, one, progress=False).last.loss, model


def shares(place: Path) -> dict[str, Any]:
    """Every kind of loader: what is trained on and counted, and by whom."""
    digits = data.load("digits")
    part = dataclasses.replace(digits, train=digits.train.subset(torch.arange(67)))
    counts = data.Split(torch.arange(64 * 4 * 64).remainder(5).byte().view(64, 4, 8, 8), torch.arange(64) % 2)
    frames = EventDataset("x", counts, counts, FrameSpec(bins=2), ("a", "b"), "", "", data.Augmentation(), True)
    sequences, spy = loss_of(frames.sequences("train", 16, shuffle=True), 256, 2)
    x, y = torch.arange(60.0).view(60, 1), torch.arange(60) % 3
    nine = [(x[start : start + 9] / 60, y[start : start + 9]) for start in range(0, 55, 9)]
    uneven = data.batches(part.train, 16, normalization=digits.normalization, shuffle=True)
    single = data.batches(part.train, 66, normalization=digits.normalization, shuffle=True)
    table = TensorDataset(x, y)
    watched = Spy(1, 3)
    torch.manual_seed(10 + distributed.rank())
    state = torch.get_rng_state()
    total = ps.evaluate(watched, DataLoader(table, 7, shuffle=True)).total
    if distributed.rank() > 0:
        assert torch.equal(state, torch.get_rng_state())  # its own randomness is left alone
    qann = quantized(digits.evaluation(100, "train"))
    found: dict[str, Any] = {
        "losses": {
            "sequences": sequences,
            "uneven": loss_of(uneven, 64, 10)[0],  # the last batch has 3 rows
            "one row": loss_of(single, 64, 10)[0],
            "pieces": loss_of(nine, 1, 3, accumulation=4)[0],  # 5 rows make 3 pieces, 4 rows make 4
            "pieces of uneven": loss_of(uneven, 64, 10, accumulation=3)[0],
            "augmented": loss_of(digits.training(50), 64, 10)[0],
        },
        "rows": len(spy.seen),
        "evaluated": ps.evaluate(Spy(64, 10), digits.training(50)).total,
        "sequences evaluated": ps.evaluate(Spy(256, 2), frames.sequences("train", 16, shuffle=True)).total,
        "calibrated": int(next(iter(observe(qann, digits.training(50)).values())).by_step.counts().sum()),
        "total": total,
        "distinct": len(set(itertools.chain(*distributed.gathered(watched.seen)))),
    }
    RunDirectory(place / str(distributed.world_size()))
    with pytest.raises(RunError, match="there is a run already"):  # in every process
        RunDirectory(place / str(distributed.world_size()))
    if distributed.world_size() > 1:
        _, spy = loss_of(DataLoader(table, 10, sampler=DistributedSampler(table)), 1, 3)
        found["apart"] = sorted(itertools.chain(*distributed.gathered(spy.seen)))
        with pytest.raises(InputError, match="expected a loader of all samples, got a DataLoader whose sampler"):
            ps.evaluate(spy, DataLoader(table, 10, sampler=DistributedSampler(table)))
        steps = len(spy.seen)
        with pytest.raises(InputError, match="expected a loader of all samples, got a DataLoader whose sampler"):
            ps.fit(
                spy, nine, spec(1), validate=DataLoader(table, 10, sampler=DistributedSampler(table)), progress=False
            )
        assert len(spy.seen) == steps  # before the first epoch, not after it
        # One that finds a directory which the other has just made begins with it.
        late = RunDirectory(place / "late")
        ps.fit(spy, nine, spec(1), run=late, resume=not distributed.is_main(), progress=False)
        with pytest.raises(InputError, match=r"expected as many batches in every process, got \[1, 2\]"):
            ps.fit(spy, nine[: 1 + distributed.rank()], spec(1), progress=False)
        with pytest.raises(RunError if distributed.is_main() else ValueError, match="broken"), distributed.together():
            if not distributed.is_main():
                raise ValueError("broken")
    return found


class Masks(nn.Module):
    """A linear network with dropout that keeps its masks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.linear, self.seen = nn.Linear(4, 3), list[list[float]]()

    def forward(self, x: Tensor) -> Tensor:
        mask = nn.functional.dropout(torch.ones(4), 0.5, self.training)
        self.seen.append(mask.tolist())
        answer: Tensor = self.linear(x * mask)
        return answer


def averaged(place: Path) -> dict[str, Any]:
    """How far apart the processes' networks are, with batch norm and a running average, at the end and in between."""
    digits = data.load("digits")
    model, between = network(norm=True), []

    class Asked:
        """A loader that looks at the network that is validated."""

        def __iter__(self) -> Any:
            between.append([buffer.detach().clone() for buffer in model.buffers()])
            return iter(digits.evaluation(100))

    start = [buffer.clone() for buffer in model.buffers()]
    once = TrainSpec(epochs=2, learning_rate=0.05, warmup_epochs=0.5, averaging=0.9)
    ps.fit(model, digits.training(50, augmented=False), once, validate=Asked(), progress=False)
    return {
        "apart": _apart([*model.buffers(), *model.parameters()]),
        "between": max(_apart(buffers) for buffers in between),
        "moved": max(float((a - b).abs().max()) for a, b in zip(start, model.buffers(), strict=True)),
    }


def _apart(tensors: list[Tensor]) -> float:
    mine = [tensor.detach().double() for tensor in tensors]
    first = distributed.gathered(mine)[0]
    distances = [float((a - b).abs().max()) for a, b in zip(first, mine, strict=True)]
    return max(max(every) for every in distributed.gathered(distances))


def environment(place: Path) -> dict[str, Any]:
    """What is computed where accelerate's environment asks for bfloat16."""
    seen: set[str] = set()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        model = nn.Sequential(nn.Linear(4, 3), nn.Identity())
        for part in model.parameters():
            nn.init.constant_(part, 0.1)
        model[1].register_forward_hook(lambda _, inputs, output: seen.add(str(output.dtype)))
        ps.fit(model, [(torch.ones(6, 4), torch.arange(6) % 3)], spec(1), progress=False)
        model(torch.ones(6, 4))
    return {"types": sorted(seen), "forward": "forward" in vars(model)}


def masks(place: Path) -> dict[str, Any]:
    """What dropout leaves out in each process, twice, and what the loader draws beside it."""
    found: dict[str, Any] = {"masks": [], "samples": []}
    table = TensorDataset(torch.arange(24.0).view(24, 1).expand(24, 4), torch.arange(24) % 3)
    for _ in range(2):
        model = Masks()
        drawn: list[float] = []
        handle = model.register_forward_pre_hook(lambda _, inputs, drawn=drawn: drawn.extend(inputs[0][:, 0].tolist()))
        ps.fit(model, DataLoader(table, 6, shuffle=True), spec(2), progress=False)
        handle.remove()
        found["masks"].append(distributed.gathered(model.seen))
        found["samples"].append(sorted(itertools.chain(*distributed.gathered(drawn))))
    return found


def fail(place: Path) -> None:
    """The second process meets a batch that is none, while the first waits for its gradients."""
    torch.manual_seed(0)
    batch = (torch.randn(6, 4), torch.arange(6) % 3)
    wrong = (batch[0], torch.full((6,), 7)) if distributed.rank() else batch
    with ending_together():
        ps.fit(nn.Linear(4, 3), [batch, wrong], spec(1), progress=False)
