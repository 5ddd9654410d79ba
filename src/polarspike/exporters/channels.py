"""Steps per channel, followed through changes of the layout."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from polarspike.exporters.signals import Shape, Sums, Vector
from polarspike.integer.network import laid


def spread(vector: Vector, axis: int, shape: Shape) -> Tensor:
    """A vector along an axis as a full tensor with a batch of one."""
    return torch.from_numpy(np.ascontiguousarray(laid(vector, axis, len(shape) + 1))).expand(1, *shape)


def channel_steps(sums: Sums, step: Vector, axis: int) -> Vector | None:
    """Steps along an axis behind the views of ``sums`` as steps of the channels in front of them; None if they are not."""
    if step.ndim == 0 or (not sums.views and axis == sums.axis):
        return step
    length = sums.shape[sums.axis - 1]
    index = spread(np.arange(length, dtype=np.float64), sums.axis, sums.shape)
    for kind, how in sums.views:
        index = index.reshape(1, *how) if kind == "reshape" else index.permute(*how)
    full = spread(step, axis, tuple(index.shape[1:])).reshape(-1).numpy()
    places = index.reshape(-1).long().numpy()
    lowest, highest = np.full(length, np.inf), np.full(length, -np.inf)
    np.minimum.at(lowest, places, full)
    np.maximum.at(highest, places, full)
    return lowest if (lowest == highest).all() else None
