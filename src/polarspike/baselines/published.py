"""Figures that others have published, with T as published and the true latency; never mixed with what was measured here."""

from __future__ import annotations

import csv
from importlib import resources

from polarspike.common.tables import aligned


def published() -> list[dict[str, str]]:
    """The rows of ``published.csv``; ``timesteps`` is T as published, ``latency`` has the rehearsal, too."""
    text = resources.files("polarspike.baselines").joinpath("published.csv").read_text(encoding="utf-8")
    return list(csv.DictReader(text.splitlines()))


def published_table(dataset: str | None = None) -> str:
    """The rows as text, of one dataset or of all."""
    rows = [row for row in published() if dataset in (None, row["dataset"])]
    columns = ("method", "venue", "dataset", "architecture", "ann_top1", "snn_top1", "timesteps", "latency", "evidence")
    header = ["method", "venue", "dataset", "network", "ANN", "SNN", "T", "true T", "evidence"]
    return "\n".join(aligned([header, *([row[column] or "-" for column in columns] for row in rows)], 200))
