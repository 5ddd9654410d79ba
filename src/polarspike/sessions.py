"""Open a model in ONNX Runtime, on the CPU; without torch."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from polarspike.errors import ExportError, MissingExtraError


def open_session(model: bytes | Path, threads: int = 0) -> Any:
    """A session of a model.

    Args:
        model: its bytes, or the path of its file.
        threads: 0 for all cores. More than there are would wait for each other, or not be started at all.

    Raises:
        MissingExtraError: ONNX Runtime is not installed.
        ExportError: it cannot run the model; its reason, and no more.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "deploy") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = min(threads, os.cpu_count() or 1)
    options.log_severity_level = 4  # the error says it
    given = str(model) if isinstance(model, Path) else model
    try:
        # There is nothing to fall back to; it would say on stdout that it tries.
        return onnxruntime.InferenceSession(given, options, providers=["CPUExecutionProvider"], enable_fallback=0)
    except Exception as error:  # its errors have no common base
        raise ExportError(str(error).strip()) from error
