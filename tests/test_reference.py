"""docs/reference.md says what the specs say."""

import dataclasses
import runpy
from pathlib import Path

import pytest

from polarspike.cli.network import TRAINING_FREE
from polarspike.specs import QuantSpec

TOOL = Path(__file__).parents[1] / "tools" / "write_reference.py"


def test_the_tables_of_fields_are_what_the_tool_writes() -> None:
    tool = runpy.run_path(str(TOOL))
    page = tool["PAGE"].read_text(encoding="utf-8")
    assert page == tool["written"](page), "run: python tools/write_reference.py"
    for kind in tool["SPECS"]:
        for field in dataclasses.fields(kind):
            assert f"| `{field.name}` |" in page
    with pytest.raises(SystemExit, match=r"reference\.md: expected the lines"):
        tool["written"]("a page without marks")


def test_the_page_says_with_which_spec_convert_begins() -> None:
    fields = dataclasses.fields(QuantSpec)
    changed = [field for field in fields if getattr(TRAINING_FREE, field.name) != getattr(QuantSpec(), field.name)]
    words = ", ".join(f"{field.name}={getattr(TRAINING_FREE, field.name)!r}" for field in changed).replace("'", '"')
    page = runpy.run_path(str(TOOL))["PAGE"].read_text(encoding="utf-8")
    assert all(word in page for word in words.split(", ")), words
