"""One run as a page: accuracy and proof, learning, what each site fires, operations, energy, and how it was made."""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from polarspike.evaluation import Firing
from polarspike.proofs.proof import Proof
from polarspike.readings import SAID
from polarspike.report.numbers import decimals, entropy_of, short
from polarspike.report.pages import Section
from polarspike.report.record import STAGES, Record

_SPIKES = (
    "Events and spikes are per neuron and {what}, up to T; an event is a step at which a neuron fires, however often."
)
_LEARNING = (
    "The ANN has had every epoch that the SNN's weights have had: from the weights that were quantized it goes on as "
    "'ANN, continued', with the same schedule, data, augmentation and seed. That is the ANN beside the SNN; it goes on once "
    "more beside what is trained through time."
)
_SITES = (
    "At T = {t}, on the {images} {what}s of the first batch that was compared. Entropy: of the codes in bits, and the most "
    "that so many levels can hold, where codes start from rest. Silent: the share of steps at which a neuron does not fire."
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


def headline(record: Record) -> int:
    """The place among the SNN's rows of what stands for it: T = 1 of images, all frames of sequences."""
    return 0 if what_of(record) == "image" else -1


def firing_of(row: Mapping[str, Any]) -> Firing | None:
    """What was fired, of one row of an evaluation; None of a network that does not fire."""
    return Firing(**{field.name: row[field.name] for field in fields(Firing)}) if "pairs" in row else None


def spikes_of(rows: Iterable[Mapping[str, Any]]) -> list[float]:
    """Spikes per neuron and sample of the rows of an evaluation."""
    return [fired.spikes_per_neuron for row in rows if (fired := firing_of(row)) is not None]


def _unfinished(record: Record) -> Section:
    begun = [STAGES[name] for name in record.stages] or ["nothing"]
    again = f"polarspike train --run {shlex.quote(str(record.path))} --resume"
    return Section("Not finished", (f"Begun so far: {', '.join(begun)}. Continue it with {again}.",))


def _found(record: Record, drawn: Mapping[str, tuple[Path, ...]]) -> Iterator[Section]:
    results, what = record.results, what_of(record)
    assert results is not None
    yield _accuracy(record, results, drawn.get("accuracy", ()))
    later = results.get("through_time")
    if later is not None:
        yield _trained_through_time(later, what)
    before = "" if later is None else ", before training through time"
    yield _sites(results, what, before, drawn.get("codes", ()))
    yield _operations(results["counts"], what, before)
    yield _energy(results["energy"], results["counts"], what, before, drawn.get("energy", ()))
    if later is not None:
        yield _energy(later["energy"], later["counts"], what, ", after training through time", ())


def _accuracy(record: Record, results: Mapping[str, Any], figures: tuple[Path, ...]) -> Section:
    what, reading = what_of(record), record.recipe.get("reading", "channels")
    ann, qann = results["ann"]["rows"][0], results["qann"]["rows"][0]
    snn, proofs = results["snn"]["rows"], {proof["timesteps"]: Proof.from_dict(proof) for proof in results["proofs"]}
    first, shown = proofs[1], snn[headline(record)]
    verdict = "equal in every bit" if first.exact else "NOT EQUAL"
    if not first.exact and not first.different:
        verdict += f", outputs differ by up to {first.output_difference:.3g}"
    at = "T = 1" if what == "image" else f"all {shown['timesteps']} frames"
    facts = (
        (_percent(shown["accuracy"]), f"SNN at {at}"),
        (_percent(ann["accuracy"]), "ANN, trained as long"),
        (_points(ann["accuracy"] - qann["accuracy"]), "points from ANN to QANN: learning"),
        (f"{first.different:,}", f"of {first.compared:,} codes differ between QANN and SNN at T = 1: {verdict}"),
    )
    heading = ["network", "T", "accuracy, %", "points below the ANN", "codes compared", "different", "freely", "furthest",
               "events", "spikes", "negative"]  # fmt: skip
    rows = [heading, _row("ANN", ann, ann), _row("QANN", qann, ann)]
    rows += [_row("SNN", row, ann, proofs.get(row["timesteps"])) for row in snn]
    frames = SAID["frames" if reading == "through-time" else reading] if what == "sequence" else ""
    text = (
        f"{results['snn']['total']:,} test {what}s. {_SPIKES.format(what=what)}",
        *([f"T: the first T frames, streamed; {frames}."] if frames else []),
        "Different: codes of the QANN that the SNN does not repeat when both are given the same codes at every other site; "
        "freely: when both run by themselves. Furthest: how far, in steps, a differing sum lies from its boundary. At T > 1 "
        "float32 decides such sums by the order of its additions.",
        *(_void(proof, f"T = {t}: ") for t, proof in proofs.items() if proof.void),
        *_scope(first),
    )
    return Section("Accuracy and equality", text, rows, figures, facts)


def _void(proof: Proof, where: str = "") -> str:
    """Which sites a proof says nothing about."""
    sites = ", ".join(proof.void)
    return f"{where}VOID at {sites}: too few different codes, or events, for equality to mean something."


def _row(name: str, row: Mapping[str, Any], ann: Mapping[str, Any], proof: Proof | None = None) -> list[str]:
    below = "" if row is ann else _points(ann["accuracy"] - row["accuracy"])
    timesteps = str(row["timesteps"]) if name == "SNN" else ""
    shown, fired = [""] * 4, [""] * 3
    if proof is not None:
        furthest = f"{proof.worst_margin:.1e}" if proof.different else ""
        shown = [*(f"{count:,}" for count in (proof.compared, proof.different, proof.diverged)), furthest]
    if (fires := firing_of(row)) is not None:
        each = (fires.events_per_neuron, fires.spikes_per_neuron, fires.negative_spikes_per_neuron)
        fired = [decimals(value, 3) for value in each]
    return [name, timesteps, decimals(100 * row["accuracy"]), below, *shown, *fired]


def _scope(proof: Proof) -> Iterator[str]:
    """The same network under other conditions, one sentence."""
    if proof.scope:
        yield f"One network under other conditions, T = 1: {'; '.join(proof.scope_lines())}."


def _trained_through_time(found: Mapping[str, Any], what: str) -> Section:
    ann, proof = found["ann"]["rows"][0], Proof.from_dict(found["proof"])
    heading = ["network", "T", "accuracy, %", "points below the ANN", "events", "spikes", "negative"]
    rows = [heading]
    for name, row in [("ANN", ann), *(("SNN", row) for row in found["snn"]["rows"])]:
        cells = _row(name, row, ann)
        rows.append([*cells[:4], *cells[8:]])
    leaks = [f"{name} {leak:.3f}" for name, leak in found["leaks"].items()]
    verdict = "equal" if proof.exact else "NOT EQUAL"
    text = (
        _THROUGH_TIME,
        f"{proof.different:,} of {proof.compared:,} codes differ: {verdict}. ANN: continued for the same epochs, once more.",
        *([_void(proof)] if proof.void else []),
        f"What stays of a membrane from frame to frame: {', '.join(leaks)}.",
        _SPIKES.format(what=what),
    )
    return Section("Trained through time", text, rows, ())


def _sites(results: Mapping[str, Any], what: str, before: str, figures: tuple[Path, ...]) -> Section:
    counts, proofs = results["counts"], results["proofs"]
    rows = [["site", "levels", "gain", "neurons", "events", "spikes", "negative", "silent, %", "entropy, bits", "of at most",
             "codes that differ at T = 1, later"]]  # fmt: skip
    for site in counts["sites"]:
        name, pairs, (negative, positive) = site["site"], site["neurons"] * site["images"], site["levels"]
        different = [proof["sites"][name]["different"] for proof in proofs if name in proof["sites"]]
        # Codes that do not start from rest may be beyond the levels: a membrane adds to them.
        most = math.log2(negative + positive + 1) if site["span"] == 1 else None
        rows.append([
            name, f"({negative}, {positive})", f"{site['gain']:g}", f"{site['neurons']:,}",
            *(decimals(site[key] / pairs, 3) for key in ("events", "spikes", "negative_spikes")),
            decimals(100 * site["silent_share"], 1), decimals(entropy_of(site["codes"])), decimals(most),
            ", ".join(f"{count:,}" for count in different),
        ])  # fmt: skip
    text = (_SITES.format(t=counts["timesteps"], images=counts["images"], what=what),)
    return Section(f"Sites{before}", text, rows, figures)


def _operations(counts: Mapping[str, Any], what: str, before: str) -> Section:
    images, totals = counts["images"], counts["totals"]
    rows = [["operator", "kind", "dense MACs", "ACs by event", "by spike", "MACs that remain", "why"]]
    for one in counts["synapses"]:
        dense = counts["passes"] * one["connections"] if one["weighted"] and one["in_dense_network"] else 0
        cells = (dense, *(one[key] for key in ("acs_by_event", "acs_by_spike", "macs")))
        rows.append([one["name"], one["kind"], *(short(cell / images) for cell in cells), one["reason"]])
    cells = tuple(totals[key] for key in ("ann_macs", "acs_by_event", "acs_by_spike", "macs"))
    rows.append(["all", "", *(short(cell / images) for cell in cells), ""])
    return Section(f"Operations{before}", (_OPERATIONS.format(t=counts["timesteps"], what=what),), rows)


def _energy(
    energy: Mapping[str, Any], counts: Mapping[str, Any], what: str, before: str, figures: tuple[Path, ...]
) -> Section:
    table, images = energy["table"], energy["images"]
    text = _ENERGY.format(
        t=energy["timesteps"],
        what=what,
        table=f"{table['name']} ({table['source']})",
        words=short(counts["memory"]["ann"]["words"] / images),
        sram=f"{table['sram_word_pj']:g}",
        dram=f"{table['dram_word_pj']:g}",
    )
    rows = [["system", "precision", "nJ", "of the ANN", "spikes, nJ", "analog, nJ", "memory, words", "what it hides"]]
    for one in energy["rows"]:
        nano = (1e9 * one["joules_per_image"], one["spikes_pj"] / images / 1e3, one["analog_pj"] / images / 1e3)
        total, spikes, analog = (f"{value:,.1f}" for value in nano)
        words = short(one["memory_words"] / images)
        rows.append(
            [one["label"], one["precision"], total, decimals(one["ratio"], 3), spikes, analog, words, one["hides"]]
        )
    return Section(f"Energy{before}", (text,), rows, figures)


def _learned(record: Record, figures: tuple[Path, ...]) -> Iterator[Section]:
    rows = [["stage", "epochs", "loss", "training accuracy, %", "spikes per neuron", "minutes", "images a second"]]
    for name, epochs in record.stages.items():
        if not epochs:
            continue
        last = epochs[-1]
        rows.append([
            STAGES[name], str(len(epochs)), decimals(last["loss"], 4), decimals(100 * last["train_accuracy"]),
            decimals(last.get("spikes_per_neuron"), 3), decimals(sum(epoch["seconds"] for epoch in epochs) / 60, 1),
            decimals(last["images_per_second"], 0),
        ])  # fmt: skip
    text = ("Loss and accuracy are of the last epoch.", *([] if record.results is None else [_LEARNING]))
    if len(rows) > 1:
        yield Section("Learning", text, rows, figures)


def _made(record: Record) -> Iterator[Section]:
    config, versions = record.config, record.config["versions"]
    program, *options = config["command"]
    name = Path(program).name
    called = ["python", "-m", "polarspike"] if name == "__main__.py" else [name]
    resumed = f", resumed {len(config['resumed'])} times" if config.get("resumed") else ""
    specs = config["specs"]
    text = (
        shlex.join([*called, *options]),
        f"{config['created'][:10]}{resumed}; polarspike {versions['polarspike']}, torch {versions['torch']}, Python "
        f"{versions['python']}; {specs.get('device', '?')}, cores: {config['cores']}, threads: {config['threads']}, "
        f"processes: {specs.get('processes', 1)}.",
    )
    yield Section("How it was made", text, [["setting", "value"], *flat(record.recipe)])


def flat(values: Mapping[str, Any], above: str = "") -> Iterable[list[str]]:
    """Nested plain data as rows of a dotted name and a value; type and version of a spec are left out."""
    told = ("type", "version") if {"type", "version"} <= values.keys() else ()
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{above}{name}.")
        elif name not in told:
            shown = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
            yield [f"{above}{name}", shown or "-"]


def _percent(share: float) -> str:
    return f"{100 * share:.2f} %"


def _points(share: float) -> str:
    """A difference of accuracies in points."""
    return decimals(100 * share)
