"""One run as a page: accuracy and proof, learning, what each site fires, operations, energy, and how it was made."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from polarspike.report.pages import Section
from polarspike.report.record import STAGES, Record

_SPIKES = (
    "Events and spikes are per neuron and {what}, up to T; an event is a step at which a neuron fires, however often."
)
_LEARNING = (
    "The ANN has had every epoch that the SNN's weights have had: from the weights that were quantized it goes on as "
    "'ANN, continued', with the same schedule, data, augmentation and seed. That is the ANN of this page."
)
_SITES = (
    "At T = {t}, on the {images} {what}s of the first batch that was compared. Entropy: of the codes in bits, and the most "
    "that so many levels can hold. Silent: the share of neurons that do not fire."
)
_OPERATIONS = (
    "Per {what}, at T = {t}: multiply-accumulates of the dense network, and what the spiking one needs in their place: "
    "accumulates, one per event (a graded spike is added once) or one per unit spike, and multiplications that remain."
)
_ENERGY = (
    "Arithmetic per {what} at T = {t}, {table}; relative to the dense ANN of the same precision. No convention is the "
    "truth: each hides something. Memory is apart, because it depends on the machine most of all: {words} words of the "
    "dense ANN, at {sram} pJ (SRAM) to {dram} pJ (DRAM) a word."
)
_THROUGH_TIME = (
    "From the SNN above; its weights moved, so its codes are not those of the QANN any more. Compared are its own, of every "
    "frame, streamed one by one, with those of the whole sequence at once."
)


def run_page(record: Record, figures: Sequence[Path] = ()) -> list[Section]:
    """The sections of one run.

    Args:
        record: of the run; what is not finished is left out.
        figures: of :func:`~polarspike.report.run_figures.plot_run`, which go where they belong.

    Raises:
        RunError: its files hold something else.
    """
    with record.understood():
        drawn = {path.stem: (path,) for path in figures}
        sections = list(_found(record, drawn)) if record.results else [_unfinished(record)]
        return [*sections, *_learned(record, drawn.get("learning", ())), *_made(record)]


def what_of(record: Record) -> str:
    """What one sample is: an image, or a sequence of frames."""
    return "image" if record.recipe.get("reading", "channels") == "channels" else "sequence"


def entropy_of(codes: Mapping[str, int]) -> float:
    """Shannon entropy of a histogram of codes in bits: H = - sum over codes of p log2 p."""
    total = sum(codes.values())
    return -sum(count / total * math.log2(count / total) for count in codes.values() if count)


def firing_of(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Events, spikes and negative spikes per neuron and sample of one row of an evaluation; None where nothing fired."""
    pairs = row.get("pairs")
    return {key: row[key] / pairs if pairs else None for key in ("events", "spikes", "negative_spikes")}


def _unfinished(record: Record) -> Section:
    begun = [STAGES[name] for name in record.stages] or ["nothing"]
    return Section(
        "Not finished",
        (f"Begun so far: {', '.join(begun)}. Continue it with polarspike train --run {record.path.name} --resume.",),
    )


def _found(record: Record, drawn: Mapping[str, tuple[Path, ...]]) -> Iterator[Section]:
    results, what = record.results, what_of(record)
    assert results is not None
    yield _accuracy(results, what, drawn.get("accuracy", ()))
    if "through_time" in results:
        yield _trained_through_time(results["through_time"], what)
    yield _sites(results, what, drawn.get("codes", ()))
    yield _operations(results["counts"], what)
    yield from _energy(results["energy"], results["counts"], what, drawn.get("energy", ()))


def _accuracy(results: Mapping[str, Any], what: str, figures: tuple[Path, ...]) -> Section:
    ann, qann = results["ann"]["rows"][0], results["qann"]["rows"][0]
    snn, proofs = results["snn"]["rows"], {proof["timesteps"]: proof for proof in results["proofs"]}
    first = proofs[1]
    compared, different = _codes(first)
    verdict = "equal in every bit" if first["exact"] else "NOT EQUAL"
    facts = (
        (_percent(snn[0]["accuracy"]), "SNN at T = 1"),
        (_percent(ann["accuracy"]), "ANN, trained as long"),
        (_points(ann["accuracy"] - qann["accuracy"]), "points from ANN to QANN: learning"),
        (f"{different:,}", f"of {compared:,} codes differ between QANN and SNN: {verdict}"),
    )
    heading = ["network", "T", "accuracy, %", "points below the ANN", "codes compared", "different", "freely", "furthest",
               "events", "spikes", "negative"]  # fmt: skip
    rows = [heading, _row("ANN", ann, ann), _row("QANN", qann, ann)]
    rows += [_row("SNN", row, ann, proofs.get(row["timesteps"])) for row in snn]
    void = [
        f"T = {t}: VOID, some sites fire too little to be compared." for t, p in proofs.items() if not p["conclusive"]
    ]
    text = (
        f"{results['snn']['total']:,} test {what}s. {_SPIKES.format(what=what)}",
        "Different: codes of the QANN that the SNN does not repeat when both are given the same codes at every other site; "
        "freely: when both run by themselves. Furthest: how far, in steps, a differing sum lies from its boundary. At T > 1 "
        "float32 decides such sums by the order of its additions.",
        *void,
        *_scope(first),
    )
    return Section("Accuracy and equality", text, rows, figures, facts)


def _row(
    name: str, row: Mapping[str, Any], ann: Mapping[str, Any], proof: Mapping[str, Any] | None = None
) -> list[str]:
    below = "" if row is ann else _points(ann["accuracy"] - row["accuracy"])
    shown = ["", "", "", ""]
    if proof is not None:
        sites = proof["sites"].values()
        compared, different = _codes(proof)
        worst = max((site["worst_margin"] for site in sites), default=0.0)
        diverged = sum(site["diverged"] for site in sites)
        shown = [f"{compared:,}", f"{different:,}", f"{diverged:,}", f"{worst:.1e}" if different else ""]
    fired = (
        ["" if value is None else f"{value:.3f}" for value in firing_of(row).values()] if "pairs" in row else [""] * 3
    )
    return [name, str(row["timesteps"]) if name == "SNN" else "", f"{100 * row['accuracy']:.2f}", below, *shown, *fired]


def _codes(proof: Mapping[str, Any]) -> tuple[int, int]:
    sites = proof["sites"].values()
    return sum(site["compared"] for site in sites), sum(site["different"] for site in sites)


def _scope(proof: Mapping[str, Any]) -> Iterator[str]:
    """The same network under other conditions, one sentence."""
    seen = [
        f"{name}: {found}" if isinstance(found, str) else f"{name}: {found[0]:,} of {found[1]:,}"
        for name, found in proof["scope"].items()
    ]
    if seen:
        yield f"Codes of one network that differ under other conditions, T = 1: {'; '.join(seen)}."


def _trained_through_time(found: Mapping[str, Any], what: str) -> Section:
    ann, proof = found["ann"]["rows"][0], found["proof"]
    heading = ["network", "T", "accuracy, %", "points below the ANN", "events", "spikes", "negative"]
    rows = [heading]
    for name, row in [("ANN", ann), *(("SNN", row) for row in found["snn"]["rows"])]:
        cells = _row(name, row, ann)
        rows.append([*cells[:4], *cells[8:]])
    leaks = [f"{name} {leak:.3f}" for name, leak in found["leaks"].items()]
    verdict = "equal" if proof["exact"] else "NOT EQUAL"
    compared, different = _codes(proof)
    text = (
        _THROUGH_TIME,
        f"{different:,} of {compared:,} codes differ: {verdict}. ANN: continued for the same epochs.",
        f"What stays of a membrane from frame to frame: {', '.join(leaks)}.",
        _SPIKES.format(what=what),
    )
    return Section("Trained through time", text, rows, ())


def _sites(results: Mapping[str, Any], what: str, figures: tuple[Path, ...]) -> Section:
    counts, proofs = results["counts"], results["proofs"]
    rows = [["site", "levels", "gain", "neurons", "events", "spikes", "negative", "silent, %", "entropy, bits", "of at most",
             "codes that differ at T = 1, later"]]  # fmt: skip
    for site in counts["sites"]:
        name, pairs, (negative, positive) = site["site"], site["neurons"] * site["images"], site["levels"]
        different = [proof["sites"][name]["different"] for proof in proofs if name in proof["sites"]]
        rows.append([
            name, f"({negative}, {positive})", _gain(site["gain"]), f"{site['neurons']:,}",
            *(f"{site[key] / pairs:.3f}" for key in ("events", "spikes", "negative_spikes")),
            f"{100 * site['silent_share']:.1f}", f"{entropy_of(site['codes']):.2f}",
            f"{math.log2(negative + positive + 1):.2f}", ", ".join(f"{count:,}" for count in different),
        ])  # fmt: skip
    return Section("Sites", (_SITES.format(t=counts["timesteps"], images=counts["images"], what=what),), rows, figures)


def _operations(counts: Mapping[str, Any], what: str) -> Section:
    images = counts["images"]
    rows = [["operator", "kind", "dense MACs", "ACs by event", "by spike", "MACs that remain", "why"]]
    for one in counts["synapses"]:
        cells = (one[key] / images for key in ("dense_macs", "acs_by_event", "acs_by_spike", "macs"))
        rows.append([one["name"], one["kind"], *map(_count, cells), one["reason"]])
    totals = counts["totals"]
    cells = (totals[key] / images for key in ("dense_macs", "acs_by_event", "acs_by_spike", "macs"))
    rows.append(["all", "", *map(_count, cells), ""])
    return Section("Operations", (_OPERATIONS.format(t=counts["timesteps"], what=what),), rows)


def _energy(
    energy: Mapping[str, Any], counts: Mapping[str, Any], what: str, figures: tuple[Path, ...]
) -> Iterator[Section]:
    table, images = energy["table"], energy["images"]
    text = _ENERGY.format(
        t=energy["timesteps"],
        what=what,
        table=f"{table['name']} ({table['source']})",
        words=_count(counts["memory"]["ann"]["words"] / images),
        sram=f"{table['sram_word_pj']:g}",
        dram=f"{table['dram_word_pj']:g}",
    )
    rows = [["system", "precision", "nJ", "of the ANN", "spikes, nJ", "analog, nJ", "memory, words", "what it hides"]]
    for one in energy["rows"]:
        nano = (one["spikes_pj"] / images / 1e3, one["analog_pj"] / images / 1e3)
        rows.append([
            one["label"], one["precision"], f"{1e9 * one['joules_per_image']:,.1f}", f"{one['ratio']:.3f}",
            *(f"{value:,.1f}" for value in nano), _count(one["memory_words"] / images), one["hides"],
        ])  # fmt: skip
    yield Section("Energy", (text,), rows, figures)


def _learned(record: Record, figures: tuple[Path, ...]) -> Iterator[Section]:
    rows = [["stage", "epochs", "loss", "training accuracy, %", "spikes per neuron", "minutes", "images a second"]]
    for name, epochs in record.stages.items():
        if not epochs:
            continue
        last = epochs[-1]
        rows.append([
            STAGES[name], str(len(epochs)), _optional(last.get("loss"), 4),
            _optional(last.get("train_accuracy"), 2, 100), _optional(last.get("spikes_per_neuron"), 3),
            _optional(sum(epoch["seconds"] for epoch in epochs), 1, 1 / 60), _optional(last.get("images_per_second"), 0),
        ])  # fmt: skip
    if len(rows) > 1:
        yield Section("Learning", (_LEARNING, "Loss and accuracy are of the last epoch."), rows, figures)


def _made(record: Record) -> Iterator[Section]:
    config, versions = record.config, record.config["versions"]
    resumed = f", resumed {len(config['resumed'])} times" if config.get("resumed") else ""
    specs = config["specs"]
    text = (
        f"{' '.join(Path(config['command'][0]).name if i == 0 else part for i, part in enumerate(config['command']))}",
        f"{config['created'][:10]}{resumed}; polarspike {versions['polarspike']}, torch {versions['torch']}, Python "
        f"{versions['python']}; {specs.get('device', '?')}, {config['cores']} cores, {config['threads']} threads, "
        f"{specs.get('processes', 1)} process(es).",
    )
    yield Section("How it was made", text, [["setting", "value"], *flat(record.recipe)])


def flat(values: Mapping[str, Any], above: str = "") -> Iterable[list[str]]:
    """Nested plain data as rows of a dotted name and a value."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}.")
        elif name not in ("type", "version"):
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield [f"{above}{name}", shown or "-"]


def _gain(gain: Any) -> str:
    values = gain if isinstance(gain, list) else [gain]
    return f"{values[0]:g}" if len(set(values)) == 1 else f"{min(values):.3g} to {max(values):.3g}"


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(share: float) -> str:
    """A difference of accuracies in points; what rounds to nothing has no sign."""
    return f"{round(100 * share, 2) + 0.0:.2f}"


def _count(value: float) -> str:
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g}"


def _optional(value: float | None, digits: int, factor: float = 1.0) -> str:
    return "-" if value is None else f"{factor * value:.{digits}f}"
