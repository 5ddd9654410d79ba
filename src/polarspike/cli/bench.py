"""``polarspike bench``: measure on this machine, methods against each other or runtimes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from polarspike.cli.rivals import Rivals
from polarspike.cli.speed import Speed

_Benches = Annotated[Rivals, tyro.conf.subcommand("rivals")] | Annotated[Speed, tyro.conf.subcommand("speed")]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """Measure here: methods that make spiking networks (rivals), or runtimes that run one (speed)."""

    what: Annotated[_Benches, tyro.conf.arg(name="")]

    def execute(self) -> int:
        """Do it."""
        return self.what.execute()

    def after_interrupt(self, arguments: Sequence[str]) -> str:
        """What to do after Ctrl-C."""
        return self.what.after_interrupt(arguments)
