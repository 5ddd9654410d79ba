"""docs/reference.md says what the specs say."""

import dataclasses
import runpy
from pathlib import Path

import pytest

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
