"""``polarspike convert``: the file of a quantized network -> the file of a spiking network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from polarspike.checkpoint import save
from polarspike.cli.command import Command, show, tell
from polarspike.cli.files import load_quantized
from polarspike.conversion import convert
from polarspike.errors import CheckpointError


@dataclass(frozen=True, kw_only=True)
class Convert(Command):
    """Convert a quantized network to a spiking network, and print what became what.

    Args:
        qann: the file of the quantized network.
        snn: the file to write.
        force: replace the file if it exists.
    """

    qann: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="QANN.safetensors")]
    snn: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SNN.safetensors")]
    force: bool = False

    def execute(self) -> int:
        if self.snn.exists() and (not self.force or self.snn.samefile(self.qann)):
            repair = "give another name" if self.force else "give another name, or --force to replace it"
            raise CheckpointError(f"{self.snn}: expected a file to create, it exists already; {repair}")
        snn = convert(load_quantized(self.qann))
        save(snn, self.snn)
        show(snn.report)
        tell(f"written: {self.snn}")
        return 0
