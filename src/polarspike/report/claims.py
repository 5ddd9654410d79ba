"""What a comparison was made to show, and whether its rows show it, network by network.

first at T = 1     ours at one timestep, against every method with several spikes a step and as many levels: accuracy,
                   and spikes no more
single spikes      ours at one timestep, against every method with one spike a step at most, of either sign, at true
                   latencies up to 8
direct training    ours at T = 1, 2 and 4, against the answer after as many steps of every network that was trained through
                   time: one that was trained at fewer of them had more epochs in the same time, and may answer better

Ours without training is held against rivals without training.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from polarspike.report.rivals import Row, grouped, mean_of, name_of

_FREE = "polarspike-free"
#: Our methods: trained for one timestep, for several, and not at all.
OURS = ("polarspike", "polarspike+t", _FREE)
_SINGLE_REACH = 8
_Found = dict[int, list[Row]]
_Key = tuple[str, ...]


@dataclass(frozen=True)
class Kind:
    """What of a method decides which claim it is held against.

    Attributes:
        family: ``"conversion"``, ``"quantization"`` or ``"direct"``.
        spikes: ``"binary"``, ``"signed"`` or ``"multi"``.
    """

    family: str
    spikes: str


@dataclass(frozen=True)
class Verdict:
    """One claim on one network.

    Attributes:
        network: data, network, levels, and which of ours where it is not the usual one.
        claim: in words.
        ours, rival: accuracy in % (mean over seeds), with the name and the latency of the best rival.
        best: that rival.
        holds: ours is at least as accurate, and where spikes belong to the claim, fires no more.
        seeds: of ours and of the rival, the smaller number: a difference of one seed is not yet a finding.
        spikes: of ours and of the rival, per neuron and image, where they belong to the claim.
    """

    network: str
    claim: str
    ours: float
    rival: float
    best: str
    holds: bool
    seeds: int
    spikes: tuple[float, float] | None = None


def verdicts(rows: Iterable[Row], kinds: Mapping[str, Kind]) -> list[Verdict]:
    """Every claim for which there are rows.

    Args:
        rows: of a comparison.
        kinds: of the rivals by name; what is not there (the float network) is no rival.
    """
    groups = grouped(rows)
    found: list[Verdict] = []
    for place in dict.fromkeys(key[:2] for key in groups):
        here = {key: latencies for key, latencies in groups.items() if key[:2] == place}
        for key, mine in here.items():
            if key[2] in OURS:
                found += _of_one(", ".join(place), key, mine, here, kinds)
    return found


def _of_one(
    place: str, own: _Key, mine: _Found, here: Mapping[_Key, _Found], kinds: Mapping[str, Kind]
) -> Iterator[Verdict]:
    levels = own[3]
    network = f"{place}, {levels} levels" + ("" if own[2] == OURS[0] else f", {own[2]}")
    rivals = {key: found for key, found in here.items() if key[2] in kinds and key[2] not in OURS}
    if own[2] == _FREE:
        rivals = {key: found for key, found in rivals.items() if _untrained(found)}
    if 1 not in mine:
        return
    # Several spikes at equal levels, where a method has them; the others pay in timesteps, whatever their levels.
    several = {
        key: found for key, found in rivals.items() if kinds[key[2]].spikes == "multi" and key[3] in ("", levels)
    }
    yield from _against(network, "first at T = 1", mine[1], _answers(several, (1,)), with_spikes=True)
    single = {key: found for key, found in rivals.items() if kinds[key[2]].spikes != "multi"}
    yield from _against(
        network,
        f"ours at T = 1 above every rival of single spikes up to {_SINGLE_REACH}",
        mine[1],
        _answers(single, range(1, _SINGLE_REACH + 1)),
    )
    direct = {key: found for key, found in rivals.items() if kinds[key[2]].family == "direct"}
    for steps in (1, 2, 4):
        if steps in mine:
            yield from _against(
                network, f"above direct training at T = {steps}", mine[steps], _answers(direct, (steps,))
            )


def _untrained(found: _Found) -> bool:
    return all(row["own_epochs"] == "0" for rows in found.values() for row in rows)


def _answers(rivals: Mapping[_Key, _Found], latencies: Iterable[int]) -> list[tuple[str, list[Row]]]:
    return [
        (f"{name_of(key)} at {latency}", found[latency])
        for latency in latencies
        for key, found in rivals.items()
        if latency in found
    ]


def _against(
    network: str, claim: str, mine: Sequence[Row], answers: list[tuple[str, list[Row]]], *, with_spikes: bool = False
) -> Iterator[Verdict]:
    if not answers:
        return
    best, theirs = max(answers, key=lambda answer: _mean(answer[1], "accuracy"))
    ours, rival = _mean(mine, "accuracy"), _mean(theirs, "accuracy")
    spikes = (_mean(mine, "spikes"), _mean(theirs, "spikes")) if with_spikes else None
    holds = ours >= rival and (spikes is None or spikes[0] <= spikes[1])
    yield Verdict(network, claim, ours, rival, best, holds, min(len(mine), len(theirs)), spikes)


def _mean(rows: Sequence[Row], column: str) -> float:
    value = mean_of(rows, column)
    return 0.0 if value is None else value


def verdict_table(found: Sequence[Verdict]) -> list[list[str]]:
    """The verdicts as cells, a heading first."""
    table = [["network", "claim", "ours", "best rival", "its", "spikes", "seeds", "holds"]]
    for one in found:
        spikes = "" if one.spikes is None else f"{one.spikes[0]:.3f}, {one.spikes[1]:.3f}"
        holds = "yes" if one.holds else "no"
        table.append(
            [one.network, one.claim, f"{one.ours:.2f}", one.best, f"{one.rival:.2f}", spikes, str(one.seeds), holds]
        )
    return table
