"""The largest of a window keeps codes; a mean makes sums of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from torch import fx

from polarspike.exporters.aten import Arguments, average_windows, even_windows, shape_of, sizes_of
from polarspike.exporters.signals import Averaged, Codes, Moved, Signal, Sums

if TYPE_CHECKING:
    from polarspike.exporters.lowering import Lowering, Rule


def _max_pool(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    signal = walk.placed(given["self"])
    space = len(signal.shape) - 1
    kernel, dilation = sizes_of(given["kernel_size"], space), sizes_of(given["dilation"], space)
    stride = sizes_of(given["stride"], space) if given["stride"] else kernel
    before = sizes_of(given["padding"], space)
    shape = shape_of(node)
    # As much behind as the last window reaches: with ceil_mode it may stand out.
    after = [
        (out - 1) * s + d * (k - 1) + 1 - size - p
        for out, s, d, k, size, p in zip(shape[1:], stride, dilation, kernel, signal.shape[1:], before, strict=True)
    ]
    padding = [before, [max(0, extra) for extra in after]]
    attributes = {"kernel": kernel, "stride": stride, "padding": padding, "dilation": dilation}
    return walk.emitter.pooled(signal, shape, attributes)


def _average_pool(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    windows = average_windows(node, given)
    if isinstance(windows, str):
        raise walk.emitter.refuse(windows)
    return _window_mean(walk, node, given["self"], *windows)


def _adaptive_average(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    source, shape = given["self"], shape_of(node)
    before = shape_of(source)
    if all(size == 1 for size in shape[1:]):
        return _mean_over(walk, node, source, list(range(2, len(before) + 1)), True)
    windows = even_windows(before[1:], shape[1:])
    if windows is None:
        raise walk.emitter.refuse(
            f"adaptive average pooling from {before[1:]} to {shape[1:]}, whose windows differ in size"
        )
    return _window_mean(walk, node, source, *windows, [0] * len(windows[0]))


def _window_mean(
    walk: Lowering, node: fx.Node, source: fx.Node, kernel: list[int], stride: list[int], padding: list[int]
) -> Signal:
    signal = walk.signals[source]
    attributes = {"kernel": kernel, "stride": stride, "padding": [padding, padding]}
    if isinstance(signal, Sums) and signal.rectified and not signal.views and _one_convolution(signal):
        return Averaged(signal, source, shape_of(node), attributes)
    if not isinstance(signal, Codes):  # its site is behind it
        return walk.emitter.floating("AveragePool", [walk.float(source).name], shape_of(node), **attributes)
    return walk.emitter.summed(signal, shape_of(node), math.prod(kernel), attributes, signal.axis)


def _one_convolution(sums: Sums) -> bool:
    return [term.operator for term in sums.terms] == ["convolution"]


def _mean(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(given["self"])) + 1
    wanted = given.get("dim")
    wanted = range(dims) if wanted in (None, []) else [wanted] if isinstance(wanted, int) else wanted
    axes = sorted(d % dims for d in wanted)
    if isinstance(walk.signals[given["self"]], Moved):
        raise walk.emitter.unbatched()
    if 0 in axes:
        raise walk.emitter.refuse("a mean over the batch")
    return _mean_over(walk, node, given["self"], axes, bool(given.get("keepdim")))


def _mean_over(walk: Lowering, node: fx.Node, source: fx.Node, axes: list[int], keepdims: bool) -> Signal:
    signal, shape = walk.signals[source], shape_of(source)
    if isinstance(signal, Codes) and (signal.uniform or signal.axis not in axes):
        count = math.prod(shape[d - 1] for d in axes)
        axis = signal.axis if keepdims else signal.axis - sum(d < signal.axis for d in axes)
        return walk.emitter.summed(
            signal, shape_of(node), count, {"axes": axes, "keepdims": keepdims}, 1 if signal.uniform else axis
        )
    return walk.emitter.floating("ReduceMean", [walk.float(source).name], shape_of(node), axes=axes, keepdims=keepdims)


def _largest(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(given["self"])) + 1
    axes = sorted(d % dims for d in given["dim"] or range(dims))
    if isinstance(walk.signals[given["self"]], Moved):
        raise walk.emitter.unbatched()
    if 0 in axes:
        raise walk.emitter.refuse("the largest over the batch")
    signal = walk.placed(given["self"])
    if isinstance(signal, Codes) and not signal.uniform and signal.axis in axes:
        signal = walk.float(given["self"])  # codes of different steps, whose order is not that of their values
    return walk.emitter.largest(signal, shape_of(node), axes, bool(given["keepdim"]))


RULES: dict[str, Rule] = {
    **dict.fromkeys(("aten::max_pool1d", "aten::max_pool2d"), _max_pool),
    **dict.fromkeys(("aten::avg_pool1d", "aten::avg_pool2d"), _average_pool),
    **dict.fromkeys(("aten::adaptive_avg_pool1d", "aten::adaptive_avg_pool2d"), _adaptive_average),
    "aten::mean": _mean,
    "aten::amax": _largest,
}
