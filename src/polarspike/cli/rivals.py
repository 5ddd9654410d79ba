"""``polarspike bench rivals``: our method and its rivals in the same run."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro

from polarspike import data
from polarspike.baselines.comparison import Comparison
from polarspike.baselines.contest import Contest, lacking_of, rows_of
from polarspike.baselines.cost import announcement
from polarspike.baselines.presets import Part, preset
from polarspike.baselines.published import published_table
from polarspike.baselines.remainder import require_none_failed, told
from polarspike.cli.command import Command, show, tell
from polarspike.cli.rivals_pages import written_pages
from polarspike.errors import RunError, SpecError
from polarspike.report.rivals import rivals_table


@dataclass(frozen=True, kw_only=True)
class Rivals(Command):
    """Compare methods on the same network, images and counts, at their true latency.

    What is finished stands in rivals.csv of the run directory, and the same command goes on from there; several of them
    may share it, also from other environments (with other tools installed). Runs that are missing at its end are told, with
    the reason; one that fails leaves the others alone, and is an error once those are done.

    Args:
        preset: a list of comparisons that is written down: small or full; in place of all settings below.
        parts: of the preset, by number from 1; all if not given.
        run: the directory for the table, the plots and what was trained; runs/rivals, or
            runs/rivals-PRESET, if not given.
        table: the CSV file of the rows; rivals.csv in the run directory if not given.
        list: say what is to do, and what it will cost, and do nothing.
        published: show the figures that others have published beside the table.
        root: the folder of the dataset's files, where it is not the usual one.
        threads: of torch; one gives the steadiest times.
    """

    preset: str | None = None
    parts: tuple[int, ...] = ()
    run: Path | None = None
    table: Path | None = None
    list: bool = False
    published: bool = False
    root: Path | None = None
    threads: int = 1
    comparison: Annotated[Comparison, tyro.conf.arg(name="")] = field(default_factory=Comparison)

    @property
    def place(self) -> Path:
        """The run directory."""
        return self.run or Path("runs") / ("rivals" if self.preset is None else f"rivals-{self.preset}")

    def execute(self) -> int:
        if self.threads < 1:
            raise SpecError(f"--threads: expected at least 1, got {self.threads}")
        torch.set_num_threads(self.threads)
        start = time.monotonic()
        parts = self._parts()
        sets = {name: data.load(name, root=self.root) for name in {part.comparison.data for part in parts}}
        contests = [
            Contest(
                part.comparison,
                self.place,
                table=self.table,
                dataset=sets[part.comparison.data],
                say=lambda message: tell(f"[{time.monotonic() - start:6.0f} s] {message}"),
            )
            for part in parts
        ]
        if self.list:
            show(announcement(contests, [part.title for part in parts]))
            return 0
        try:
            self.place.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RunError(f"--run {self.place}: expected a directory, or a place for one, got {error}") from None
        if any(contest.missing() for contest in contests):
            tell(announcement(contests).splitlines()[-1])
        for part, contest in zip(parts, contests, strict=True):
            if part.title and contest.missing():
                tell(part.title)
            contest.attempt()
        missing, total = lacking_of(contests)
        rows = rows_of(contests)
        show(rivals_table(rows))
        if self.published:
            show(f"\npublished by others, not measured here\n{published_table()}")
        said = told(missing, total)
        for path in written_pages(rows, self.place, said):
            tell(f"wrote {path}")
        if said:
            show("\n".join(["", *said]))
        require_none_failed(missing, total, contests[0].ledger.path)
        return 0

    def _parts(self) -> tuple[Part, ...]:
        if self.preset is None:
            if self.parts:
                raise SpecError("--parts: only a preset has parts; give --preset, too")
            return (Part("", self.comparison),)
        if self.comparison != Comparison():
            raise SpecError("--preset: a preset says all that is compared; give it, or settings of your own")
        parts = preset(self.preset)
        if not {*self.parts} <= {*range(1, len(parts) + 1)}:
            raise SpecError(f"--parts: expected numbers from 1 to {len(parts)}, got {self.parts}")
        return tuple(part for number, part in enumerate(parts, 1) if number in self.parts or not self.parts)

    def after_interrupt(self, arguments: object) -> str:
        del arguments
        return f"what is finished is in {self.place}; give the same command to go on"
