"""The table of docs/rivals.md: run what is missing of it, and write its section and figures anew.

    python benchmarks/rivals.py                     the preset "small": polarspike bench rivals --preset small
    python benchmarks/rivals.py --list              what is to do, and what it will cost
    python benchmarks/rivals.py --parts 1 5         parts of it; several processes may share the table
    python benchmarks/rivals.py --preset full       the networks at full size
    python benchmarks/rivals.py --docs              only write the section and the figures from the rows that are there

Rows stand in ``benchmarks/results/rivals.csv``; what is trained is kept under ``runs/rivals``. Parts with other tools are
run by the Python of an environment that has them; elsewhere they are left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from polarspike import data
from polarspike.baselines.contest import Contest, lacking_of, rows_of
from polarspike.baselines.presets import PRESETS
from polarspike.baselines.published import published
from polarspike.baselines.remainder import told
from polarspike.cli.rivals import Rivals
from polarspike.cli.rivals_pages import kinds
from polarspike.errors import RunError
from polarspike.report.pages import as_markdown
from polarspike.report.rivals_figures import plot_rivals
from polarspike.report.rivals_page import rivals_page

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "benchmarks" / "results" / "rivals.csv"
RUNS = ROOT / "runs" / "rivals"
PAGE = ROOT / "docs" / "rivals.md"
FIGURES = ROOT / "docs" / "figures"
BEGIN, END = "<!-- results: written by benchmarks/rivals.py -->", "<!-- end of results -->"


def contests() -> list[Contest]:
    """Those of every preset, preset by preset."""
    comparisons = [part.comparison for parts in PRESETS.values() for part in parts]
    sets = {name: data.load(name) for name in {asked.data for asked in comparisons}}
    return [Contest(asked, RUNS, table=TABLE, dataset=sets[asked.data]) for asked in comparisons]


def write_docs() -> None:
    """Put the results between their two marks in docs/rivals.md."""
    asked = contests()
    rows, missing = rows_of(asked), told(*lacking_of(asked))
    FIGURES.mkdir(exist_ok=True)
    sections = rivals_page(
        rows, kinds(), published(), plot_rivals(rows, kinds(), FIGURES), every=False, missing=missing
    )
    text = PAGE.read_text(encoding="utf-8")
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{PAGE}: expected the lines {BEGIN!r} and {END!r}, each once")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{as_markdown(sections, PAGE.parent, 3)}\n{END}{after}", encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="small", choices=PRESETS)
    parser.add_argument("--parts", type=int, nargs="*", default=(), help="of the preset, by number from 1")
    parser.add_argument("--list", action="store_true", help="what is to do, and what it will cost")
    parser.add_argument("--docs", action="store_true", help="only write the section and the figures")
    given = parser.parse_args()
    try:
        if not given.docs:
            asked = Rivals(preset=given.preset, parts=tuple(given.parts), run=RUNS, table=TABLE, list=given.list)
            asked.execute()
    except RunError as error:  # runs have failed; the rows of the others are there
        raise SystemExit(str(error)) from None
    finally:
        if not given.list:
            write_docs()


if __name__ == "__main__":
    main()
