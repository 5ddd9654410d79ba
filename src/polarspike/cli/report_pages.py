"""The HTML page of one run, or of several, as a file; the figures are inside it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from polarspike.cli.command import tell
from polarspike.common.files import replacing
from polarspike.errors import MissingExtraError, RunError
from polarspike.experiments.recipe import Recipe
from polarspike.report.pages import as_html
from polarspike.report.plotting import pyplot
from polarspike.report.record import Record
from polarspike.report.run_figures import plot_run
from polarspike.report.run_page import run_page
from polarspike.report.runs_page import plot_runs, runs_page

#: What the page of a run is called in its directory.
PAGE = "report.html"


def write_report(places: Sequence[Path], target: Path) -> None:
    """Write the page of one run, or of several beside each other; where matplotlib does not work, without figures.

    Raises:
        RunError: the files of a run hold something else, several are not all finished, or the page cannot be written.
    """
    records = [Record.read(place, Recipe) for place in places]
    with tempfile.TemporaryDirectory() as folder:
        here = Path(folder)
        if len(records) == 1:
            (record,) = records
            with record.understood():
                title = record.name
            text = as_html(title, run_page(record, drawn(lambda: plot_run(record, here))))
        else:
            text = as_html(f"{len(records)} runs", runs_page(records, drawn(lambda: plot_runs(records, here))))
    try:
        with replacing(target) as partial:
            partial.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RunError(f"{target}: cannot be written: {error}; choose a folder that exists and is writable") from error


def drawn(draw: Callable[[], list[Path]]) -> list[Path]:
    """The figures that a function draws; none, and a word about it, where matplotlib is missing or does not work."""
    try:
        pyplot()
    except (MissingExtraError, RunError) as error:
        tell(f"no figures: {error}")
        return []
    return draw()
