"""The table and the plots of a comparison say what its rows say."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from polarspike.errors import MissingExtraError
from polarspike.report.rivals import grouped, mean_of, name_of, plot_rivals, rivals_table

BASE = {"data": "digits", "network": "cnn", "trained_steps": "", "budget": "epochs", "own_epochs": "5", "epochs": "15",
        "own_seconds": "60", "events": "0.3", "spikes": "0.5", "nj_a": "9", "nj_b": "10", "nj_c": "11", "nj_d": "12",
        "nj_qann": "20", "nj_ann": "30", "time_ratio": "1.5", "ms_per_image": "0.2", "setting": ""}  # fmt: skip
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


def test_groups_and_names() -> None:
    found = grouped(ROWS)
    key = ("digits", "cnn", "ours", "4", "", "epochs")
    assert [len(found[key][latency]) for latency in (1, 8)] == [2, 1]
    assert name_of(key) == "ours 4 levels"
    assert (
        mean_of(found[key][1], "accuracy") == 93.5
        and mean_of(found["digits", "cnn", "ann", "", "", "epochs"][1], "events") is None
    )


def test_plots_are_two_files_a_network(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    written = plot_rivals(ROWS, tmp_path)
    assert [path.name for path in written] == ["rivals-digits-cnn-latency.svg", "rivals-digits-cnn-spikes.svg"]
    first = written[0].read_text()
    assert "ours 4 levels" in first
    assert plot_rivals(ROWS, tmp_path)[0].read_text() == first


def test_without_matplotlib_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingExtraError, match=r"polarspike\[report\]"):
        plot_rivals(ROWS, tmp_path)
