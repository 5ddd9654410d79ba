"""The same numbers from the same run, also on a GPU."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

# Without a workspace of a fixed size cuBLAS may sum in another order from run to run; it is read when CUDA starts.
_WORKSPACE = ("CUBLAS_WORKSPACE_CONFIG", ":4096:8")


@contextlib.contextmanager
def deterministic(asked: bool) -> Iterator[None]:
    """Let torch take deterministic algorithms alone while the block runs; where an operator has none, torch's error says so.

    On a CPU nothing changes: there a run that is resumed ends with the same weights as it is.

    Args:
        asked: nothing is done if not.
    """
    if not asked:
        yield
        return
    before = torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.benchmark
    os.environ.setdefault(*_WORKSPACE)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        torch.backends.cudnn.benchmark = before[1]
