"""Sections of text, tables and figures, as Markdown or as one HTML file that holds all it shows."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;color:#222;margin:2em auto;max-width:75em;padding:0 1em}"
    "h1{font-size:1.6em}h2{font-size:1.2em;margin:2em 0 .4em;border-bottom:2px solid #2166ac;padding-bottom:.2em}"
    "p{max-width:60em;margin:.5em 0}"
    "table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums;margin:.8em 0}"
    "th,td{padding:.25em .7em;border-bottom:1px solid #ddd;text-align:right;vertical-align:top}"
    "th:first-child,td:first-child{text-align:left}thead th{background:#f3f5f8;position:sticky;top:0}"
    "tbody tr:hover{background:#f8f9fb}div{overflow-x:auto}img{max-width:100%}"
    "dl{display:flex;flex-wrap:wrap;gap:1em;margin:1em 0}"
    "dl>div{background:#f3f5f8;border-radius:6px;padding:.7em 1em;max-width:17em}"
    "dl>div{display:flex;flex-direction:column-reverse;justify-content:flex-end}"
    "dd{font-size:1.7em;font-weight:600;margin:0}dt{font-size:.85em;color:#555}"
)


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        title: its heading.
        text: paragraphs.
        table: rows of cells, the heading first; or none.
        figures: image files.
        facts: a few numbers that stand out, each with what it is.
    """

    title: str
    text: tuple[str, ...] = ()
    table: Sequence[Sequence[str]] = ()
    figures: tuple[Path, ...] = ()
    facts: tuple[tuple[str, str], ...] = ()


def as_markdown(sections: Sequence[Section], place: Path, level: int = 2) -> str:
    """The sections as Markdown.

    Args:
        sections: in order.
        place: the directory of the Markdown file: figures are named relative to it.
        level: of the headings.
    """
    blocks = []
    for section in sections:
        blocks.append(f"{'#' * level} {section.title}")
        blocks += [f"**{value}** {meaning}" for value, meaning in section.facts]
        blocks += section.text
        if section.table:
            heading, *rows = [[cell.replace("|", "\\|") for cell in row] for row in section.table]
            lines = [heading, ["---"] * len(heading), *rows]
            blocks.append("\n".join(f"| {' | '.join(line)} |" for line in lines))
        blocks += [f"![{path.stem}]({Path(os.path.relpath(path, place)).as_posix()})" for path in section.figures]
    return "\n\n".join(blocks) + "\n"


def as_html(title: str, sections: Sequence[Section]) -> str:
    """The sections as one HTML page; SVG figures are inside it."""
    blocks = [f"<h1>{html.escape(title)}</h1>"]
    for section in sections:
        blocks.append(f"<h2>{html.escape(section.title)}</h2>")
        if section.facts:
            cards = (
                f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(value)}</dd></div>" for value, what in section.facts
            )
            blocks.append(f"<dl>{''.join(cards)}</dl>")
        blocks += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text]
        if section.table:
            heading, *rows = (_line(row, "td" if index else "th") for index, row in enumerate(section.table))
            blocks.append(f"<div><table><thead>{heading}</thead><tbody>{''.join(rows)}</tbody></table></div>")
        for figure in section.figures:
            data = base64.b64encode(figure.read_bytes()).decode()
            blocks.append(f'<img alt="{html.escape(figure.stem)}" src="data:image/svg+xml;base64,{data}">')
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{head}<style>{_STYLE}</style></head><body>{''.join(blocks)}</body></html>\n"


def _card(value: str, what: str) -> str:
    return f"<div><dt>{html.escape(what)}</dt><dd>{html.escape(value)}</dd></div>"


def _line(cells: Sequence[str], tag: str) -> str:
    return f"<tr>{''.join(f'<{tag}>{html.escape(cell)}</{tag}>' for cell in cells)}</tr>"
