"""A comparison does each run once, shares what can be shared, and reports at true latency."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from polarspike import data
from polarspike.baselines.comparison import Comparison, Contest
from polarspike.baselines.published import published, published_table
from polarspike.baselines.scene import MeanFrame, OverFrames, Scene
from polarspike.errors import SpecError

SMALL = Comparison(
    data="mnist-5k",
    model="cnn",
    width=4,
    methods=("ann", "polarspike", "rate-max", "qcfs", "srp", "lsq", "lif"),
    trained_steps=(2,),
    latencies=(1, 2, 6),
    float_epochs=1,
    epochs=1,
    limit=256,
)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Contest:
    contest = Contest(SMALL, tmp_path_factory.mktemp("rivals"))
    contest.carry_out()
    return contest


def test_the_list_of_runs_is_known_before() -> None:
    runs = SMALL.runs()
    assert [(run["method"], run["levels"], run["trained_steps"], run["budget"]) for run in runs] == [
        ("ann", None, None, "epochs"),
        ("polarspike", 4, None, "epochs"),
        ("rate-max", None, None, "epochs"),
        ("qcfs", 4, None, "epochs"),
        ("srp", 4, None, "epochs"),
        ("lsq", 4, None, "epochs"),
        ("lif", None, 2, "epochs"),
        ("lif", None, 2, "time"),
    ]
    assert {run["network"] for run in runs} == {"cnn-4"}
    assert len(dataclasses.replace(SMALL, seeds=(0, 1), levels=(3, 4)).runs()) == 2 * (len(runs) + 4)


def test_every_run_is_done_at_the_latencies_that_it_has(finished: Contest) -> None:
    rows = finished.ledger.rows()
    latencies = {row["method"]: [] for row in rows}
    for row in rows:
        latencies[row["method"]].append((int(row["latency"]), int(row["timesteps"])))
    assert latencies["srp"] == [(6, 2)]  # a rehearsal of four steps leaves nothing before
    assert latencies["lsq"] == latencies["ann"] == [(1, 1)]
    assert latencies["qcfs"] == [(1, 1), (2, 2), (6, 6)]
    assert len(latencies["lif"]) == 6
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 100 and float(row["ann_accuracy"]) > 0
        if row["method"] != "ann":
            assert float(row["spikes"]) >= float(row["events"]) >= 0 and float(row["nj_b"]) > 0
            assert float(row["time_ratio"]) > 0
    epochs = {(row["method"], row["budget"]): row["epochs"] for row in rows}
    assert epochs["lif", "epochs"] == "2" and epochs["lif", "time"] == "1"
    assert epochs["rate-max", "epochs"] == "0" and epochs["qcfs", "epochs"] == "1"


def test_what_is_done_is_not_done_again(finished: Contest) -> None:
    assert finished.missing() == []
    assert "0 runs to do, 8 done" in finished.announcement()
    more = Contest(dataclasses.replace(SMALL, levels=(4, 3)), finished.place)
    assert len(more.missing()) == 4 and "4 runs to do" in more.announcement()


def test_those_that_share_a_start_share_their_training(finished: Contest) -> None:
    trained = {path.name for path in (finished.place / "cnn-4").iterdir()}
    assert "quantized-qcfs-4-0-0_05" in trained and not any("srp" in name for name in trained)
    assert {"float-0", "control-0-0_05", "quantized-mse-4-0-0_05", "lif-2-epochs-0-0-0_05"} <= trained


def test_validation_images_choose_the_rate(tmp_path: Path) -> None:
    asked = dataclasses.replace(SMALL, methods=("polarspike",), rates=(0.05, 1e-6), latencies=(1,))
    contest = Contest(asked, tmp_path)
    contest.carry_out()
    (row,) = contest.ledger.rows()
    assert row["setting"] in ("rate 0.05", "rate 1e-06")
    assert contest.scene.dataset.validation is not None
    assert len(list((tmp_path / "cnn-4").iterdir())) == 5  # a float network, and two of each


def test_frames_tell_more_than_one(tmp_path: Path) -> None:
    asked = dataclasses.replace(
        SMALL, frames=4, methods=("ann", "polarspike", "qcfs", "srp", "lif"), latencies=(1, 4, 6), float_epochs=2
    )
    contest = Contest(asked, tmp_path)
    contest.carry_out()
    rows = contest.ledger.rows()
    assert {row["network"] for row in rows} == {"cnn-4-4-frames"}
    assert {(row["method"], row["latency"]) for row in rows if row["method"] in ("polarspike", "srp")} == {
        ("polarspike", "1"), ("polarspike", "4"), ("srp", "6"),
    }  # fmt: skip
    with pytest.raises(SpecError, match="peers are driven on images"):
        contest._peer({"method": "sinabs"}, torch.nn.Identity(), 0.0)


def test_frames_are_the_same_for_every_method() -> None:
    scene = Scene(data.load("mnist-5k"), 3, validated=False, limit=200)
    (first, labels), *_ = scene.test()
    (again, _), *_ = scene.test()
    assert first.shape == (200, 3, 1, 28, 28) and torch.equal(first, again)
    torch.manual_seed(0)
    (varied, _), *_ = scene.training()
    assert varied.shape == (128, 1, 28, 28) and len(scene.training()) == 1
    sequences = Scene(data.load("mnist-5k"), 3, validated=False, limit=256).training(2)
    assert next(iter(sequences))[0].shape == (128, 2, 1, 28, 28)
    means = scene.calibration(50)
    assert torch.equal(means[0][0], scene.calibration(50)[0][0]) and len(labels) == 200
    assert torch.equal(MeanFrame(torch.nn.Identity())(first), first.mean(1))


def test_a_network_over_frames_reads_the_first_ones() -> None:
    class Last(torch.nn.Module):
        def forward(self, frames: torch.Tensor, time_dim: int, every_step: bool) -> torch.Tensor:
            assert time_dim == 1 and not every_step
            return frames[:, -1]

    assert OverFrames(Last())(torch.arange(6).view(1, 6), timesteps=4).item() == 3


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"methods": ("polarspike", "magic")}, "expected some of ann, polarspike, .* sinabs"),
        ({"latencies": (4, 1)}, "increasing numbers"),
        ({"seeds": ()}, "at least one value"),
        ({"epochs": 0}, "at least 1"),
        ({"pooling": "mean"}, "one of 'sums', 'steps'"),
    ],
)
def test_contradictions_are_refused(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        dataclasses.replace(SMALL, **wrong)  # type: ignore[arg-type]


def test_no_latency_is_an_error(tmp_path: Path) -> None:
    contest = Contest(dataclasses.replace(SMALL, methods=("srp",), latencies=(1, 2)), tmp_path)
    with pytest.raises(SpecError, match="srp: no latency of"):
        contest.carry_out()
    assert contest.ledger.rows() == []


def test_published_figures_have_their_true_latency() -> None:
    rows = published()
    assert {row["latency"] for row in rows if "tau=4" in row["method"]} == {"5"}
    assert "T excludes rho" in published_table("CIFAR-100") and "ImageNet" not in published_table("CIFAR-100")
