"""The files that a comparison's table becomes: figures, a Markdown page and an HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from polarspike.baselines.methods import METHODS
from polarspike.baselines.peers import PEERS
from polarspike.baselines.published import published
from polarspike.cli.report_pages import drawn
from polarspike.common.files import replacing
from polarspike.errors import RunError
from polarspike.report.pages import as_html, as_markdown
from polarspike.report.required import Kind
from polarspike.report.rivals_figures import plot_rivals
from polarspike.report.rivals_page import rivals_page

TITLE = "Methods on the same network, images and counts, at true latency"


def kinds() -> dict[str, Kind]:
    """What of each method, and of each other tool, decides which claim it is held against."""
    methods = {name: Kind(method.family, method.spikes, method.trains) for name, method in METHODS.items()}
    return methods | {name: Kind("conversion", peer.spikes, trains=False, tool=True) for name, peer in PEERS.items()}


def written_pages(rows: Sequence[Mapping[str, str]], place: Path, missing: Sequence[str] = ()) -> list[Path]:
    """Write the figures, ``rivals.md`` and ``rivals.html`` of these rows; where matplotlib is missing, without figures.

    Args:
        rows: of the comparison.
        place: the folder for the files.
        missing: what is said of runs that the rows lack.

    Raises:
        RunError: they cannot be written.
    """
    try:
        return _written(rows, place, missing)
    except OSError as error:
        raise RunError(
            f"{place}: cannot be written: {error}; choose a folder that is writable, with free space"
        ) from error


def _written(rows: Sequence[Mapping[str, str]], place: Path, missing: Sequence[str]) -> list[Path]:
    place.mkdir(parents=True, exist_ok=True)
    figures = drawn(lambda: plot_rivals(rows, kinds(), place))
    sections = rivals_page(rows, kinds(), published(), figures, missing=missing)
    pages = {
        place / "rivals.md": f"# {TITLE}\n\n{as_markdown(sections, place)}",
        place / "rivals.html": as_html(TITLE, sections),
    }
    for target, text in pages.items():
        with replacing(target) as partial:
            partial.write_text(text, encoding="utf-8")
    return [*figures, *pages]
