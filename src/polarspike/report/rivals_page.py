"""A comparison as a page: verdicts, accuracy at true latency, costs, figures, and what others have published beside it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from polarspike.report.claims import NOISE, summary_table, verdict_table, verdicts
from polarspike.report.pages import Section
from polarspike.report.required import Kind
from polarspike.report.rivals import Row, accuracy_table, cost_table, left_out, networks_of
from polarspike.report.rivals_overview import several_spikes, single_spikes, trained_through_time

_PUBLISHED = ("method", "venue", "dataset", "architecture", "ann_top1", "snn_top1", "timesteps", "latency", "evidence")
_ACCURACY = (
    "Test accuracy in % at true latency: the mean over seeds, +- half of the difference between the best and the worst. "
    "Epochs: the method's own / with those of the float network that it starts from; s own: seconds of its own training, "
    "on one thread of a machine that did other work."
)
_CLAIMS = (
    "Percent right, means over the seeds that ours and the rival both have. Rivals of several spikes a step are held "
    "against ours at equal levels; other tools have none, and always count. Rivals of single spikes, directly trained ones "
    "(LIF, PLIF, ternary) among them, pay in timesteps and count at any number of levels, and directly trained integer-LIF "
    "up to ours; of sequences, both after as many frames. Spikes: ours, the rival's; more of ours is a no.",
    f"level: a tie, or a difference that is noise: below {NOISE} with one seed; with several, below two standard errors of "
    f"the differences seed by seed, or below {NOISE} over the root of their number. open: ours is not behind, but what "
    "could be ahead has not been run: a rival that the claim names, direct training at this T with as many epochs and for "
    "as long, or what lies beyond the last of the settings searched. Every rival ahead or within noise is judged, and the "
    "worst outcome stands, with its rival.",
)
_SEVERAL = (
    "Percent right; spikes per neuron and image. Means over the seeds, at the fewest levels that ours was asked at."
)
_SINGLE = (
    "Percent right at true latency 1, 2, 4, 8, beside ours at T = 1 (of sequences after as many frames). Means over the "
    "seeds, at the fewest levels that were asked; of lif, plif and ternary the best of what was trained at any T."
)
_DIRECT = (
    "Percent right after T steps: of direct training what was trained at T, with as many epochs as the others have had in "
    "all, or in the time that these take at T = 1; polarspike is trained for T = 1, and polarspike+t for 1, 2, 4 and 8. "
    "Means over the seeds, at the fewest levels that were asked."
)
_COST = (
    "Means over seeds, +- half of what lies between the least and the largest. Events and spikes per neuron and image; "
    "bits: 32 of a float weight x those of a spike x true latency; nJ per image of "
    "int8 arithmetic (45 nm) under the four conventions, of the dense quantized network and of the dense float network; "
    "x time, ms: CPU time over that of the float network, and of an image, of implementations, not of methods (ours runs as "
    "a SpikingNetwork, rivals through an interpreter). {which}; the CSV file has every column."
)


def rivals_page(
    rows: Sequence[Row],
    kinds: Mapping[str, Kind],
    published: Iterable[Mapping[str, str]],
    figures: Sequence[Path] = (),
    *,
    every: bool = True,
    missing: Sequence[str] = (),
) -> list[Section]:
    """The sections of a comparison's page.

    Args:
        rows: of the comparison.
        kinds: of the methods, for :func:`~polarspike.report.claims.verdicts`.
        published: figures of others; they stand in a section of their own.
        figures: of :func:`~polarspike.report.rivals_figures.plot_rivals`.
        every: costs at every latency, not those of the first answer alone.
        missing: paragraphs on runs that the rows lack; they stand before all that would be other with them.
    """
    sections = [Section("Not complete", tuple(missing))] if missing else []
    if not networks_of(rows):
        return [*sections, Section("Results", ("Nothing has been measured yet.",))]
    found = verdicts(rows, kinds)
    if found:
        sections.append(Section("What was to be shown: how often it holds", _CLAIMS, summary_table(found)))
    glances = (
        ("Several spikes a step, at T = 1", _SEVERAL, several_spikes(rows, kinds)),
        ("One spike a step at most", _SINGLE, single_spikes(rows, kinds)),
        ("Trained through time", _DIRECT, trained_through_time(rows, kinds)),
    )
    sections += [Section(title, (text,), table) for title, text, table in glances if table]
    if found:
        sections.append(Section("What was to be shown: claim by claim", (), verdict_table(found)))
    for place in networks_of(rows):
        title = ", ".join(place)
        drawn = tuple(path for path in figures if path.name.startswith(f"rivals-{'-'.join(place)}-"))
        # A name may begin with another network's: the rest of the file's is the axis alone.
        drawn = tuple(path for path in drawn if path.stem.removeprefix(f"rivals-{'-'.join(place)}-").isalpha())
        which = "At every latency" if every else "At the first answer"
        sections.append(Section(f"{title}: accuracy", (_ACCURACY,), accuracy_table(rows, place), drawn))
        sections.append(Section(f"{title}: costs", (_COST.format(which=which),), cost_table(rows, place, every=every)))
        refused = left_out(row for row in rows if (row["data"], row["network"]) == place)
        if refused:
            sections.append(Section(f"{title}: not applicable", tuple(refused)))
    heading = ["method", "venue", "data", "network", "ANN", "SNN", "T", "true T", "evidence"]
    table = [heading, *([row[column] or "-" for column in _PUBLISHED] for row in published)]
    text = (
        "Not measured here, on other data and networks; T as published, true T with the rehearsal that it leaves out."
    )
    return [*sections, Section("Published by others", (text,), table)]
