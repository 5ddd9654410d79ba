"""Streaming statistics of an activation: exact counts and moments, and a histogram, in one pass and constant memory.

The histogram of every group covers [-R, R) with R a power of two, in 2 H bins of width ``R / H``, also a power of two.
When a value does not fit, R doubles and bins merge in pairs. Scaling by a power of two rounds nothing, so a value lands
in the same final bin whenever it comes: counts do not depend on how the data were cut into batches, nor on their order.

Exact zeros (after a ReLU: half of the data) are counted apart and stay a point at zero in the law; in a bin they would
move to its centre and shift the mean by up to half a bin. Inside a bin the law is uniform, so boundaries may fall
between bin centres: with 2048 bins and one outlier at 100 sigma (a bin is then 1/8 sigma) steps stay within 2 %.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from polarspike.errors import CalibrationError, InputError
from polarspike.statistics.laws import Samples

BINS_OF_TENSOR = 8192
BINS_OF_CHANNEL = 2048

_LEAST_EXPONENT = -100  # R starts at 2^-100: finer structure is not resolved, and scaling cannot overflow float32
_LARGEST_EXPONENT = 128  # every float32 fits
_CHUNK = 1 << 16  # elements handled at once: intermediates stay in the cache


class StreamingHistogram:
    """Statistics of one tensor (``groups=1``) or of each channel (``groups=C``, dimension 1) over many batches.

    Args:
        groups: G, 1 for one law over all elements, or the number of channels.
        bins: 2 H, a power of two of at least 4; None is 8192 for one group, 2048 for channels.

    Attributes:
        elements: number of values seen in each group.
        zeros: (G,) int64, how many of them are exactly zero.
        minimum: (G,) float64, exact. maximum likewise.
        mean: (G,) float64. variance likewise (of the values seen: divided by ``elements``).

    Raises:
        InputError: the numbers of groups or bins are impossible.

    >>> statistics = StreamingHistogram(groups=1)
    >>> statistics.update(torch.tensor([-1.0, 0.0, 4.0]))
    >>> statistics.elements, statistics.mean.item(), statistics.maximum.item()
    (3, 1.0, 4.0)
    """

    def __init__(self, groups: int, bins: int | None = None) -> None:
        if groups < 1:
            raise InputError(f"StreamingHistogram.groups: expected at least 1, got {groups}")
        bins = bins or (BINS_OF_TENSOR if groups == 1 else BINS_OF_CHANNEL)
        if bins < 4 or bins & (bins - 1):
            raise InputError(f"StreamingHistogram.bins: expected a power of two of at least 4, got {bins}")
        self.groups, self.bins = groups, bins
        self.elements = 0
        self.zeros = torch.zeros(groups, dtype=torch.int64)
        self.minimum = torch.full((groups,), math.inf, dtype=torch.float64)
        self.maximum = torch.full((groups,), -math.inf, dtype=torch.float64)
        self.mean = torch.zeros(groups, dtype=torch.float64)
        self._squares = torch.zeros(groups, dtype=torch.float64)  # sum of (x - mean)^2
        self._above = torch.zeros(groups, dtype=torch.float64)  # sum of max(x, 0)
        self._below = torch.zeros(groups, dtype=torch.float64)  # sum of max(-x, 0)
        self._exponent = torch.full((groups,), _LEAST_EXPONENT, dtype=torch.int64)  # log2 R
        # Counts by sign and by magnitude, so that a value and its negative fall into mirrored bins: (G, 2, H).
        self._counts = torch.zeros(groups, 2, bins // 2, dtype=torch.int64)

    @property
    def variance(self) -> Tensor:
        """(G,) float64, of the values seen."""
        self._require_data()
        return self._squares / self.elements

    def mean_magnitude(self, gain: float = 1.0) -> Tensor:
        """Mean of |r(x)| with r(x) = x for x >= 0 and gain x below zero; gain 0 is ReLU. (G,) float64."""
        self._require_data()
        return (self._above + gain * self._below) / self.elements

    def update(self, x: Tensor) -> None:
        """Add a batch: any shape for one group, (B, C, ...) for channels; any float type, any device.

        Raises:
            InputError: not a float tensor, empty, another number of channels, or NaN or Inf inside (how many is said;
                the statistics are then as before).
        """
        x = self._arranged(x)  # (B, G, L)
        low, high = x.amin(dim=(0, 2)).double().cpu(), x.amax(dim=(0, 2)).double().cpu()
        self._require_finite(x, low, high)
        self.minimum, self.maximum = torch.minimum(self.minimum, low), torch.maximum(self.maximum, high)
        largest = torch.maximum(-low, high)
        self._widen(torch.where(largest > 0, torch.frexp(largest).exponent, _LEAST_EXPONENT).long())
        counts = torch.zeros(self._counts.numel(), dtype=torch.int64, device=x.device)
        for chunk in self._chunks(x):
            counts += self._binned(chunk)
            self._add_moments(chunk)
        self._counts += counts.cpu().view_as(self._counts)

    def merge(self, other: StreamingHistogram) -> None:
        """Add what another process or thread has seen; counts and extrema are exactly those of a single pass."""
        if (self.groups, self.bins) != (other.groups, other.bins):
            raise InputError(
                f"merge: expected a histogram of {self.groups} groups and {self.bins} bins, "
                f"got {other.groups} and {other.bins}; build both for the same site"
            )
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)
        self._widen(other._exponent)
        self._counts += _merged_bins(other._counts, self._exponent - other._exponent)
        self.zeros = self.zeros + other.zeros
        self._join(other.elements, other.mean, other._squares, other._above, other._below)

    def centres(self) -> Tensor:
        """Centres of the bins, ascending: (G, bins) float64."""
        half = self.bins // 2
        place = torch.arange(-half, half, dtype=torch.float64) + 0.5
        return self._width().unsqueeze(1) * place

    def counts(self) -> Tensor:
        """Number of values in each bin, exact zeros left out: (G, bins) int64."""
        return torch.cat((self._counts[:, 1].flip(1), self._counts[:, 0]), dim=1)

    def law(self) -> Samples:
        """The histogram as a law: uniform within a bin, and a point at zero that holds the exact zeros.

        Raises:
            CalibrationError: nothing has been seen.
        """
        self._require_data()
        weights, values = self.counts().double(), self.centres()
        widths = self._width().unsqueeze(1).expand_as(values)
        used = (weights > 0).any(0)  # an outlier leaves most bins empty
        point = torch.zeros(self.groups, 1, dtype=torch.float64)
        return Samples(
            torch.cat((values[:, used], point), dim=1),
            torch.cat((weights[:, used], self.zeros.double().unsqueeze(1)), dim=1),
            torch.cat((widths[:, used], point), dim=1),
        )

    def quantile(self, q: float) -> Tensor:
        """The value below which a share ``q`` of the data lies, interpolated within bins; (G,) float64.

        Off by less than one bin; the ends ``q = 0`` and ``q = 1`` are the exact minimum and maximum.

        Raises:
            InputError: ``q`` is outside [0, 1].
            CalibrationError: nothing has been seen.
        """
        if not 0.0 <= q <= 1.0:
            raise InputError(f"quantile: expected a share in [0, 1], got {q}")
        self._require_data()
        half, zero = self.bins // 2, self.zeros.unsqueeze(1)
        counts = self.counts()
        counts = torch.cat((counts[:, :half], zero, counts[:, half:]), dim=1)  # ascending, with the point at zero
        edges = self._width().unsqueeze(1) * torch.arange(-half, half + 1, dtype=torch.float64)
        left = torch.cat((edges[:, :half], edges[:, half:-1].new_zeros(self.groups, 1), edges[:, half:-1]), dim=1)
        width = self._width().unsqueeze(1).expand_as(left).clone()
        width[:, half] = 0.0
        upto = counts.cumsum(1)
        wanted = torch.full((self.groups, 1), q * self.elements, dtype=torch.float64)
        at = torch.searchsorted(upto.double(), wanted).clamp(max=self.bins)
        count = counts.gather(1, at)
        share = (wanted - (upto.gather(1, at) - count)) / count.clamp(min=1)
        value = (left.gather(1, at) + share * width.gather(1, at)).squeeze(1)
        return torch.minimum(torch.maximum(value, self.minimum), self.maximum)

    def _arranged(self, x: Tensor) -> Tensor:
        if not x.is_floating_point():
            raise InputError(f"StreamingHistogram.update: expected a float tensor, got {x.dtype}; convert it first")
        if x.numel() == 0:
            raise InputError(f"StreamingHistogram.update: expected values, got an empty tensor {tuple(x.shape)}")
        x = x.detach()
        if self.groups == 1:
            return x.reshape(1, 1, -1)
        if x.dim() < 2 or x.shape[1] != self.groups:
            raise InputError(
                f"StreamingHistogram.update: expected shape (batch, {self.groups}, ...), got {tuple(x.shape)}; "
                "channels are dimension 1"
            )
        return x.reshape(x.shape[0], self.groups, -1)

    def _require_finite(self, x: Tensor, low: Tensor, high: Tensor) -> None:
        if not bool((low.isfinite() & high.isfinite()).all()):
            nan, inf = int(x.isnan().sum()), int(x.isinf().sum())
            raise InputError(
                f"StreamingHistogram.update: expected finite values, got {nan} NaN and {inf} Inf among {x.numel()}; "
                "check the input and the weights that lead here"
            )
        largest = max(-low.min().item(), high.max().item())
        if largest >= 2.0**_LARGEST_EXPONENT:
            raise InputError(f"StreamingHistogram.update: expected magnitudes that float32 holds, got {largest:g}")

    def _chunks(self, x: Tensor) -> Iterator[Tensor]:
        batch, groups, length = x.shape
        # A chunk costs one pass over all bins, so it holds more elements than there are bins.
        size = max(_CHUNK, 4 * self._counts.numel())
        rows, columns = max(1, size // (groups * length)), max(1, size // groups)
        for start in range(0, batch, rows):
            for column in range(0, length, columns):
                yield x[start : start + rows, :, column : column + columns]

    def _binned(self, chunk: Tensor) -> Tensor:
        """Count a chunk in the flat order of ``_counts``; exact zeros are added to ``zeros`` instead."""
        half, device = self.bins // 2, chunk.device
        wide = chunk if chunk.dtype == torch.float64 else chunk.float()
        scale = self._width().reciprocal().to(wide)  # powers of two in float32's range: exact
        # Magnitudes: a negative value so small that scaling makes it -0 still keeps its side.
        place = wide.abs().mul_(scale.view(1, -1, 1)).long()
        place += (wide < 0).long().mul_(half)
        place += torch.arange(0, self._counts.numel(), self.bins, device=device).view(1, -1, 1)
        counts = torch.bincount(place.flatten(), minlength=self._counts.numel())
        zeros = (wide == 0).sum(dim=(0, 2))
        counts[:: self.bins] -= zeros
        self.zeros = self.zeros + zeros.cpu()
        return counts

    def _add_moments(self, chunk: Tensor) -> None:
        wide = chunk.double()
        elements = chunk.shape[0] * chunk.shape[2]
        total, magnitude = wide.sum(dim=(0, 2)), wide.abs().sum(dim=(0, 2))
        above, below = (magnitude + total) / 2, (magnitude - total) / 2  # below is exactly 0 after a ReLU
        mean = total / elements
        squares = (wide - mean.view(1, -1, 1)).square_().sum(dim=(0, 2))
        self._join(elements, mean.cpu(), squares.cpu(), above.cpu(), below.cpu())

    def _join(self, elements: int, mean: Tensor, squares: Tensor, above: Tensor, below: Tensor) -> None:
        """Pairwise update of mean and squares (Chan, Golub, LeVeque 1979): no large sums are subtracted."""
        total = self.elements + elements
        if elements == 0:
            return
        difference = mean - self.mean
        self._squares = self._squares + squares + difference.square() * (self.elements * elements / total)
        self.mean = self.mean + difference * (elements / total)
        self._above, self._below = self._above + above, self._below + below
        self.elements = total

    def _widen(self, exponent: Tensor) -> None:
        """Raise log2 R to ``exponent`` where that is more."""
        exponent = torch.maximum(self._exponent, exponent)
        self._counts = _merged_bins(self._counts, exponent - self._exponent)
        self._exponent = exponent

    def _width(self) -> Tensor:
        # The width of a bin, 2^(exponent + 1) / bins. Not torch.ldexp, whose power of two is float32.
        return torch.tensor([math.ldexp(2.0 / self.bins, e) for e in self._exponent.tolist()], dtype=torch.float64)

    def _require_data(self) -> None:
        if self.elements == 0:
            raise CalibrationError("StreamingHistogram: nothing has been seen; call update with at least one batch")


def _merged_bins(counts: Tensor, doublings: Tensor) -> Tensor:
    """Counts (G, 2, H) after R has doubled ``doublings`` (G,) times: bin j becomes bin j >> doublings."""
    if not bool((doublings > 0).any()):
        return counts
    place = torch.arange(counts.shape[2]) >> doublings.clamp(max=62).view(-1, 1, 1)
    return torch.zeros_like(counts).scatter_add_(2, place.expand_as(counts), counts)
