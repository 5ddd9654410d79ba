"""``polarspike demo`` and ``polarspike train``: a recipe from data to a verified spiking network, in a run directory."""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import runpy
import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Self

import torch
import tyro

from polarspike import data
from polarspike.cli.command import Command, ending_together, refuse, show, tell
from polarspike.cli.deterministic import deterministic
from polarspike.cli.memory import keep_memory
from polarspike.cli.report_pages import PAGE, write_report
from polarspike.errors import RunError, SpecError, closest
from polarspike.experiments import recipes
from polarspike.experiments.experiment import Prepared, carry_out, prepare
from polarspike.experiments.recipe import Recipe
from polarspike.experiments.rehearsal import rehearse
from polarspike.parallel import distributed
from polarspike.parallel.processes import join, launched
from polarspike.runs import RunDirectory, require_free


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Do all of it in a few minutes: a small network on real digits (MNIST-5k).

    Args:
        run: the directory for everything that it makes; the first free one of runs/demo, runs/demo-2, ... if not given.
        resume: continue the run that is there (`--run`).
    """

    run: Path | None = None
    resume: bool = False

    def execute(self) -> int:
        # One thread: a network this small gains little from two, and sums come out the same on every machine.
        torch.set_num_threads(1)
        if self.resume and self.run is None:
            raise SpecError("demo --resume: expected --run DIR, the run to continue")
        device = join()
        with ending_together():
            place = distributed.common(self.run or _first_free(Path("runs/demo")))
            require_free(place)
            prepared = prepare(recipes.DEMO, device=device)
            with RunDirectory(place, resume=self.resume) as run:
                return _work(prepared, run)

    def after_interrupt(self, arguments: Sequence[str]) -> str:
        return "start again, or continue with --run DIR --resume" if self.run is None else _advice(self.run, arguments)


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train, quantize, convert, verify and evaluate a network on a dataset, by a recipe.

    Args:
        name: a recipe of this library (a wrong name lists them), or a Python file as for --recipe; it comes before all
            options.
        recipe: a Python file that sets RECIPE = Recipe(...); it is run, as your own code. Without it, the recipe that is
            published for the dataset. Options override its values.
        rehearse: run every stage on 64 random images of the right shape, write nothing, and fail where anything is wrong;
            on the CPU, and without the options on data and the run.
        run: the directory for everything that it makes; runs/DATA-MODEL if not given (and -READING of bins that are
            timesteps).
        resume: continue the run that is there (`--run`), with what it was asked for.
        root: the folder of the dataset's files, where it is not the usual one.
        download: allow Fashion-MNIST, or what is made from it, to be downloaded; nothing is fetched otherwise.
        device: where to train and evaluate; a GPU where there is one.
        tensorboard: show the curves in TensorBoard, too (tensorboard --logdir of the run).
        deterministic: take torch's deterministic algorithms alone, so that a run on a GPU that was killed and resumed ends
            with the same weights; slower. Runs on a CPU do so without.
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    recipe: Path | None = None
    rehearse: bool = False
    run: Path | None = None
    resume: bool = False
    root: Path | None = None
    download: bool = False
    device: str = "auto"
    tensorboard: bool = False
    deterministic: bool = False
    values: Annotated[Recipe, tyro.conf.arg(name="")] = field(default_factory=Recipe)
    # Not an option: whether the values are those of the recipe that is named.
    named: tyro.conf.Suppress[bool] = False

    @classmethod
    def starting(cls, arguments: Sequence[str]) -> Self:
        """The command before its options: the recipe's values are what the options then start from.

        That recipe is, in this order: the one that is named; the file of ``--recipe``; what a run that is resumed recorded;
        what is published for ``--data``; ``Recipe()``.

        Raises:
            SpecError: the name is unknown, or the file is none, fails, or sets no recipe.
        """
        if arguments[1:2] and not arguments[1].startswith("-"):
            return cls(values=named_recipe(arguments[1]), named=True)
        peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        for name in ("--recipe", "--run", "--data"):
            peek.add_argument(name, nargs="?")
        peek.add_argument("--resume", action="store_true")
        seen, _ = peek.parse_known_args(arguments)
        if seen.recipe:
            return cls(values=read_recipe(Path(seen.recipe)))
        if seen.resume and seen.run and (specs := _recorded(Path(seen.run))):
            return cls(values=Recipe.from_dict(specs["recipe"]), device=specs["device"])
        start = Recipe() if seen.data is None else dataclasses.replace(Recipe(), data=seen.data)
        return cls(values=recipes.PUBLISHED.get(start.data, start))

    @property
    def place(self) -> Path:
        """The run directory."""
        reading = f"-{self.values.reading}" if self.values.in_time else ""
        return self.run or Path("runs") / f"{self.values.data}-{self.values.model}{reading}"

    def execute(self) -> int:
        if self.name and not self.named:
            raise SpecError(
                f"train: expected a recipe's name in front of all options, got {self.name!r} behind one, where it would "
                f"change nothing; start with polarspike train {self.name}"
            )
        if self.named:
            refuse({"--recipe": self.recipe is not None}, f"the recipe is that of the name in front, {self.name}")
        if self.rehearse:
            if launched() > 1:
                raise SpecError("train --rehearse: expected one process, on the CPU; start it without a launcher")
            unused = {
                "--resume": self.resume,
                "--run": self.run is not None,
                "--tensorboard": self.tensorboard,
                "--root": self.root is not None,
                "--download": self.download,
                "--device": self.device not in ("auto", "cpu"),
            }
            refuse(unused, "train --rehearse is of random images on the CPU, from the start, and writes nothing")
            start = time.monotonic()
            rehearse(self.values, say=lambda message: tell(f"[{time.monotonic() - start:5.0f} s] {message}"))
            show(f"rehearsed: {self.values.model} on {self.values.data}")
            return 0
        root = None if self.root is None else str(self.root)
        with deterministic(self.deterministic):
            device = join(self.device)
            with ending_together():
                require_free(self.place)
                prepared = prepare(self.values, root=root, download=self.download, device=device)
                with RunDirectory(self.place, resume=self.resume, tensorboard=self.tensorboard) as run:
                    return _work(prepared, run)

    def after_interrupt(self, arguments: Sequence[str]) -> str:
        return _advice(self.place, arguments)


def named_recipe(name: str) -> Recipe:
    """A recipe of this library by its name, or of a file.

    Raises:
        SpecError: there is neither.
    """
    if name in recipes.RECIPES:
        return recipes.RECIPES[name]
    if name.endswith(".py"):
        return read_recipe(Path(name))
    known = recipes.RECIPES
    if dataset := next((one for one in data.names() if _letters(one) == _letters(name)), None):
        those = [recipe for recipe, values in known.items() if values.data == dataset]
        repair = f"one of its recipes: {', '.join(those)}" if those else "a recipe's name, and none is of this data set"
        raise SpecError(f"{name!r} is a data set: expected {repair}; or give --data {dataset}, and --model")
    raise SpecError(f"unknown recipe {name!r}: expected a .py file or one of {', '.join(known)}{closest(name, known)}")


def _letters(name: str) -> str:
    """A name without what people leave out or write otherwise."""
    return "".join(filter(str.isalnum, name.lower()))


def read_recipe(path: Path) -> Recipe:
    """What a recipe file sets as ``RECIPE``; the file is executed.

    Raises:
        SpecError: there is no such file, it fails, or it sets no recipe.
    """
    if not path.is_file():
        raise SpecError(f"--recipe {path}: expected a Python file, found {'a folder' if path.is_dir() else 'nothing'}")
    try:
        recipe = runpy.run_path(str(path)).get("RECIPE")
    except Exception as error:  # whatever the user's file raises
        moved = isinstance(error, ModuleNotFoundError) and str(error.name).startswith("polarspike.")
        repair = "; write: from polarspike.experiments import Recipe" if moved else ""
        raise SpecError(f"--recipe {path}: the file fails with {type(error).__name__}: {error}{repair}") from error
    if not isinstance(recipe, Recipe):
        raise SpecError(
            f"--recipe {path}: expected the file to set RECIPE = Recipe(...) (from polarspike.experiments import Recipe), "
            f"got {'no RECIPE' if recipe is None else type(recipe).__name__}"
        )
    return recipe


def _work(prepared: Prepared, run: RunDirectory) -> int:
    keep_memory()
    start = time.monotonic()
    outcome = carry_out(prepared, run, say=lambda message: tell(f"[{time.monotonic() - start:5.0f} s] {message}"))
    show(outcome)
    if distributed.is_main():
        try:
            write_report([run.path], run.path / PAGE)
        except RunError as error:  # what was found is on the disk, and the exit code is about that
            tell(f"no {PAGE}: {error}")
    tell(f"[{time.monotonic() - start:5.0f} s] everything is in {run.path}")
    if not outcome.proofs[0].exact:
        tell(f"not exact at T = 1: the first difference is at {outcome.proofs[0].first_difference}")
        return 1
    if outcome.through_time is not None and not (proof := outcome.through_time.proof).exact:
        tell(f"not exact through time: streamed otherwise than at once, first at {proof.first_difference}")
        return 1
    return 0


def _first_free(place: Path) -> Path:
    """``place`` itself, or the first of ``place-2``, ``place-3``, ... that does not exist."""
    candidates = itertools.chain([place], (place.with_name(f"{place.name}-{count}") for count in itertools.count(2)))
    return next(candidate for candidate in candidates if not candidate.exists())


def _recorded(place: Path) -> dict[str, Any]:
    """What the run at ``place`` was asked for; empty if that cannot be told, which RunDirectory then explains."""
    try:
        specs = json.loads((place / "config.json").read_text(encoding="utf-8"))["specs"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}
    return specs if isinstance(specs, dict) and {"recipe", "device"} <= specs.keys() else {}


def _advice(place: Path, arguments: Sequence[str]) -> str:
    if not (place / "config.json").is_file():
        return "nothing was written"
    again = [*arguments, *([] if "--resume" in arguments else ["--resume"])]
    return f"what is finished is in {place}; continue with: polarspike {shlex.join(again)}"
