"""Methods on the same network, images and counts, in one resumable run: accuracy, firing, energy and time at true latency.

Every method starts from the same float network of a seed, or from its fresh weights (direct training). What trains has the
same epochs, schedule, augmentation and distillation, and as many trials of the learning rate, of which validation images
choose. Direct training at T timesteps has the same epochs once more, and once the same *time*: epochs / T.
"""

from __future__ import annotations

import copy
import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polarspike import data
from polarspike.baselines.methods import METHODS, Method, describe
from polarspike.baselines.peers import PEERS, convert_with
from polarspike.baselines.rival import Rival, RivalSpec, prepare
from polarspike.baselines.scene import MeanFrame, OverFrames, Scene
from polarspike.baselines.sequences import Pooling
from polarspike.energy import CostTable, System, estimate_energy
from polarspike.errors import SpecError
from polarspike.evaluation import Evaluation, evaluate
from polarspike.ledger import Ledger
from polarspike.runs import RunDirectory
from polarspike.specs import Spec, TrainSpec
from polarspike.training import fit

ASKED = ("network", "method", "levels", "trained_steps", "budget", "seed")
_PRICED: tuple[System, ...] = ("ann", "qann", "a", "b", "c", "d")
FOUND = (
    "latency", "timesteps", "accuracy", "ann_accuracy", "events", "spikes", "negative_spikes", "code_bits",
    *(f"nj_{system}" for system in _PRICED), "time_ratio", "epochs", "training_seconds", "setting",
)  # fmt: skip
_COUNTED = 16  # images whose operations are counted
_TIMED = 64  # images of a timing


@dataclass(frozen=True)
class Comparison(Spec):
    """What is compared.

    Args:
        data: a dataset of :mod:`polarspike.data`.
        model: a network of :mod:`polarspike.models`.
        width: of its first layer; None for its own default.
        methods: of :data:`METHODS` and :data:`PEERS`; ``"ann"`` is the float network.
        levels: codes of quantizers, each a run.
        trained_steps: T of direct training, each a run.
        latencies: true latencies at which answers are read.
        seeds: each with its own float network.
        float_epochs: of the float network.
        epochs: of fine-tuning; the float network continues as long.
        rates: learning rates of fine-tuning; of several, validation images choose.
        distillation: weight of the float network as a teacher.
        rehearsal: steps of SRP and COS before those that count.
        pooling: of rivals over time.
        frames: sequences of so many noisy frames in place of images; 0 for images.
        limit: the most images of each part, for a rehearsal.

    Raises:
        SpecError: an unknown method, or a value out of range.
    """

    data: str = "fashion-mnist"
    model: str = "resnet9"
    width: int | None = None
    methods: tuple[str, ...] = ("ann", *METHODS)
    levels: tuple[int, ...] = (4,)
    trained_steps: tuple[int, ...] = (1, 2, 4)
    latencies: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    seeds: tuple[int, ...] = (0,)
    float_epochs: int = 10
    epochs: int = 5
    rates: tuple[float, ...] = (0.05,)
    distillation: float = 0.0
    rehearsal: int = 4
    pooling: Pooling = "sums"
    frames: int = 0
    limit: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        known = ("ann", *METHODS, *PEERS)
        for method in self.methods:
            self._require("methods", method in known, f"some of {', '.join(known)}")
        for name in ("levels", "trained_steps", "latencies", "seeds", "rates"):
            self._require(name, bool(getattr(self, name)), "at least one value")
        self._require("latencies", self.latencies == tuple(sorted(set(self.latencies))), "increasing numbers")
        self._require("epochs", self.epochs >= 1 and self.float_epochs >= 1, "at least 1, like float_epochs")

    @property
    def network(self) -> str:
        """The network and its input in one word."""
        width = "" if self.width is None else f"-{self.width}"
        return f"{self.model}{width}{f'-{self.frames}-frames' if self.frames else ''}"

    def runs(self) -> list[dict[str, Any]]:
        """All runs, seed by seed."""
        return [
            dict(zip(ASKED, (self.network, name, *variant, seed), strict=True))
            for seed in self.seeds
            for name in self.methods
            for variant in self._variants(name)
        ]

    def _variants(self, name: str) -> Iterator[tuple[int | None, int | None, str]]:
        method = METHODS.get(name)
        levels = self.levels if method is not None and method.has_levels else (None,)
        if method is None or method.family != "direct":
            yield from ((level, None, "epochs") for level in levels)
            return
        for level, steps in itertools.product(levels, self.trained_steps):
            yield level, steps, "epochs"
            if steps > 1:
                yield level, steps, "time"


class Contest:
    """Carries the runs of a comparison out.

    Args:
        comparison: what is asked.
        place: a directory: the table ``rivals.csv``, and what was trained.
        root: of the dataset's files, where it is not the usual one.
        say: told what begins.
    """

    def __init__(
        self,
        comparison: Comparison,
        place: Path,
        *,
        root: Path | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.asked = comparison
        self.place = place
        self.say = say
        self.ledger = Ledger(place / "rivals.csv", (*ASKED, *FOUND))
        dataset = data.load(comparison.data, root=root)
        if not isinstance(dataset, data.ImageDataset):
            raise SpecError(f"Comparison.data: expected a data set in memory, {comparison.data!r} is not; give another")
        self.scene = Scene(dataset, comparison.frames, len(comparison.rates) > 1, comparison.limit)

    def missing(self) -> list[dict[str, Any]]:
        """The runs that the table lacks."""
        return self.ledger.missing(self.asked.runs())

    def announcement(self) -> str:
        """The runs that are missing, and what they will cost by the mean of those that are done."""
        missing = self.missing()
        done = {tuple(row[key] for key in ASKED): float(row["seconds"]) for row in self.ledger.rows()}
        lines = [_described(run) for run in missing]
        cost = (
            f"about {len(missing) * statistics.fmean(done.values()) / 60:.0f} minutes"
            if done
            else "known after the first run"
        )
        return "\n".join([*lines, f"{len(missing)} runs to do, {len(done)} done; cost of the rest: {cost}"])

    def carry_out(self) -> None:
        """Do what is missing, one run after the other."""
        for run in self.missing():
            self.say(_described(run))
            started = time.perf_counter()
            self.ledger.add(*self._run(run), started=started)

    def _run(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        name, seed = run["method"], run["seed"]
        ann, accuracy = self._control(seed)
        if name == "ann":
            return [{**run, "latency": 1, "timesteps": 1, "accuracy": accuracy, "ann_accuracy": accuracy}]
        if name in PEERS:
            return self._peer(run, ann, accuracy)
        method = describe(name)
        best: tuple[float, Rival, dict[str, Any]] | None = None
        for rate in self.asked.rates if method.trains else (0.0,):
            rival, cost = self._made(run, method, rate, ann)
            score = self._score(rival, run) if len(self.asked.rates) > 1 and method.trains else 0.0
            if best is None or score > best[0]:
                best = score, rival, cost
        assert best is not None
        _, rival, cost = best
        common = {**run, "ann_accuracy": accuracy, "code_bits": _code_bits(method, run["levels"]), **cost}
        return [{**common, **row} for row in self._measured(rival, ann)]

    def _parent(self, seed: int) -> nn.Module:
        model = self.scene.model(self.asked.model, seed, **self._options())
        self._fit(model, f"float-{seed}", self._spec(seed, self.asked.float_epochs, None))
        return model

    def _control(self, seed: int) -> tuple[nn.Module, float]:
        """The float network with every epoch that the others had, and its percentage of right answers."""
        found: list[tuple[float, nn.Module]] = []
        for rate in self.asked.rates:
            model = self._parent(seed)
            teacher = copy.deepcopy(model)
            self._fit(model, f"control-{seed}-{rate:g}", self._spec(seed, self.asked.epochs, rate), teacher)
            score = 0.0 if len(self.asked.rates) == 1 else _accuracy(self._whole(model), self.scene.validation())
            found.append((score, model))
        _, best = max(found, key=lambda pair: pair[0])
        return best, _accuracy(self._whole(best), self.scene.test())

    def _made(self, run: dict[str, Any], method: Method, rate: float, ann: nn.Module) -> tuple[Rival, dict[str, Any]]:
        """A method's network, calibrated and trained; and what that cost."""
        seed, steps = run["seed"], run["trained_steps"]
        spec = RivalSpec(run["levels"] or 2, steps or 1, self.asked.rehearsal, pooling=self.asked.pooling)
        example, _ = self.scene.calibration(8)[0]
        direct = method.family == "direct"
        if direct:
            start = self.scene.model(self.asked.model, seed, **self._options())
            epochs = self.asked.float_epochs + self.asked.epochs
            if run["budget"] == "time":
                epochs = max(1, -(-epochs // steps))
        else:
            start, epochs = (self._parent(seed) if method.trains else ann), self.asked.epochs
        rival = prepare(method.name, start, spec, example=example[:2])
        rival.calibrate(self.scene.calibration())
        if not method.trains:
            return rival, {"epochs": 0, "training_seconds": 0.0}
        # Those that share a start share what is trained: QCFS, SRP, COS and group neurons.
        what = f"{method.name}-{steps}-{run['budget']}" if direct else _quantizer_of(method)
        stage = f"{what}-{run['levels'] or 0}-{seed}-{rate:g}".replace("+", "plus").replace(".", "_")
        train = self._spec(seed, epochs, rate)
        trained = rival.trained
        teacher = None if direct else copy.deepcopy(start)
        if direct and self.scene.frames:
            trained = OverFrames(trained)
        seconds = self._fit(trained, stage, train, teacher, sequences=steps if direct else 0)
        return rival, {"epochs": epochs, "training_seconds": seconds, "setting": f"rate {rate:g}"}

    def _peer(self, run: dict[str, Any], ann: nn.Module, accuracy: float) -> list[dict[str, Any]]:
        """The best setting at each latency, chosen on training images."""
        if self.scene.frames:
            raise SpecError(f"{run['method']}: peers are driven on images; leave frames out")
        calibration = self.scene.calibration()
        latencies = self.asked.latencies
        tried = []
        for setting in PEERS[run["method"]].settings:
            network = convert_with(run["method"], ann, calibration[:4], **setting)
            tried.append((setting, network, evaluate(network, calibration, latencies).accuracy))
        rows = []
        for latency in latencies:
            setting, network, _ = max(tried, key=lambda trial: trial[2][latency])
            found = evaluate(network, self.scene.test(), latency)
            row = {"latency": latency, "timesteps": latency, "epochs": 0, "training_seconds": 0.0, "setting": setting}
            rows.append({**run, "ann_accuracy": accuracy, **row, **_firing(found, latency)})
        return rows

    def _measured(self, rival: Rival, ann: nn.Module) -> list[dict[str, Any]]:
        steps = {latency: rival.timesteps(latency) for latency in self.asked.latencies}
        wanted = {latency: T for latency, T in steps.items() if T is not None and (self.scene.frames or T) >= T}
        if not wanted:
            raise SpecError(f"{rival.method.name}: no latency of {self.asked.latencies} leaves a step that counts")
        network = rival.network()
        found = evaluate(
            OverFrames(network) if self.scene.frames else network, self.scene.test(), tuple(wanted.values())
        )
        images = self.scene.calibration(_TIMED)[0][0][:_TIMED]
        rows = []
        for latency, timesteps in wanted.items():
            energy = estimate_energy(rival.count(images[:_COUNTED], timesteps), CostTable.cmos45())
            prices = {f"nj_{s}": energy.row(s).total_pj / energy.images * 1e-3 for s in _PRICED}
            ratio = _time_ratio(network, ann, images, timesteps)
            row = {"latency": latency, "timesteps": timesteps, "time_ratio": ratio}
            rows.append({**row, **_firing(found, timesteps), **prices})
        return rows

    def _score(self, rival: Rival, run: dict[str, Any]) -> float:
        """Percentage right on validation images, at the T of training or at the first timestep."""
        network: nn.Module = OverFrames(rival.network()) if self.scene.frames else rival.network()
        return _accuracy(network, self.scene.validation(), run["trained_steps"] or 1)

    def _whole(self, ann: nn.Module) -> nn.Module:
        return MeanFrame(ann) if self.scene.frames else ann

    def _fit(
        self, model: nn.Module, stage: str, spec: TrainSpec, teacher: nn.Module | None = None, *, sequences: int = 0
    ) -> float:
        """Train, or load what was trained before; the seconds of training."""
        path = self.place / self.asked.network / stage.replace(".", "_")
        run = RunDirectory(path, resume=path.exists())
        loader = self.scene.training(sequences)
        history = fit(
            model, loader, spec, teacher=teacher if spec.distillation else None, run=run, resume=True, progress=False
        )
        return sum(epoch.seconds for epoch in history.epochs)

    def _spec(self, seed: int, epochs: int, rate: float | None) -> TrainSpec:
        """Of fine-tuning at a rate, or of the float network where none is given."""
        transformer = self.asked.model == "vit"
        plain = TrainSpec(epochs=epochs, seed=seed, warmup_epochs=min(1.0, epochs / 4))
        if rate is None:
            rate = 3e-3 if transformer else 0.2
            return dataclasses.replace(
                plain, optimizer="adamw" if transformer else "sgd", learning_rate=rate,
                weight_decay=0.02 if transformer else 5e-4,
            )  # fmt: skip
        return dataclasses.replace(
            plain,
            optimizer="adamw" if transformer else "sgd",
            # A Transformer's usual rate is 50 times below that of a network with batch norm under SGD.
            learning_rate=rate / 50 if transformer else rate,
            weight_decay=0.02 if transformer else 5e-4,
            distillation=self.asked.distillation,
        )

    def _options(self) -> dict[str, Any]:
        return {} if self.asked.width is None else {"width": self.asked.width}


def _described(run: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in run.items() if value is not None)


def _quantizer_of(method: Method) -> str:
    return method.name if method.name in ("lsq+", "pact") else f"quantized-{method.start}"


def _code_bits(method: Method, levels: int | None) -> int:
    codes = {"binary": 2, "signed": 3, "multi": levels or 2}[method.spikes]
    return (codes - 1).bit_length()


def _accuracy(network: nn.Module, batches: Any, timesteps: int = 1) -> float:
    return 100 * evaluate(network, batches, timesteps).accuracy[timesteps]


def _firing(found: Evaluation, timesteps: int) -> dict[str, Any]:
    assert found.firing is not None
    fired = found.firing[timesteps]
    return {
        "accuracy": 100 * found.accuracy[timesteps],
        "events": fired.events_per_neuron,
        "spikes": fired.spikes_per_neuron,
        "negative_spikes": fired.negative_spikes_per_neuron,
    }


@torch.no_grad()
def _time_ratio(network: nn.Module, ann: nn.Module, images: torch.Tensor, timesteps: int, rounds: int = 5) -> float:
    """Median over interleaved rounds of the time of T steps over that of the float network."""
    ratios = []
    for _ in range(rounds + 1):
        marks = [time.process_time()]
        ann(images)
        marks.append(time.process_time())
        network(images, timesteps=timesteps)
        marks.append(time.process_time())
        ratios.append((marks[2] - marks[1]) / (marks[1] - marks[0]))
    return statistics.median(ratios[1:])  # the first one warms up
