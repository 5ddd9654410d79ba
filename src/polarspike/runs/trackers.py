"""The records of a run as curves in TensorBoard, beside the log that always holds them."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from pathlib import Path
from typing import Any

from polarspike.errors import MissingExtraError


class TensorBoard:
    """Event files of one run directory; every finite number of a record is a point of the curve of its name.

    Args:
        folder: for the event files; made at the first record.

    Raises:
        MissingExtraError: TensorBoard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise MissingExtraError("tensorboard", "track") from error
        self._open, self._folder = SummaryWriter, folder
        self._writer: SummaryWriter | None = None

    def add(self, record: Mapping[str, Any]) -> None:
        """Show one record, at its ``epoch``; what an earlier start has shown from there on is no longer shown."""
        epoch = record.get("epoch", 0)
        if self._writer is None:
            self._writer = self._open(str(self._folder), purge_step=epoch)
        for name, value in record.items():
            if name != "epoch" and isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value):
                self._writer.add_scalar(name, value, epoch)
        self._writer.flush()
