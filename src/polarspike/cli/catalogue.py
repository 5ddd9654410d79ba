"""``polarspike datasets`` and ``polarspike models``: what there is, and what is in one of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro

from polarspike import data, models
from polarspike.cli.command import Command, refuse, show
from polarspike.data import Augmentation
from polarspike.data.registry import FOLDER_VARIABLE, DatasetEntry
from polarspike.experiments.recipes import RECIPES

#: So many names of classes are shown.
_CLASSES = 10


@dataclass(frozen=True, kw_only=True)
class Datasets(Command):
    """List the data sets, or read one and say what it holds; what is missing is named, with how to get it.

    Args:
        name: read this one; a simulated one is made on the first reading, in half an hour.
        root: the folder of its files, where it is not the usual one.
        download: allow Fashion-MNIST, or what is made from it, to be downloaded; nothing is fetched otherwise.
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    root: Path | None = None
    download: bool = False

    def execute(self) -> int:
        if not self.name:
            refuse(
                {"--root": self.root is not None, "--download": self.download},
                "without the name of a data set nothing is read",
            )
        show(self._one() if self.name else _datasets())
        return 0

    def _one(self) -> str:
        entry = data.describe(self.name)
        dataset = data.load(self.name, self.root, download=self.download)
        counts = ", ".join(f"{dataset.count(part)} {part}" for part in dataset.parts())
        mean, std = (
            " ".join(f"{value:.4f}" for value in values)
            for values in (dataset.normalization.mean, dataset.normalization.std)
        )
        recipes = [name for name, recipe in RECIPES.items() if recipe.data == self.name]
        return "\n".join(
            [
                f"{self.name}: {entry.summary}",
                f"samples        {counts}",
                f"shape          {_shape(entry)}",
                f"classes        {_some(dataset.classes)}",
                f"normalization  mean {mean}, standard deviation {std} (of pixels in 0..1)",
                f"augmentation   {_changed(dataset.augmentation)}",
                f"origin         {dataset.origin}",
                f"licence        {dataset.licence}",
                f"recipes        {', '.join(recipes) or 'none'}",
            ]
        )


@dataclass(frozen=True, kw_only=True)
class Models(Command):
    """List the networks, or say what options one has and how large it is.

    Args:
        name: this one.
        classes: how many the head has.
        channels: of the input.
    """

    name: Annotated[str, tyro.conf.Positional] = ""
    classes: int = 10
    channels: int = 3

    def execute(self) -> int:
        if not self.name:
            asked = {"--classes": self.classes != 10, "--channels": self.channels != 3}
            refuse(asked, "without the name of a network none is described")
        show(self._one() if self.name else _models())
        return 0

    def _one(self) -> str:
        entry = models.describe(self.name)
        with torch.device("meta"):  # shapes alone: nothing is drawn
            network = models.create(self.name, num_classes=self.classes, in_channels=self.channels)
        count = sum(parameter.numel() for parameter in network.parameters())
        recipes = [name for name, recipe in RECIPES.items() if recipe.model == self.name]
        return "\n".join(
            [
                f"{self.name}: {entry.summary}",
                f"options     {', '.join(entry.options)}",
                f"parameters  {count:,} at their defaults, {self.channels} channels, {self.classes} classes",
                f"input       from {entry.image_size}x{entry.image_size} pixels"
                + (" (built for one size: image_size)" if entry.needs_image_size else ""),
                f"recipes     {', '.join(recipes) or 'none'}",
            ]
        )


def _datasets() -> str:
    entries = [data.describe(name) for name in data.names()]
    rows = [("name", "image", "classes", "what")]
    rows += [(entry.name, _shape(entry), str(entry.shape.classes), entry.summary) for entry in entries]
    return "\n".join(
        [
            *_columns(rows),
            f"files: in ${FOLDER_VARIABLE}/NAME, or --root; read one, or learn how to get it: polarspike datasets NAME",
        ]
    )


def _models() -> str:
    entries = [models.describe(name) for name in models.names()]
    return "\n".join(_columns([("name", "what"), *((entry.name, entry.summary) for entry in entries)]))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    """All cells to the left, none of them shortened."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(room) for cell, room in zip(row, widths, strict=True)).rstrip() for row in rows]


def _shape(entry: DatasetEntry) -> str:
    return f"{entry.shape.channels}x{entry.shape.height}x{entry.shape.width}"


def _changed(spec: Augmentation) -> str:
    """The fields that do something."""
    start = Augmentation().to_dict()
    found = [f"{key} {value}" for key, value in spec.to_dict().items() if value != start[key]]
    return ", ".join(found) or "none"


def _some(classes: Sequence[str]) -> str:
    more = f", and {len(classes) - _CLASSES} more" if len(classes) > _CLASSES else ""
    return f"{len(classes)}: {', '.join(classes[:_CLASSES])}{more}"
