"""``polarspike report``: what a run has found as a page to look at, or several runs beside each other."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from polarspike.cli.command import Command, tell
from polarspike.cli.report_pages import PAGE, write_report
from polarspike.errors import SpecError


@dataclass(frozen=True, kw_only=True)
class Report(Command):
    """Write what runs have found as one HTML page: a run's accuracy, sites and energy, or means of several over seeds.

    Args:
        runs: directories that polarspike train or demo has made; one of them may still be unfinished, if it is alone.
        output: the page; report.html in the run's own directory if not given, which several runs need.
    """

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    output: Path | None = None

    def execute(self) -> int:
        if not self.runs:
            raise SpecError("report: expected the directory of a run, such as runs/demo, got none")
        if len(self.runs) > 1 and self.output is None:
            raise SpecError("report: several runs have no place of their own for a page; give --output FILE.html")
        target = self.output or self.runs[0] / PAGE
        write_report(self.runs, target)
        tell(f"written: {target}")
        return 0
