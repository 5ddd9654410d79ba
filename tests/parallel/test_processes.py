"""Two processes (gloo) calibrate, train and evaluate as one does; a kill of either loses nothing."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from torch import nn

from polarspike.errors import MissingExtraError, SpecError
from polarspike.parallel import distributed, processes
from tests.parallel.launching import ended, found_by, killed, launch

pytest.importorskip("accelerate")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
Findings = dict[int, dict[str, Any]]


def test_two_processes_do_what_one_does(findings: Findings) -> None:
    one, two = findings[1]["train"], findings[2]["train"]
    assert two["counts"] == one["counts"] and two["extrema"] == one["extrema"]  # exactly
    for name, moments in one["moments"].items():
        assert two["moments"][name] == pytest.approx(moments, rel=1e-6)
    assert two["float losses"] == pytest.approx(one["float losses"], abs=1e-4)
    # Another order of summation moves a code at a boundary here and there, and training goes on from there.
    assert two["losses"] == pytest.approx(one["losses"], abs=0.01) and len(two["losses"]) == 3
    # One and the same network: each answer, event, spike and pair is counted once.
    assert two["steps"] == one["steps"] and two["table"] == one["table"]
    first = one["table"]["rows"][0]
    assert (
        one["table"]["total"] == 359
        and min(first["events"], first["correct"]) > 0
        and first["spikes"] > first["events"]
    )


def test_a_loader_of_the_users_is_shared_by_rows_and_batches(findings: Findings) -> None:
    one, two = (findings[count]["own_loader"] for count in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-4)
    assert two["correct"] == one["correct"]
    assert one["apart"] < 1e-5 and two["apart"] < 1e-5  # gradients of pieces sum to that of the batch


def test_every_sample_is_trained_on_and_counted_once(findings: Findings) -> None:
    one, two = (findings[count]["shares"] for count in (1, 2))
    assert two["losses"] == pytest.approx(one["losses"], abs=1e-5)
    assert one["rows"] == 64 and two["rows"] == 32
    for name in ("evaluated", "sequences evaluated", "calibrated", "total", "distinct"):
        assert two[name] == one[name]
    assert one["evaluated"] == 1400 and one["distinct"] == 60
    assert two["apart"] == [float(number) for number in range(60)]  # a sampler that shares is left to do it


def test_dropout_is_each_processs_own_and_the_order_of_samples_is_common(findings: Findings) -> None:
    first, second = findings[2]["masks"]["masks"]
    assert first == second  # it follows from the seed
    mine, other = first
    assert len(mine) == len(other) == 8 and sum(a != b for a, b in zip(mine, other, strict=True)) >= 4
    every = sorted([float(number) for number in range(24)] * 2)
    assert findings[2]["masks"]["samples"] == [every, every]


def test_the_error_of_one_process_ends_the_other_with_one_line(tmp_path: Path) -> None:
    assert ended(launch(2, tmp_path, "fail")) == [2, 2]
    assert "another process of this run has ended" in (tmp_path / "error.0").read_text()
    assert "expected a class in 0..2, got 7" in (tmp_path / "error.1").read_text()


def test_a_kill_of_either_process_loses_nothing(tmp_path: Path, findings: Findings) -> None:
    killed(tmp_path, "long", epochs=0, victim=1)
    killed(tmp_path, "long", epochs=2, victim=0)
    killed(tmp_path, "long", epochs=4, victim=1)
    assert found_by(2, tmp_path, "long")["long"] == findings[2]["long"]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("ACCELERATE_USE_FSDP", "true", r"--use_fsdp: expected a launch without it.*TrainSpec\(sharded=True\)"),
        ("ACCELERATE_USE_DEEPSPEED", "true", r"--use_deepspeed: .*TrainSpec\(sharded=True\)"),
        ("ACCELERATE_MIXED_PRECISION", "bf16", r"--mixed_precision: .*TrainSpec\(precision=...\), or --ann.precision"),
        ("ACCELERATE_DYNAMO_BACKEND", "INDUCTOR", "--dynamo_backend: .*got ACCELERATE_DYNAMO_BACKEND=inductor"),
    ],
)
def test_what_a_launcher_would_change_is_refused(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, text: str
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv(name, value)
    with pytest.raises(SpecError, match=text):
        processes.join("cpu")
    monkeypatch.setenv(name, "no")  # as it says where nothing was asked for
    with pytest.raises(SpecError, match="each takes its own"):
        processes.join("cuda:0")


def test_an_average_is_the_same_network_everywhere(findings: Findings) -> None:
    found = findings[2]["averaged"]
    assert found["apart"] == 0.0 and found["between"] == 0.0
    assert found["moved"] > 0.01  # it is an average of something


def test_the_precision_of_an_environment_is_not_ours(findings: Findings) -> None:
    assert findings[2]["environment"] == {"types": ["torch.float32"], "forward": False}


def test_alone_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    assert processes.join("cpu") == "cpu" and distributed.summed([1.0, 2.0]) == [1.0, 2.0]
    assert distributed.gathered("a") == ["a"] and list(distributed.own_batches("ab")) == [(0, "a"), (1, "b")]
    model = nn.Linear(1, 1)
    assert processes.wrapped(model) is model
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SpecError, match="each takes its own"):
        processes.join("cuda:0")
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match=r"polarspike\[scale\]"):
        processes.join("cpu")
