"""Running totals of a comparison, batch by batch, whose memory does not grow with the number of batches."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from polarspike.proofs.proof import SiteComparison
from polarspike.sites import Site


@dataclass
class Tally:
    """Running totals of one site over batches; ``fired[k + reach]`` counts how often the code k was fired at a step."""

    reach: int
    compared: int = 0
    different: int = 0
    diverged: int = 0
    different_values: int = 0
    worst_margin: float = 0.0
    fired: Tensor = field(init=False)

    def __post_init__(self) -> None:
        self.fired = torch.zeros(2 * self.reach + 1, dtype=torch.long)

    def fire(self, codes: Tensor) -> None:
        """Count the codes of one timestep."""
        # A broken network, or one of other levels: the comparison finds it.
        codes = codes.nan_to_num(0.0).clamp(-self.reach, self.reach)
        self.fired += torch.bincount((codes + self.reach).flatten().long(), minlength=len(self.fired)).cpu()

    def finish(self, site: Site) -> SiteComparison:
        """What was found at a site."""
        total = max(1, int(self.fired.sum()))
        return SiteComparison(
            compared=self.compared,
            different=self.different,
            diverged=self.diverged,
            different_values=self.different_values,
            worst_margin=self.worst_margin,
            distinct=int((self.fired > 0).sum()),
            nonzero_share=1.0 - int(self.fired[self.reach]) / total,
            binary=sum(site.levels) == 1,
        )


def output_gap(expected: Any, got: Any) -> tuple[float, float]:
    """The largest absolute difference of two answers, and how large the expected one is.

    Both are taken in float64 on the CPU, because not every accelerator has it.
    """
    gap, scale = 0.0, 0.0
    for left, right in zip(pytree.tree_leaves(expected), pytree.tree_leaves(got), strict=True):
        if isinstance(left, Tensor) and left.numel():
            left, right = left.cpu().double(), right.cpu().double()
            # A mask may stand at infinity on both sides. NaN on both is no agreement: it exceeds any tolerance.
            difference = (left - right).abs().nan_to_num(nan=math.inf).masked_fill(left == right, 0.0)
            gap = max(gap, float(difference.max()))
            scale = max(scale, float(left.abs().masked_fill(~left.isfinite(), 0.0).max()))
    return gap, max(scale, 1e-30)
