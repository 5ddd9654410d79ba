"""The page of a run says what its files say, and of several runs what they have in common."""

import json
import math
import re
import shutil
import statistics
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from polarspike.report.record import Record
from polarspike.report.run_figures import plot_run
from polarspike.report.run_page import entropy_of, flat, run_page
from polarspike.report.runs_page import grouped, interval, runs_page
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
    assert "ann.epochs" in found.cells and f"{results['proofs'][0]['timesteps']}" in found.cells
    code, out, err = call("report", trained, "--output", tmp_path / "again.html")
    assert code == 0 and not out and f"written: {tmp_path / 'again.html'}" in err
    assert (tmp_path / "again.html").read_bytes() == (trained / "report.html").read_bytes()


def test_a_page_without_matplotlib_has_no_figures(
    call: Call, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
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
    assert ("3", f"of {64 * 48:,} codes differ between QANN and SNN: NOT EQUAL") in first.facts
    assert any(row[5] == "3" and row[7] == "2.5e-01" for row in first.table)
    assert any("T = 1: VOID" in line for line in first.text)


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
    assert "Begun so far: ANN, QANN." in page and "ANN, continued</td>" not in page
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
            results["snn"]["rows"][0].update(correct=right[seed], accuracy=right[seed] / total)
            results["ann"]["rows"][0].update(correct=352, accuracy=352 / total)

        return change

    runs = [changed(trained, tmp_path / f"seed{seed}", seeded(seed)) for seed in range(3)]
    other = changed(trained, tmp_path / "wider", lambda results, config: config["specs"]["recipe"].update(width=99))
    records = [Record.read(run) for run in (*runs, other)]
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
        lambda results, config: config["specs"]["recipe"].pop("quant"),
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
    assert list(flat({"type": "x", "a": {"version": 1, "b": [1, 2]}, "c": {}, "d": None})) == [
        ["a.b", "1, 2"], ["c", "{}"], ["d", "None"],
    ]  # fmt: skip
    stats = pytest.importorskip("scipy.stats")
    for values in ([0.0, 1.0], [0.1, 0.4, 0.2], list(map(float, range(12)))):
        mean, half = interval(values)
        low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=stats.sem(values))
        assert (mean - half, mean + half) == pytest.approx((low, high), rel=1e-3)
