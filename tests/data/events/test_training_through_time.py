"""The recipe that learns the order of frames, from recordings to a file: its stages, a kill in it, and what it is told."""

from __future__ import annotations

import dataclasses
import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import polarspike as ps
from polarspike import cli
from polarspike.data.events import FrameSpec
from polarspike.errors import OperatorError, SpecError
from polarspike.experiments import Recipe, experiment
from polarspike.experiments.experiment import prepare
from polarspike.experiments.rehearsal import rehearse
from polarspike.proofs.proof import Proof
from polarspike.proofs.temporal_equivalence import verify_temporal
from polarspike.runs import RunDirectory
from polarspike.training import loop as training
from polarspike.training_spec import TrainSpec

from .test_event_datasets import alone  # noqa: F401
from .test_timesteps import FLAGS, ordered

THROUGH = shlex.split(
    "--reading through-time --through-time.epochs 2 --through-time.warmup-epochs 0 --through-time.learning-rate 0.05"
)


EVENTS = Recipe(
    data="n-mnist", model="event_cnn", width=4, options={"stages": 1}, batch_size=8, proof_images=4,
    reading="through-time", frames=FrameSpec(bins=2),
)  # fmt: skip


def untrained(root: Path, place: Path, recipe: Recipe, **notes: Any) -> tuple[Path, Path]:
    """The files of a quantized network, and of the network through time that it is the start of."""
    place.mkdir()
    prepared = prepare(recipe, root=str(root))
    frames, _ = next(iter(prepared.dataset.evaluation(8)))
    qann = experiment.quantize_for(recipe, prepared.dataset, prepared.ann.eval(), [(frames, None)])
    net = experiment.unroll_for(recipe, ps.convert(qann, ps.ConvertSpec(reading="frames")))
    net.notes |= notes
    ps.save(qann, parent := place / "qann.safetensors")
    ps.save(net, file := place / "net.safetensors")
    return parent, file


def test_verify_proves_each_number_of_frames_and_refuses_what_is_not_of_time(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    root = ordered(tmp_path / "data", 2)
    parent, file = untrained(root, tmp_path / "made", EVENTS)
    coarse, _ = untrained(root, tmp_path / "coarse", dataclasses.replace(EVENTS, quant=ps.QuantSpec(0, 1)))
    read: list[str] = []
    for module in ("verify", "files"):
        loading = lambda path: (read.append(path.name), ps.load(path))[1]  # noqa: E731
        monkeypatch.setattr(f"polarspike.cli.{module}.load", loading)
    proved: list[int | None] = []

    def proof(net: Any, batches: Any, timesteps: int | None = None, against: Any = "stream") -> Proof:
        proved.append(timesteps)
        return verify_temporal(net, batches, timesteps, against)

    monkeypatch.setattr("polarspike.cli.verify.verify_temporal", proof)

    def verify(*options: str, qann: Path = parent) -> str:
        code = cli.main(["verify", str(qann), str(file), "--root", str(root), "--images-count", "4", *options])
        out, err = capsys.readouterr()
        assert code == 2 or (code in (0, 4) and out.count("  EXACT") == out.count("T="))
        return err if code == 2 else out

    assert re.findall(r"T=\d", verify("--timesteps", "1", "8")) == ["T=1", "T=2"] and proved == [1, 2]
    assert sorted(read) == ["net.safetensors", "qann.safetensors"]  # each once
    for options, named in (
        (["--varying"], "error: --varying: "),
        (["--precision", "bf16"], "error: --precision bf16: "),
        (["--varying", "--precision", "bf16"], "error: --varying and --precision bf16: "),
    ):
        error = verify(*options)
        assert error.startswith(named) and f"leave {'them' if 'and' in named else 'it'} out" in error
    error = verify(qann=coarse)
    assert error.count("\n") == 1 and f"of {coarse}, levels (0, 1) at 'stages" in error and f"error: {file}: " in error


def test_a_network_through_time_of_single_images_is_told_that_it_reads_sequences(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = ordered(tmp_path / "data", 2)
    parent, file = untrained(root, tmp_path / "made", EVENTS, data="digits")
    for command in (["evaluate", str(file)], ["verify", str(parent), str(file)]):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert (
            error.startswith(f"error: {file}: its network reads sequences of frames") and "digits has single" in error
        )


@pytest.mark.slow
def test_one_command_trains_through_time_survives_a_kill_and_tells_the_networks_apart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given, run, broken = ["--root", str(ordered(tmp_path / "data"))], tmp_path / "run", tmp_path / "broken"
    validated = [*FLAGS, *THROUGH, "--validation", "0.34"]  # one of the three recordings of a class
    assert cli.main(["train", *validated, "--run", str(run), *given]) == 0
    printed = capsys.readouterr()
    assert "train the spiking network through time, 2 epochs" in printed.err
    assert {path.name for path in run.iterdir() if path.is_dir()} == {
        "ann", "qann", "control", "through_time", "through_time_control",
    }  # fmt: skip
    for stage in run.glob("*/log.jsonl"):
        records = [json.loads(line) for line in stage.read_text().splitlines()]
        assert records and all(0 <= record["validation_accuracy"] <= 1 for record in records), stage
    named = re.findall(r"^(ANN, continued|SNN through time|ANN|QANN|SNN) +(\d?) ", printed.out, re.MULTILINE)
    shown = [("SNN", "1"), ("SNN", "2"), ("SNN", "3")]
    later = [("SNN through time", t) for _, t in shown]
    assert named == [("ANN", ""), ("QANN", ""), *shown, ("ANN, continued", ""), *later]
    results = json.loads((run / "results.json").read_text())
    found = results["through_time"]
    assert [row["timesteps"] for row in found["snn"]["rows"]] == [1, 2, 3] and found["proof"]["exact"]
    assert found["counts"]["passes"] == found["counts"]["timesteps"] == 3
    page = (run / "report.html").read_text()
    assert "Trained through time" in page and "ANN, continued beside it" in page and "per neuron and sequence" in page
    assert all(f"{100 * row['accuracy']:.2f}</td>" in page for row in found["snn"]["rows"])
    assert all(f"{name} {leak:.3f}" in page for name, leak in found["leaks"].items())

    # Killed after its first epoch, it goes on to the same weights.
    keep = training.keep

    def killed(run: Any, *rest: Any) -> None:
        keep(run, *rest)
        if run.path.name == "through_time":
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(training, "keep", killed)
        assert cli.main(["train", *validated, "--run", str(broken), *given]) == 130
    assert len((broken / "through_time" / "log.jsonl").read_text().splitlines()) == 1
    assert cli.main(["train", "--run", str(broken), "--resume", *given]) == 0
    for name in ("results.json", "report.txt"):
        assert (broken / name).read_bytes() == (run / name).read_bytes()
    net, resumed, qann, snn = (
        ps.load(place / f"{name}.safetensors")
        for place, name in ((run, "snn_through_time"), (broken, "snn_through_time"), (run, "qann"), (run, "snn"))
    )
    assert isinstance(net, ps.TemporalNetwork) and isinstance(qann, ps.QuantizedNetwork)
    assert isinstance(snn, ps.SpikingNetwork) and snn.spec.reading == qann.notes["reading"] == "frames"
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in net.state_dict().items())
    start = ps.unroll(snn).state_dict()
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, start[name])}
    assert any("raw_leak" in name for name in moved) and any(name.endswith("weight") for name in moved)

    capsys.readouterr()
    file, parent = str(run / "snn_through_time.safetensors"), str(run / "qann.safetensors")
    assert cli.main(["evaluate", file, *given]) == 0
    out = capsys.readouterr().out
    assert "spiking network trained through time" in out and "reading='through-time'; T: the first T frames" in out
    for row in found["snn"]["rows"]:
        assert re.search(rf"^ +{row['timesteps']} .* {row['correct']}/10 ", out, re.MULTILINE)
    for against, rival in (("network", "its own stream"), ("events", "the event simulator")):
        code = cli.main(["verify", parent, file, "--images-count", "2", "--against", against, *given])
        shown_now = capsys.readouterr()
        assert code in (0, 4) and shown_now.out.count("\n  EXACT") == 3
        assert all(f"T={t} against {rival}" in shown_now.out for t in (1, 2, 3))
        assert "its weights are not those of" in shown_now.err
    for command in (
        ["convert", file, str(tmp_path / "again.safetensors")],
        ["export", file, "--to", "onnx"],
        ["verify", file, file, *given],
        ["verify", parent, file, "--varying", *given],
        ["evaluate", file, "--data", "digits"],
    ):
        assert cli.main(command) == 2
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and ("through time" in error or "digits" in error), error


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": "digits"}, "expected 'channels' for digits, .* got 'through-time'"),
        ({"frames": FrameSpec(bins=1)}, "bins: expected at least 2 frames to train through time, got 1"),
        ({"leak": 0.0}, r"leak: expected a number in \(0, 1\], got 0.0"),
        ({"leak": True}, r"leak: expected a number in \(0, 1\], got True"),
        ({"learned_leak": "no"}, "learned_leak: expected True or False, got 'no'"),
        ({"through_time": None}, "through_time: expected a TrainSpec, got None"),
        ({"through_time": TrainSpec(activity=0.1)}, "through_time.activity: .* give it to qann instead"),
        ({"reading": "frames", "leak": 0.5}, "reading: expected 'through-time' with leak=0.5, .* got 'frames'"),
        ({"reading": "channels", "through_time": TrainSpec(epochs=3)}, "with through_time.epochs=3, .*got 'channels'"),
        ({"reading": "backwards"}, "expected one of 'integrate', 'frames', 'channels', 'through-time'"),
    ],
)
def test_contradictions_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(SpecError, match=message):
        dataclasses.replace(EVENTS, **changes)


class Mixing(nn.Module):
    """Lays patches of an image in the batch, so that a neuron cannot tell the frames of a sample apart."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.relu, self.head = nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Linear(4 * 2, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.relu(self.conv(x.flatten(0, 1).unsqueeze(1)))
        return self.head(y.mean((2, 3)).reshape(x.shape[0], -1))


def test_a_network_that_cannot_be_unrolled_is_refused_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = str(ordered(tmp_path))
    assert prepare(EVENTS, root=root).dataset.frames == 2
    for module in ("experiment", "rehearsal"):
        monkeypatch.setattr(f"polarspike.experiments.{module}.build_model", lambda *_: Mixing())
    monkeypatch.setattr("polarspike.experiments.rehearsal._learn", lambda *_: pytest.fail("trained"))
    for start in (lambda: prepare(EVENTS, root=root), lambda: rehearse(EVENTS)):
        with pytest.raises(OperatorError, match="expected the batch in dimension 0"):
            start()


def test_a_teacher_is_for_the_stages_that_ask_and_a_stream_that_differs_is_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: dict[str, bool] = {}

    def fit(model: nn.Module, *_: Any, teacher: nn.Module | None = None, run: Any, **__: Any) -> None:
        asked[run.path.name] = teacher is not None

    def differing(*given: Any) -> Proof:
        return dataclasses.replace(verify_temporal(*given), output_equal=False)

    monkeypatch.setattr(experiment, "fit", fit)
    monkeypatch.setattr("polarspike.experiments.outcome.verify_temporal", differing)
    flags = [*FLAGS, *THROUGH, "--qann.distillation", "0", "--through-time.distillation", "0.5"]
    assert cli.main(["train", *flags, "--root", str(ordered(tmp_path / "data")), "--run", str(tmp_path / "run")]) == 1
    printed = capsys.readouterr()
    assert "not exact through time: streamed otherwise than at once, first at output" in printed.err
    assert "SNN through time: NOT EXACT, first difference at output" in printed.out
    assert asked == {
        "ann": False, "qann": False, "control": False, "through_time": True, "through_time_control": True,
    }  # fmt: skip


def test_what_is_finished_is_saved_before_what_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root, place = str(ordered(tmp_path / "data", 2)), tmp_path / "run"
    failing = ["through_time"]

    def fit(*_: Any, run: Any, **__: Any) -> None:
        if run.path.name in failing:
            raise KeyboardInterrupt

    def files() -> dict[str, bytes]:
        return {
            path.name: path.read_bytes() for path in place.iterdir() if path.is_file() and path.name != "config.json"
        }

    def carry_out(resume: bool = True) -> Any:
        return experiment.carry_out(prepare(EVENTS, root=root), RunDirectory(place, resume=resume))

    with monkeypatch.context() as patch:
        patch.setattr(experiment, "fit", fit)
        with pytest.raises(KeyboardInterrupt):
            carry_out(resume=False)
        first = files()
        assert set(first) == {"qann.safetensors", "snn.safetensors"}
        failing[:] = []
        patch.setattr(experiment, "examine_through_time", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            carry_out()
        second = files()
        assert set(second) == {*first, "snn_through_time.safetensors"} and first.items() <= second.items()
    monkeypatch.setattr(experiment, "fit", fit)
    assert carry_out().through_time is not None
    last = files()
    assert set(last) == {*second, "results.json", "report.txt"} and second.items() <= last.items()
