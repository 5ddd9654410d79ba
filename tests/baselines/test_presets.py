"""The lists of runs that are written down hold what the comparison is to have, and say what they cost before."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from polarspike.baselines import METHODS
from polarspike.baselines.comparison import Comparison
from polarspike.baselines.contest import Contest
from polarspike.baselines.cost import Pace, estimates, measured_pace
from polarspike.baselines.peers import PEERS
from polarspike.baselines.presets import PRESETS, preset
from polarspike.errors import SpecError
from polarspike.runs.ledger import as_text


@pytest.mark.parametrize("name", list(PRESETS))
def test_parts_of_a_network_share_their_settings_and_no_run(name: str) -> None:
    parts = preset(name)
    setups: dict[str, set[str]] = {}
    runs = []
    for part in parts:
        # A rate of direct training is that of direct training alone, each of which has a run of its own.
        assert part.comparison.direct_rates == (0.2,) or set(part.comparison.methods) <= {"lif", "integer-lif"}
        # And at full size what costs the most is asked as far as it is judged.
        assert part.comparison.latencies in (parts[0].comparison.latencies, (1, 2, 4, 8))
        same = dataclasses.replace(part.comparison, direct_rates=(0.2,), latencies=(1,))
        setups.setdefault(f"{same.data} {same.network}", set()).add(same.setup)
        runs += [tuple(value for key, value in run.items() if key != "setup") for run in part.comparison.runs()]
    assert all(len(found) == 1 for found in setups.values())  # else a table would mix what was trained differently
    assert len(set(runs)) == len(runs)
    # What our method alone may train for would be no comparison. Transformers are signed, and more levels are asked of few.
    several = [part.comparison for part in parts if "polarspike+t" in part.comparison.methods]
    rectified = [part for part in several if part.model != "vit" and part.levels == (4,)]
    assert rectified and all("scale-and-fire+t" in part.methods for part in rectified)


def test_the_small_preset_has_every_method_network_and_latency() -> None:
    parts = [part.comparison for part in preset("small")]
    assert {method for part in parts for method in part.methods} == {"ann", *METHODS, *PEERS}
    assert {(part.model, bool(part.frames)) for part in parts} == {
        ("resnet20", False), ("cnn", False), ("vit", False), ("cnn", True),
    }  # fmt: skip
    assert all(part.latencies == (1, 2, 4, 8, 16, 32) for part in parts if not part.frames)
    assert {steps for part in parts if "lif" in part.methods for steps in part.trained_steps} == {1, 2, 4}
    budgets = {(run["trained_steps"], run["budget"]) for part in parts for run in part.runs() if run["method"] == "lif"}
    assert budgets == {(1, "epochs"), (2, "time"), (2, "epochs"), (4, "time"), (4, "epochs")}
    assert {part.seeds for part in parts} == {(0,), (1, 2)}
    with pytest.raises(SpecError, match="unknown preset 'larg'; known: small, full"):
        preset("larg")


def test_the_full_preset_has_every_family_and_other_tools() -> None:
    parts = [part.comparison for part in preset("full")]
    few = {"plif", "ternary", "pact"}  # close relatives of what is there
    for model in ("vgg16", "resnet9"):
        here = [part for part in parts if part.model == model]
        assert {method for part in here for method in part.methods} == {"ann", *METHODS, *PEERS} - few
        assert {seed for part in here for seed in part.seeds} == {0, 1, 2}


def contest_of(asked: Comparison) -> Contest:
    scene = SimpleNamespace(images=lambda: {"train": 1000, "test": 100})
    return cast(Contest, SimpleNamespace(asked=asked, scene=scene))


def test_a_shared_training_is_counted_once() -> None:
    pace = Pace({"float": 1.0, "quantized": 2.0, "direct": 4.0}, answer=0.5, timestep=1.0, refused=frozenset({"cos"}))
    asked = Comparison(
        methods=("ann", "qcfs", "group", "cos", "lif"),
        trained_steps=(1, 4),
        latencies=(1, 2),
        float_epochs=10,
        epochs=5,
    )
    trained: set[tuple[str, str]] = set()
    found = {
        (run["method"], run["trained_steps"], run["budget"]): seconds - 5
        for run, seconds in estimates(contest_of(asked), pace, trained)
        if run["method"] != "cos"
    }
    answers, two_steps = 100 * 0.5, 100 * 2 * 1.0  # milliseconds
    assert found == {
        ("ann", None, "epochs"): pytest.approx((10_000 + 5_000 + answers) / 1e3),
        ("qcfs", None, "epochs"): pytest.approx((5 * 2_000 + answers + two_steps) / 1e3),
        ("group", None, "epochs"): pytest.approx((answers + two_steps) / 1e3),  # it has what QCFS trained
        ("lif", 1, "epochs"): pytest.approx((15 * 4_000 + answers + two_steps) / 1e3),
        ("lif", 4, "epochs"): pytest.approx((4 * 15 * 4_000 + answers + two_steps) / 1e3),
        ("lif", 4, "time"): pytest.approx((4 * 4 * 4_000 + answers + two_steps) / 1e3),
    }
    again = dict(zip(found, (seconds for _, seconds in estimates(contest_of(asked), pace, trained)), strict=False))
    assert max(again.values()) < 6  # all is trained
    assert next(s for run, s in estimates(contest_of(asked), pace, trained) if run["method"] == "cos") == 0


def test_a_training_that_has_begun_costs_what_is_left_of_it(tmp_path: Path) -> None:
    asked = Comparison(data="digits", methods=("ann",), float_epochs=10, epochs=5)
    contest = Contest(asked, tmp_path)
    pace = Pace({"float": 1.0, "quantized": 2.0, "direct": 4.0}, answer=0.0, timestep=1.0)
    (run,) = asked.runs()
    waiting = [tuple(map(as_text, run.values()))]
    ((_, whole),) = estimates(contest, pace, set(), waiting)
    place = tmp_path / f"{asked.network}-{asked.training}" / "float-0"
    place.mkdir(parents=True)
    (place / "log.jsonl").write_text('{"epoch": 1}\n' * 7)
    ((_, left),) = estimates(contest, pace, set(), waiting)
    assert whole - left == pytest.approx(7 * contest.scene.images()["train"] / 1e3)
    ((_, done),) = estimates(contest, pace, set())
    assert done == whole  # of what is in the table the whole is compared with the time that it took


def test_the_pace_is_measured_and_refusals_are_known(tmp_path: Path) -> None:
    asked = Comparison(data="digits", model="vit", width=8, options={"patch": 4}, methods=("ann", "qcfs", "lsq"))
    pace = measured_pace(Contest(asked, tmp_path))
    assert pace.refused == {"qcfs"}
    assert min(*pace.training.values(), pace.answer, pace.timestep) > 0
