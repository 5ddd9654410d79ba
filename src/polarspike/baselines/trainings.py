"""The trainings of a comparison: each in a run directory of its own, done once, whoever of the rivals needs it."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from torch import nn

from polarspike.baselines.comparison import Comparison
from polarspike.baselines.scene import Scene
from polarspike.baselines.stages import Stage, control_stage, float_stage
from polarspike.common.locks import locked
from polarspike.errors import InputError, RunError, WriteError
from polarspike.evaluation import evaluate
from polarspike.readings import AtOnce
from polarspike.runs import RunDirectory, read_records
from polarspike.training import fit
from polarspike.training_spec import TrainSpec


class Trainings:
    """What is trained for a comparison.

    Args:
        asked: the comparison.
        place: a directory for what is trained.
        scene: its images.
    """

    def __init__(self, asked: Comparison, place: Path, scene: Scene) -> None:
        self.asked = asked
        self.place = place
        self.scene = scene

    def model(self, seed: int) -> nn.Module:
        """A fresh float network."""
        width = {} if self.asked.width is None else {"width": self.asked.width}
        return self.scene.model(self.asked.model, seed, **width, **self.asked.options)

    def parent(self, seed: int) -> nn.Module:
        """The trained float network that a seed's quantized networks start from."""
        model = self.model(seed)
        stage = float_stage(self.asked, seed)
        self.fit(model, stage, self.spec(seed, stage, self._float_rate()))
        return model

    def control(self, seed: int) -> tuple[nn.Module, float]:
        """The float network with every epoch that the others had, and its percentage of right answers."""
        found: list[tuple[float, nn.Module]] = []
        for rate in self.asked.rates:
            model = self.parent(seed)
            stage = control_stage(self.asked, seed, rate)
            spec = self.spec(seed, stage, self.scaled(rate), self.asked.distillation)
            try:
                self.fit(model, stage, spec, copy.deepcopy(model))
                score = percent_right(self.whole(model), self.scene.validation()) if len(self.asked.rates) > 1 else 0.0
            except (RunError, InputError) as error:
                if len(self.asked.rates) == 1 or isinstance(error, WriteError):
                    raise
                continue  # it diverged
            found.append((score, model))
        if not found:
            raise RunError(f"ann: every rate of {self.asked.rates} fails; give smaller ones")
        _, best = max(found, key=lambda pair: pair[0])
        return best, percent_right(self.whole(best), self.scene.test())

    def fit(
        self, model: nn.Module, stage: Stage, spec: TrainSpec, teacher: nn.Module | None = None, *, sequences: int = 0
    ) -> float:
        """Train, or load what was trained before; the seconds of training. One process at a time trains a stage."""
        path = self._place_of(stage)
        with alone(self.place, f"{path.parent.name}-{path.name}"), RunDirectory(path, resume=path.exists()) as run:
            history = fit(
                model,
                self.scene.training(sequences),
                spec,
                teacher=teacher if spec.distillation else None,
                run=run,
                resume=True,
                progress=False,
            )
        return sum(epoch.seconds for epoch in history.epochs)

    def _place_of(self, stage: Stage) -> Path:
        return self.place / f"{self.asked.network}-{self.asked.training}" / stage.name.replace(".", "_")

    def epochs_of(self, stage: Stage) -> int:
        """How many epochs of a stage lie in the run directory, from where it goes on."""
        return len(read_records(self._place_of(stage)))

    def whole(self, ann: nn.Module) -> nn.Module:
        """A network that knows no time, as it answers the batches of a test: sequences by their mean."""
        return AtOnce(ann, "integrate") if self.scene.frames else ann

    def spec(self, seed: int, stage: Stage, rate: float, distillation: float = 0.0) -> TrainSpec:
        """How a stage is trained: the same for all, but for what the comparison says of its kind."""
        transformer = self.asked.model == "vit"
        return TrainSpec(
            epochs=stage.epochs,
            seed=seed,
            warmup_epochs=min(1.0, stage.epochs / 4),
            optimizer="adamw" if transformer else "sgd",
            learning_rate=rate,
            weight_decay=0.02 if transformer else 5e-4,
            distillation=distillation,
            averaging=self.asked.averaging,
            activity=self.asked.activity if stage.kind == "quantized" else 0.0,
            timesteps=stage.trained_for,
        )

    def scaled(self, rate: float) -> float:
        """A Transformer's usual rate under AdamW is 50 times below that of a network with batch norm under SGD."""
        return rate / 50 if self.asked.model == "vit" else rate

    def _float_rate(self) -> float:
        return 3e-3 if self.asked.model == "vit" else 0.2


@contextlib.contextmanager
def alone(place: Path, name: str, *, wait: bool = True) -> Iterator[bool]:
    """:func:`~polarspike.common.locks.locked` of what is named so in a directory of comparisons.

    Raises:
        WriteError: the lock cannot be made.
    """
    path = place / "locks" / f"{name}.lock"
    with contextlib.ExitStack() as stack:
        try:
            held = stack.enter_context(locked(path, wait=wait))
        except OSError as error:
            raise WriteError(
                f"{path}: the lock cannot be made ({error}); check permissions and free space, or give another directory"
            ) from error
        yield held


def percent_right(network: nn.Module, batches: Any, timesteps: int = 1) -> float:
    """Of the answers after T steps."""
    return 100 * evaluate(network, batches, timesteps).accuracy[timesteps]
