"""Ridge regression from streamed sums, with a pull to zero that held-out rows choose for every output."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

#: Strengths of the pull, as parts of the mean eigenvalue of the inputs' covariance; infinity fits the shift alone.
STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, math.inf)


@dataclass
class Sums:
    """What a regression needs of its rows; x: (groups, rows, K), e: (groups, rows, O), all sums in float64."""

    xx: Tensor  # (groups, K, K)
    xe: Tensor  # (groups, K, O)
    x: Tensor  # (groups, K)
    e: Tensor  # (groups, O)
    ee: Tensor  # (groups, O)
    rows: int = 0

    @classmethod
    def zeros(cls, groups: int, inputs: int, outputs: int, device: torch.device) -> Sums:
        """The sums of no rows."""

        def empty(*shape: int) -> Tensor:
            return torch.zeros(groups, *shape, dtype=torch.float64, device=device)

        return cls(empty(inputs, inputs), empty(inputs, outputs), empty(inputs), empty(outputs), empty(outputs))

    def update(self, x: Tensor, e: Tensor) -> None:
        """Add rows; products are taken in the type of the rows."""
        self.xx += x.transpose(1, 2) @ x
        self.xe += x.transpose(1, 2) @ e
        self.x += x.sum(1, dtype=torch.float64)
        self.e += e.sum(1, dtype=torch.float64)
        self.ee += e.double().square().sum(1)
        self.rows += x.shape[1]

    def add(self, other: Sums) -> None:
        """Take over the rows of another part."""
        for name in ("xx", "xe", "x", "e", "ee"):
            getattr(self, name).add_(getattr(other, name))
        self.rows += other.rows

    def errors(self, slope: Tensor, shift: Tensor) -> Tensor:
        """Sum of (e - slope^T x - shift)^2 per output; (groups, O)."""
        fitted = (slope * (self.xx @ slope)).sum(1) + 2.0 * shift * (slope * self.x.unsqueeze(-1)).sum(1)
        crossed = (slope * self.xe).sum(1) + shift * self.e
        return (self.ee - 2.0 * crossed + fitted + self.rows * shift.square()).clamp(min=0.0)

    def fit(self, strength: float) -> tuple[Tensor, Tensor]:
        """The slope (groups, K, O) and shift (groups, O) of least square error under one pull.

        slope = (G + strength tr(G)/K I)^-1 R with the centered sums G, R;   shift = mean(e) - slope^T mean(x)
        """
        mean_x, mean_e = self.x / self.rows, self.e / self.rows
        slope = torch.zeros_like(self.xe)
        if math.isfinite(strength):
            centered = self.xx - self.rows * mean_x.unsqueeze(-1) * mean_x.unsqueeze(-2)
            diagonal = centered.diagonal(dim1=-2, dim2=-1)
            pull = strength * diagonal.mean(-1, keepdim=True)
            diagonal += torch.where(pull > 0, pull, torch.ones_like(pull))  # inputs that never vary say nothing
            factor, failed = torch.linalg.cholesky_ex(centered)
            if not bool(failed.any()):  # by rounding, if at all: then this strength is no choice
                crossed = self.xe - self.rows * mean_x.unsqueeze(-1) * mean_e.unsqueeze(-2)
                slope = torch.cholesky_solve(crossed, factor)
        return slope, mean_e - (slope * mean_x.unsqueeze(-1)).sum(1)


def regress(fitting: Sums, held: Sums) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Choose the pull of every output on held-out rows, and fit all rows with it.

    Args:
        fitting: rows to fit; afterwards it holds all rows.
        held: rows to choose on; with none of them (or none to fit) only the shift is fitted.

    Returns:
        slope (groups, K, O), shift (groups, O), and the summed square errors (groups, O) before and after on all rows.
        An output that no fit improves gets zeros.
    """
    strengths = STRENGTHS if held.rows and fitting.rows else STRENGTHS[-1:]
    best = torch.full_like(fitting.ee, math.inf)
    chosen = torch.full_like(fitting.ee, len(strengths) - 1, dtype=torch.int64)
    if len(strengths) > 1:
        for index, strength in enumerate(strengths):
            error = held.errors(*fitting.fit(strength))
            chosen = torch.where(error < best, index, chosen)
            best = torch.minimum(best, error)
    fitting.add(held)
    slope, shift = torch.zeros_like(fitting.xe), torch.zeros_like(fitting.e)
    for index in sorted(set(chosen.flatten().tolist())):
        new_slope, new_shift = fitting.fit(strengths[index])
        here = chosen == index
        slope = torch.where(here.unsqueeze(1), new_slope, slope)
        shift = torch.where(here, new_shift, shift)
    after = fitting.errors(slope, shift)
    better = after < fitting.ee
    slope, shift = slope * better.unsqueeze(1), shift * better
    return slope, shift, fitting.ee, torch.where(better, after, fitting.ee)
