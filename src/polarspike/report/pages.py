"""Sections of text, tables and figures, as Markdown or as one HTML file that holds all it shows."""

from __future__ import annotations

import base64
import html
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_STYLE = (
    "body{font:15px/1.45 sans-serif;margin:2em auto;max-width:75em;padding:0 1em}"
    "table{border-collapse:collapse;font-size:13px}"
    "th,td{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:right}th:first-child,td:first-child{text-align:left}"
    "div{overflow-x:auto}img{max-width:100%}"
)


@dataclass(frozen=True)
class Section:
    """One part of a page.

    Attributes:
        title: its heading.
        text: paragraphs.
        table: rows of cells, the heading first; or none.
        figures: image files.
    """

    title: str
    text: tuple[str, ...] = ()
    table: Sequence[Sequence[str]] = ()
    figures: tuple[Path, ...] = ()


def as_markdown(sections: Sequence[Section], place: Path, level: int = 2) -> str:
    """The sections as Markdown.

    Args:
        sections: in order.
        place: the directory of the Markdown file: figures are named relative to it.
        level: of the headings.
    """
    blocks = []
    for section in sections:
        blocks += [f"{'#' * level} {section.title}", *section.text]
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
        blocks += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.text]
        if section.table:
            rows = [
                "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row) + "</tr>"
                for tag, row in zip(["th", *["td"] * (len(section.table) - 1)], section.table, strict=True)
            ]
            blocks.append(f"<div><table>{''.join(rows)}</table></div>")
        for figure in section.figures:
            data = base64.b64encode(figure.read_bytes()).decode()
            blocks.append(f'<img alt="{html.escape(figure.stem)}" src="data:image/svg+xml;base64,{data}">')
    head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
    return f"{head}<style>{_STYLE}</style></head><body>{''.join(blocks)}</body></html>\n"
