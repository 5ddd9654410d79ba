"""Carry a comparison out: all methods on the same network, images and counts, in one table that several processes may fill.

Every method starts from the same float network of a seed, or from its fresh weights (direct training). What trains has the
same epochs, schedule, augmentation and teacher, and as many trials of the learning rate, of which validation images choose.
Direct training at T timesteps has the same epochs once more, and once the same *time*: epochs / T.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import textwrap
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from polarspike import data
from polarspike.baselines.choice import shared_out
from polarspike.baselines.comparison import ASKED, Comparison, described, key_of
from polarspike.baselines.measurement import FLOAT_BITS, measured, with_bits
from polarspike.baselines.methods import Method, describe
from polarspike.baselines.peers import PEERS, convert_with, version
from polarspike.baselines.remainder import Missing, require_none_failed
from polarspike.baselines.rival import Rival, RivalSpec, prepare
from polarspike.baselines.rows import COLUMNS, check_row
from polarspike.baselines.scene import Scene
from polarspike.baselines.stages import own_stage, steps_read
from polarspike.baselines.trainings import Trainings, alone, percent_right
from polarspike.errors import (
    InputError,
    MissingExtraError,
    OperatorError,
    PolarspikeError,
    RunError,
    SpecError,
    WriteError,
)
from polarspike.evaluation import evaluate
from polarspike.readings import AtOnce, OverFrames
from polarspike.runs.ledger import AT_THE_EDGE, Ledger, as_text

#: What was refused before anything was trained, and later.
_REFUSED, _REFUSED_LATE = "not applicable: ", "not applicable when it was run: "


class _ToolError(RunError):
    """What went wrong in another tool, and says nothing of the method."""


class Contest:
    """The runs of a comparison.

    Args:
        comparison: what is asked.
        place: a directory for what is trained.
        table: the CSV file of the rows; ``rivals.csv`` in ``place`` if not given.
        dataset: that of the comparison, where it is loaded already.
        say: told what begins.

    Raises:
        SpecError: the dataset is not held in memory.
        RunError: the table that is there has other columns, or cannot be read.
    """

    def __init__(
        self,
        comparison: Comparison,
        place: Path,
        *,
        table: Path | None = None,
        dataset: data.AnyDataset | None = None,
        say: Callable[[str], None] = lambda message: None,
    ) -> None:
        self.asked = comparison
        self.place = place
        self.say = say
        self.ledger = Ledger(table or place / "rivals.csv", COLUMNS, check_row)
        dataset = dataset or data.load(comparison.data)
        if not isinstance(dataset, data.ImageDataset):
            raise SpecError(f"Comparison.data: expected a data set in memory, {comparison.data!r} is not; give another")
        self.scene = Scene(dataset, comparison.frames, len(comparison.rates) > 1, comparison.limit)
        self.trainings = Trainings(comparison, place, self.scene)
        self._refusals: dict[tuple[str, int | None, int | None], str] = {}
        self._left_out: dict[tuple[str, ...], Missing] = {}

    def missing(self) -> list[dict[str, Any]]:
        """The runs that the table lacks, or whose refusal in it is not today's."""
        finished = self.finished()
        return [run for run in self.asked.runs() if key_of(run) not in finished]

    def lacking(self) -> list[Missing]:
        """The same, each with the reason if it was left out here."""
        return [self._left_out.get(key_of(run), Missing(run)) for run in self.missing()]

    def finished(self) -> dict[tuple[str, ...], list[dict[str, str]]]:
        """The rows of this comparison's runs by what identifies a run; of one that was repeated, those written last."""
        wanted = set(map(key_of, self.asked.runs()))
        found = {}
        for rows in self.ledger.groups():
            key, *others = {tuple(row[column] for column in ASKED) for row in rows}
            if not others and key in wanted and all(map(self._current, rows)):
                found[key] = rows
        return found

    def rows(self) -> list[dict[str, str]]:
        """The rows of this comparison's runs."""
        return [row for rows in self.finished().values() for row in rows]

    def carry_out(self) -> None:
        """:meth:`attempt`, and an error at its end if runs have failed.

        Raises:
            RunError: some have, after all others were done; the message is which, and why.
            WriteError: the table, or what is trained, cannot be written; that ends everything at once.
        """
        self.attempt()
        require_none_failed(self.lacking(), len(self.asked.runs()), self.ledger.path)

    def attempt(self) -> None:
        """Do what is missing, one run after the other; what is left out :meth:`lacking` tells, with the reason.

        That is what another process is doing; a run that needs a tool which is not installed, for the same command where
        that is; and one that an error ends, such as a training that diverges: it says nothing of those behind it.

        Raises:
            WriteError: the table, or what is trained, cannot be written, which the next run would not survive either.
        """
        self._left_out.clear()
        for run in self.missing():
            with alone(self.place, "-".join(map(str, run.values())), wait=False) as held:
                if not held:
                    self._leave(run, "held by another process")
                elif key_of(run) not in self.finished():
                    self._attempt(run)

    def _attempt(self, run: dict[str, Any]) -> None:
        self.say(described(run))
        started, cpu = time.perf_counter(), time.process_time()
        try:
            rows = self._answered(run)
            spent = {"cpu_seconds": time.process_time() - cpu}
            self.ledger.add(*({**run, **row, **spent} for row in rows), started=started)
        except WriteError:
            raise
        except (MissingExtraError, _ToolError) as error:
            self.say(f"  left out here: {error}")
            self._leave(run, error)
        except PolarspikeError as error:
            self.say(f"  failed: {error}")
            self._leave(run, error, failed=True)

    def _answered(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of a run, or the one that says why there are none."""
        refusal = self._refusal(run["method"], run["levels"], run["trained_steps"])
        if refusal:
            rows = [{"setting": f"{_REFUSED}{refusal}"}]
        else:
            try:
                return self._run(run)
            except OperatorError as error:
                refusal = str(error)
                rows = [{"setting": f"{_REFUSED_LATE}{error}"}]
        self.say(f"  not applicable: {refusal}")
        return rows

    def _leave(self, run: dict[str, Any], why: object, *, failed: bool = False) -> None:
        self._left_out[key_of(run)] = Missing(run, as_text(why), failed)

    def _current(self, row: Mapping[str, str]) -> bool:
        """Whether a row is still what a run would give: a refusal, which costs nothing, must be today's."""
        if not row["setting"].startswith(_REFUSED):
            return True
        levels, steps = (int(row[key]) if row[key] else None for key in ("levels", "trained_steps"))
        return row["setting"] == as_text(_REFUSED + self._refusal(row["method"], levels, steps))

    def _refusal(self, name: str, levels: int | None, steps: int | None) -> str:
        """Why a method cannot take this network or its sequences, as far as that is known before anything is trained."""
        key = name, levels, steps
        if key not in self._refusals:
            self._refusals[key] = self._refused(name, self._rival_spec(levels, steps))
        return self._refusals[key]

    def _refused(self, name: str, spec: RivalSpec) -> str:
        if name in PEERS:
            return f"{name}: other tools are driven on images" if self.scene.frames else ""
        if name == "ann":
            return ""
        method = describe(name)
        if name == "st-bif" and self.scene.frames:
            return "st-bif: the image enters once and then settles; it has no reading of a sequence"
        if method.rehearses and self.scene.frames:
            return f"{name}: a rehearsal sees the image that is then counted; in a sequence it would see frames twice"
        if not steps_read(self.asked, method, spec.timesteps, min(self.asked.rehearsals)):
            return f"{name}: no latency of {self.asked.latencies} leaves a step that counts"
        example, _ = self.scene.calibration(2)[0]
        try:
            prepare(name, self.trainings.model(0).eval(), spec, example=example)
        except OperatorError as error:
            return str(error)
        return ""

    def _rival_spec(self, levels: int | None, steps: int | None) -> RivalSpec:
        return RivalSpec(levels or 2, steps or 1, self.asked.rehearsal, pooling=self.asked.pooling)

    def _run(self, run: dict[str, Any]) -> list[dict[str, Any]]:
        name, seed = run["method"], run["seed"]
        if name in PEERS:  # what stands in its way is said before anything is trained
            version(PEERS[name].package)
        ann, accuracy = self.trainings.control(seed)
        cost = {"ann_accuracy": accuracy, "epochs": self.asked.float_epochs + self.asked.epochs}
        if name == "ann":
            latency = self.asked.frames or 1  # it sees the mean of all frames
            row = {"latency": latency, "timesteps": latency, "accuracy": accuracy, "spike_bits": FLOAT_BITS}
            once = with_bits({**row, "latency": 1})  # whatever it sees, it is computed once
            return [{**cost, **row, **once, "own_epochs": 0}]
        if name in PEERS:
            return [{**cost, **row} for row in self._peer(name, ann)]
        rival, own = self._best(run, ann)
        return [
            {**cost, **own, **row, "setting": "; ".join(filter(None, (own.get("setting"), row.get("setting"))))}
            for row in self._measured(rival, ann)
        ]

    def rival(self, run: dict[str, Any]) -> Rival:
        """What a run of a method measures, trained where it has not been yet."""
        return self._best(run, self.trainings.control(run["seed"])[0])[0]

    def _best(self, run: dict[str, Any], ann: nn.Module) -> tuple[Rival, dict[str, Any]]:
        """A method's network at the rate that validation images choose, and what it cost."""
        name, method = run["method"], describe(run["method"])
        rates = self.asked.direct_rates if method.family == "direct" else self.asked.rates
        best: tuple[float, Rival, dict[str, Any]] | None = None
        tried: list[str] = []
        for rate in rates if method.trains else (0.0,):
            try:
                rival, own = self._made(run, method, rate, ann)
                score = self._score(rival, run) if len(rates) > 1 and method.trains else 0.0
            except (RunError, InputError) as error:
                if len(rates) == 1 or isinstance(error, WriteError):
                    raise
                self.say(f"  rate {rate:g}: {error}")  # it diverged: no candidate
                tried.append(f"{rate:g}: failed")
                continue
            tried.append(f"{rate:g}: {score:.2f} %")
            if best is None or score > best[0]:
                best = score, rival, own
        if best is None:
            raise RunError(f"{name}: every rate of {rates} fails; give smaller ones")
        _, rival, own = best
        if len(rates) > 1 and method.trains:
            own["setting"] += f"; right on validation images at {', '.join(tried)}"
        return rival, own

    def _made(self, run: dict[str, Any], method: Method, rate: float, ann: nn.Module) -> tuple[Rival, dict[str, Any]]:
        """A method's network, calibrated and trained; and what that cost."""
        seed, steps = run["seed"], run["trained_steps"]
        spec = self._rival_spec(run["levels"], steps)
        example, _ = self.scene.calibration(8)[0]
        direct = method.family == "direct"
        parent = self.trainings.parent(seed)
        start = parent if method.trains else ann
        if direct:
            start = self.trainings.model(seed)
        rival = prepare(method.name, start, spec, example=example[:2])
        rival.calibrate(self.scene.calibration())
        if not method.trains:
            return rival, {"own_epochs": 0, "own_seconds": 0.0}
        stage = own_stage(self.asked, run, method, rate)
        train = self.trainings.spec(seed, stage, self.trainings.scaled(rate), self.asked.distillation)
        trained: nn.Module = rival.trained
        teacher: nn.Module = copy.deepcopy(parent)
        if direct:
            # The value of a ternary spike is no step of a calibrated quantizer: the optimizer of the weights moves it.
            train = dataclasses.replace(train, step_rate=0.0)
            if self.scene.frames:
                trained, teacher = OverFrames(trained), AtOnce(teacher, "integrate")
        seconds = self.trainings.fit(trained, stage, train, teacher, sequences=steps if direct else 0)
        own = {"own_epochs": stage.epochs, "own_seconds": seconds, "setting": f"rate {rate:g}"}
        return rival, {**own, "epochs": stage.epochs} if direct else own

    def _peer(self, name: str, ann: nn.Module) -> list[dict[str, Any]]:
        """The best setting at each latency, chosen on training images."""
        peer, calibration = PEERS[name], self.scene.calibration()
        tried = []
        refused: dict[str, list[str]] = {}
        for setting in peer.settings:
            with _told(name, setting):
                try:
                    network = convert_with(name, ann, calibration, **setting)
                except SpecError as error:
                    refused.setdefault(textwrap.shorten(str(error), 160), []).append(str(setting))
                    continue
                tried.append((setting, network, evaluate(network, calibration, self.asked.latencies)))
        refusals = [f"{', '.join(settings)} refused: {reason}" for reason, settings in refused.items()]
        if not tried:
            raise OperatorError(f"{name}: no setting converts this network: {'; '.join(refusals)}")
        every = {latency: latency for latency in self.asked.latencies}
        rows = []
        for index, steps in shared_out([(every, found) for *_, found in tried]).items():
            setting, network, _ = tried[index]
            edge = [AT_THE_EDGE] if setting in peer.edges else []
            said = "; ".join([f"{peer.package} {version(peer.package)}, {setting}", *edge, *refusals])
            with _told(name, setting):
                found = measured(network, ann, self.scene.test(), steps, counted=False)
            rows += [{**row, "own_epochs": 0, "setting": said} for row in found]
        return rows

    def _rehearsed(self, rival: Rival, ann: nn.Module) -> list[dict[str, Any]]:
        """The best length of a rehearsal at each latency, chosen on training images."""
        calibration = self.scene.calibration()
        lengths = {length: steps_read(self.asked, rival.method, rehearsal=length) for length in self.asked.rehearsals}
        tried = [(length, rival.rehearsing(length).network(), steps) for length, steps in lengths.items() if steps]
        answers = [(steps, evaluate(network, calibration, tuple(steps.values()))) for _, network, steps in tried]
        rows = []
        for index, steps in shared_out(answers).items():
            length, network, _ = tried[index]
            found = measured(network, ann, self.scene.test(), steps)
            for row in found:
                # A longer one could be tried where it leaves a step that counts.
                last = length == max(lengths) and row["latency"] > length + 1
                rows.append({**row, "setting": f"rehearsal: {length}{f'; {AT_THE_EDGE}' if last else ''}"})
        return rows

    def _measured(self, rival: Rival, ann: nn.Module) -> list[dict[str, Any]]:
        if rival.method.rehearses:
            return self._rehearsed(rival, ann)
        wanted = steps_read(self.asked, rival.method, rival.spec.timesteps)
        network: nn.Module = rival.network()
        return measured(OverFrames(network) if self.scene.frames else network, ann, self.scene.test(), wanted)

    def _score(self, rival: Rival, run: dict[str, Any]) -> float:
        """Percentage right on validation images: of the quantized network, or through time at the T of training."""
        if rival.qann is not None:
            return percent_right(self.trainings.whole(rival.qann), self.scene.validation())
        network: nn.Module = OverFrames(rival.network()) if self.scene.frames else rival.network()
        return percent_right(network, self.scene.validation(), run["trained_steps"])


def rows_of(contests: Iterable[Contest]) -> list[dict[str, str]]:
    """The rows of several contests that share a table, each once."""
    runs: dict[tuple[str, ...], list[dict[str, str]]] = {}
    for contest in contests:
        runs |= contest.finished()
    return [row for rows in runs.values() for row in rows]


def lacking_of(contests: Sequence[Contest]) -> tuple[list[Missing], int]:
    """The runs that several contests lack, each once, and how many runs they have in all."""
    missing = {key_of(one.run): one for contest in contests for one in contest.lacking()}
    return list(missing.values()), len({key_of(run) for contest in contests for run in contest.asked.runs()})


@contextlib.contextmanager
def _told(tool: str, setting: Mapping[str, Any]) -> Iterator[None]:
    """Errors of another tool, which have no common base, as one of ours; a tool that is missing stays that."""
    try:
        yield
    except MissingExtraError:
        raise
    except Exception as error:
        raise _ToolError(f"{tool}, {setting}: {type(error).__name__}: {error}") from error
