"""Verdicts on the claims of a comparison: held against the best rival, and open while a rival that they name is not run."""

from __future__ import annotations

import pytest

from polarspike.report.claims import Verdict, summary_table, verdict_table, verdicts
from polarspike.report.required import Kind

BASE = {"data": "digits", "network": "cnn", "trained_steps": "", "budget": "epochs", "own_epochs": "5", "epochs": "15",
        "own_seconds": "60", "events": "0.3", "spikes": "0.5", "spike_bits": "2", "bits": "64", "nj_a": "9", "nj_b": "10",
        "nj_c": "11", "nj_d": "12", "nj_qann": "20", "nj_ann": "30", "time_ratio": "1.5", "ms_per_image": "0.2",
        "setting": ""}  # fmt: skip

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


#: Of rivals that no claim names, which are never missed.
FEW = {"polarspike": KINDS["polarspike"], "group": KINDS["group"], "unnamed": Kind("conversion", "binary")}
FIRST, SINGLE = "first at T = 1", "ours at T = 1 above every rival of single spikes up to 8"


def of(rows: list[dict[str, str]], claim: str, kinds: dict[str, Kind] = KINDS) -> Verdict:
    (found,) = (one for one in verdicts(rows, kinds) if one.claim == claim)
    return found


def direct(steps: int) -> str:
    return f"above direct training at T = {steps}"


def trained(method: str, steps: int, *latencies: tuple[int, float]) -> list[dict[str, str]]:
    """All rows of direct training at T: with all epochs, and in the same time."""
    budgets = ("epochs", "time") if steps > 1 else ("epochs",)
    return [
        row(method, latency, accuracy, trained_steps=str(steps), budget=budget)
        for budget in budgets
        for latency, accuracy in latencies
    ]


def test_verdicts_are_held_against_the_best_rival_of_their_kind() -> None:
    rows = [
        row("polarspike", 1, 90, spikes="0.5"), row("polarspike", 2, 90.5), row("polarspike", 4, 91),
        row("lsq", 1, 89.3, spikes="0.4"), row("group", 1, 88), row("group", 1, 95, levels="16"), row("group", 4, 99),
        row("qcfs", 8, 90.2), row("qcfs", 16, 93), row("ann", 1, 99), row("st-bif", 4, 99.5), row("st-bif", 16, 99.9),
        *trained("lif", 1, (1, 80)), *trained("lif", 4, (2, 99), (4, 91.0)),
        *trained("integer-lif", 1, (1, 81), (4, 82)), *trained("integer-lif", 4, (4, 83)),
    ]  # fmt: skip
    first = of(rows, FIRST)
    # The more accurate, but with more spikes than the best rival; one of more levels, or of a later answer, is no rival.
    assert (first.ours, first.rival, first.best, first.outcome) == (90, 89.3, "lsq 4 levels at 1", "no")
    assert first.spikes == (0.5, 0.4)
    single = of(rows, SINGLE)
    assert (single.best, single.rival, single.outcome) == ("st-bif 4 levels at 4", 99.5, "no")
    assert [of(rows, direct(steps)).outcome for steps in (1, 4)] == ["yes", "level"]
    # What answers after two steps counts, whatever it was trained for.
    other = of(rows, direct(2))
    assert (other.best, other.rival, other.outcome) == ("lif T=4 at 2", 99, "no")
    assert of([*rows[1:], row("polarspike", 1, 90, spikes="0.4")], FIRST).outcome == "yes"
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
        ("lsq 4 levels at 1", "yes"), ("qcfs 4 levels at 8", "no"), ("", "open"), ("lif T=2 at 2", "open"),
    ]  # fmt: skip
    usual = [row("polarspike", 1, 99, spikes="0.4"), row("polarspike", 2, 99)]
    both = verdicts([*usual, row("polarspike+t", 1, 90, spikes="0.4"), row("polarspike+t", 2, 93), *rivals], kinds)
    assert both[4:] == alone and [one.ours for one in both[:4]] == [99, 99, 99, 99]
    assert {one.network for one in both[:4]} == {"digits, cnn, 4 levels"}


def test_single_spikes_pay_in_timesteps_whatever_their_levels() -> None:
    rows = [
        row("polarspike", 1, 90),
        row("qcfs", 8, 89),
        row("qcfs", 8, 91, levels="16"),
        row("lsq", 1, 95, levels="16"),
    ]
    single = of(rows, SINGLE)
    assert (single.best, single.rival, single.outcome) == ("qcfs 16 levels at 8", 91, "no")


def test_direct_training_of_several_spikes_counts_up_to_our_levels() -> None:
    """More levels may make it worse: with fewer it stands against ours, too, and with more it does not."""
    mine, lif = row("polarspike", 1, 90, levels="8"), trained("lif", 1, (1, 80))
    few, equal, more = (row("integer-lif", 1, value, trained_steps="1", levels=levels)
                        for value, levels in ((92, "4"), (85, "8"), (99, "16")))  # fmt: skip
    found = of([mine, *lif, few, equal, more], direct(1))
    assert (found.best, found.outcome) == ("integer-lif 4 levels T=1 at 1", "no")
    assert (found := of([mine, *lif, equal, more], direct(1))).outcome == "yes"
    assert (found := of([mine, *lif, more], direct(1))).outcome == "open"
    assert found.why == "integer-lif trained at T = 1 not run"
    assert of([mine, row("lif", 1, 95, trained_steps="1"), more], direct(1)).outcome == "no"  # behind is behind
    assert verdict_table([found])[1][-1] == "open: integer-lif trained at T = 1 not run"


def test_every_neuron_must_have_been_trained_at_this_t_under_both_budgets() -> None:
    def verdict(steps: int, *rivals: dict[str, str]) -> tuple[str, str]:
        found = of([row("polarspike", 1, 90), row("polarspike", steps, 92), *rivals], direct(steps))
        return found.outcome, found.why

    read_later = [*trained("integer-lif", 1, (1, 85), (4, 86)), *trained("lif", 1, (1, 80))]
    assert verdict(1, *read_later) == ("yes", "")
    assert verdict(4, *read_later) == ("open", "lif trained at T = 4 not run")
    lif, integer = trained("lif", 4, (4, 87)), trained("integer-lif", 4, (4, 88))
    assert verdict(4, *read_later, lif[1]) == ("open", "lif trained at T = 4 with all epochs not run")
    assert verdict(4, *read_later, lif[0]) == ("open", "lif trained at T = 4 in the same time not run")
    # Binary neurons say nothing of those of several spikes.
    assert verdict(4, *read_later, *lif) == ("open", "integer-lif trained at T = 4 not run")
    assert verdict(4, *read_later, *lif, *integer) == ("yes", "")
    assert verdict(4, *read_later, {**integer[0], "accuracy": "93"}) == ("no", "")
    refused = {**row("integer-lif", 1, 0), "latency": "", "accuracy": "", "setting": "not applicable: no"}
    assert verdict(4, *trained("lif", 1, (1, 80)), *lif, refused) == ("yes", "")


def test_a_rival_within_noise_counts_beside_one_that_is_ahead() -> None:
    """Within noise of ours at fewer spikes: it still counts beside one that is ahead at many."""
    mine, near = row("polarspike", 1, 88.09, spikes="1.650"), row("lsq", 1, 88.22, spikes="1.631")
    ahead = row("group", 1, 88.32, spikes="5.84")
    for rivals in ([near], [near, ahead], [ahead, near]):
        one = of([mine, *rivals], FIRST)
        assert (one.best, one.outcome, one.spikes) == ("lsq 4 levels at 1", "no", (1.650, 1.631))
    alone = of([mine, ahead, row("lsq", 1, 80, spikes="1.7")], FIRST)
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
    one = of([*rows, *(row("lsq", 1, value, seed=str(seed)) for seed, value in enumerate(rival))], FIRST)
    assert (one.outcome, one.seeds) == (outcome, min(len(ours), len(rival)))
    assert verdict_table([one])[1][-1] == outcome


def test_of_rivals_that_tie_the_one_of_fewest_spikes_counts() -> None:
    rows = [row("polarspike", 1, 91, spikes="0.5"), row("lsq", 1, 90, spikes="0.6"), row("group", 1, 90, spikes="0.4")]
    one = of(rows, FIRST)
    assert (one.best, one.spikes, one.outcome) == ("group 4 levels at 1", (0.5, 0.4), "no")


@pytest.mark.parametrize(
    ("accuracy", "outcome"), [(92, "no"), (90.2, "open"), (89.2, "open"), (88, "yes")]
)  # ahead, level, just behind the best of the others, far behind
def test_beyond_the_edge_of_a_search_nothing_is_decided(accuracy: float, outcome: str) -> None:
    kinds = {**KINDS, "sinabs": Kind("conversion", "multi")}
    edge = row("sinabs", 1, accuracy, levels="", setting="sinabs 3.1, {'scale': 64.0}; at the edge of the search")
    one = of([row("polarspike", 1, 90), row("lsq", 1, 89.3), edge], FIRST, kinds)
    assert (one.outcome, one.why) == (outcome, "sinabs at 1 is at the edge of the search" if outcome == "open" else "")
    inside = of([row("polarspike", 1, 90), row("lsq", 1, 89.3), {**edge, "setting": "scale 8"}], FIRST, kinds)
    assert inside.outcome in ("yes", "level", "no")


def test_a_claim_is_open_until_every_rival_that_it_names_was_asked() -> None:
    """One that refuses the network was asked, too, and stands for itself alone."""
    kinds = {
        **KINDS,
        "sinabs": Kind("conversion", "multi", trains=False, tool=True),
        "sta": Kind("conversion", "multi", trains=False, tool=True),
        "spikingjelly-rate": Kind("conversion", "binary", trains=False, tool=True),
        "rate-max": Kind("conversion", "binary", trains=False),
    }
    rows = [row("polarspike", 1, 90), row("group", 1, 80), row("rate-max", 8, 20, levels=""), row("qcfs", 8, 85)]

    def refused(name: str) -> dict[str, str]:
        return {**row(name, 1, 0), "latency": "", "accuracy": "", "levels": "", "setting": "not applicable: frames"}

    def whys(*others: dict[str, str]) -> tuple[str, str]:
        first, single = (of([*rows, *others], claim, kinds) for claim in (FIRST, SINGLE))
        assert {first.outcome, single.outcome} <= {"open", "yes"}
        assert all((one.outcome == "open") == bool(one.why) for one in (first, single))
        return first.why, single.why

    assert whys() == ("lsq not run", "st-bif not run")
    asked = [row("lsq", 1, 80), row("st-bif", 8, 60)]
    assert whys(*asked) == ("sinabs not run", "spikingjelly-rate not run")
    assert whys(*asked, refused("sinabs")) == ("sta not run", "spikingjelly-rate not run")
    tools = [refused(name) for name in ("sinabs", "sta", "spikingjelly-rate")]
    assert whys(*asked, *tools) == ("", "lif trained at T = 1 not run")
    through = [*trained("lif", 1, (1, 50)), *trained("lif", 2, (2, 50)), *trained("lif", 4, (4, 50))]
    # Networks that were trained through several steps are the strong ones of single spikes.
    assert whys(*asked, *tools, *through[:2])[1] == "lif trained at T = 2 in the same time not run"
    assert whys(*asked, *tools, *through) == ("", "")
    assert whys(row("lsq", 1, 80, levels="16"), *asked[1:], *tools, *through) == ("lsq not run", "")


def test_a_rival_that_was_not_read_where_it_is_judged_was_not_run() -> None:
    kinds = {name: KINDS[name] for name in ("polarspike", "lsq", "qcfs", "lif")}
    through = [*trained("lif", 1, (1, 50), (4, 60)), *trained("lif", 2, (2, 50))]
    rows = [row("polarspike", 1, 90), row("polarspike", 4, 90), row("lsq", 1, 80), *through]
    early = [*rows, row("qcfs", 1, 60), *trained("lif", 4, (1, 50))]
    assert of(early, SINGLE, kinds).why == "qcfs not run"  # an answer at T = 1 says nothing of one at 8
    assert of([*early, row("qcfs", 8, 70)], SINGLE, kinds).why == "lif trained at T = 4 not run"
    assert of(early, direct(4), kinds).why == "lif trained at T = 4 not run"
    late = [*rows, row("qcfs", 8, 70), *trained("lif", 4, (4, 50))]
    assert [of(late, claim, kinds).outcome for claim in (SINGLE, direct(4))] == ["yes", "yes"]
    # One of another seed has no answer beside ours.
    other = [{**one, "seed": "1"} if one["method"] in ("lsq", "qcfs") else one for one in late]
    assert [of(other, claim, kinds).why for claim in (FIRST, SINGLE)] == ["lsq not run", "qcfs not run"]


def test_a_further_rival_makes_a_verdict_better_only_as_the_most_accurate() -> None:
    rows = [row("polarspike", 1, 90, spikes="0.5"), row("lsq", 1, 88, spikes="0.1")]
    assert of(rows, FIRST).outcome == "no"  # far behind, with fewer spikes: the best that there is
    assert of([*rows, row("group", 1, 87, spikes="1.0")], FIRST).outcome == "no"
    assert of([*rows, row("group", 1, 89, spikes="1.0")], FIRST).outcome == "yes"


def test_a_claim_without_any_rival_is_open() -> None:
    found = verdicts([row("polarspike", 1, 90), row("lsq", 1, 99, seed="1")], KINDS)  # no seed in common
    assert [(one.claim, one.rival, one.best, one.outcome, one.why) for one in found] == [
        (FIRST, None, "", "open", "lsq not run"), (SINGLE, None, "", "open", "qcfs not run"),
        (direct(1), None, "", "open", "lif trained at T = 1 not run"),
    ]  # fmt: skip
    assert verdict_table(found)[1][4:] == ["-", "", "0", "open: lsq not run"]


def test_sequences_are_compared_after_as_many_frames() -> None:
    rows = [row("polarspike", 1, 70), row("polarspike", 8, 82), row("unnamed", 1, 65), row("unnamed", 8, 81)]
    frames = [{**one, "network": "cnn-16-8-frames"} for one in rows]
    found = {one.claim: (one.ours, one.rival, one.outcome) for one in verdicts(frames, FEW) if one.rival}
    assert found == {
        "above every rival of single spikes after as many frames, 1": (70, 65, "yes"),
        "above every rival of single spikes after as many frames, 8": (82, 81, "yes"),
    }


def test_claims_of_a_kind_are_counted_together() -> None:
    rows = [row("polarspike", steps, 90) for steps in (1, 2, 4)]
    rows += [*trained("lif", 1, (1, 80), (2, 95)), *trained("integer-lif", 1, (1, 80)), row("lsq", 1, 90)]
    frames = [{**one, "network": "cnn-16-8-frames"} for one in [*rows, row("qcfs", 4, 95)]]
    assert summary_table(verdicts([*rows, *frames], KINDS)) == [
        ["claim", "yes", "level", "no", "open"],
        [FIRST, "0", "2", "0", "0"],
        [SINGLE, "0", "0", "1", "0"],
        ["above direct training", "2", "0", "2", "2"],
        ["above every rival of single spikes after as many frames", "0", "0", "2", "1"],
    ]


def test_ours_without_training_is_held_against_rivals_without_training() -> None:
    kinds = {
        **KINDS,
        "polarspike-free": KINDS["polarspike"],
        "sinabs": Kind("conversion", "multi", trains=False),
        "rate-max": Kind("conversion", "binary", trains=False),
    }
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
