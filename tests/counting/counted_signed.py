"""Spiking networks of signed codes, models of two inputs, and one elementwise row of a count."""

from typing import Any

from torch import Tensor, nn

import polarspike as ps
from polarspike.counting import OperationCounts
from polarspike.spiking import SpikingNetwork
from tests.counting.counted import Graph, stepped


class Net(Graph):
    """A model of parts and a function of (parts, a, b)."""

    def forward(self, a: Tensor, b: Tensor) -> Any:  # type: ignore[override]
        return self.function(self, a, b)


def spiking(model: nn.Module, example: Any, step: float = 1.0, **convert: Any) -> SpikingNetwork:
    """All sites have this step and the levels (2, 3)."""
    return ps.convert(stepped(model, example, step, negative=2, positive=3), ps.ConvertSpec(**convert))


def element(counts: OperationCounts, name: str, kind: str) -> tuple[int, int]:
    """(float network, spiking network) of one elementwise row; zeros where there is none."""
    found = [row for row in counts.elementwise if (row.name, row.kind) == (name, kind)]
    return (found[0].dense, found[0].spiking) if found else (0, 0)
