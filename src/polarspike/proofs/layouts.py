"""Where the samples of a batch lie in a tensor, and how two tensors differ: the plain arithmetic of the simulator."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """Where the samples of a batch lie in a tensor: in one dimension, one after the other.

    Attributes:
        dim: the dimension that grows with the batch.
        shape: of one sample, with ``dim`` kept; its length m there is 1, or more where samples were cut into windows or
            heads that stand side by side.
    """

    dim: int
    shape: torch.Size

    @classmethod
    def of(cls, two: object, three: object) -> Layout | None:
        """The layout of a tensor, given for batches of two and three; None if there is none."""
        if not isinstance(two, Tensor) or not isinstance(three, Tensor):
            return None
        grown = [dim for dim, sizes in enumerate(zip(two.shape, three.shape, strict=False)) if sizes[0] != sizes[1]]
        if two.dim() != three.dim() or len(grown) != 1 or two.shape[grown[0]] * 3 != three.shape[grown[0]] * 2:
            return None
        dim = grown[0]
        return cls(dim, torch.Size((*two.shape[:dim], two.shape[dim] // 2, *two.shape[dim + 1 :])))

    @property
    def plain(self) -> bool:
        """Whether the batch is dimension 0, one index per sample."""
        return self.dim == 0 and self.shape[0] == 1

    def flat(self, value: Tensor) -> Tensor:
        """A tensor as (samples, positions)."""
        moved = value.movedim(self.dim, 0)
        return moved.reshape(len(moved) // self.shape[self.dim], -1)

    def shaped(self, flat: Tensor) -> Tensor:
        """The inverse of :meth:`flat`."""
        others = (*self.shape[: self.dim], *self.shape[self.dim + 1 :])
        return flat.reshape(len(flat) * self.shape[self.dim], *others).movedim(0, self.dim)


def columns(response: Tensor) -> Tensor:
    """f(e) - f(0), from rows of f(e) and a last row of f(0); what is rounding of f(0) is no synapse."""
    difference = less(response[:-1], response[-1])
    return difference.masked_fill_(difference.abs() <= 4 * torch.finfo(torch.float64).eps * response[-1].abs(), 0.0)


def less(value: Tensor, rest: Tensor) -> Tensor:
    """``value - rest``, and zero where the two are equal, also where both are minus infinity."""
    return torch.where(value == rest, 0.0, value - rest)
