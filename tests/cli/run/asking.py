"""What the tests of ``polarspike run`` ask of one call: its refusal, or the answer for one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from polarspike.common import seals
from tests.cli.running import Call

NOTES = {"normalization": {"mean": [0.3, 0.4, 0.2], "std": [0.25, 0.3, 0.2]}, "classes": ["cat", "dog", "owl"]}
GREY_NOTES = {"normalization": {"mean": [0.4], "std": [0.3]}, "classes": ["zero", "one"]}


def unsealed(path: Path) -> Any:
    """A model as earlier versions wrote it, which can be changed."""
    import onnx

    model = onnx.load(path)
    kept = {entry.key: entry.value for entry in model.metadata_props if entry.key != seals.KEY}
    onnx.helper.set_model_props(model, kept)
    return model


def refused(answer: tuple[int, str, str], why: str) -> None:
    code, out, err = answer
    assert (code, out, err.count("\n")) == (2, "", 1) and err.startswith("error: ") and why in err, answer


def picture_of(call: Call, model: Path, path: Path) -> str:
    code, out, err = call(model, "--images", path)
    assert (code, err) == (0, ""), (path, err)
    return out.partition("\t")[2]
