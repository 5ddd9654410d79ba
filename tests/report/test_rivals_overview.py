"""A comparison at a glance says what its rows say, and nothing of what was not run."""

from __future__ import annotations

from polarspike.report.rivals_overview import several_spikes, single_spikes, trained_through_time
from tests.report.test_claims import KINDS, row

VGG = {"network": "vgg"}
ROWS = [
    row("polarspike", 1, 90, spikes="0.5"), row("polarspike", 1, 91, spikes="0.7", seed="1"), row("polarspike", 2, 92),
    row("polarspike", 1, 95, levels="16"), row("lsq", 1, 89, spikes="0.4"), row("ann", 1, 99),
    row("qcfs", 1, 60), row("qcfs", 8, 88), row("polarspike", 1, 80, **VGG), row("qcfs", 4, 70, **VGG),
    row("lif", 1, 85, trained_steps="1"), row("lif", 2, 84, trained_steps="1"),
    row("lif", 2, 86, trained_steps="2"), row("lif", 2, 83, trained_steps="2", budget="time"),
    row("integer-lif", 1, 87, trained_steps="1", levels="16"), row("integer-lif", 1, 88, trained_steps="1"),
]  # fmt: skip


def test_several_spikes_at_the_fewest_levels() -> None:
    assert several_spikes(ROWS, KINDS) == [
        ["", "cnn", "vgg"],
        ["polarspike", "90.50; 0.60", "80.00; 0.50"],
        ["lsq", "89.00; 0.40", ""],
        ["integer-lif", "88.00; 0.50", ""],
    ]
    assert several_spikes([*ROWS, {**ROWS[0], "data": "mnist"}], KINDS)[0] == [
        "",
        "digits, cnn",
        "digits, vgg",
        "mnist, cnn",
    ]


def test_single_spikes_at_their_latencies() -> None:
    assert single_spikes(ROWS, KINDS) == [
        ["", "cnn", "vgg"],
        ["polarspike", "90.50", "80.00"],
        ["qcfs", "60.0, -, -, 88.0", "-, -, 70.0, -"],
        ["lif", "85.0, 86.0, -, -", ""],  # the best of all that were trained
    ]
    frames = [{**one, "network": "cnn-8-frames"} for one in ROWS if one["network"] == "cnn"]
    assert single_spikes(frames, KINDS)[1] == ["polarspike", "90.5, 92.0, -, -"]


def test_training_through_time_by_budget() -> None:
    assert trained_through_time(ROWS, KINDS) == [
        ["", "cnn", "vgg"],
        ["polarspike, T = 1", "90.50", "80.00"],
        ["lif, T = 1", "85.00", ""],
        ["integer-lif, T = 1", "88.00", ""],
        ["polarspike, T = 2", "92.00", ""],
        ["lif, T = 2, all epochs", "86.00", ""],
        ["lif, T = 2, equal time", "83.00", ""],
    ]


def test_nothing_measured_is_no_table() -> None:
    assert several_spikes([row("qcfs", 1, 60)], KINDS) == []
    alone = [row("polarspike", 1, 90), row("polarspike", 2, 91)]
    assert [table(alone, KINDS) for table in (several_spikes, single_spikes, trained_through_time)] == [[], [], []]


def test_nobody_stands_beside_ours_at_more_levels() -> None:
    rows = [row("polarspike", 1, 87), row("lsq", 1, 91, levels="16"), row("group", 1, 86)]
    assert several_spikes(rows, KINDS)[1:] == [["polarspike", "87.00; 0.50"], ["group", "86.00; 0.50"]]
