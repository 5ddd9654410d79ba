"""A run directory as it lies on disk: what was asked for, how the training went, what was found. Nothing is changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarspike.errors import RunError
from polarspike.runs import read_config, read_json, read_records
from polarspike.specs import Spec

#: The stages of an experiment, in order, and what each trains.
STAGES = {
    "ann": "ANN",
    "qann": "QANN",
    "control": "ANN, continued",
    "through_time": "SNN through time",
    "through_time_control": "ANN, continued beside it",
}


@dataclass(frozen=True)
class Record:
    """One run of an experiment.

    Attributes:
        path: its directory.
        config: what it was asked to do, when, and by which versions.
        stages: the records of each stage that has begun, epoch by epoch.
        results: what was found; None until everything is finished.
        indifferent: names in the recipe that change no result.
    """

    path: Path
    config: Mapping[str, Any]
    stages: Mapping[str, list[dict[str, Any]]]
    results: Mapping[str, Any] | None
    indifferent: frozenset[str] = frozenset()

    @classmethod
    def read(cls, path: Path, recipes: type[Spec] | None = None) -> Record:
        """The run at ``path``.

        Args:
            path: its directory.
            recipes: what recipes are; one that was written by a release that knew fewer fields asked for their defaults.

        Raises:
            RunError: it is no run of an experiment, or a file of it is damaged.
        """
        if not path.is_dir():
            raise RunError(f"{path}: expected a run directory, found {'a file' if path.exists() else 'nothing'}")
        if not (path / "config.json").is_file():
            compared = (path / "rivals.csv").is_file()
            hint = "; the page of a comparison is rivals.html, which polarspike bench rivals writes" if compared else ""
            raise RunError(f"{path}: expected a run of polarspike train or demo, found no config.json in it{hint}")
        config = read_config(path)
        if not isinstance(config.get("specs"), dict) or not isinstance(config["specs"].get("recipe"), dict):
            raise RunError(
                f"{path}: expected the run of an experiment, whose configuration holds a recipe, as polarspike train writes "
                "it; this is a run of something else, or one of its stages"
            )
        stages = {name: read_records(path / name) for name in STAGES if (path / name).is_dir()}
        place = path / "results.json"
        results = read_json(place) if place.exists() else None
        if results is not None and not isinstance(results, dict):
            raise RunError(f"{place}: expected an object, got {type(results).__name__}; it is damaged")
        if recipes is None:
            return cls(path, config, stages, results)
        config["specs"]["recipe"] = json.loads(json.dumps(recipes.completed(config["specs"]["recipe"])))
        return cls(path, config, stages, results, recipes.indifferent)

    @property
    def recipe(self) -> Mapping[str, Any]:
        """What was asked for."""
        recipe: Mapping[str, Any] = self.config["specs"]["recipe"]
        return recipe

    @property
    def name(self) -> str:
        """Network, data and seed in a few words."""
        recipe = self.recipe
        negative, positive = recipe["quant"]["negative"], recipe["quant"]["positive"]
        return f"{recipe['model']} on {recipe['data']}, levels ({negative}, {positive}), seed {recipe['seed']}"

    @property
    def label(self) -> str:
        """What its directory is called."""
        return self.path.name or self.path.resolve().name

    @property
    def seeds(self) -> tuple[Any, ...]:
        """Of the recipe and of each training in it."""
        recipe = self.recipe
        specs = (recipe, *(value for value in recipe.values() if isinstance(value, dict)))
        return tuple(spec["seed"] for spec in specs if "seed" in spec)

    @property
    def unseeded(self) -> dict[str, Any]:
        """The recipe without its seeds, with the data's fingerprint: runs that have the same are repetitions."""
        recipe = copy.deepcopy({name: value for name, value in self.recipe.items() if name not in self.indifferent})
        for spec in (recipe, *(value for value in recipe.values() if isinstance(value, dict))):
            spec.pop("seed", None)
        specs = self.config["specs"]
        return {"recipe": recipe, "data": specs.get("data"), "weights": specs.get("weights")}

    @contextmanager
    def understood(self) -> Iterator[None]:
        """Within this context, what the files lack or hold otherwise is told as one error of theirs.

        Raises:
            RunError: in place of what reading plain data raises.
        """
        try:
            yield
        except (LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise RunError(
                f"{self.path}: expected results as polarspike train writes them, got {type(error).__name__}: {error}; they "
                "are damaged, or of another release: resume the run to write them again"
            ) from error
