"""Every wrong input of the list is refused by an error of the library: the script that prints them counts the others."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_wrong_input_meets_a_deliberate_error(capsys: pytest.CaptureFixture[str]) -> None:
    script = Path(__file__).parent.parent / "benchmarks" / "wrong_inputs.py"
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    printed = capsys.readouterr().out
    assert stopped.value.code == 0, printed
    assert "control flow" in printed and "ACCEPTED" not in printed and "NOT OURS" not in printed
