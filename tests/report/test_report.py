"""The table and the plots of a comparison say what its rows say."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

from polarspike.errors import MissingExtraError
from polarspike.report.claims import Kind, verdict_table, verdicts
from polarspike.report.pages import as_html, as_markdown
from polarspike.report.rivals import cost_table, grouped, mean_of, name_of, rivals_table
from polarspike.report.rivals_figures import plot_rivals
from polarspike.report.rivals_page import rivals_page

BASE = {"data": "digits", "network": "cnn", "trained_steps": "", "budget": "epochs", "own_epochs": "5", "epochs": "15",
        "own_seconds": "60", "events": "0.3", "spikes": "0.5", "spike_bits": "2", "bits": "64", "nj_a": "9", "nj_b": "10",
        "nj_c": "11", "nj_d": "12", "nj_qann": "20", "nj_ann": "30", "time_ratio": "1.5", "ms_per_image": "0.2",
        "setting": ""}  # fmt: skip
ROWS = [
    {**BASE, "method": "ann", "levels": "", "seed": "0", "latency": "1", "accuracy": "94", "events": "", "spikes": ""},
    {**BASE, "method": "ours", "levels": "4", "seed": "0", "latency": "1", "accuracy": "93"},
    {**BASE, "method": "ours", "levels": "4", "seed": "1", "latency": "1", "accuracy": "94"},
    {**BASE, "method": "ours", "levels": "4", "seed": "0", "latency": "8", "accuracy": "93.5"},
    {**BASE, "method": "lif", "levels": "", "trained_steps": "4", "budget": "time", "seed": "0", "latency": "8",
     "accuracy": "92"},
    {**BASE, "method": "qcfs", "levels": "4", "seed": "0", "latency": "", "accuracy": "", "setting": "not applicable: no"},
    {**BASE, "method": "ours", "levels": "4", "seed": "0", "latency": "1", "accuracy": "90"},  # the same seed again
]  # fmt: skip


def test_means_and_spread_over_seeds() -> None:
    lines = rivals_table(ROWS).splitlines()
    assert lines[0].startswith("digits, cnn: accuracy") and lines[-1] == "qcfs: not applicable: no"
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


KINDS = {
    "ours": Kind("conversion", "multi"),
    "polarspike": Kind("conversion", "multi"),
    "lsq": Kind("quantization", "multi"),
    "group": Kind("conversion", "multi"),
    "qcfs": Kind("conversion", "binary"),
    "st-bif": Kind("conversion", "signed"),
    "lif": Kind("direct", "binary"),
    "integer-lif": Kind("direct", "multi"),
}


def row(method: str, latency: int, accuracy: float, **other: str) -> dict[str, str]:
    levels = {"levels": "" if method == "lif" else "4"}
    return {
        **BASE,
        "method": method,
        "seed": "0",
        "latency": str(latency),
        "accuracy": str(accuracy),
        **levels,
        **other,
    }


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


def test_verdicts_are_held_against_the_best_rival_of_their_kind() -> None:
    rows = [
        row("polarspike", 1, 90, spikes="0.5"), row("polarspike", 2, 90.5), row("polarspike", 4, 91),
        row("lsq", 1, 89.3, spikes="0.4"), row("group", 1, 88), row("group", 1, 95, levels="16"), row("group", 4, 99),
        row("qcfs", 8, 90.2), row("qcfs", 16, 93),
        row("lif", 1, 80, trained_steps="1"), row("lif", 4, 91.0, trained_steps="4"), row("lif", 2, 99, trained_steps="4"),
        row("lif", 4, 90.0, trained_steps="4", budget="time"), row("integer-lif", 1, 81), row("integer-lif", 4, 82),
        row("ann", 1, 99), row("st-bif", 4, 99.5), row("st-bif", 16, 99.9),
    ]  # fmt: skip
    found = {one.claim: one for one in verdicts(rows, KINDS)}
    first = found["first at T = 1"]
    # The more accurate, but with more spikes than the best rival; one of more levels, or of a later answer, is no rival.
    assert (first.ours, first.rival, first.best, first.outcome) == (90, 89.3, "lsq 4 levels at 1", "no")
    assert first.spikes == (0.5, 0.4)
    single = found["ours at T = 1 above every rival of single spikes up to 8"]
    assert (single.best, single.rival, single.outcome) == ("st-bif 4 levels at 4", 99.5, "no")
    direct = [found[f"above direct training at T = {steps}"].outcome for steps in (1, 4)]
    assert direct == ["yes", "level"]
    # What answers after two steps counts, whatever it was trained for.
    other = found["above direct training at T = 2"]
    assert (other.best, other.rival, other.outcome) == ("lif T=4 at 2", 99, "no")
    fewer = [*rows[1:], row("polarspike", 1, 90, spikes="0.4")]
    assert next(one for one in verdicts(fewer, KINDS) if one.claim == "first at T = 1").outcome == "yes"
    assert verdict_table([first])[1] == [
        "digits, cnn, 4 levels", "first at T = 1", "90.00", "lsq 4 levels at 1", "89.30", "0.500, 0.400", "1", "no",
    ]  # fmt: skip
    assert verdicts([], KINDS) == [] and verdicts([row("lsq", 1, 90)], KINDS) == []


def test_both_of_ours_are_held_against_rivals_and_not_against_each_other() -> None:
    kinds = {**KINDS, "polarspike+t": KINDS["polarspike"]}
    rivals = [row("lsq", 1, 89, spikes="0.4"), row("qcfs", 8, 92.5), row("lif", 2, 92, trained_steps="2")]
    alone = verdicts([row("polarspike+t", 1, 90, spikes="0.4"), row("polarspike+t", 2, 93), *rivals], kinds)
    assert {one.network for one in alone} == {"digits, cnn, 4 levels, polarspike+t"}
    assert [(one.best, one.outcome) for one in alone] == [
        ("lsq 4 levels at 1", "yes"), ("qcfs 4 levels at 8", "no"), ("lif T=2 at 2", "open"),
    ]  # fmt: skip
    usual = [row("polarspike", 1, 99, spikes="0.4"), row("polarspike", 2, 99)]
    both = verdicts([*usual, row("polarspike+t", 1, 90, spikes="0.4"), row("polarspike+t", 2, 93), *rivals], kinds)
    assert both[3:] == alone and [one.ours for one in both[:3]] == [99, 99, 99]
    assert {one.network for one in both[:3]} == {"digits, cnn, 4 levels"}


def test_single_spikes_pay_in_timesteps_whatever_their_levels() -> None:
    rows = [
        row("polarspike", 1, 90),
        row("qcfs", 8, 89),
        row("qcfs", 8, 91, levels="16"),
        row("lsq", 1, 95, levels="16"),
    ]
    (single,) = verdicts(rows, KINDS)
    assert (single.best, single.rival, single.outcome) == ("qcfs 16 levels at 8", 91, "no")


def test_direct_training_of_several_spikes_counts_at_equal_levels_alone() -> None:
    def of(*rivals: dict[str, str]) -> list[tuple[str, str, str]]:
        found = verdicts([row("polarspike", 1, 90, levels="8"), *rivals], KINDS)
        return [(one.best, one.outcome, one.why) for one in found if "direct" in one.claim]

    fewer, equal = row("integer-lif", 1, 85), row("integer-lif", 1, 92, levels="8")
    assert of(fewer) == []  # more levels than a rival has show nothing
    lif = row("lif", 1, 80)
    assert of(lif, fewer) == [("lif at 1", "open", "several spikes at these levels not run")]
    assert of(row("lif", 1, 95), fewer) == [("lif at 1", "no", "")]
    assert of(lif, fewer, equal) == [("integer-lif 8 levels at 1", "no", "")]
    cells = verdict_table(verdicts([row("polarspike", 1, 90, levels="8"), lif, fewer], KINDS))
    assert cells[-1][-1] == "open: several spikes at these levels not run"


def test_direct_training_must_have_been_run_at_this_t_under_both_budgets() -> None:
    def of(steps: int, *rivals: dict[str, str]) -> tuple[str, str]:
        mine = [row("polarspike", 1, 90), row("polarspike", steps, 92)]
        claim = f"above direct training at T = {steps}"
        (one,) = (one for one in verdicts([*mine, *rivals], KINDS) if one.claim == claim)
        return one.outcome, one.why

    read_later = [row("integer-lif", 1, 85, trained_steps="1"), row("integer-lif", 4, 86, trained_steps="1")]
    short = row("lif", 4, 87, trained_steps="4", budget="time")
    long = row("lif", 4, 88, trained_steps="4")
    assert of(1, *read_later) == ("yes", "")
    assert of(4, *read_later) == ("open", "training at T = 4 not run")
    assert of(4, *read_later, short) == ("open", "training at T = 4 with all epochs not run")
    assert of(4, *read_later, long) == ("open", "training at T = 4 in the same time not run")
    assert of(4, *read_later, short, long) == ("yes", "")
    assert of(4, *read_later, {**short, "accuracy": "93"}) == ("no", "")


def test_a_further_rival_never_makes_a_verdict_better() -> None:
    """Within noise of ours at fewer spikes: it still counts beside one that is ahead at many."""
    mine, near = row("polarspike", 1, 88.09, spikes="1.650"), row("lsq", 1, 88.22, spikes="1.631")
    ahead = row("group", 1, 88.32, spikes="5.84")
    for rivals in ([near], [near, ahead], [ahead, near]):
        (one,) = verdicts([mine, *rivals], KINDS)
        assert (one.best, one.outcome, one.spikes) == ("lsq 4 levels at 1", "no", (1.650, 1.631))
    (alone,) = verdicts([mine, ahead, row("lsq", 1, 80, spikes="1.7")], KINDS)
    assert (alone.best, alone.outcome) == ("group 4 levels at 1", "level")


@pytest.mark.parametrize(
    ("ours", "rival", "outcome"),
    [
        ([90], [90], "level"),  # a tie
        ([90.3], [90], "level"), ([90], [90.3], "level"), ([90.6], [90], "yes"), ([90], [90.6], "no"),  # one seed
        ([90, 91, 92], [89.5, 90.5, 91.6], "yes"),  # all say the same
        ([90, 91, 92], [88, 90.9, 92.1], "level"),  # as large a mean, of differences that scatter
        ([90.1, 91.1, 92.1], [90, 91, 92], "level"),  # few seeds may agree by chance
        ([90], [89, 99, 99], "yes"), ([90, 80, 80], [91], "no"),  # only seeds that both have
    ],
)  # fmt: skip
def test_ties_and_noise_are_level(ours: list[float], rival: list[float], outcome: str) -> None:
    rows = [row("polarspike", 1, value, seed=str(seed)) for seed, value in enumerate(ours)]
    (one,) = verdicts([*rows, *(row("lsq", 1, value, seed=str(seed)) for seed, value in enumerate(rival))], KINDS)
    assert (one.outcome, one.seeds) == (outcome, min(len(ours), len(rival)))
    assert verdict_table([one])[1][-1] == outcome


def test_of_rivals_that_tie_the_one_of_fewest_spikes_counts() -> None:
    rows = [row("polarspike", 1, 91, spikes="0.5"), row("lsq", 1, 90, spikes="0.6"), row("group", 1, 90, spikes="0.4")]
    (one,) = verdicts(rows, KINDS)
    assert (one.best, one.spikes, one.outcome) == ("group 4 levels at 1", (0.5, 0.4), "no")


@pytest.mark.parametrize(
    ("accuracy", "outcome"), [(92, "no"), (90.2, "open"), (89.2, "open"), (88, "yes")]
)  # ahead, level, just behind the best of the others, far behind
def test_beyond_the_edge_of_a_search_nothing_is_decided(accuracy: float, outcome: str) -> None:
    kinds = {**KINDS, "sinabs": Kind("conversion", "multi")}
    edge = row("sinabs", 1, accuracy, levels="", setting="sinabs 3.1, {'scale': 64.0}; at the edge of the search")
    (one,) = verdicts([row("polarspike", 1, 90), row("lsq", 1, 89.3), edge], kinds)
    assert (one.outcome, one.why) == (outcome, "sinabs at 1 is at the edge of the search" if outcome == "open" else "")
    (inside,) = verdicts([row("polarspike", 1, 90), row("lsq", 1, 89.3), {**edge, "setting": "scale 8"}], kinds)
    assert inside.outcome in ("yes", "level", "no")


def test_a_claim_is_open_until_every_kind_of_rival_was_asked() -> None:
    """One that refuses the network was asked, too."""
    kinds = {
        **KINDS,
        "sinabs": Kind("conversion", "multi", trains=False, tool=True),
        "spikingjelly-rate": Kind("conversion", "binary", trains=False, tool=True),
        "rate-max": Kind("conversion", "binary", trains=False),
    }
    refused = {"latency": "", "accuracy": "", "levels": "", "setting": "not applicable: frames"}
    rows = [row("polarspike", 1, 90), row("group", 1, 80), row("qcfs", 8, 85)]

    def of(*others: dict[str, str]) -> list[tuple[str, str]]:
        return [(one.outcome, one.why) for one in verdicts([*rows, *others], kinds)]

    assert of() == [("open", "a quantized network of as many levels not run"),
                    ("open", "a conversion without training not run")]  # fmt: skip
    asked = [row("lsq", 1, 80), row("rate-max", 8, 20, levels="")]
    assert of(*asked) == [("open", "another tool of several spikes not run"),
                          ("open", "another tool of single spikes not run")]  # fmt: skip
    tools = [{**row(name, 1, 0), **refused} for name in ("sinabs", "spikingjelly-rate")]
    assert of(*asked, *tools) == [("yes", ""), ("yes", "")]
    more = [row("lsq", 1, 80, levels="16"), asked[1], *tools]
    assert of(*more)[0] == ("open", "a quantized network of as many levels not run")


def test_sequences_are_compared_after_as_many_frames() -> None:
    rows = [row("polarspike", 1, 70), row("polarspike", 8, 82), row("qcfs", 1, 65), row("qcfs", 8, 81)]
    frames = [{**one, "network": "cnn-16-8-frames"} for one in rows]
    found = {one.claim: (one.ours, one.rival, one.outcome) for one in verdicts(frames, {"qcfs": KINDS["qcfs"]})}
    assert found == {
        "above every rival of single spikes after as many frames, 1": (70, 65, "yes"),
        "above every rival of single spikes after as many frames, 8": (82, 81, "yes"),
    }


def test_a_rival_without_a_common_seed_is_none() -> None:
    assert verdicts([row("polarspike", 1, 90), row("lsq", 1, 99, seed="1")], KINDS) == []


def test_ours_without_training_is_held_against_rivals_without_training() -> None:
    kinds = {**KINDS, "polarspike-free": KINDS["polarspike"], "sinabs": KINDS["polarspike"], "rate-max": KINDS["qcfs"]}
    found = verdicts(
        [
            row("polarspike-free", 1, 90, spikes="0.4", own_epochs="0"), row("sinabs", 1, 89, levels="", own_epochs="0"),
            row("rate-max", 8, 91, levels="", own_epochs="0"), row("lsq", 1, 95, own_epochs="3"),
            row("qcfs", 8, 96, own_epochs="3"), row("lif", 1, 97, own_epochs="8"),
        ],
        kinds,
    )  # fmt: skip
    assert [(one.best, one.rival, one.outcome) for one in found] == [
        ("sinabs at 1", 89, "yes"),
        ("rate-max at 8", 91, "no"),
    ]


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
        "digits, cnn: accuracy", "digits, cnn: costs", "digits, cnn: not applicable", "Published by others",
    ]  # fmt: skip
    assert sections[0].figures == (figure,)
    assert "of implementations, not of methods" in sections[1].text[0]
    text = as_markdown(sections, tmp_path / "docs", 3)
    assert "### digits, cnn: accuracy" in text and "(../figures/rivals-digits-cnn-latency.svg)" in text
    assert "| SRP \\| 4 | - | - | - | - | - | 1 | 5 | - |" in text
    lines = [line for line in text.splitlines() if line.startswith("| ours 4 levels |")]
    assert len(lines) == 3 and "93.50+-0.50" in lines[0]  # the accuracies, and the cost of two answers
    short = as_markdown(rivals_page(ROWS, KINDS, published, every=False), tmp_path)
    assert len([line for line in short.splitlines() if line.startswith("| ours 4 levels |")]) == 2
    page = as_html("a < b", sections)
    assert "<title>a &lt; b</title>" in page and "data:image/svg+xml;base64,PHN2Zy8+" in page
    assert page.count("<table>") == 3 and page.count("</tr>") == len(re.findall("<tr>", page))
    assert rivals_page([], KINDS, published)[0].text == ("Nothing has been measured yet.",)


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"polarspike\[report\]"):
        plot_rivals(ROWS, KINDS, tmp_path)
