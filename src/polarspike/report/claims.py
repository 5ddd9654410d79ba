"""What a comparison was made to show, and whether its rows show it, network by network.

first at T = 1     ours at one timestep, against every method with several spikes a step and as many levels: accuracy,
                   and spikes no more
single spikes      ours at one timestep, against every method with one spike a step at most, of either sign, at true
                   latencies up to 8; of sequences, where a later answer has seen more, both after as many frames
direct training    ours at T = 1, 2 and 4, against the answer after as many steps of every network that was trained through
                   time: one that was trained at fewer of them had more epochs in the same time, and may answer better

Rivals of several spikes count at our levels, or where they have none (other tools); those of single spikes pay in timesteps,
and count at whatever levels they were trained, and so does direct training of several spikes up to our levels, because more
levels may make it worse. Ours without training is held against rivals without training. A claim is open while a rival that
it names (:mod:`polarspike.report.required`) has not been run on that network.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from polarspike.report.numbers import decimals
from polarspike.report.required import DIRECT, SEVERAL, SINGLE, TRAINED_AT, Kind, not_run, untrained_at
from polarspike.report.rivals import Row, by_network, mean_of, name_of, reads_sequences
from polarspike.runs.ledger import AT_THE_EDGE

_FREE = "polarspike-free"
#: Our methods: trained for one timestep, for several, and not at all.
OURS = ("polarspike", "polarspike+t", _FREE)
#: Differences between two networks of one seed that say nothing: somewhat more than twice their standard deviation, which
#: was 0.19 points on the plain network of the preset "small" and 0.25 on the residual one (three seeds, pooled over rivals
#: within a point of ours).
NOISE = 0.6
Outcome = Literal["yes", "level", "no", "open"]
_SINGLE_REACH = 8
_FRAMES = (1, 2, 4, 8)
#: What tells claims of one kind apart: the frames, or the T of direct training.
_NUMBER = re.compile(r"(?<=frames), \d+$|(?<=direct training) at T = \d+$")
#: From the worst.
_OUTCOMES: tuple[Outcome, ...] = ("no", "level", "yes")
_Found = dict[int, list[Row]]
_Key = tuple[str, ...]


@dataclass(frozen=True)
class Verdict:
    """One claim on one network.

    Attributes:
        network: data, network, levels, and which of ours where it is not the usual one.
        claim: in words.
        ours, rival: accuracy in % (means over the seeds that both have), with the name and the latency of that rival; None
            where no rival has been measured.
        best: the rival that the claim holds least against.
        outcome: ``"yes"`` if ours is more accurate, and where spikes belong to the claim, fires no more; ``"level"`` where
            the difference is within :func:`noise_of` its seeds; ``"no"``; ``"open"`` where ours is not behind, but what
            could be ahead has not been run. Every rival that is ahead or within noise is judged, and the worst stands;
            where there is none, the most accurate: so a further rival makes it better only by being that.
        seeds: that both have.
        spikes: of ours and of the rival, per neuron and image, where they belong to the claim.
        why: what is open.
    """

    network: str
    claim: str
    ours: float
    rival: float | None
    best: str
    outcome: Outcome
    seeds: int
    spikes: tuple[float, float] | None = None
    why: str = ""


@dataclass(frozen=True)
class _Answer:
    """A rival's answer beside ours, over the seeds that both have."""

    name: str
    mine: Sequence[Row]
    theirs: Sequence[Row]

    @property
    def gaps(self) -> list[float]:
        """Ours less theirs, seed by seed."""
        pairs = zip(self.mine, self.theirs, strict=True)
        # Accuracies are written with few digits: what their binary fractions add decides nothing.
        return [round(float(a["accuracy"]) - float(b["accuracy"]), 9) for a, b in pairs]

    @property
    def gap(self) -> float:
        """Their mean."""
        return statistics.fmean(self.gaps)

    @property
    def spikes(self) -> tuple[float, float]:
        """Of ours and of theirs."""
        return _mean(self.mine, "spikes"), _mean(self.theirs, "spikes")

    @property
    def noise(self) -> float:
        """Below what its gap says nothing."""
        return noise_of(self.gaps)

    def outcome(self, with_spikes: bool) -> Outcome:
        """Of the claim against this rival alone."""
        if self.gap <= -self.noise or (with_spikes and self.spikes[0] > self.spikes[1]):
            return "no"
        return "yes" if self.gap >= self.noise else "level"

    @property
    def at_the_edge(self) -> bool:
        """Its best setting was the last of those searched."""
        return any(AT_THE_EDGE in row["setting"] for row in self.theirs)


def noise_of(gaps: Sequence[float]) -> float:
    """How large the mean of paired differences must be to say anything.

    Two standard errors; but few seeds may agree by chance, so no less than :data:`NOISE` over the root of their number.
    """
    floor = NOISE / math.sqrt(len(gaps))
    return max(floor, 2 * statistics.stdev(gaps) / math.sqrt(len(gaps))) if len(gaps) > 1 else floor


def verdicts(rows: Iterable[Row], kinds: Mapping[str, Kind]) -> list[Verdict]:
    """Every claim for which there are rows.

    Args:
        rows: of a comparison.
        kinds: of the rivals by name; what is not there (the float network) is no rival.
    """
    rows = list(rows)
    found: list[Verdict] = []
    for place, here in by_network(rows).items():
        asked = {row["method"] for row in rows if (row["data"], row["network"]) == place}
        for key, mine in here.items():
            if key[2] in OURS:
                found += _of_one(", ".join(place), key, mine, here, kinds, asked)
    return found


def _of_one(
    place: str,
    own: _Key,
    mine: _Found,
    here: Mapping[_Key, _Found],
    kinds: Mapping[str, Kind],
    asked: set[str],
) -> Iterator[Verdict]:
    levels = own[3]
    network = f"{place}, {levels} levels" + ("" if own[2] == OURS[0] else f", {own[2]}")
    rivals = {key: found for key, found in here.items() if key[2] in kinds and key[2] not in OURS}
    if own[2] == _FREE:
        rivals = {key: found for key, found in rivals.items() if _untrained(found)}
    if 1 not in mine:
        return
    several = {
        key: found for key, found in rivals.items() if kinds[key[2]].spikes == "multi" and key[3] in ("", levels)
    }
    single = {key: found for key, found in rivals.items() if kinds[key[2]].spikes != "multi"}
    able = {name: kind for name, kind in kinds.items() if name not in OURS and (own[2] != _FREE or not kind.trains)}
    refused = asked - {key[2] for key in here}
    read = {key: _read(found, mine[1]) for key, found in rivals.items()}
    yield _against(
        network,
        "first at T = 1",
        mine[1],
        _answers(several, (1,)),
        with_spikes=True,
        lacking=not_run(SEVERAL, True, able, refused | {key[2] for key in several if 1 in read[key]}),
    )

    def lacking(reach: int) -> str:
        """Of single spikes up to a latency."""
        answered = refused | {key[2] for key in single if reach in read[key]}
        direct = [name for name in DIRECT if name in able and able[name].spikes != "multi"]
        untrained = (
            untrained_at(steps, direct, refused, _trained(single, read, steps))
            for steps in TRAINED_AT
            if steps <= reach
        )
        return not_run(SINGLE, False, able, answered) or next(filter(None, untrained), "")

    if reads_sequences(place):
        for steps in (steps for steps in _FRAMES if steps in mine):
            claim = f"above every rival of single spikes after as many frames, {steps}"
            yield _against(network, claim, mine[steps], _answers(single, (steps,)), lacking=lacking(steps))
    else:
        claim = f"ours at T = 1 above every rival of single spikes up to {_SINGLE_REACH}"
        answers = _answers(single, range(1, _SINGLE_REACH + 1))
        yield _against(network, claim, mine[1], answers, lacking=lacking(_SINGLE_REACH))
    if own[2] == _FREE:
        return
    direct = {
        key: found
        for key, found in rivals.items()
        if kinds[key[2]].family == "direct" and (not key[3] or int(key[3]) <= int(levels))
    }
    for steps in (steps for steps in TRAINED_AT if steps in mine):
        named = [name for name in DIRECT if name in able]
        yield _against(
            network,
            f"above direct training at T = {steps}",
            mine[steps],
            _answers(direct, (steps,)),
            lacking=untrained_at(steps, named, refused, _trained(direct, read, steps)),
        )


def _read(found: _Found, mine: Sequence[Row]) -> set[int]:
    """The latencies at which a rival has an answer of a seed that ours has, too."""
    seeds = {row["seed"] for row in mine}
    return {latency for latency, rows in found.items() if any(row["seed"] in seeds for row in rows)}


def _trained(rivals: Iterable[_Key], read: Mapping[_Key, Collection[int]], steps: int) -> set[tuple[str, str, str]]:
    """(method, T of training, budget) of the rivals that have an answer after so many steps."""
    return {(key[2], key[4], key[5]) for key in rivals if steps in read[key]}


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
    network: str,
    claim: str,
    mine: Sequence[Row],
    answers: list[tuple[str, list[Row]]],
    *,
    with_spikes: bool = False,
    lacking: str = "",
) -> Verdict:
    paired = [answer for name, theirs in answers for answer in _paired(name, mine, theirs)]
    if not paired:
        return Verdict(
            network, claim, _mean(mine, "accuracy"), None, "", "open", 0, None, lacking or "no rival measured"
        )
    first = min(paired, key=_rank)
    contenders = [answer for answer in paired if answer.gap < answer.noise] or [first]
    outcome, shown = min(
        ((answer.outcome(with_spikes), answer) for answer in contenders),
        key=lambda judged: (_OUTCOMES.index(judged[0]), *_rank(judged[1])),
    )
    near = (answer.name for answer in paired if answer.at_the_edge and answer.gap <= first.gap + first.noise)
    why = "" if outcome == "no" else lacking or next((f"{name} is {AT_THE_EDGE}" for name in near), "")
    ours, rival = _mean(shown.mine, "accuracy"), _mean(shown.theirs, "accuracy")
    spikes = shown.spikes if with_spikes else None
    seeds = len(shown.gaps)
    return Verdict(network, claim, ours, rival, shown.name, "open" if why else outcome, seeds, spikes, why)


def _rank(answer: _Answer) -> tuple[float, float]:
    """Who is ahead; of those that tie, the one of fewest spikes."""
    return answer.gap, answer.spikes[1]


def _paired(name: str, mine: Sequence[Row], theirs: Sequence[Row]) -> Iterator[_Answer]:
    """An answer with the seeds that both have; none without any."""
    seeds = {row["seed"]: row for row in theirs}
    common = [row for row in mine if row["seed"] in seeds]
    if common:
        yield _Answer(name, common, [seeds[row["seed"]] for row in common])


def _mean(rows: Sequence[Row], column: str) -> float:
    value = mean_of(rows, column)
    return 0.0 if value is None else value


def verdict_table(found: Sequence[Verdict]) -> list[list[str]]:
    """The verdicts as cells, a heading first."""
    table = [["network", "claim", "ours", "best rival", "its", "spikes", "seeds", "holds"]]
    for one in found:
        spikes = "" if one.spikes is None else f"{one.spikes[0]:.3f}, {one.spikes[1]:.3f}"
        holds = f"{one.outcome}: {one.why}" if one.why else one.outcome
        table.append(
            [one.network, one.claim, f"{one.ours:.2f}", one.best, decimals(one.rival, 2), spikes, str(one.seeds), holds]
        )
    return table


def summary_table(found: Sequence[Verdict]) -> list[list[str]]:
    """How often each claim holds, is level, does not hold and is open, as cells, a heading first."""
    outcomes: tuple[Outcome, ...] = ("yes", "level", "no", "open")
    claims = dict.fromkeys(_NUMBER.sub("", one.claim) for one in found)
    counts = {claim: Counter(one.outcome for one in found if _NUMBER.sub("", one.claim) == claim) for claim in claims}
    return [["claim", *outcomes], *([claim, *(str(count[one]) for one in outcomes)] for claim, count in counts.items())]
