"""The table and the plots of a comparison say what its rows say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from polarspike.errors import MissingExtraError
from polarspike.report.pages import as_html, as_markdown
from polarspike.report.rivals import cost_table, grouped, mean_of, name_of, rivals_table
from polarspike.report.rivals_figures import plot_rivals
from polarspike.report.rivals_page import rivals_page
from tests.report.test_claims import BASE, KINDS, row

ROWS = [
    {**BASE, "method": "ann", "levels": "", "seed": "0", "latency": "1", "accuracy": "94", "events": "", "spikes": ""},
    {**BASE, "method": "ours", "levels": "4", "seed": "0", "latency": "1", "accuracy": "93"},
    {**BASE, "method": "ours", "levels": "4", "seed": "1", "latency": "1", "accuracy": "94"},
    {**BASE, "method": "ours", "levels": "4", "seed": "0", "latency": "8", "accuracy": "93.5"},
    {**BASE, "method": "lif", "levels": "", "trained_steps": "4", "budget": "time", "seed": "0", "latency": "8",
     "accuracy": "92"},
    {**BASE, "method": "qcfs", "levels": "4", "seed": "0", "latency": "", "accuracy": "", "setting": "not applicable: no"},
]  # fmt: skip


def test_means_and_spread_over_seeds() -> None:
    lines = rivals_table(ROWS).splitlines()
    assert lines[0].startswith("digits, cnn: accuracy") and lines[-1] == "digits, cnn: qcfs: not applicable: no"
    ours = next(line for line in lines if line.startswith("ours 4 levels"))
    assert "93.50+-0.50" in ours and "93.50 (1)" in ours and " 10.0" in ours and " 5/15 " in ours
    late = next(line for line in lines if line.startswith("lif T=4 equal time"))
    assert " - " in late and "92.00" in late
    assert rivals_table([]) == "nothing has been measured yet"


def test_costs_have_their_spread_where_there_is_one() -> None:
    rows = [ROWS[1] | {"spikes": "0.5", "events": "0.25"}, ROWS[2] | {"spikes": "0.7", "events": "0.25"}, ROWS[3]]
    heading, first, late = cost_table(rows, ("digits", "cnn"), every=True)
    found = dict(zip(heading, first, strict=True))
    assert (found["accuracy"], found["spikes"], found["events"]) == ("93.50+-0.50", "0.600+-0.100", "0.250")
    assert "+-" not in "".join(late) + "".join(cost_table(rows, ("digits", "cnn"), spread=False)[1])


def test_groups_and_names() -> None:
    found = grouped(ROWS)
    key = ("digits", "cnn", "ours", "4", "", "epochs")
    assert [len(found[key][latency]) for latency in (1, 8)] == [2, 1]
    assert name_of(key) == "ours 4 levels"
    assert (
        mean_of(found[key][1], "accuracy") == 93.5
        and mean_of(found["digits", "cnn", "ann", "", "", "epochs"][1], "events") is None
    )


def test_plots_are_three_files_a_network(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = plot_rivals(ROWS, KINDS, tmp_path)
    assert [path.name for path in written] == [
        f"rivals-digits-cnn-{axis}.svg" for axis in ("latency", "spikes", "bits")
    ]
    first = written[0].read_text()
    assert "ours 4 levels" in first
    assert plot_rivals(ROWS, KINDS, tmp_path)[0].read_text() == first and "not shown below" not in first
    far = [*ROWS, {**ROWS[1], "method": "rate-max", "levels": "", "accuracy": "10"}]
    assert "not shown below 74" in plot_rivals(far, KINDS, tmp_path)[0].read_text()


def test_every_kind_of_method_has_its_panel_and_levels_have_a_figure(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    rows = [
        row("polarspike", 1, 90), row("polarspike", 2, 91), row("polarspike", 1, 92, levels="8"), row("lsq", 1, 89),
        row("qcfs", 8, 40), row("qcfs", 1, 12), row("lif", 4, 80, trained_steps="4"),
    ]  # fmt: skip
    latency, *_, levels = plot_rivals(rows, KINDS, tmp_path)
    assert levels.name == "rivals-digits-cnn-levels.svg"
    text, by_levels = latency.read_text(), levels.read_text()
    for heading in ("several spikes a step", "at most one spike a step", "trained through time"):
        assert text.count(heading) == 1
    assert text.count("<!-- polarspike 4 levels -->") == 3  # ours stands beside every kind
    assert text.count("<!-- qcfs 4 levels -->") == 1 and "polarspike 8 levels" not in text
    assert "<!-- polarspike -->" in by_levels and "lsq" not in by_levels and "by the number of levels" in by_levels
    only = [one for one in rows if one["method"] in ("lsq", "qcfs") or one["levels"] == "8"]
    assert [path.name.rpartition("-")[2] for path in plot_rivals(only, KINDS, tmp_path)] == [
        "latency.svg", "spikes.svg", "bits.svg",
    ]  # fmt: skip
    assert "trained through time" not in latency.read_text() and "polarspike 8 levels" in latency.read_text()


def test_a_page_tells_measured_and_published_apart(tmp_path: Path) -> None:
    columns = ["method", "venue", "dataset", "architecture", "ann_top1", "snn_top1", "timesteps", "latency", "evidence"]
    published = [{**dict.fromkeys(columns, ""), "method": "SRP | 4", "timesteps": "1", "latency": "5"}]
    figure = tmp_path / "figures" / "rivals-digits-cnn-latency.svg"
    other = figure.with_name("rivals-digits-cnn-4-frames-latency.svg")
    figure.parent.mkdir()
    for path in (figure, other):
        path.write_text("<svg/>")
    sections = rivals_page(ROWS, KINDS, published, [figure, other])
    titles = [section.title for section in sections]
    assert titles == [
        "Several spikes a step, at T = 1", "One spike a step at most", "digits, cnn: accuracy", "digits, cnn: costs",
        "digits, cnn: not applicable", "Published by others",
    ]  # fmt: skip
    assert sections[2].figures == (figure,)
    assert "of implementations, not of methods" in sections[3].text[0]
    text = as_markdown(sections, tmp_path / "docs", 3)
    assert "### digits, cnn: accuracy" in text and "(../figures/rivals-digits-cnn-latency.svg)" in text
    assert "| SRP \\| 4 | - | - | - | - | - | 1 | 5 | - |" in text
    lines = [line for line in text.splitlines() if line.startswith("| ours 4 levels |")]
    assert len(lines) == 3 and "93.50+-0.50" in lines[0]  # the accuracies, and the cost of two answers
    short = as_markdown(rivals_page(ROWS, KINDS, published, every=False), tmp_path)
    assert len([line for line in short.splitlines() if line.startswith("| ours 4 levels |")]) == 2
    page = as_html("a < b", sections)
    assert "<title>a &lt; b</title>" in page and "data:image/svg+xml;base64,PHN2Zy8+" in page
    assert page.count("<table>") == 5 and page.count("</tr>") == len(re.findall("<tr>", page))
    assert rivals_page([], KINDS, published)[0].text == ("Nothing has been measured yet.",)


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"polarspike\[report\]"):
        plot_rivals(ROWS, KINDS, tmp_path)
