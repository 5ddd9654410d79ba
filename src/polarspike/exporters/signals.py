"""What a signal is while a network is turned into whole numbers: codes, sums that have not fired yet, or float."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, fx

Vector = NDArray[np.float64]
#: Sizes without the batch.
Shape = tuple[int, ...]
#: What has been done to a layout: ("reshape", sizes without the batch) or ("transpose", permutation with the batch).
View = tuple[Literal["reshape", "transpose"], tuple[int, ...]]

ONE: Vector = np.ones(())
ZERO: Vector = np.zeros(())


@dataclass(frozen=True)
class Codes:
    """Whole numbers k that stand for ``step k + offset``.

    Args:
        name: of the value.
        step: one number, or one for each index of ``axis``.
        axis: of ``step``, counted with the batch.
        low: the smallest code; high: the largest.
        high: see ``low``.
        shape: without the batch.
        offset: like ``step``; zero but for pixels. Padding is code 0, which stands for ``offset``: for pixels up to half a
            step beside the 0 that the network pads with.
        summed: some are sums of codes, which are kept as whole numbers in float32.
    """

    name: str
    step: Vector
    axis: int
    low: int
    high: int
    shape: Shape
    offset: Vector = field(default_factory=lambda: np.zeros(()))
    summed: bool = False

    @property
    def uniform(self) -> bool:
        """One step for all."""
        return self.step.ndim == 0

    @property
    def largest(self) -> int:
        """The largest absolute code."""
        return max(abs(self.low), abs(self.high))

    @property
    def wide(self) -> bool:
        """Not kept as bytes."""
        return self.summed or self.high - self.low > 255


@dataclass(frozen=True)
class Normalized:
    """What a network makes of one of its inputs before its first layer: ``factor x + shift``.

    Args:
        origin: the input's name.
        factor: positive; one number, or one per channel (dimension 1).
        shift: like ``factor``.
    """

    origin: str
    factor: Vector
    shift: Vector


@dataclass(frozen=True)
class Analog:
    """A float32 value.

    Args:
        name: of the value.
        shape: without the batch.
        raw: it is an input of the network, at most seen in another layout.
        normalized: it is a normalized input, in the layout of the input.
    """

    name: str
    shape: Shape
    raw: bool = False
    normalized: Normalized | None = None


@dataclass(frozen=True)
class Constant:
    """A tensor that depends on no input."""

    tensor: Tensor


@dataclass(frozen=True)
class Term:
    """One part of a sum: ``scale * operator(codes) + bias``; the operator's weights already hold the steps of the codes.

    Args:
        operator: what is done to the codes; ``identity`` has no weight.
        sources: the codes: one, two for a product.
        weight: (outputs, ...) in real units; None for identity and product.
        options: of a convolution.
        scale: one number, or one per output channel.
        seen: the smallest and the largest value on the given batches, in real units.
        bias: one number, or one per channel.
    """

    operator: Literal["convolution", "linear", "product", "identity"]
    sources: tuple[Codes, ...]
    weight: Vector | None
    options: dict[str, Any]
    scale: Vector
    seen: tuple[float, float]
    bias: Vector = field(default_factory=lambda: np.zeros(()))

    @property
    def weighted(self) -> bool:
        """It has weights, which take its bias along."""
        return self.operator in ("convolution", "linear")


@dataclass(frozen=True)
class Sums:
    """A membrane before its neuron: terms and a bias, not computed yet: what comes next decides in which units.

    Args:
        terms: at least one.
        bias: beside those of the terms; one number, or one per channel.
        axis: of the channels, counted with the batch, before ``views``.
        shape: without the batch, before ``views``.
        views: what is to be done to the layout afterwards.
        rectified: negative values are cut off.
    """

    terms: tuple[Term, ...]
    bias: Vector
    axis: int
    shape: Shape
    views: tuple[View, ...] = ()
    rectified: bool = False

    @property
    def loose_bias(self) -> Vector:
        """The bias that no weights take along: that beside the terms, and those of terms without weights."""
        return self.bias + sum((term.bias for term in self.terms if not term.weighted), np.zeros(()))

    @property
    def plain(self) -> bool:
        """Still affine, and in the layout in which it is computed."""
        return not self.views and not self.rectified

    def times(self, factor: Vector) -> Sums:
        """Each channel multiplied by its factor."""
        terms = tuple(
            replace(term, scale=term.scale * factor, seen=_scaled(term.seen, factor), bias=term.bias * factor)
            for term in self.terms
        )
        return replace(self, terms=terms, bias=self.bias * factor)

    def shown(self, seen: tuple[float, float]) -> Sums:
        """The same where it is one term, of which the batches have shown these values, bias and all."""
        if len(self.terms) != 1:
            return self
        term = replace(self.terms[0], seen=seen, bias=self.terms[0].bias + self.bias)
        return replace(self, terms=(term,), bias=np.zeros(()))


@dataclass(frozen=True)
class Averaged:
    """Means over windows of rectified sums of one convolution, not computed yet: the site behind them decides how.

    Args:
        sums: that are averaged.
        source: the node that makes them, for who needs the float value.
        shape: without the batch.
        windows: kernel, stride, padding.
    """

    sums: Sums
    source: fx.Node
    shape: Shape
    windows: dict[str, Any]


@dataclass(frozen=True)
class Moved:
    """A layout whose first dimension is not the batch, not written: parts of it may have the batch in front again.

    Args:
        source: the node that is moved, with the batch in front.
        order: of its dimensions.
    """

    source: fx.Node
    order: tuple[int, ...]


Signal = Codes | Analog | Constant | Sums | Averaged | Moved


def array_of(tensor: Tensor) -> Vector:
    """A tensor in float64."""
    array: Vector = tensor.detach().cpu().double().numpy()
    return array


def _scaled(seen: tuple[float, float], factor: Vector) -> tuple[float, float]:
    ends = np.multiply.outer(np.array(seen), factor)
    return float(ends.min()), float(ends.max())
