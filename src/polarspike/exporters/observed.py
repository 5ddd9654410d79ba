"""The smallest and the largest number of every value of a program, on given batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

Ranges = dict[fx.Node, tuple[float, float]]


class _Recorder(fx.Interpreter):
    def __init__(self, program: fx.GraphModule) -> None:
        super().__init__(program)
        self.ranges: Ranges = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and n.op != "get_attr":
            low, high = (float(end) for end in torch.aminmax(value))
            known = self.ranges.get(n, (low, high))
            self.ranges[n] = (min(known[0], low), max(known[1], high))
        return value


@torch.no_grad()
def observe(program: fx.GraphModule, batches: Iterable[tuple[Any, ...]]) -> Ranges:
    """Run the batches, each the program's arguments in order."""
    recorder = _Recorder(program)
    for arguments in batches:
        recorder.run(*arguments)
    return recorder.ranges
