"""Weights that are dealt out to two processes (FSDP) train as whole ones do, and lose nothing by a kill."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.parallel.launching import found_by, killed

pytest.importorskip("accelerate")
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("processes")]
Findings = dict[int, dict[str, Any]]


def test_weights_in_shares_train_as_whole_ones_do(findings: Findings) -> None:
    one, two = findings[1]["dealt_out"], findings[2]["dealt_out"]
    assert two["held"] < 0.6 * two["all"] and one["held"] == one["all"]  # it is shared out indeed
    assert two["float losses"] == pytest.approx(one["float losses"], abs=1e-4)
    assert two["validation"] == pytest.approx(one["validation"], abs=0.006)  # of 359 images
    assert two["apart"] < 1e-4 and two["straight"] == pytest.approx(two["float losses"], abs=1e-5)
    assert two["identity"]  # the model itself is what is trained in the end
    assert two["part losses"][0] == pytest.approx(two["part losses"][1], abs=1e-3)
    assert two["gradients"].keys() == one["gradients"].keys() and len(two["gradients"]) > 20
    for name, gradient in one["gradients"].items():  # of steps and gains, which start at their bound
        assert two["gradients"][name] == pytest.approx(gradient, rel=1e-3, abs=1e-5), name


def test_with_a_teacher_averages_and_pieces_too(findings: Findings) -> None:
    one, two = findings[1]["long_dealt_out"], findings[2]["long_dealt_out"]
    # Codes at a boundary move by rounding, and training goes on from there.
    assert two["losses"] == pytest.approx(one["losses"], abs=0.01)
    assert two["total"] == 359


def test_the_checkpoint_of_shares_is_that_of_one_process(findings: Findings) -> None:
    one, two = (findings[count]["long_dealt_out"]["checkpoint"] for count in (1, 2))
    assert two == one and any(name.startswith("optimizer.exp_avg.") for name in two)


def test_a_kill_loses_nothing_of_weights_in_shares(tmp_path: Path, findings: Findings) -> None:
    killed(tmp_path, "long_dealt_out", epochs=1, victim=1)
    assert found_by(2, tmp_path, "long_dealt_out") == {"long_dealt_out": findings[2]["long_dealt_out"]}
