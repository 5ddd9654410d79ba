"""Two processes (gloo) calibrate, train and evaluate as one does; a kill of either loses nothing."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import polarspike as ps
from polarspike import cli, data, distributed, models, processes, sharding
from polarspike.cli.command import ending_together
from polarspike.course import Course
from polarspike.data.events import EventDataset, FrameSpec
from polarspike.errors import InputError, MissingExtraError, PolarspikeError, RunError, SpecError
from polarspike.observation import observe
from polarspike.runs import RunDirectory
from polarspike.specs import TrainSpec

pytest.importorskip("accelerate")
pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[1]


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


def train(place: Path, epochs: int, resume: bool) -> dict[str, Any]:
    """Calibrate, train and evaluate; what came of it as plain data."""
    digits = data.load("digits")
    qann = quantized(digits.evaluation(100, "train"))
    floating = network()
    curve = ps.fit(floating, digits.training(50, augmented=False), spec(2), progress=False)
    seen = observe(qann, digits.evaluation(100, "train"))
    run = RunDirectory(place, resume=resume and place.exists())
    history = ps.fit(qann, digits.training(50, augmented=False), spec(epochs), run=run, resume=resume, progress=False)
    table = ps.evaluate(ps.convert(qann), digits.evaluation(37), timesteps=(1, 4))
    return {
        "counts": {name: part.by_step.counts().flatten().tolist() for name, part in seen.items()},
        "extrema": {name: part.by_step.maximum.tolist() for name, part in seen.items()},
        "moments": {
            name: [*part.by_step.mean.tolist(), *part.by_step.variance.tolist()] for name, part in seen.items()
        },
        "float losses": [epoch.loss for epoch in curve.epochs],
        "losses": [epoch.loss for epoch in history.epochs],
        "accuracies": [epoch.train_accuracy for epoch in history.epochs],
        "correct": table.correct,
        "total": table.total,
        "firing": {T: vars(firing) for T, firing in (table.firing or {}).items()},
        "weights": [parameter.flatten().tolist() for parameter in qann.parameters()],
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
        with pytest.raises(InputError, match=r"expected as many batches in every process, got \[1, 2\]"):
            ps.fit(spy, nine[: 1 + distributed.rank()], spec(1), progress=False)
        with pytest.raises(RunError if distributed.is_main() else ValueError, match="broken"), distributed.together():
            if not distributed.is_main():
                raise ValueError("broken")
    return found


def loaders(place: Path) -> dict[str, Any]:
    return {"own": own_loader(place), "shares": shares(place)}


def one_fails() -> None:
    """The second process meets a batch that is none, while the first waits for its gradients."""
    torch.manual_seed(0)
    batch = (torch.randn(6, 4), torch.arange(6) % 3)
    wrong = (batch[0], torch.full((6,), 7)) if distributed.rank() else batch
    with ending_together():
        ps.fit(nn.Linear(4, 3), [batch, wrong], spec(1), progress=False)


def transformer(norm: type[nn.Module] = nn.LayerNorm, dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    made = models.create("vit", num_classes=10, in_channels=1, width=16, depth=2, heads=2, patch=4, image_size=8)
    return nn.Sequential(made, nn.Dropout(dropout)) if dropout else made


def adam(epochs: int, **values: Any) -> TrainSpec:
    return TrainSpec(epochs=epochs, optimizer="adamw", learning_rate=2e-3, warmup_epochs=0.5, **values)


def site_gradients(qann: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The gradients of steps and gains on one batch, of which each process has its rows."""
    course, rows = Course(qann, adam(1, sharded=True)), distributed.own_rows(len(y))
    course.trained.train()
    nn.functional.cross_entropy(course.forward(x[rows]), y[rows]).backward()
    sites = {name: p for name, p in course.trained.named_parameters() if name.endswith(("offset", "raw_gain"))}
    distributed.share_gradients(sites.values())
    return {name: p.grad for name, p in sites.items() if p.grad is not None}


def shards(place: Path, epochs: int, resume: bool) -> dict[str, Any]:
    """Train Transformers whose weights are dealt out, and one whose weights are not."""
    digits = data.load("digits")
    digits = dataclasses.replace(digits, train=digits.train.subset(torch.arange(250)))
    loader = digits.training(50, augmented=False)
    floating, plain = transformer(), transformer()
    first = next(iter(floating.parameters()))
    curve = ps.fit(floating, loader, adam(2, sharded=True), validate=digits.evaluation(37), progress=False)
    straight = ps.fit(plain, loader, adam(2), progress=False)
    example, _ = next(iter(digits.evaluation(100, "train")))
    qann = ps.quantize(transformer(), ps.QuantSpec(7, 8, gain="learned", signed="all"), example=example)
    ps.calibrate(qann, digits.evaluation(100, "train"))
    start = copy.deepcopy(qann)
    spec = adam(epochs, sharded=True, averaging=0.9, accumulation=2)
    run = RunDirectory(place, resume=resume and place.exists())
    history = ps.fit(qann, loader, spec, teacher=plain, run=run, resume=resume, progress=False)
    parts = sharding._LEAST
    sharding._LEAST = 0  # every layer in a message of its own
    few = [batch for batch, _ in zip(digits.evaluation(20, "train"), range(4), strict=False)]
    apart = copy.deepcopy(qann)
    one_by_one = ps.fit(apart, few, adam(1, sharded=True), progress=False)
    together = ps.fit(copy.deepcopy(qann), few, adam(1), progress=False)
    sharding._LEAST = parts
    of_sites = site_gradients(start, *few[0])
    course = Course(transformer(), adam(1, sharded=True))
    held = [distributed.local(parameter).numel() for parameter in course.trained.parameters()]
    tensors, _ = run.read_checkpoint()
    return {
        "float losses": [epoch.loss for epoch in curve.epochs],
        "validation": [epoch.validation_accuracy for epoch in curve.epochs],
        "apart": max(
            float((a - b).detach().abs().max()) for a, b in zip(floating.parameters(), plain.parameters(), strict=True)
        ),
        "straight": [epoch.loss for epoch in straight.epochs],
        "identity": first is next(iter(floating.parameters())) and type(floating) is type(transformer()),
        "losses": [epoch.loss for epoch in history.epochs],
        "part losses": [one_by_one.last.loss, together.last.loss],
        "gradients": {name: gradient.flatten().tolist() for name, gradient in of_sites.items()},
        "held": sum(held),
        "all": sum(parameter.numel() for parameter in course.model.parameters()),
        "checkpoint": {name: list(value.shape) for name, value in tensors.items()},
        "total": ps.evaluate(ps.convert(qann), digits.evaluation(37)).total,
        "weights": [parameter.flatten().tolist() for parameter in qann.parameters()],
    }


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


def main(task: str, place: str, out: str, *rest: str) -> None:
    torch.set_num_threads(1)
    processes.join()
    if task == "fail":
        try:
            one_fails()
        except PolarspikeError as error:
            Path(out).with_suffix(f".{distributed.rank()}").write_text(str(error))
            raise SystemExit(2) from None
    long = {"train": train, "shards": shards}
    short = {"loaders": loaders, "masks": masks}
    found = long[task](Path(place), int(rest[0]), rest[1] == "resume") if task in long else short[task](Path(place))
    if distributed.is_main():
        Path(out).write_text(json.dumps(found))


def launch(count: int, *arguments: object, command: Sequence[object] = ()) -> list[subprocess.Popen[str]]:
    """Start processes as a launcher does: this file's ``main``, or ``python -m polarspike`` with a command."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    started = []
    for number in range(count):
        environment = {
            **os.environ,
            "RANK": str(number),
            "LOCAL_RANK": str(number),
            "WORLD_SIZE": str(count),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}",
        }
        code = f"from tests.test_distributed import main; main(*{[str(a) for a in arguments]!r})"
        called = ["-m", "polarspike", *map(str, command)] if command else ["-c", code]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} if command else {}
        arguments_ = [sys.executable, "-W", "ignore", *called]
        started.append(subprocess.Popen(arguments_, env=environment, cwd=ROOT, text=True, **pipes))  # type: ignore[call-overload]
    return started


def result(count: int, *arguments: object, out: Path) -> dict[str, Any]:
    codes = [process.wait(timeout=300) for process in launch(count, *arguments)]
    assert codes == [0] * count
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_two_processes_do_what_one_does(tmp_path: Path) -> None:
    found = []
    for count in (1, 2):
        out = tmp_path / f"{count}.json"
        found.append(result(count, "train", tmp_path / f"run{count}", out, 3, "fresh", out=out))
    one, two = found
    assert two["counts"] == one["counts"] and two["extrema"] == one["extrema"]  # exactly
    for name, moments in one["moments"].items():
        assert two["moments"][name] == pytest.approx(moments, rel=1e-6)
    assert two["float losses"] == pytest.approx(one["float losses"], abs=1e-4)
    # Another order of summation moves a code at a boundary here and there, and training goes on from there.
    assert two["losses"] == pytest.approx(one["losses"], abs=0.01)
    assert two["total"] == one["total"] == 359
    for T, right in one["correct"].items():
        assert abs(two["correct"][T] - right) <= 4
        assert two["firing"][T]["pairs"] == one["firing"][T]["pairs"]
    logs = [(tmp_path / f"run{count}" / "log.jsonl").read_text().splitlines() for count in (1, 2)]
    assert len(logs[0]) == len(logs[1]) == 3


@pytest.fixture(scope="module")
def found_by(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What one process and two find with loaders of every kind."""
    place = tmp_path_factory.mktemp("loaders")
    outs = {count: place / f"{count}.json" for count in (1, 2)}
    return {count: result(count, "loaders", place, out, out=out) for count, out in outs.items()}


def test_a_loader_of_the_users_is_shared_by_rows_and_batches(found_by: dict[int, dict[str, Any]]) -> None:
    one, two = (found_by[count]["own"] for count in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert two["correct"] == one["correct"]
    assert one["apart"] < 1e-5 and two["apart"] < 1e-5  # gradients of pieces sum to that of the batch


def test_every_sample_is_trained_on_and_counted_once(found_by: dict[int, dict[str, Any]]) -> None:
    one, two = (found_by[count]["shares"] for count in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert one["rows"] == 64 and two["rows"] == 32
    for name in ("evaluated", "sequences evaluated", "calibrated", "total", "distinct"):
        assert two[name] == one[name]
    assert one["evaluated"] == 1400 and one["distinct"] == 60
    assert two["apart"] == [float(number) for number in range(60)]  # a sampler that shares is left to do it


def test_the_error_of_one_process_ends_the_other_with_one_line(tmp_path: Path) -> None:
    out = tmp_path / "out.json"
    started = launch(2, "fail", tmp_path, out)
    assert [process.wait(timeout=300) for process in started] == [2, 2]
    assert "another process of this run has ended" in out.with_suffix(".0").read_text()
    assert "expected a class in 0..2, got 7" in out.with_suffix(".1").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What two processes find when nobody kills them."""
    place = tmp_path_factory.mktemp("whole")
    return result(2, "train", place / "run", place / "whole.json", 6, "fresh", out=place / "whole.json")


@pytest.mark.parametrize("victim", [0, 1])
def test_a_kill_of_either_process_loses_nothing(tmp_path: Path, victim: int, whole: dict[str, Any]) -> None:
    started = launch(2, "train", tmp_path / "killed", tmp_path / "killed.json", 6, "fresh")
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    started[victim].send_signal(signal.SIGKILL)
    time.sleep(0.2)
    for process in started:
        process.kill()  # what a launcher does with the others
        process.wait()
    assert not (tmp_path / "killed.json").exists()
    resumed = result(
        2, "train", tmp_path / "killed", tmp_path / "killed.json", 6, "resume", out=tmp_path / "killed.json"
    )
    assert resumed["weights"] == whole["weights"] and resumed["losses"] == whole["losses"]


@pytest.fixture(scope="module")
def dealt_out(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What one process and two find with weights in shares."""
    place = tmp_path_factory.mktemp("shards")
    outs = {count: place / f"{count}.json" for count in (1, 2)}
    return {
        count: result(count, "shards", place / f"run{count}", out, 3, "fresh", out=out) for count, out in outs.items()
    }


def test_weights_in_shares_train_as_whole_ones_do(dealt_out: dict[int, dict[str, Any]]) -> None:
    one, two = dealt_out[1], dealt_out[2]
    assert two["held"] < 0.6 * two["all"] and one["held"] == one["all"]  # it is shared out indeed
    assert two["float losses"] == pytest.approx(one["float losses"], abs=1e-4)
    assert two["validation"] == pytest.approx(one["validation"], abs=0.006)  # of 359 images
    assert two["apart"] < 1e-4 and two["straight"] == pytest.approx(two["float losses"], abs=1e-5)
    assert two["identity"]  # the model itself is what is trained in the end
    # Codes at a boundary move by rounding, and training goes on from there.
    assert two["losses"] == pytest.approx(one["losses"], abs=0.01)
    assert two["part losses"][0] == pytest.approx(two["part losses"][1], abs=1e-3)
    assert two["gradients"].keys() == one["gradients"].keys() and len(two["gradients"]) > 20
    for name, gradient in one["gradients"].items():  # of steps and gains, which start at their bound
        assert two["gradients"][name] == pytest.approx(gradient, rel=1e-3, abs=1e-5), name
    assert two["total"] == 359


def test_the_checkpoint_of_shares_is_that_of_one_process(dealt_out: dict[int, dict[str, Any]]) -> None:
    assert dealt_out[2]["checkpoint"] == dealt_out[1]["checkpoint"]
    assert any(name.startswith("optimizer.exp_avg.") for name in dealt_out[2]["checkpoint"])


def test_a_kill_loses_nothing_of_weights_in_shares(tmp_path: Path, dealt_out: dict[int, dict[str, Any]]) -> None:
    out = tmp_path / "killed.json"
    started = launch(2, "shards", tmp_path / "killed", out, 3, "fresh")
    log = tmp_path / "killed" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and len(log.read_text().splitlines()) >= 2) and time.monotonic() < deadline:
        time.sleep(0.02)
    for process in started:
        process.kill()
        process.wait()
    assert not out.exists()
    resumed = result(2, "shards", tmp_path / "killed", out, 3, "resume", out=out)
    assert resumed["weights"] == dealt_out[2]["weights"] and resumed["losses"] == dealt_out[2]["losses"]


def test_dropout_is_each_processs_own_and_the_order_of_samples_is_common(tmp_path: Path) -> None:
    out = tmp_path / "masks.json"
    found = result(2, "masks", tmp_path, out, out=out)
    first, second = found["masks"]
    assert first == second  # it follows from the seed
    mine, other = first
    assert len(mine) == len(other) == 8 and sum(a != b for a, b in zip(mine, other, strict=True)) >= 4
    every = sorted([float(number) for number in range(24)] * 2)
    assert found["samples"] == [every, every]


def test_the_command_line_under_a_launcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--data digits --model cnn --width 4 --batch-size 64 --ann.epochs 2 --qann.epochs 1 --timesteps 1".split()  # noqa: SIM905
    place = tmp_path / "run"
    started = launch(2, command=["train", "--run", place, *small])
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert "SNN" in outputs[0][0] and outputs[1][0] == ""  # the main process alone speaks
    assert "convert, verify and evaluate" in outputs[0][1] and "convert" not in outputs[1][1]
    assert {path.name for path in place.iterdir()} >= {"results.json", "snn.safetensors", "report.txt", "ann", "qann"}
    network = ps.load(place / "snn.safetensors")
    right = ps.evaluate(network, data.load("digits").evaluation(100)).correct[1]  # type: ignore[arg-type]
    assert right == json.loads((place / "results.json").read_text())["snn"]["rows"][0]["correct"]

    started = launch(2, command=["evaluate", place / "snn.safetensors", "--timesteps", "1"])
    outputs = [process.communicate(timeout=300) for process in started]
    assert f"{right}/359" in outputs[0][0] and "energy" in outputs[0][0] and outputs[1] == ("", "")
    assert cli.main(["train", "--run", str(place), "--resume"]) == 2
    assert "processes was 2 and is 1 now" in capsys.readouterr().err


def test_alone_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert processes.join("cpu") == "cpu" and distributed.summed([1.0, 2.0]) == [1.0, 2.0]
    assert distributed.gathered("a") == ["a"] and list(distributed.own_batches("ab")) == [(0, "a"), (1, "b")]
    model = nn.Linear(1, 1)
    assert processes.wrapped(model) is model
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with pytest.raises(SpecError, match=r"--use_fsdp: expected a launch without it.*TrainSpec\(sharded=True\)"):
        processes.join("cpu")
    monkeypatch.delenv("ACCELERATE_USE_FSDP")
    with pytest.raises(SpecError, match="each takes its own"):
        processes.join("cuda:0")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"polarspike\[scale\]"):
        processes.join("cpu")
