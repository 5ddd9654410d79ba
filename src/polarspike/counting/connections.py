"""Connections that exist: how many outputs an input position feeds, edge exact, in integers.

Windows (convolution, pooling, resampling) are products over the spatial dimensions, so the fan-out of a position is

    fan_out(i, j, ...) = factor * r_1(i) * r_2(j) * ...

where ``r_d(i)`` counts the pairs (output, tap) along dimension d that read position i. At an edge, pairs that would read
padding do not exist; with a stride, some positions feed more outputs than others, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from polarspike.errors import OperatorError
from polarspike.graph.operators import base_of

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class Connections:
    """The fan-out of every position of an operator's input.

    Args:
        factor: outputs per input position and tap: ``out_channels / groups``, ``out_features``, or 1 for a window that
            stays in its channel.
        reach: ``r_d`` of each spatial dimension, int64 vectors; empty if every element feeds ``factor`` outputs.
    """

    factor: int
    reach: tuple[Tensor, ...] = ()

    def count(self, arriving: Tensor) -> int:
        """The sum over all elements of ``arriving * fan_out``.

        Args:
            arriving: integers of any type, (..., spatial dimensions).
        """
        if not self.reach:
            return self.factor * int(arriving.sum(dtype=torch.int64))
        spatial = arriving.shape[arriving.dim() - len(self.reach) :]
        total = arriving.reshape(-1, *spatial).sum(0, dtype=torch.int64)
        for reach in reversed(self.reach):
            total = (total * reach.to(total.device)).sum(-1)
        return self.factor * int(total)

    def everywhere(self, shape: Sequence[int]) -> int:
        """All connections of an input of this shape."""
        channels = math.prod(shape[: len(shape) - len(self.reach)])
        return self.factor * channels * math.prod(int(reach.sum()) for reach in self.reach)


@dataclass(frozen=True)
class ThroughOperator:
    """Connections that an operator tells itself, if all of its weights are one: ``count(x) = sum(run(x))``.

    Args:
        run: linear, with weights one; float64, so that integers below 2^53 are exact.
    """

    run: Callable[[Tensor], Tensor]

    def count(self, arriving: Tensor) -> int:
        """The sum over all elements of ``arriving * fan_out``."""
        return int(self.run(arriving.double()).sum())

    def everywhere(self, shape: Sequence[int]) -> int:
        """All connections of an input of this shape."""
        return self.count(torch.ones(tuple(shape)))


Links = Connections | ThroughOperator


def of_convolution(settings: Any, source: Sequence[int], target: Sequence[int]) -> Connections:
    """The connections of a convolution or a transposed convolution.

    Args:
        settings: a module, or anything with its fields (``out_channels``, ``kernel_size``, ``stride``, ``padding``,
            ``dilation``, ``groups``, and ``padding_mode`` unless padding is with zeros).
        source: the shape of the input.
        target: the shape of the output.

    Raises:
        OperatorError: an unknown padding mode.
    """
    dimensions = len(settings.kernel_size)
    fields = zip(
        source[-dimensions:],
        target[-dimensions:],
        settings.kernel_size,
        _each(settings.stride, dimensions),
        _each(settings.dilation, dimensions),
        _left_padding(settings, dimensions),
        strict=True,
    )
    if isinstance(settings, _TRANSPOSED):
        reach = tuple(_transposed_reach(*field) for field in fields)
    else:
        mode = getattr(settings, "padding_mode", "zeros")
        reach = tuple(_window_reach(mode, *field) for field in fields)
    return Connections(settings.out_channels // settings.groups, reach)


def of_resampling(run: Callable[[Tensor], Tensor], source: Sequence[int]) -> tuple[Connections, bool]:
    """The connections of a pooling average or an interpolation, found by sending impulses through it.

    Args:
        run: the operator, linear and separable over the spatial dimensions, channels apart.
        source: the shape of its input, (batch, channels, spatial dimensions).

    Returns:
        The connections, and whether every output is a plain copy of one input.
    """
    spatial = tuple(source[2:])
    reach = []
    for dimension, length in enumerate(spatial):
        # Impulse number i is one at position i of this dimension and constant along the others.
        shape = [length if d == dimension else 1 for d in range(len(spatial))]
        impulses = torch.eye(length, dtype=torch.float64).view(length, 1, *shape).expand(length, 1, *spatial)
        response = run(impulses.contiguous()).squeeze(1).movedim(dimension + 1, 1)  # (length, out, others)
        # A window of one dimension has no others, of which there is then one.
        reach.append((response.reshape(*response.shape[:2], -1) != 0).any(2).sum(1))
    connections = Connections(1, tuple(reach))
    whole = run(torch.ones(1, 1, *spatial, dtype=torch.float64))
    copies = connections.everywhere((1, 1, *spatial)) == whole.numel() and bool((whole == 1).all())
    return connections, copies


def comparisons_of(pool: nn.Module, source: Sequence[int], target: Sequence[int]) -> int:
    """Comparisons of a max pooling: the elements that exist in a window, less one, summed over all windows."""
    kind = base_of(pool)
    assert kind is not None  # max pooling is in the operator table
    dimensions = int(kind.__name__[-2])  # MaxPool2d -> 2
    lengths, outputs = source[-dimensions:], target[-dimensions:]
    if hasattr(pool, "output_size"):  # adaptive: window o is floor(o n / m) ... ceil((o + 1) n / m)
        covered = [
            sum(-(-(o + 1) * length // count) - o * length // count for o in range(count))
            for length, count in zip(lengths, outputs, strict=True)
        ]
    else:
        settings = [_each(getattr(pool, name), dimensions) for name in ("kernel_size", "stride", "dilation", "padding")]
        covered = [int(_window_reach("zeros", *field).sum()) for field in zip(lengths, outputs, *settings, strict=True)]
    return math.prod(source[:-dimensions]) * math.prod(covered) - math.prod(target)


def _window_reach(mode: str, length: int, outputs: int, kernel: int, stride: int, dilation: int, left: int) -> Tensor:
    taps = torch.arange(outputs).unsqueeze(1) * stride + torch.arange(kernel) * dilation - left  # (outputs, kernel)
    last = length - 1
    if mode == "zeros":
        taps = taps[(taps >= 0) & (taps <= last)]
    elif mode == "circular":
        taps = taps % length
    elif mode == "replicate":
        taps = taps.clamp(0, last)
    elif mode == "reflect":
        taps = last - (last - taps.abs()).abs()
    else:
        raise OperatorError(
            f"no count for padding_mode {mode!r}; expected one of 'zeros', 'circular', 'replicate', 'reflect'"
        )
    return torch.bincount(taps.flatten(), minlength=length)


def _transposed_reach(length: int, outputs: int, kernel: int, stride: int, dilation: int, left: int) -> Tensor:
    targets = torch.arange(length).unsqueeze(1) * stride + torch.arange(kernel) * dilation - left  # (length, kernel)
    return ((targets >= 0) & (targets < outputs)).sum(1)


def _left_padding(settings: Any, dimensions: int) -> tuple[int, ...]:
    if settings.padding == "valid":
        return (0,) * dimensions
    if settings.padding == "same":
        return tuple(
            d * (k - 1) // 2 for k, d in zip(settings.kernel_size, _each(settings.dilation, dimensions), strict=True)
        )
    return _each(settings.padding, dimensions)


def _each(value: int | Sequence[int], dimensions: int) -> tuple[int, ...]:
    if isinstance(value, int):
        return (value,) * dimensions
    return tuple(value) if len(value) == dimensions else tuple(value) * dimensions
