"""``polarspike bench rivals``: our method and its rivals in the same run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from polarspike.baselines.comparison import Comparison
from polarspike.baselines.contest import Contest
from polarspike.baselines.published import published_table
from polarspike.cli.command import Command, show, tell
from polarspike.errors import MissingExtraError, SpecError
from polarspike.report.rivals import plot_rivals, rivals_table


@dataclass(frozen=True, kw_only=True)
class Rivals(Command):
    """Compare methods on the same network, images and counts, at their true latency.

    What is finished stands in rivals.csv of the run directory, and the same command goes on from there; several of them
    may share it, also from other environments (with other tools installed).

    Args:
        run: the directory for the table, the plots and what was trained; runs/rivals if not given.
        list: say what is to do, and what it will cost, and do nothing.
        published: show the figures that others have published beside the table.
        root: the folder of the dataset's files, where it is not the usual one.
        threads: of torch; one gives the steadiest times.
    """

    run: Path | None = None
    list: bool = False
    published: bool = False
    root: Path | None = None
    threads: int = 1
    comparison: Annotated[Comparison, tyro.conf.arg(name="")] = field(default_factory=Comparison)

    @property
    def place(self) -> Path:
        """The run directory."""
        return self.run or Path("runs/rivals")

    def execute(self) -> int:
        if self.threads < 1:
            raise SpecError(f"--threads: expected at least 1, got {self.threads}")
        torch.set_num_threads(self.threads)
        start = time.monotonic()
        contest = Contest(
            self.comparison,
            self.place,
            root=self.root,
            say=lambda message: tell(f"[{time.monotonic() - start:6.0f} s] {message}"),
        )
        if self.list:
            show(contest.announcement())
            return 0
        contest.carry_out()
        rows = contest.rows()
        show(rivals_table(rows))
        if self.published:
            show(f"\npublished by others, not measured here\n{published_table()}")
        try:
            for path in plot_rivals(rows, self.place):
                tell(f"wrote {path}")
        except MissingExtraError as error:
            tell(f"no plots: {error}")
        return 0

    def after_interrupt(self, arguments: object) -> str:
        del arguments
        return f"what is finished is in {self.place}; give the same command to go on"
