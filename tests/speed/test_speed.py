"""Races and their tables: every runtime takes its turn, ratios are taken within rounds, what cannot run is said."""

from __future__ import annotations

import builtins
import dataclasses
import math
import sys
import time
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from polarspike import cli, integer, speed
from polarspike.baselines.peers import spikingjelly
from polarspike.errors import MissingExtraError, SpecError
from polarspike.speed.agreement import Meaning, meaning, onnxruntime_codes
from polarspike.speed.runtimes import Runtime, Runtimes


@pytest.fixture(scope="module")
def subject() -> speed.Subject:
    return speed.random_subject("cnn", width=4, image_size=8)


# --- the race -----------------------------------------------------------------------------------------------------------


def test_a_race_runs_all_in_turn_and_begins_each_round_with_another() -> None:
    seen: list[str] = []

    def action(name: str) -> Any:
        def run() -> None:
            seen.append(name)
            time.sleep(0.06)  # more than what a round is filled to: one run in each

        return run

    found = speed.race({"a": action("a"), "b": action("b")}, 5)
    assert "".join(seen) == "ab" + "ab" + "ba" + "ab" + "ba" + "ab"  # to see how long each takes; then five rounds
    assert set(found) == {"a", "b"} and all(len(times.cpu) == len(times.wall) == 5 for times in found.values())
    assert all(wall >= 0.06 and cpu < wall for cpu, wall in zip(found["a"].cpu, found["a"].wall, strict=True))


def test_ratios_are_taken_within_a_round() -> None:
    steady = speed.Times(cpu=(1.0, 4.0, 2.0), wall=(5.0, 5.0, 5.0))
    slower = speed.Times(cpu=(2.0, 8.0, 6.0), wall=(5.0, 10.0, 15.0))
    assert slower.over(steady, "cpu") == (2.0, 2.0, 3.0)  # load that met both leaves no trace
    assert slower.over(steady, "wall") == (2.0, 1.0, 3.0)
    assert slower.of("cpu") == (6.0, 2.0, 8.0)


def test_few_rounds_and_empty_courses_are_refused() -> None:
    with pytest.raises(SpecError, match="rounds: expected at least 5, got 4"):
        speed.race({"a": lambda: None}, 4)
    with pytest.raises(SpecError, match="rounds: expected at least 5, got 4"):
        speed.Course(rounds=4)
    with pytest.raises(SpecError, match=r"batches: expected numbers of at least 1, got \(1, 0\)"):
        speed.Course(batches=(1, 0))
    with pytest.raises(SpecError, match=r"threads: expected numbers of at least 1, got \(\)"):
        speed.Course(threads=())


def test_what_fails_or_crawls_is_left_out_with_a_reason() -> None:
    def failing(x: torch.Tensor, threads: int) -> Any:
        raise RuntimeError("no kernel\nfor this")

    def busy(numbers: int) -> Any:
        return lambda x, threads: lambda: sum(range(numbers))

    known = Runtimes(
        [
            Runtime("torch", "fp32", busy(2_000)),
            Runtime("torch", "bf16", failing),
            Runtime("torch", "snn", busy(2_000_000)),
            Runtime("onnxruntime", "fp32", busy(10)),
        ],
        {"openvino fp32": "not installed"},
    )
    (heat,) = speed.measure(known, torch.zeros(2, 1, 4, 4), speed.Course((3,), (1,), 5))
    assert list(heat.times) == ["torch fp32", "onnxruntime fp32"] and (heat.batch, heat.clock) == (3, "cpu")
    assert heat.skipped["torch bf16"] == "does not run here: no kernel"
    assert "times as long as torch fp32" in heat.skipped["torch snn"]
    assert heat.skipped["openvino fp32"] == "not installed"


def test_threads_are_given_and_taken_back() -> None:
    before, seen = torch.get_num_threads(), []

    def prepare(x: torch.Tensor, threads: int) -> Any:
        seen.append((tuple(x.shape), threads, torch.get_num_threads()))
        return lambda: None

    course = speed.Course((1, 5), (1, 2), 5)
    heats = list(speed.measure(Runtimes([Runtime("torch", "fp32", prepare)]), torch.zeros(2, 1, 4, 4), course))
    assert seen == [((size, 1, 4, 4), threads, threads) for threads in (1, 2) for size in (1, 5)]
    assert [heat.clock for heat in heats] == ["cpu", "cpu", "wall", "wall"] and torch.get_num_threads() == before


# --- the tables ---------------------------------------------------------------------------------------------------------


def test_the_table_holds_medians_ranges_and_ratios_to_like_runtimes() -> None:
    def times(*cpu: float) -> speed.Times:
        return speed.Times(cpu, tuple(9.0 for _ in cpu))

    heat = speed.Heat(
        16,
        1,
        {
            "torch fp32": times(0.1, 0.2, 0.3),
            "torch snn": times(0.2, 0.4, 0.6),
            "openvino fp32": times(0.05, 0.1, 0.1),
            "openvino int8": times(0.02, 0.02, 0.02),
            "openvino snn": times(0.025, 0.025, 0.02),
        },
        {"torch bf16": "does not run here"},
    )
    first, *_, last, note = speed.speed_table(heat).splitlines()
    assert first == "batch 16, 1 thread, processor time of a batch" and note == "not run: torch bf16: does not run here"
    ratios = ["8.00", "(4.00..15.00)", "4.00", "(2.00..5.00)", "0.80", "(0.80..1.00)"]
    assert last.split() == ["openvino", "snn", "25", "20..25", *ratios]
    assert heat.row("openvino int8").keys() >= {"x_torch", "x_own_fp32"}
    assert "x_own_int8" not in heat.row("openvino int8") and "x_own_fp32" not in heat.row("torch snn")
    assert heat.row("torch snn")["x_torch"] == [0.5, 0.5, 0.5]
    several = dataclasses.replace(heat, threads=2)
    assert "2 threads, wall time" in speed.speed_table(several) and several.row("torch fp32")["ms"] == [9000.0] * 3


def test_the_table_of_files_is_in_terms_of_the_float_file() -> None:
    files = [speed.Footprint("fp32", 4_000_000, 90_000_000, 50_000_000), speed.Footprint("snn", 1_000_000)]
    lines = speed.footprint_table(files, 8).splitlines()
    assert lines[2].split() == ["fp32", "4.00", "1.000", "90.00", "1.000", "40.00", "1.000"]
    assert lines[3].split() == ["snn", "1.00", "0.250", "-", "-", "-", "-"]


# --- subjects, files, runtimes ------------------------------------------------------------------------------------------


def test_a_subject_is_one_network_in_three_forms(subject: speed.Subject) -> None:
    assert not subject.ann.training
    again = speed.random_subject("cnn", width=4, image_size=8)
    assert torch.equal(again.ann(again.images), subject.ann(subject.images))  # the same every time
    norm = next(module for module in subject.ann.modules() if isinstance(module, torch.nn.BatchNorm2d))
    assert norm.running_mean is not None and norm.running_mean.abs().max() > 0  # has seen pictures
    pixels = (subject.images * 0.25 + 0.5) * 255
    assert torch.allclose(pixels, pixels.round(), atol=1e-3)
    (answer,) = integer.run(subject.network, {subject.network.inputs[0][0]: subject.images.numpy()})
    assert answer.shape == (16, 10) and np.isfinite(answer).all()


def test_missing_packages_are_named(subject: speed.Subject, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    known = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name.partition(".")[0] in ("onnx", "onnxscript", "onnxruntime", "openvino"):
            raise ImportError(f"No module named {name!r}")
        return known(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    files = speed.write_files(subject, tmp_path)
    assert not files.paths and set(files.missing) == {"fp32", "int8", "snn"}
    assert "pip install 'polarspike[deploy]'" in files.missing["snn"]
    found = speed.runtimes_of(subject, files)
    assert {each.engine for each in found.ready} == {"torch"}
    assert found.skipped["openvino snn"].startswith("not installed") and len(found.skipped) == 7


@pytest.mark.slow
def test_every_runtime_of_a_small_network_is_raced(subject: speed.Subject, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    files = speed.write_files(subject, tmp_path)
    assert not files.missing and {path.name for path in tmp_path.iterdir()} == {"fp32.onnx", "int8.onnx", "snn.onnx"}
    found = speed.runtimes_of(subject, files)
    expected = subject.ann(subject.images[:3]).detach().numpy()
    for each in found.ready:
        if each.kind in ("fp32", "channels-last") and each.engine != "openvino":
            answer: Any = each.prepare(subject.images[:3], 1)()
            made = answer[0] if isinstance(answer, list) else answer
            assert np.allclose(np.asarray(made), expected, atol=1e-4), each.name
    (heat,) = speed.measure(found, subject.images, speed.Course((2,), (1,), 5))
    assert {"torch fp32", "onnxruntime fp32", "onnxruntime int8", "onnxruntime snn"} <= {*heat.times, *heat.skipped}
    assert all(min(times.cpu) > 0 for times in heat.times.values())
    measured = {each.kind: each for each in speed.footprint(files, (2, *subject.images.shape[1:]))}
    assert measured["snn"].size == (tmp_path / "snn.onnx").stat().st_size
    if Path("/proc/self/status").exists():
        assert measured["snn"].peak and measured["snn"].imports and measured["snn"].own
        assert 0 < measured["snn"].imports < measured["snn"].peak < 1e9
    pytest.importorskip("PIL")
    times, imported = speed.cold_start(files.paths["snn"], subject.images.shape[1:], runs=2)
    assert imported == [] and len(times.wall) == 2 and min(times.cpu) > 0


# --- a peer -------------------------------------------------------------------------------------------------------------


class _Counting(torch.nn.Module):
    """A stand-in for a rate-coded network: its answer grows by one with every timestep since its reset."""

    mode, seen = "s", 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        steps = len(x) if self.mode == "m" else 1
        rising = torch.arange(self.seen + 1, self.seen + 1 + steps, dtype=x.dtype)
        self.seen += steps
        one = torch.ones(len(x[0]) if self.mode == "m" else len(x), 10)
        return rising.view(-1, 1, 1) * one if self.mode == "m" else rising * one


def test_a_peer_takes_all_its_timesteps_from_rest(subject: speed.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    network = _Counting()
    functional = types.SimpleNamespace(
        reset_net=lambda snn: setattr(snn, "seen", 0), set_step_mode=lambda snn, mode: setattr(snn, "mode", mode)
    )
    monkeypatch.setattr(spikingjelly, "rate_coding", lambda *_, **__: types.SimpleNamespace(snn=network))
    monkeypatch.setitem(sys.modules, "spikingjelly.activation_based.functional", functional)
    found = Runtimes([Runtime("torch", "fp32", lambda x, threads: lambda: time.sleep(0.001))])
    speed.add_spikingjelly(found, subject)
    prepared = {each.name: each.prepare(subject.images[:3], 1) for each in found.ready[1:]}
    ways = ["T=1", *(f"T={total} {way}" for total in (4, 8) for way in ("steps", "layers"))]
    assert list(prepared) == [f"spikingjelly {way}" for way in ways]
    for _ in range(2):  # in any order, and again: each starts from rest
        for name, answer in prepared.items():
            mean: Any = answer()
            total = int(name.partition("T=")[2].split()[0])
            assert torch.equal(mean, torch.full((3, 10), (total + 1) / 2)), name
    assert [each.timesteps for each in found.ready] == [1, 1, 4, 4, 8, 8]  # and so much longer it may take


def test_a_peer_that_is_missing_or_fails_is_said(subject: speed.Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise ValueError("no such layer\nmore")

    def absent(*_: Any, **__: Any) -> Any:
        raise MissingExtraError("spikingjelly", "baselines")

    found = Runtimes()
    monkeypatch.setattr(spikingjelly, "rate_coding", failing)
    speed.add_spikingjelly(found, subject)
    assert found.skipped == {"spikingjelly": "its conversion failed: no such layer"} and not found.ready
    monkeypatch.setattr(spikingjelly, "rate_coding", absent)
    speed.add_spikingjelly(found, subject)
    assert "pip install 'polarspike[baselines]'" in found.skipped["spikingjelly"]


# --- codes --------------------------------------------------------------------------------------------------------------


def test_differences_are_counted_where_they_begin() -> None:
    codes = {"first": np.zeros((2, 3), np.int16), "second": np.zeros((2, 3), np.int16)}
    meant = Meaning(codes, {"second": np.full((2, 3), 0.5001)})
    found = {name: value.copy() for name, value in codes.items()}
    found["first"][0, 1] = 2  # begins here in image 0,
    found["second"][0, :] = 1  # and goes on;
    found["second"][1, 2] = 1  # image 1 begins later
    total = speed.agreement(meant, found, speed.Agreement())
    assert (total.compared, total.different, total.begun, total.farthest) == (12, 5, 2, 2)
    assert total.begun_at == {"first": 1, "second": 1} and math.isclose(total.margin, 1e-4, rel_tol=1e-3)
    assert speed.agreement(meant, codes, total).compared == 24 and total.different == 5


@pytest.mark.slow
def test_onnx_runtime_gives_the_codes_of_the_reference(subject: speed.Subject) -> None:
    pytest.importorskip("onnxruntime")
    x = subject.images.numpy()
    meant = meaning(subject.network, x)
    assert set(meant.codes) == set(subject.network.sites)
    total = speed.agreement(meant, onnxruntime_codes(subject.network, 1)(x), speed.Agreement())
    assert total.different == 0 and total.compared == sum(codes.size for codes in meant.codes.values())
    assert all(len(np.unique(codes)) > 2 for codes in meant.codes.values())


# --- the command --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bench_speed_prints_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["bench", "speed", "--model", "cnn", "--width", "4", "--image-size", "8", "--batches", "1", "--rounds", "5"]
    assert cli.main(asked) == 0
    out, _ = capsys.readouterr()
    assert "cnn, random weights; " in out and "batch 1, 1 thread, processor time of a batch" in out
    assert "torch fp32" in out and "not run: torch compiled: not asked for" in out
    assert cli.main([*asked[:-1], "4"]) == 2
    assert "rounds: expected at least 5, got 4" in capsys.readouterr().err
    assert cli.main([*asked, "--channels", "0"]) == 2
    assert "--channels: expected at least 1, got 0" in capsys.readouterr().err
