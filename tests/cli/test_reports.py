"""The page of a run says what its files say, and of several runs what they have in common."""

import copy
import json
import math
import re
import shutil
import statistics
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from polarspike.cli.rivals_pages import written_pages
from polarspike.errors import RunError
from polarspike.experiments.recipe import Recipe
from polarspike.report.numbers import decimals, entropy_of, interval, short
from polarspike.report.record import Record
from polarspike.report.run_figures import plot_run
from polarspike.report.run_page import flat, run_page
from polarspike.report.runs_page import grouped, runs_page
from tests.cli.running import Call


class Balanced(HTMLParser):
    """Every tag that is opened is closed, and nothing is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.cells: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)
        assert all((value or "").startswith("data:") for name, value in attrs if name in ("src", "href"))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] in ("td", "th", "dd"):
            self.cells.append(data)


def parsed(page: Path) -> Balanced:
    found = Balanced()
    found.feed(page.read_text())
    assert not found.open
    return found


def changed(run: Path, place: Path, change: Callable[[Any, Any], object]) -> Path:
    """A copy of a run with other results, or another configuration."""
    shutil.copytree(run, place)
    results, config = json.loads((place / "results.json").read_text()), json.loads((place / "config.json").read_text())
    change(results, config)
    (place / "results.json").write_text(json.dumps(results))
    (place / "config.json").write_text(json.dumps(config))
    return place


def test_training_writes_its_page_and_report_writes_it_again(call: Call, trained: Path, tmp_path: Path) -> None:
    found, results = parsed(trained / "report.html"), json.loads((trained / "results.json").read_text())
    for row in (results["ann"]["rows"][0], *results["snn"]["rows"]):
        assert f"{100 * row['accuracy']:.2f}" in found.cells
    for site in results["counts"]["sites"]:
        codes, total = site["codes"].values(), sum(site["codes"].values())
        bits = -math.fsum(n / total * math.log(n / total, 2) for n in codes if n)
        at = found.cells.index(site["site"])
        assert f"{bits:.2f}" in found.cells[at : at + 12]
        assert f"{site['events'] / (site['neurons'] * site['images']):.3f}" in found.cells[at : at + 12]
    for row in results["energy"]["rows"]:
        assert row["hides"] in found.cells and f"{row['ratio']:.3f}" in found.cells
    at = found.cells.index("ann.epochs")
    assert found.cells[at + 1] == "2"
    code, out, err = call("report", trained, "--output", tmp_path / "again.html")
    assert code == 0 and not out and f"written: {tmp_path / 'again.html'}" in err
    place = tmp_path / "run"  # where no other test resumes the run, which the page would say
    shutil.copytree(trained, place)
    (place / "report.html").unlink()
    assert call("report", place)[0] == 0
    assert (place / "report.html").read_bytes() == (tmp_path / "again.html").read_bytes()


def test_a_page_without_matplotlib_has_no_figures(
    call: Call, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = call("report", trained, "--output", tmp_path / "bare.html")
    assert code == 0 and "no figures: " in err and "polarspike[report]" in err
    assert "<img" not in (tmp_path / "bare.html").read_text() and parsed(tmp_path / "bare.html").cells


def test_figures_are_in_the_page(trained: Path) -> None:
    pytest.importorskip("matplotlib")
    page = (trained / "report.html").read_text()
    names = re.findall(r'alt="(\w+)" src="data:image/svg\+xml;base64,', page)
    assert names == ["accuracy", "codes", "energy", "learning"]


def test_a_figure_of_many_sites_says_that_it_shows_the_first(trained: Path, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")

    def repeat(results: Any, config: Any) -> None:
        results["counts"]["sites"] = (results["counts"]["sites"] * 30)[:30]

    record = Record.read(changed(trained, tmp_path / "run", repeat))
    drawn = {path.stem: path.read_text() for path in plot_run(record, tmp_path)}
    assert "the first 24 of 30 sites" in drawn["codes"] and set(drawn) == {"learning", "accuracy", "codes", "energy"}


def test_what_is_not_equal_is_said(trained: Path, tmp_path: Path) -> None:
    def spoil(results: Any, config: Any) -> None:
        site = next(iter(results["proofs"][0]["sites"].values()))
        site["different"], site["worst_margin"] = 3, 0.25
        results["proofs"][0].update(exact=False, conclusive=False)

    (first, *_) = run_page(Record.read(changed(trained, tmp_path / "run", spoil)))
    assert ("3", f"of {64 * 48:,} codes differ between QANN and SNN at T = 1: NOT EQUAL") in first.facts
    assert any(row[5] == "3" and row[7] == "2.5e-01" for row in first.table)

    def spoil_output(results: Any, config: Any) -> None:
        results["proofs"][0].update(exact=False, output_equal=False, conclusive=False, output_difference=0.125)
        for site in results["proofs"][0]["sites"].values():
            site["nonzero_share"] = 0.99  # fires too much to be told apart

    (first, *_) = run_page(Record.read(changed(trained, tmp_path / "other", spoil_output)))
    assert first.facts[-1][1].endswith("at T = 1: NOT EQUAL, outputs differ by up to 0.125")
    assert any(line.startswith("T = 1: VOID at hidden.relu1, hidden.relu2: too few") for line in first.text)


def test_an_unfinished_run_shows_how_far_it_is(call: Call, trained: Path, tmp_path: Path) -> None:
    place = tmp_path / "run"
    shutil.copytree(trained, place)
    (place / "results.json").unlink()
    shutil.rmtree(place / "control")
    with open(place / "qann" / "log.jsonl", "ab") as log:
        log.write(b'{"epoch": 3, "lo')  # a kill has torn it
    before = {
        path.name: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != "report.html"
    }
    code, _, err = call("report", place)
    assert code == 0, err
    page = (place / "report.html").read_text()
    assert "Begun so far: ANN, QANN." in page and "ANN, continued" not in page
    assert f"polarspike train --run {place} --resume" in page
    after = {path.name: path.read_bytes() for path in place.rglob("*") if path.is_file() and path.name != "report.html"}
    assert after == before
    code, _, err = call("report", trained, place, "--output", tmp_path / "two.html")
    assert code == 2 and f"{place}: expected a finished run" in err and not (tmp_path / "two.html").exists()


def test_several_runs_and_their_means(call: Call, trained: Path, tmp_path: Path) -> None:
    right, total = (350, 347, 341), 359

    def seeded(seed: int) -> Callable[[Any, Any], None]:
        def change(results: Any, config: Any) -> None:
            recipe = config["specs"]["recipe"]
            for spec in (recipe, recipe["ann"], recipe["qann"]):
                spec["seed"] = seed
            recipe["workers"] = seed  # changes no result
            if seed == 1:
                del recipe["ann"]["sharded"]  # of a release that did not know it
            results["snn"]["rows"][0].update(correct=right[seed], accuracy=right[seed] / total)
            results["ann"]["rows"][0].update(correct=352, accuracy=352 / total)

        return change

    runs = [changed(trained, tmp_path / f"seed{seed}", seeded(seed)) for seed in range(3)]
    other = changed(trained, tmp_path / "wider", lambda results, config: config["specs"]["recipe"].update(width=99))
    records = [Record.read(run, Recipe) for run in (*runs, other)]
    assert [len(group) for group in grouped(records)] == [3, 1]
    each, means = runs_page(records)
    assert [row[0] for row in each.table[1:]] == ["seed0", "seed1", "seed2", "wider"]
    (row,) = means.table[1:]
    values = [100 * count / total for count in right]
    assert row[1] == "0, 1, 2"
    assert f"{statistics.fmean(values):.2f} +-{(max(values) - min(values)) / 2:.2f}" in row
    gaps = [100 * 352 / total - value for value in values]
    half = 4.303 * statistics.stdev(gaps) / math.sqrt(3)
    mean = statistics.fmean(gaps)
    assert f"{mean:.2f}, {mean - half:.2f} to {mean + half:.2f}" in row
    code, _, err = call("report", *runs, other, "--output", tmp_path / "runs.html")
    assert code == 0, err
    assert "seed2" in parsed(tmp_path / "runs.html").cells
    again = changed(
        runs[0], tmp_path / "again", lambda results, config: config["specs"]["recipe"]["ann"].update(seed=9)
    )
    assert [len(group) for group in grouped([*records, Record.read(again, Recipe)])] == [4, 1]
    (tmp_path / "elsewhere").mkdir()
    twin = shutil.copytree(runs[0], tmp_path / "elsewhere" / "seed0")
    labels = [row[0] for row in runs_page([records[0], Record.read(twin)])[0].table[1:]]
    assert labels == [str(runs[0]), str(twin)]
    code, _, err = call("report", *runs)
    assert code == 2 and "several runs have no place of their own for a page; give --output" in err


@pytest.mark.parametrize(
    "change",
    [
        lambda results, config: results.pop("snn"),
        lambda results, config: results["proofs"].clear(),
        lambda results, config: results["snn"]["rows"][0].update(pairs="many"),
        lambda results, config: results["counts"]["sites"][0].update(codes=[1, 2]),
        lambda results, config: results["counts"]["sites"][0].update(images=0),
        lambda results, config: results["energy"]["rows"][0].pop("hides"),
        lambda results, config: config.pop("versions"),
        lambda results, config: config["specs"]["recipe"].update(quant="fine"),
    ],
)
def test_damaged_results_are_one_error_and_no_page(
    call: Call, trained: Path, tmp_path: Path, change: Callable[[Any, Any], object]
) -> None:
    place = changed(trained, tmp_path / "run", change)
    before = (place / "report.html").read_bytes()
    code, _, err = call("report", place)
    assert code == 2 and f"{place}: expected results as polarspike train writes them, got" in err
    assert (place / "report.html").read_bytes() == before
    assert [path for path in place.iterdir() if path.name.endswith(".partial")] == []


def test_one_damaged_run_of_several_is_named_without_figures_too(
    call: Call, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    place = changed(trained, tmp_path / "run", lambda results, config: results.pop("snn"))
    code, _, err = call("report", trained, place, "--output", tmp_path / "two.html")
    assert code == 2 and f"{place}: expected results as polarspike train writes them, got KeyError: 'snn'" in err
    assert not (tmp_path / "two.html").exists()


def test_matplotlib_that_does_not_work_is_no_damage(
    call: Call, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mpl = pytest.importorskip("matplotlib")

    def broken(backend: str) -> None:
        raise ValueError(f"{backend!r} is not a valid value for backend")

    monkeypatch.setattr(mpl, "use", broken)
    code, _, err = call("report", trained, "--output", tmp_path / "page.html")
    assert code == 0 and "no figures: matplotlib cannot be used: ValueError: 'Agg' is not a valid value" in err
    assert "<img" not in (tmp_path / "page.html").read_text()


def as_sequences(reading: str) -> Callable[[Any, Any], None]:
    """Results as those of sequences of two frames, read so."""

    def change(results: Any, config: Any) -> None:
        config["specs"]["recipe"]["reading"] = reading
        counts = results["counts"]
        counts.update(timesteps=2, passes=1 if reading == "integrate" else 2)
        counts["totals"]["ann_macs"] *= counts["passes"]
        for site in counts["sites"]:
            site["span"] = 2 if reading == "integrate" else 1
        if reading != "through-time":
            return
        later = {key: copy.deepcopy(results[key]) for key in ("ann", "snn", "counts", "energy")}
        later["proof"] = {**copy.deepcopy(results["proofs"][0]), "timesteps": 2, "conclusive": False}
        later["proof"]["sites"]["hidden.relu2"]["distinct"] = 1
        later["leaks"] = {"hidden.relu1": 0.25, "hidden.relu2": 0.5}
        later["energy"]["rows"][1]["ratio"] = 0.987
        later["snn"]["rows"][-1].update(accuracy=0.4321)
        results["through_time"] = later

    return change


def test_a_page_of_integrated_sequences_counts_one_dense_pass(trained: Path, tmp_path: Path) -> None:
    record = Record.read(changed(trained, tmp_path / "run", as_sequences("integrate")))
    accuracy, sites, operations, *_ = run_page(record)
    assert accuracy.facts[0][1] == "SNN at all 2 frames"
    assert any(line.startswith("T: the first T frames, streamed; ANN and QANN see the mean") for line in accuracy.text)
    assert [row[9] for row in sites.table[1:]] == ["-", "-"]  # a membrane may fire more than its levels
    assert record.results is not None
    counts = record.results["counts"]
    dense = {row["name"]: short(row["connections"] / counts["images"]) for row in counts["synapses"] if row["weighted"]}
    shown = {row[0]: row[2] for row in operations.table[1:-1]}
    assert dense and {name: shown[name] for name in dense} == dense
    assert operations.table[-1][2] == short(counts["totals"]["ann_macs"] / counts["images"])


def test_a_page_tells_the_network_through_time_from_the_one_before(trained: Path, tmp_path: Path) -> None:
    record = Record.read(changed(trained, tmp_path / "run", as_sequences("through-time")))
    sections = {section.title: section for section in run_page(record)}
    before, after = ", before training through time", ", after training through time"
    assert {f"Sites{before}", f"Operations{before}", f"Energy{before}", f"Energy{after}"} < sections.keys()
    assert any("0.987" in row for row in sections[f"Energy{after}"].table)
    assert not any("0.987" in row for row in sections[f"Energy{before}"].table)
    trained_through = sections["Trained through time"]
    assert any(line.startswith("VOID at hidden.relu2: too few") for line in trained_through.text)
    assert any("hidden.relu1 0.250, hidden.relu2 0.500" in line for line in trained_through.text)
    rows = runs_page([record, Record.read(trained)])[0].table
    assert [row[0] for row in rows[1:]] == ["run", "run, through time", trained.name] or len(rows) == 4
    assert rows[2][5] == "43.21" and rows[1][5] != "43.21"
    pytest.importorskip("matplotlib")
    assert {path.stem for path in plot_run(record, tmp_path)} == {"learning", "accuracy", "codes", "energy"}


def test_a_network_that_was_taken_as_it_is_has_no_stage_of_its_own(trained: Path, tmp_path: Path) -> None:
    place = changed(
        trained, tmp_path / "run", lambda results, config: config["specs"]["recipe"].update(weights="w.pth")
    )
    shutil.rmtree(place / "ann")
    learning = next(section for section in run_page(Record.read(place)) if section.title == "Learning")
    assert [row[0] for row in learning.table[1:]] == ["QANN", "ANN, continued"]


def test_what_is_no_run_is_refused(call: Call, trained: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    for place, message in (
        (tmp_path / "none", "expected a run directory, found nothing"),
        (tmp_path / "file", "expected a run directory, found a file"),
        (tmp_path, "expected a run of polarspike train or demo, found no config.json in it"),
        (trained / "ann", "expected the run of an experiment, whose configuration holds a recipe"),
    ):
        code, _, err = call("report", place)
        assert code == 2 and f"{place}: {message}" in err
    (tmp_path / "rivals.csv").touch()
    assert "the page of a comparison is rivals.html" in call("report", tmp_path)[2]
    code, _, err = call("report", trained, "--output", tmp_path / "missing" / "page.html")
    assert code == 2 and "cannot be written: " in err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "config.json").write_text("{")
    code, _, err = call("report", tmp_path / "bad")
    assert code == 2 and "expected a JSON file" in err


def test_names_in_files_are_text_and_no_markup(call: Call, trained: Path, tmp_path: Path) -> None:
    def change(results: Any, config: Any) -> None:
        config["specs"]["recipe"]["model"] = "<script>alert(1)</script>"
        config["command"] = ["polarspike", "<img src=http://example.org/x>"]

    place = changed(trained, tmp_path / "run", change)
    assert call("report", place)[0] == 0
    page = (place / "report.html").read_text()
    assert "<script" not in page and "<img src=http" not in page and parsed(place / "report.html").cells


def test_numbers_of_a_page() -> None:
    assert entropy_of({"0": 2, "1": 1, "2": 1, "3": 0}) == 1.5 and entropy_of({"0": 7}) == 0
    assert list(flat({"type": "x", "a": {"type": "y", "version": 1, "b": [1, 2]}, "c": {}, "d": None})) == [
        ["type", "x"], ["a.b", "1, 2"], ["c", "{}"], ["d", "None"],
    ]  # fmt: skip
    written = [short(value) for value in (0, 12.34, 999.4, 999.7, 999_600, 2.5e12)]
    assert written == ["0", "12.3", "999", "1 k", "1 M", "2.5 T"]
    assert [decimals(value) for value in (-0.004, 0.005, -1.5, None)] == ["0.00", "0.01", "-1.50", "-"]
    stats = pytest.importorskip("scipy.stats")
    for values in ([0.0, 1.0], [0.1, 0.4, 0.2], *(list(map(float, range(n))) for n in (12, 17, 40))):
        mean, half = interval(values)
        low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values))
        assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-3)


def test_pages_of_a_comparison_that_cannot_be_written_are_one_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file: cannot be written: .* choose a folder that is writable"):
        written_pages([], tmp_path / "file")
