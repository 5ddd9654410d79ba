"""Training-free conversion of really trained networks: accuracy at the first timestep, and the events and spikes it costs.

The six networks of :mod:`train_peers` (max-pool CNN, average-pool CNN, vision Transformer; trained briefly and properly)
are quantized, calibrated on 1,024 training images without labels, converted, and judged at T = 1 on all 10,000 test
images of Fashion-MNIST. No site has more than the given number of levels:

    levels               16        8        4        2
    rectified sites    (0, 15)  (0, 7)   (0, 3)   (0, 1)
    after GELU         (1, 14)  (1, 6)   (1, 2)   (1, 1): its negative side is no deeper than 0.17
    other signed       (8, 7)   (4, 3)   (2, 1)   (1, 1): three levels, the fewest that a signed site can have

Each with every initialization and granularity, and, where this version of the library has them, with bias correction,
cross-layer equalization and reconstruction; all of these are training-free. "distill" is not: after the reconstruction it
takes 4,000 optimizer steps towards the float network's answers, six passes over three quarters of the 60,000 training
images (the rest is held out), without a label. Beside them: what was published for networks of this kind at T = 1, at
equal levels (training-free, 99.9 % scale per channel, D levels above zero) and for the best binary conversion.

    python benchmarks/training_free.py [--networks max-pool avg-pool vit] [--trainings brief proper] [--seeds 0 1 2]
                                       [--levels 16 8 4 2] [--inits mse percentile entropy]
                                       [--improvements none bias equalize "equalize, bias" reconstruct distill]
                                       [--sites] [--again]

``--sites`` adds which sites hurt: the accuracy with one site of the quantized network put back to its float activation,
and with that site alone quantized. Results are merged into ``benchmarks/results/training_free.json`` row by row.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import itertools
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from _common import RESULTS, conditions, keep, load_images
from peer_networks import NETWORKS, TRAININGS, load, title
from torch import Tensor, nn

import polarspike as ps
from polarspike import data
from polarspike.quantized import QuantizedNetwork

SEED = 0
IMAGES = 1024  # to calibrate on
# Of distillation: optimizer steps, images in one, and the first learning rate. Of 5e-4 and 1e-3 it left the smaller
# divergence on held-out batches (ViT, 16 and 8 levels); 2e-3 and 5e-3, with steps moved alike, had left more at 16.
DISTILLED, BATCH, RATE = 4000, 64, 1e-3
INITS = ("mse", "percentile", "entropy")
GRANULARITIES = ("tensor", "channel")
# Points below the float network that a conversion may lose, by levels.
TARGETS = {16: 0.3, 8: 1.0}
#: Published, T = 1, training-free: levels -> (D, accuracy of the max-pool CNN, of the average-pool CNN), in %. Their float
#: networks reach 86.15 % and 85.1 % on the same images (2,000 and 1,000 of the test images).
PUBLISHED = {16: (15, 85.8, 84.5), 8: (8, 85.0, 82.3), 4: (4, 78.6, 67.3), 2: (1, 68.2, 35.8)}
BINARY_PEER = {"max-pool": 64.1, "avg-pool": 60.8, "vit": 68.2}


def rectified(levels: int) -> tuple[int, int]:
    """(N, P) of a site without negative levels."""
    return 0, levels - 1


def signed(levels: int) -> tuple[int, int]:
    """(N, P) of a signed site: one negative level more than positive ones, as in two's complement."""
    return max(1, levels // 2), max(1, levels // 2 - 1)


def shallow(levels: int) -> tuple[int, int]:
    """(N, P) of a site after GELU and its like, whose negative side is a fraction of a step deep."""
    return 1, max(1, levels - 2)


def spec_of(model: nn.Module, example: Tensor, levels: int, init: str, granularity: str) -> ps.QuantSpec:
    """At most ``levels`` levels at every site (three where a signed site cannot have fewer), by the sign of its signal."""
    common: dict[str, Any] = {"init": init, "granularity": granularity}
    base = ps.QuantSpec(*signed(levels), **common)
    overrides: dict[str, ps.QuantSpec] = {}
    for site in ps.inspect(model, base, example).sites:
        if site.spec.negative == 0:
            overrides[site.name] = ps.QuantSpec(*rectified(levels), **common)
        elif "GELU" in site.replaces:
            overrides[site.name] = ps.QuantSpec(*shallow(levels), **common)
    return ps.QuantSpec(*signed(levels), **common, overrides=overrides)


# --- Improvements ----------------------------------------------------------------------------------------------------


# Initialization and granularity.
Start = tuple[str, str]
STARTS: tuple[Start, ...] = tuple(itertools.product(INITS, GRANULARITIES))
IMPROVEMENTS = ("none", "bias", "equalize", "equalize, bias", "reconstruct", "distill")
#: Improvements come with these only: "entropy" starts too far away.
IMPROVED: tuple[Start, ...] = tuple(itertools.product(("mse", "percentile"), GRANULARITIES))


@dataclass(frozen=True)
class Improvement:
    """What may be done to a float network before, and to a quantized one after its calibration; no labels needed."""

    starts: tuple[Start, ...] = STARTS
    before: Callable[[nn.Module, list[Tensor]], nn.Module] | None = None
    after: Callable[[QuantizedNetwork, Task], Any] | None = None


def find(module: str, function: str) -> Callable[..., Any] | None:
    """A function of the library, or None where this version has none."""
    try:
        found: Callable[..., Any] = getattr(importlib.import_module(f"polarspike.{module}"), function)
    except (ImportError, AttributeError):
        print(f"skipped: this version has no polarspike.{module}.{function}", flush=True)
        return None
    return found


def improvements() -> dict[str, Improvement]:
    """The improvements that this version of the library has, by name; "none" is first."""
    correct = find("correction", "correct_bias")
    equalize = find("equalization", "equalize")
    reconstruct = find("reconstruction", "reconstruct")
    distill = find("training.distillation", "distill")
    found = {"none": Improvement()}

    def on_calibration(improve: Callable[..., Any]) -> Callable[[QuantizedNetwork, Task], Any]:
        return lambda qann, task: improve(qann, task.calibration)

    if correct is not None:
        found["bias"] = Improvement(IMPROVED, after=on_calibration(correct))
    if equalize is not None:

        def equalized(model: nn.Module, batches: list[Tensor]) -> nn.Module:
            made: nn.Module = equalize(model, batches[0][:2], batches)
            return made

        # With one step per channel there is nothing left to equalize.
        found["equalize"] = Improvement((("mse", "tensor"),), before=equalized)
        if correct is not None:
            found["equalize, bias"] = Improvement((("mse", "tensor"),), before=equalized, after=on_calibration(correct))
    if reconstruct is not None:
        found["reconstruct"] = Improvement(IMPROVED, after=on_calibration(reconstruct))
    if reconstruct is not None and distill is not None:

        def rebuilt_and_distilled(qann: QuantizedNetwork, task: Task) -> None:
            goal = copy.deepcopy(qann)
            reconstruct(qann, task.calibration)
            found = distill(
                qann, task.unlabeled(), reference=goal, answers="classes", steps=DISTILLED, learning_rate=RATE
            )
            print(f"  {found}", flush=True)

        found["distill"] = Improvement((("mse", "channel"),), after=rebuilt_and_distilled)
    return found


# --- One row ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """A trained float network, the images, and what it answers on the test images."""

    name: str
    model: nn.Module
    calibration: list[Tensor]
    unlabeled: Callable[[], list[Tensor]]  # all training images
    test: Any
    labels: Tensor  # the right answers
    answers: Tensor

    @property
    def accuracy(self) -> float:
        """Of the float network, in %."""
        return 100 * (self.answers == self.labels).double().mean().item()


def quantized(task: Task, levels: int, init: str, granularity: str, improvement: Improvement) -> QuantizedNetwork:
    """The calibrated QANN of one setting."""
    example = task.calibration[0][:2]
    model = task.model if improvement.before is None else improvement.before(task.model, task.calibration)
    qann = ps.quantize(model, spec_of(model, example, levels, init, granularity), example=example)
    ps.calibrate(qann, task.calibration)
    if improvement.after is not None:
        improvement.after(qann, task)
    return qann


@contextlib.contextmanager
def answers_of(network: nn.Module) -> Iterator[list[Tensor]]:
    """Within this context, collect the classes (batch,) that a network answers, batch by batch."""
    found: list[Tensor] = []

    def keep_answer(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        logits = output if output.dim() == 2 else output[-1]  # a spiking network answers after every step
        found.append(logits.argmax(dim=1))

    handle = network.register_forward_hook(keep_answer)
    try:
        yield found
    finally:
        handle.remove()


def measure(task: Task, qann: QuantizedNetwork) -> dict[str, Any]:
    """Accuracy in % at T = 1, difference to the float network in points, and what it costs per image.

    ``lost`` images are right in the float network alone and ``gained`` ones in the spiking network alone; the standard
    error of the difference by the choice of the test images is about sqrt(lost + gained) / images.
    """
    snn = ps.convert(qann)
    with answers_of(snn) as answers:
        found = ps.evaluate(snn, task.test)
    accuracy = 100 * found.accuracy[1]
    firing = (found.firing or {})[1]
    before, after = task.answers == task.labels, torch.cat(answers) == task.labels
    lost, gained = int((before & ~after).sum()), int((after & ~before).sum())
    row: dict[str, Any] = {
        "accuracy": accuracy,
        "difference": accuracy - task.accuracy,
        "standard_error": 100 * (lost + gained) ** 0.5 / found.total,
        "lost": lost,
        "gained": gained,
        "agreement": 100 * (torch.cat(answers) == task.answers).double().mean().item(),
        "events": firing.events / found.total,
        "spikes": firing.spikes / found.total,
        "neurons": firing.pairs // found.total,
        "exact": ps.verify(qann, snn, task.calibration[:1], scope=False).exact,
    }
    try:
        counts = ps.count_operations(snn, task.calibration[0]).per_image
        row["operations"] = {key: counts[key] for key in ("ann_macs", "macs", "acs_by_event", "acs_by_spike")}
    except ps.PolarspikeError as error:
        row["operations"] = None
        row["not_counted"] = str(error)
    return row


def publication(network: str, levels: int) -> str:
    """What was published at equal levels and for the best binary conversion, in words."""
    text = f"binary peer {BINARY_PEER[network]}"
    if network == "vit":
        return text
    top, *accuracies = PUBLISHED[levels]
    return f"published at {top + 1} levels {accuracies[network == 'avg-pool']}, {text}"


# --- Which sites hurt ------------------------------------------------------------------------------------------------


def blame(task: Task, qann: QuantizedNetwork) -> dict[str, dict[str, float]]:
    """By site: accuracy in % with this site's quantizer alone off, and with it alone on (weights as they are)."""
    sites = qann.sites()
    rows: dict[str, dict[str, float]] = {}
    for name, site in sites.items():
        site.enabled = False
        without = 100 * ps.evaluate(qann, task.test).accuracy[1]
        site.enabled = True
        with qann.float_activations():
            site.enabled = True
            alone = 100 * ps.evaluate(qann, task.test).accuracy[1]
        rows[name] = {"without": without, "alone": alone}
    return rows


# --- All rows --------------------------------------------------------------------------------------------------------


def settings(levels: list[int], inits: list[str], known: dict[str, Improvement]) -> Iterator[tuple[int, str, str, str]]:
    """Levels, initialization, granularity and improvement of every row."""
    for count, (name, improvement) in itertools.product(levels, known.items()):
        for init, granularity in improvement.starts:
            if init in inits:
                yield count, init, granularity, name


def run(task: Task, network: str, options: argparse.Namespace, known: dict[str, Improvement], kept: Any) -> None:
    """All rows of one network that are not kept yet."""
    entry = kept.setdefault(task.name, {"accuracy": task.accuracy, "rows": {}})
    if entry["accuracy"] != task.accuracy:  # another training: the old rows say nothing about it
        entry = kept[task.name] = {"accuracy": task.accuracy, "rows": {}}
    print(f"{task.name}: float {task.accuracy:.2f} %", flush=True)
    for count, init, granularity, improvement in settings(options.levels, options.inits, known):
        title = f"{count} levels, {init}, {granularity}, {improvement}"
        if title in entry["rows"] and not options.again:
            continue
        start = time.perf_counter()
        try:
            qann = quantized(task, count, init, granularity, known[improvement])
            levels = {name: site.levels for name, site in qann.sites().items()}
            row = measure(task, qann)
        except ps.PolarspikeError as error:
            print(f"  {title}: refused: {error}", flush=True)
            if improvement == "none":
                return  # what the library cannot capture at one setting it cannot at another
            continue
        ends = sorted(set(levels.values()))
        row |= {"levels": ends, "published": publication(network, count), "conditions": conditions(SEED)}
        if count in TARGETS:
            row["reached"] = row["difference"] >= -TARGETS[count]
        entry["rows"][title] = row
        keep("training_free", {"seed": SEED, "calibration_images": IMAGES, "results": kept})
        verdict = {True: ", target reached", False: ", target missed", None: ""}[row.get("reached")]
        print(
            f"  {title:>42}: {row['accuracy']:.2f} % ({row['difference']:+.2f} +- "
            f"{row['standard_error']:.2f}){verdict}; {row['events']:.0f} events, "
            f"{row['spikes']:.0f} spikes of {row['neurons']} neurons; exact {row['exact']}; {row['published']}; "
            f"{time.perf_counter() - start:.0f} s",
            flush=True,
        )
    if options.sites:
        hurt = entry.setdefault("sites", {})
        for count, granularity in itertools.product((c for c in options.levels if c in TARGETS), GRANULARITIES):
            title = f"{count} levels, mse, {granularity}"
            if title in hurt and not options.again:
                continue
            hurt[title] = blame(task, quantized(task, count, "mse", granularity, known["none"]))
            keep("training_free", {"seed": SEED, "calibration_images": IMAGES, "results": kept})
            print(f"  {title}:", flush=True)
            for name, row in hurt[title].items():
                print(f"    {name}: {row['without']:.2f} % without, {row['alone']:.2f} % alone", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--trainings", nargs="*", default=list(TRAININGS), choices=TRAININGS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0], help="of the float networks")
    parser.add_argument("--levels", nargs="*", type=int, default=[16, 8, 4, 2], choices=list(PUBLISHED))
    parser.add_argument("--inits", nargs="*", default=list(INITS), choices=INITS)
    parser.add_argument("--improvements", nargs="*", default=list(IMPROVEMENTS), choices=IMPROVEMENTS)
    parser.add_argument("--sites", action="store_true", help="say which sites hurt")
    parser.add_argument("--again", action="store_true", help="measure rows that are in the file already")
    options = parser.parse_args()
    torch.set_num_threads(1)
    clothes = load_images("fashion-mnist")
    test = data.batches(clothes.test, 500, normalization=clothes.normalization)
    shuffled = data.batches(clothes.train, 128, normalization=clothes.normalization, shuffle=True, seed=SEED)
    calibration = [images for images, _ in itertools.islice(shuffled, IMAGES // 128)]

    def unlabeled() -> list[Tensor]:
        loader = data.batches(clothes.train, BATCH, normalization=clothes.normalization, shuffle=True, seed=SEED)
        return [images for images, _ in loader]

    file = RESULTS / "training_free.json"
    kept: dict[str, Any] = json.loads(file.read_text())["results"] if file.is_file() else {}
    known = {name: found for name, found in improvements().items() if name in options.improvements}
    for seed, network, training in itertools.product(options.seeds, options.networks, options.trainings):
        model = load(network, training, seed)
        with answers_of(model) as answers:
            ps.evaluate(model, test)
        run(
            Task(
                title(network, training, seed),
                model,
                calibration,
                unlabeled,
                test,
                clothes.test.labels,
                torch.cat(answers),
            ),
            network,
            options,
            known,
            kept,
        )


if __name__ == "__main__":
    main()
