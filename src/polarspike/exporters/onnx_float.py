"""The first timestep in ONNX with float arithmetic: for GPUs, and for any runtime that has floor and clip."""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram

from polarspike.common.inputs import Inputs, tensors_of
from polarspike.errors import ExportError, MissingExtraError
from polarspike.exporters import runtime
from polarspike.exporters.description import KEY
from polarspike.exporters.report import Runner


def save(program: ExportedProgram, path: Path, description: str, names: list[str]) -> None:
    """Write the model, and ``<path>.data`` beside it where the weights are too large for one file.

    Args:
        program: with its inputs in order.
        path: of the model.
        description: goes into its metadata.
        names: of the inputs.

    Raises:
        MissingExtraError: the packages that write ONNX are not installed.
        ExportError: an operator has no counterpart.
    """
    try:
        import onnxscript  # noqa: F401 (what torch.onnx works with)
    except ImportError as error:
        raise MissingExtraError("onnxscript", "deploy") from error
    try:
        with _quiet():
            made = torch.onnx.export(program, input_names=names, dynamo=True, verbose=False)
    except Exception as error:  # torch has no common base for what can go wrong here
        reason = str(error).strip().partition("\n")[0]
        raise ExportError(f"torch.onnx cannot write this network: {reason}") from error
    assert made is not None
    made.model.metadata_props[KEY] = description
    size = sum(tensor.numel() * tensor.element_size() for tensor in program.state_dict.values())
    made.save(str(path), external_data=size > runtime.MOST_BYTES)


def runner(path: Path) -> Runner:
    """Read a model back, to run it in ONNX Runtime.

    Raises:
        MissingExtraError: it is not installed.
        ExportError: it cannot run the model.
    """
    session = runtime.session(path)
    names = [known.name for known in session.get_inputs()]

    def run(inputs: Inputs) -> list[Tensor]:
        given: dict[str, Any] = dict(zip(names, (value for _, value in tensors_of(inputs)), strict=True))
        return [torch.from_numpy(y) for y in session.run(None, {k: v.cpu().numpy() for k, v in given.items()})]

    return run


@contextlib.contextmanager
def _quiet() -> Any:
    """Without the exporter's talk."""
    logger = logging.getLogger("torch.onnx")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
