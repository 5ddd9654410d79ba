"""The command line under a launcher of two processes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import polarspike as ps
from polarspike import cli, data
from tests.parallel.launching import launch_command

pytest.importorskip("accelerate")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]


def test_the_command_line_under_a_launcher(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = "--data digits --model cnn --width 4 --batch-size 64 --ann.epochs 2 --qann.epochs 1 --timesteps 1".split()  # noqa: SIM905
    place = tmp_path / "run"
    started = launch_command("train", "--run", place, *small)
    outputs = [process.communicate(timeout=300) for process in started]
    assert [process.returncode for process in started] == [0, 0], outputs
    assert "SNN" in outputs[0][0] and outputs[1][0] == ""  # the main process alone speaks
    assert "convert, verify and evaluate" in outputs[0][1] and "convert" not in outputs[1][1]
    assert {path.name for path in place.iterdir()} >= {"results.json", "snn.safetensors", "report.txt", "ann", "qann"}
    network = ps.load(place / "snn.safetensors")
    right = ps.evaluate(network, data.load("digits").evaluation(100)).correct[1]  # type: ignore[arg-type]
    assert right == json.loads((place / "results.json").read_text())["snn"]["rows"][0]["correct"]

    started = launch_command("evaluate", place / "snn.safetensors", "--timesteps", "1")
    outputs = [process.communicate(timeout=300) for process in started]
    assert f"{right}/359" in outputs[0][0] and "energy" in outputs[0][0] and outputs[1] == ("", "")
    assert cli.main(["train", "--run", str(place), "--resume"]) == 2
    assert "processes was 2 and is 1 now" in capsys.readouterr().err


def test_launchers_leave_our_options_to_us() -> None:
    """As docs/networks.md has them: torchrun would take ``--run`` for one of its own without the two dashes."""
    from torch.distributed.run import get_args_parser

    ours = ["polarspike", "train", "demo", "--run", "place", "--resume"]
    given = get_args_parser().parse_args(["--nproc_per_node", "2", "-m", "--", *ours])
    assert [given.training_script, *given.training_script_args] == ours
    with pytest.raises(SystemExit):
        get_args_parser().parse_args(["--nproc_per_node", "2", "-m", *ours])
    launch = pytest.importorskip("accelerate.commands.launch")
    given = launch.launch_command_parser().parse_args(["--num_processes", "2", "-m", *ours])
    assert [given.training_script, *given.training_script_args] == ours
