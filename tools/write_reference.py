"""Write the tables of fields in docs/reference.md, between their two marks, from the specs and their docstrings.

Command: ``python tools/write_reference.py``. A test compares the page with what this writes.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from pathlib import Path
from typing import Any, Literal

from polarspike.cli.options import help_lines
from polarspike.specs import ConvertSpec, QuantSpec, Spec
from polarspike.training_spec import TrainSpec

PAGE = Path(__file__).parents[1] / "docs" / "reference.md"
BEGIN, END = "<!-- fields: written by tools/write_reference.py -->", "<!-- end of fields -->"
SPECS: tuple[type[Spec], ...] = (QuantSpec, TrainSpec, ConvertSpec)


def tables() -> str:
    """One table for each spec: its fields in order, what they may be, their defaults and meanings."""
    return "\n\n".join(map(_table, SPECS))


def written(text: str) -> str:
    """The page with the tables between its marks."""
    if text.count(BEGIN) != 1 or text.count(END) != 1:
        raise SystemExit(f"{PAGE}: expected the lines {BEGIN!r} and {END!r}, each once")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n\n{tables()}\n\n{END}{after}"


def _table(kind: type[Spec]) -> str:
    hints, lines, start = typing.get_type_hints(kind), help_lines(kind), kind()
    about = (kind.__doc__ or "").partition("\n")[0].replace(":func:`", "`").replace("`polarspike.", "`ps.")
    rows = ["| field | values | default | meaning |", "|---|---|---|---|"]
    for field in dataclasses.fields(kind):
        if field.name not in lines:
            raise SystemExit(f"{kind.__name__}.{field.name}: expected a line below Args: of the class, found none")
        cells = f"`{field.name}`", _values(hints[field.name]), f"`{getattr(start, field.name)!r}`", lines[field.name]
        rows.append(f"| {' | '.join(cell.replace('|', '&#124;').replace('*', '&#42;') for cell in cells)} |")
    return "\n".join([f"### {kind.__name__}", "", about, "", *rows])


def _values(hint: Any) -> str:
    """A type in words: the values of a Literal, the parts of a union, the plain name of anything else."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return ", ".join(f"`{value!r}`" for value in parts)
    if type(None) in parts or any(typing.get_origin(part) is Literal for part in parts):
        return " or ".join(_values(part) for part in parts)
    if hint is type(None):
        return "`None`"
    if isinstance(hint, type) and origin is None:
        return hint.__name__
    return re.sub(r"\b\w+\.(?=\w)", "", str(hint))  # without the modules of names


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
