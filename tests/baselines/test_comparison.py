"""A comparison does each run once, shares what can be shared, and reports at true latency."""

from __future__ import annotations

import dataclasses
import multiprocessing
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from polarspike import data
from polarspike.baselines import METHODS
from polarspike.baselines import trainings as trainings_module
from polarspike.baselines.comparison import Comparison
from polarspike.baselines.contest import Contest
from polarspike.baselines.cost import announcement
from polarspike.baselines.published import published, published_table
from polarspike.baselines.scene import Scene
from polarspike.baselines.stages import own_stage, steps_read
from polarspike.errors import SpecError
from polarspike.runs import RunDirectory
from polarspike.training import History
from polarspike.training import loop as training
from polarspike.training_spec import TrainSpec

#: What is carried out once is read by many tests: one worker runs them all.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("comparison")]

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
    fewer = dataclasses.replace(SMALL, budgets=("time",), trained_steps=(1, 2))
    assert [(run["trained_steps"], run["budget"]) for run in fewer.runs()[-2:]] == [(1, "epochs"), (2, "time")]
    assert fewer.setup == SMALL.setup  # they choose runs, and change none
    built = dataclasses.replace(SMALL, model="resnet20", options={"blocks": 1})
    assert built.network == "resnet20-4-blocks1" and built.training != SMALL.training


def test_every_run_is_done_at_the_latencies_that_it_has(finished: Contest) -> None:
    rows = finished.ledger.rows()
    latencies = {row["method"]: [] for row in rows}
    for row in rows:
        latencies[row["method"]].append((int(row["latency"]), int(row["timesteps"])))
    # Training images choose the length of a rehearsal, which leaves nothing at one step.
    srp = {int(row["latency"]): row for row in rows if row["method"] == "srp"}
    assert sorted(srp) == [2, 6] and all(
        f"rehearsal: {latency - int(row['timesteps'])}" in row["setting"] for latency, row in srp.items()
    )
    assert latencies["lsq"] == latencies["ann"] == [(1, 1)]
    assert latencies["qcfs"] == [(1, 1), (2, 2), (6, 6)]
    assert len(latencies["lif"]) == 6
    for row in rows:
        assert 0 <= float(row["accuracy"]) <= 100 and float(row["ann_accuracy"]) > 0
        if row["method"] != "ann":
            assert float(row["spikes"]) >= float(row["events"]) >= 0 and float(row["nj_b"]) > 0
            assert float(row["time_ratio"]) > 0
    epochs = {(row["method"], row["budget"]): (row["own_epochs"], row["epochs"]) for row in rows}
    assert epochs["lif", "epochs"] == ("2", "2") and epochs["lif", "time"] == ("1", "1")
    assert epochs["rate-max", "epochs"] == ("0", "2") and epochs["qcfs", "epochs"] == ("1", "2")
    bits = {(row["method"], row["latency"]): int(row["spike_bits"]) for row in rows if row["spike_bits"]}
    for row in rows:
        assert int(row["bits"]) == 32 * int(row["latency"]) * int(row["spike_bits"])
    assert (
        bits["ann", "1"] == 32
        and bits["qcfs", "1"] == bits["lif", "6"] == 1
        and bits["polarspike", "1"] == 2 <= bits["polarspike", "6"]
    )


def test_what_is_done_is_not_done_again(finished: Contest) -> None:
    assert finished.missing() == []
    assert "0 runs to do, 8 done" in announcement([finished])
    more = Contest(dataclasses.replace(SMALL, levels=(4, 3)), finished.place)
    assert len(more.missing()) == 4 and "4 runs to do" in announcement([more])


@pytest.mark.parametrize(
    "other",
    [{"float_epochs": 2}, {"epochs": 2}, {"rates": (0.1,)}, {"distillation": 0.5}, {"rehearsal": 2}, {"pooling": "steps"},
     {"limit": 300}, {"latencies": (1, 2)}, {"data": "digits"}, {"frames": 2}, {"averaging": 0.9}, {"activity": 0.01}],
)  # fmt: skip
def test_other_settings_are_other_runs(finished: Contest, other: dict[str, object]) -> None:
    asked = dataclasses.replace(SMALL, **other)  # type: ignore[arg-type]
    assert len(Contest(asked, finished.place).missing()) == len(asked.runs())
    trains = set(other) & {"float_epochs", "epochs", "distillation", "limit", "data", "frames", "averaging", "activity"}
    assert (asked.training != SMALL.training) == bool(trains)


def test_those_that_share_a_start_share_their_training(finished: Contest) -> None:
    trained = {path.name for path in (finished.place / f"cnn-4-{SMALL.training}").iterdir()}
    assert "quantized-qcfs-4-0-0_05" in trained and not any("srp" in name for name in trained)
    assert {"float-0", "control-0-0_05", "quantized-mse-4-0-0_05", "lif-2-epochs-0-0-0_2"} <= trained


def test_what_is_trained_for_several_timesteps_is_a_training_of_its_own(tmp_path: Path) -> None:
    run = next(run for run in SMALL.runs() if run["method"] == "polarspike")
    usual, several, rival = (
        own_stage(SMALL, run, METHODS[name], 0.05) for name in ("polarspike", "polarspike+t", "scale-and-fire+t")
    )
    assert several == rival != usual and several.name == "quantized-mse-for-1-2-4-8-4-0-0.05"
    contest = Contest(SMALL, tmp_path)
    assert contest.trainings.spec(0, several, 0.05).timesteps == (1, 2, 4, 8)
    assert contest.trainings.spec(0, usual, 0.05).timesteps == (1,)


def test_direct_training_through_another_pooling_is_a_training_of_its_own() -> None:
    steps = dataclasses.replace(SMALL, pooling="steps")
    assert steps.training == SMALL.training  # of float and quantized networks, which pool images

    def names(asked: Comparison, method: str, timesteps: int | None) -> str:
        run = {"seed": 0, "trained_steps": timesteps, "levels": None, "budget": "epochs"}
        return own_stage(asked, run, METHODS[method], 0.2).name

    assert names(SMALL, "lif", 2) == "lif-2-epochs-0-0-0.2"  # what was trained before keeps its name
    assert names(steps, "lif", 2) == "lif-2-epochs-0-0-0.2-steps"
    assert names(steps, "lif", 1) == names(SMALL, "lif", 1)  # one timestep knows no pooling over time
    assert names(steps, "qcfs", None) == names(SMALL, "qcfs", None)


def test_what_is_not_trained_is_converted_from_the_float_network_that_had_every_epoch(tmp_path: Path) -> None:
    asked = Comparison(
        data="digits",
        model="cnn",
        width=8,
        methods=("polarspike-free",),
        levels=(256, 2),
        latencies=(1,),
        float_epochs=6,
        epochs=2,
    )
    contest = Contest(asked, tmp_path)
    contest.carry_out()
    fine, coarse = contest.rows()
    assert (fine["own_epochs"], fine["epochs"]) == ("0", "8")
    assert not any("quantized" in path.name for path in (tmp_path / f"cnn-8-{asked.training}").iterdir())
    # A network at chance loses nothing to any levels: this one has learned, and two of them cost it a lot.
    assert float(fine["ann_accuracy"]) > 80
    assert abs(float(fine["accuracy"]) - float(fine["ann_accuracy"])) <= 1  # 256 levels lose next to nothing
    assert float(coarse["accuracy"]) < float(fine["ann_accuracy"]) - 5


def test_validation_images_choose_the_rate_and_one_that_diverges_is_none(tmp_path: Path) -> None:
    asked = dataclasses.replace(
        SMALL, methods=("polarspike",), rates=(0.05, 1e30), direct_rates=(0.2, 0.1), latencies=(1,)
    )
    contest = Contest(asked, tmp_path)
    contest.carry_out()
    (row,) = contest.rows()
    assert re.fullmatch(r"rate 0.05; right on validation images at 0.05: \d+\.\d\d %, 1e\+30: failed", row["setting"])
    assert contest.scene.dataset.validation is not None


def test_every_method_that_trains_has_the_whole_recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, TrainSpec] = {}

    def fit(model: torch.nn.Module, loader: Any, spec: TrainSpec, *, run: RunDirectory, **options: Any) -> History:
        seen[run.path.name] = spec
        return training.fit(model, loader, spec, run=run, **options)

    monkeypatch.setattr(trainings_module, "fit", fit)
    asked = dataclasses.replace(
        SMALL,
        data="digits",
        methods=("polarspike", "qcfs", "lsq+", "pact", "lif", "ternary"),
        distillation=0.5,
        averaging=0.9,
        activity=0.01,
        trained_steps=(1,),
        latencies=(1,),
    )
    contest = Contest(asked, tmp_path)
    contest.carry_out()
    assert all(row["accuracy"] for row in contest.rows()) and len(contest.rows()) == 6
    assert {spec.averaging for spec in seen.values()} == {0.9}
    assert {name for name, spec in seen.items() if not spec.distillation} == {"float-0"}  # the teacher
    without = {name for name, spec in seen.items() if not spec.activity}
    assert without == {name for name in seen if name.split("-")[0] in ("float", "control", "lif", "ternary")}


def test_direct_training_is_read_up_to_four_times_its_timesteps() -> None:
    asked = dataclasses.replace(SMALL, latencies=(1, 2, 4, 8, 16, 32))
    assert list(steps_read(asked, METHODS["lif"], 2)) == [1, 2, 4, 8]
    assert steps_read(asked, METHODS["cos"], rehearsal=4) == {8: 4, 16: 12, 32: 28}
    assert steps_read(asked, METHODS["cos"], rehearsal=1)[2] == 1 and asked.rehearsals == [1, 2, 4]
    assert steps_read(asked, METHODS["lsq"]) == {1: 1}
    assert list(steps_read(dataclasses.replace(asked, frames=6), METHODS["qcfs"])) == [1, 2, 4]


def test_frames_tell_more_than_one(tmp_path: Path) -> None:
    asked = dataclasses.replace(
        SMALL,
        frames=4,
        methods=("ann", "polarspike", "qcfs", "srp", "cos", "st-bif", "sinabs", "lif"),
        latencies=(1, 4, 6),
    )
    contest = Contest(asked, tmp_path)
    contest.carry_out()
    rows = contest.rows()
    assert {row["network"] for row in rows} == {"cnn-4-4-frames"} and contest.missing() == []
    assert {(row["method"], row["latency"]) for row in rows if row["method"] in ("ann", "polarspike")} == {
        ("ann", "4"), ("polarspike", "1"), ("polarspike", "4"),
    }  # fmt: skip
    left_out = {row["method"]: row["setting"] for row in rows if not row["accuracy"]}
    assert set(left_out) == {"st-bif", "sinabs", "srp", "cos"} and "no reading of a sequence" in left_out["st-bif"]
    # At a true latency of 8 they saw frames 1 to 4 twice, and four of the eight not at all.
    assert all("in a sequence it would see frames twice" in left_out[name] for name in ("srp", "cos"))
    assert all(float(row["nj_b"]) > 0 for row in rows if row["accuracy"] and row["method"] != "ann")


def test_what_does_not_apply_is_said_and_the_rest_goes_on(tmp_path: Path) -> None:
    asked = dataclasses.replace(
        SMALL, model="vit", width=8, methods=("qcfs", "polarspike"), latencies=(1,), rates=(0.02,)
    )
    said: list[str] = []
    contest = Contest(asked, tmp_path, say=said.append)
    contest.carry_out()
    rows = {row["method"]: row for row in contest.rows()}
    assert rows["qcfs"]["setting"].startswith("not applicable: qcfs: site") and rows["polarspike"]["accuracy"]
    assert any("not applicable" in line for line in said) and contest.missing() == []
    # A refusal of yesterday is tried again: it may name methods, or the method may take the network by now.
    table = contest.ledger.path
    table.write_text(table.read_text().replace("signed by nature", "of another kind"))
    again = Contest(asked, tmp_path)
    assert [run["method"] for run in again.missing()] == ["qcfs"]
    assert [row["method"] for row in again.rows()] == ["polarspike"]
    again.carry_out()
    assert (
        again.missing() == [] and "signed by nature" in {row["method"]: row for row in again.rows()}["qcfs"]["setting"]
    )


SHARED = dataclasses.replace(SMALL, methods=("ann", "rate-max", "qcfs"), latencies=(1, 2))


def work(place: Path) -> None:
    torch.set_num_threads(1)
    Contest(SHARED, place).carry_out()


def test_two_processes_share_a_directory(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    workers = [context.Process(target=work, args=(tmp_path,)) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0]
    contest = Contest(SHARED, tmp_path)
    contest.carry_out()  # what was left to the other, had it been killed
    assert contest.missing() == []
    keys = [(row["method"], row["budget"], row["latency"]) for row in contest.rows()]
    assert len(keys) == len(set(keys)) == 5


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


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"methods": ("polarspike", "magic")}, "expected some of ann, polarspike, .* sinabs"),
        ({"latencies": (4, 1)}, "increasing numbers"),
        ({"seeds": ()}, "at least one value"),
        ({"epochs": 0}, "at least 1"),
        ({"trained_steps": (0,)}, "numbers of at least 1"),
        ({"levels": (1,)}, "numbers of at least 2"),
        ({"seeds": (0, 0)}, "each once"),
        ({"methods": ()}, "at least one value"),
        ({"frames": -1}, "at least 0"),
        ({"rates": (0.1, 0.2)}, "2 rates, as many trials"),
        ({"rates": (0.1, 0.1), "direct_rates": (0.1, 0.2)}, "each once"),  # one trial is no two
        ({"rates": (0.1, float("nan")), "direct_rates": (0.1, 0.2)}, "positive, finite rates"),
        ({"direct_rates": (float("inf"),)}, "positive, finite rates"),
        ({"rates": "a"}, "as a tuple"),
        ({"levels": 4}, "as a tuple"),
        ({"levels": (4.5,)}, "whole numbers of at least 2"),
        ({"latencies": (1.5,)}, "whole numbers of at least 1"),
        ({"seeds": (0.5,)}, "whole numbers of at least 0"),
        ({"width": 0}, "a positive integer or None"),
        ({"options": {"blocks": 1.5}}, "whole numbers by name"),
        ({"averaging": 1.0}, r"a number in \[0, 1\)"),
        ({"activity": -1.0}, "at least 0"),
        ({"activity": "a"}, "a finite number of at least 0"),
        ({"distillation": True}, r"a number in \[0, 1\]"),
        ({"limit": 1.5}, "a positive integer or None"),
        ({"budgets": ("money",)}, "some of epochs, time"),
        ({"budgets": ()}, "at least one value"),
        ({"pooling": "mean"}, "one of 'sums', 'steps'"),
    ],
)
def test_contradictions_are_refused(wrong: dict[str, object], text: str) -> None:
    with pytest.raises(SpecError, match=text):
        dataclasses.replace(SMALL, **wrong)  # type: ignore[arg-type]


def test_lists_are_taken_as_tuples() -> None:
    asked = dataclasses.replace(SMALL, levels=[4], latencies=[1, 2, 6])  # type: ignore[arg-type]
    assert asked == SMALL and asked.setup == SMALL.setup


def test_no_latency_is_not_applicable(tmp_path: Path) -> None:
    contest = Contest(dataclasses.replace(SMALL, methods=("srp",), latencies=(1,)), tmp_path)
    contest.carry_out()
    (row,) = contest.rows()
    assert "srp: no latency of (1,) leaves a step" in row["setting"]
    contest = Contest(dataclasses.replace(SMALL, methods=("srp",), latencies=(1, 2)), tmp_path)
    contest.carry_out()  # lengths that leave none are not tried
    (row,) = contest.rows()
    assert (row["latency"], row["timesteps"]) == ("2", "1") and "rehearsal: 1" in row["setting"]


def test_published_figures_have_their_true_latency() -> None:
    rows = published()
    assert {row["latency"] for row in rows if "tau=4" in row["method"]} == {"5"}
    assert "T excludes rho" in published_table("CIFAR-100") and "ImageNet" not in published_table("CIFAR-100")
