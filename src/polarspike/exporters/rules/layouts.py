"""What moves values and computes none: done to codes after they have fired."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import fx

from polarspike.exporters.aten import Arguments, leaves_of, shape_of
from polarspike.exporters.signals import Analog, Averaged, Codes, Constant, Moved, Signal, Sums, View

if TYPE_CHECKING:
    from polarspike.exporters.lowering import Lowering, Rule

#: Weights of 8 bits keep 4 of them for codes whose steps are so much smaller than those beside them.
_NEAR = 16.0

#: Up to here float32 counts exactly.
_COUNTED = 2**24


def _view(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    source = given.get("self", given.get("input"))
    if _symbolic(node) and not _symbolic(source):
        raise walk.emitter.refuse("a layout that makes a batch of something else")
    return _looked(walk, source, ("reshape", shape_of(node)), node)


def _symbolic(node: fx.Node) -> bool:
    return not isinstance(node.meta["val"].shape[0], int)


def _looked(walk: Lowering, source: fx.Node, view: View, node: fx.Node) -> Signal:
    signal = walk.signals[source]
    if isinstance(signal, Moved) or str(node.meta["val"].shape[0]) != str(source.meta["val"].shape[0]):
        raise walk.emitter.unbatched()
    if isinstance(signal, Averaged) or (isinstance(signal, Sums) and not (signal.plain or signal.views)):
        signal = walk.float(source)
    return walk.emitter.viewed(signal, view)


def _transpose(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(node)) + 1
    order = list(range(dims))
    one, other = given["dim0"] % dims, given["dim1"] % dims
    order[one], order[other] = order[other], order[one]
    return _ordered(walk, given["self"], tuple(order), node)


def _permute(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(node)) + 1
    return _ordered(walk, given["self"], tuple(d % dims for d in given["dims"]), node)


def _ordered(walk: Lowering, source: fx.Node, order: tuple[int, ...], node: fx.Node) -> Signal:
    signal = walk.signals[source]
    if isinstance(signal, Moved):
        source, order = signal.source, tuple(signal.order[d] for d in order)
    return Moved(source, order) if order[0] else _looked(walk, source, ("transpose", order), node)


def _same(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    return walk.signals[given.get("self", given.get("input"))]  # type: ignore[no-any-return]


def _part(walk: Lowering, source: fx.Node, axis: int, start: int, end: int, stride: int = 1) -> Codes | Analog:
    signal = walk.placed(source)
    length = signal.shape[axis - 1]
    start, end, _ = slice(start, end, stride).indices(length)
    shape = list(signal.shape)
    shape[axis - 1] = len(range(start, end, stride))
    attributes = {"axis": axis, "start": start, "end": end, "stride": stride}
    where_ = (slice(None),) * axis + (slice(start, end, stride),)
    return walk.emitter.rearranged("slice", signal, tuple(shape), attributes, lambda x: x[where_])


def _slice(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(node)) + 1
    axis = given["dim"] % dims
    whole = given["start"] in (None, 0) and (given["end"] is None or given["end"] >= 2**62) and given["step"] == 1
    signal: Signal = walk.signals[given["self"]]
    if whole:
        return signal
    if isinstance(signal, Moved):
        raise walk.emitter.unbatched()
    if axis == 0:
        raise walk.emitter.refuse("a part of the batch")
    return _part(walk, given["self"], axis, given["start"], given["end"], given["step"])


def _select(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    return _one(walk, given["self"], given["dim"], given["index"])


def _unbind(walk: Lowering, node: fx.Node, given: Arguments) -> list[Signal]:
    return [_one(walk, given["self"], given["dim"], index) for index in range(len(node.meta["val"]))]


def _one(walk: Lowering, source: fx.Node, dim: int, index: int) -> Signal:
    """What stands at one index of a dimension, without that dimension."""
    signal = walk.signals[source]
    order = signal.order if isinstance(signal, Moved) else tuple(range(len(shape_of(source)) + 1))
    axis = order[dim % len(order)]
    if axis == 0:
        raise walk.emitter.refuse("one sample of the batch")
    rest = tuple(d - (d > axis) for d in order if d != axis)
    if rest[0]:
        raise walk.emitter.unbatched()
    source = signal.source if isinstance(signal, Moved) else source
    shape = list(shape_of(source))
    index %= shape.pop(axis - 1)
    part = walk.emitter.viewed(_part(walk, source, axis, index, index + 1), ("reshape", tuple(shape)))
    return part if rest == tuple(range(len(rest))) else walk.emitter.viewed(part, ("transpose", rest))


def _chunks(walk: Lowering, node: fx.Node, given: Arguments) -> list[Codes | Analog]:
    source = given["self"]
    shape = shape_of(source)
    axis = given["dim"] % (len(shape) + 1)
    lengths = [int(part.shape[axis]) for part in node.meta["val"]]
    ends = np.cumsum(lengths)
    return [_part(walk, source, axis, int(end) - size, int(end)) for end, size in zip(ends, lengths, strict=True)]


def _apart(parts: list[Codes]) -> bool:
    """Whether means stand beside codes whose steps are so much larger that no grid of weights serves both."""
    steps = np.concatenate([np.atleast_1d(part.step) for part in parts])
    return any(part.wide for part in parts) and float(steps.max()) > _NEAR * float(steps.min())


def _concatenate(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    axis = given["dim"] % (len(shape_of(node)) + 1)
    signals = [walk.signals[part] for part in given["tensors"]]
    if any(isinstance(signal, Moved) for signal in signals):
        raise walk.emitter.unbatched()
    if axis == 0:
        raise walk.emitter.refuse("a concatenation of batches")
    if all(isinstance(signal, Codes) for signal in signals) and not _apart(signals):
        return walk.emitter.joined(signals, shape_of(node), axis)
    names = [
        walk.expanded(part).name if isinstance(walk.signals[part], Constant) else walk.float(part).name
        for part in given["tensors"]
    ]
    return Analog(walk.emitter.concatenated(names, axis, None), shape_of(node))


def _taken(
    walk: Lowering, node: fx.Node, source: fx.Node, axes: Iterable[int], dtype: torch.dtype = torch.float64
) -> Signal:
    """Copies of values, along one dimension after the other: which ones, the operator itself says of their places.

    The places are given to it in ``dtype``: in float64, which counts exactly, unless it takes others in another one.
    """
    if leaves_of((node.args, node.kwargs)) != [source]:
        raise walk.emitter.refuse("a layout that depends on another value or size")
    signal: Codes | Analog = walk.placed(source)
    before, after = (1, *signal.shape), (1, *shape_of(node))
    for axis in axes:
        along = [-1 if d == axis else 1 for d in range(len(before))]
        laid = torch.arange(before[axis], dtype=dtype).reshape(along).expand(before).contiguous()
        moved = node.target(laid, *node.args[1:], **node.kwargs)  # type: ignore[operator]
        places = moved.movedim(axis, 0).flatten(1)[:, 0].long()
        if torch.equal(places, torch.arange(before[axis])):
            continue
        shape = list(signal.shape)
        shape[axis - 1] = after[axis]
        raw = isinstance(signal, Analog) and signal.raw and axis > 1  # else another channel's grid
        signal = walk.emitter.rearranged(
            "take",
            signal,
            tuple(shape),
            {"axis": axis, "places": places.tolist()},
            lambda x, axis=axis, places=places: x.index_select(axis, places),  # type: ignore[misc]
        )
        signal = replace(signal, raw=raw) if isinstance(signal, Analog) else signal
    return signal


def _nearest(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    source = given.get("input", given.get("self"))
    if (longest := max(shape_of(source)[1:])) > _COUNTED:
        raise walk.emitter.refuse(f"an enlargement of {longest} pixels, of which float32 counts only {_COUNTED}")
    # torch multiplies a place by the scale in the values' own dtype, and the network's is float32: 2 pixels made 82 differ.
    return _taken(walk, node, source, range(2, len(shape_of(node)) + 1), torch.float32)


def _roll(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    dims = len(shape_of(node)) + 1
    axes = sorted({d % dims for d in given["dims"]})
    if not axes or axes[0] == 0:
        raise walk.emitter.refuse("a roll over the batch; name the dimensions behind it (dims)")
    return _taken(walk, node, given["self"], axes)


def _pad(walk: Lowering, node: fx.Node, given: Arguments) -> Signal:
    signal = walk.placed(given["self"])
    if given.get("mode", "constant") != "constant":
        dims = len(signal.shape) + 1
        return _taken(walk, node, given["self"], range(dims - len(given["pad"]) // 2, dims))
    if given.get("value"):
        raise walk.emitter.refuse(
            f"expected padding with zeros, which are a code of every site, got value={given['value']}; pad with zeros "
            "(mode 'replicate' or 'reflect' is held, too), or export as onnx-float"
        )
    space = len(signal.shape) - 1
    pairs = [given["pad"][i : i + 2] for i in range(0, len(given["pad"]), 2)][::-1]
    pairs = [[0, 0]] * (space - len(pairs)) + pairs
    if len(pairs) != space or min(min(pair) for pair in pairs) < 0:
        raise walk.emitter.refuse("padding of the channels, or negative padding")
    attributes = {"padding": [[p[0] for p in pairs], [p[1] for p in pairs]]}
    flat = [size for pair in pairs[::-1] for size in pair]
    return walk.emitter.rearranged(
        "pad", signal, shape_of(node), attributes, lambda x: torch.nn.functional.pad(x, flat, mode="replicate")
    )


RULES: dict[str, Rule] = {
    **dict.fromkeys(
        ("aten::view", "aten::reshape", "aten::flatten", "aten::unflatten", "aten::squeeze", "aten::unsqueeze"), _view
    ),
    "aten::transpose": _transpose,
    "aten::permute": _permute,
    **dict.fromkeys(("aten::dropout", "aten::contiguous", "aten::clone", "aten::detach", "aten::alias"), _same),
    "aten::slice": _slice,
    "aten::select": _select,
    "aten::unbind": _unbind,
    **dict.fromkeys(("aten::chunk", "aten::split", "aten::split_with_sizes"), _chunks),
    "aten::cat": _concatenate,
    **dict.fromkeys(("aten::upsample_nearest1d", "aten::upsample_nearest2d", "aten::upsample_nearest3d"), _nearest),
    "aten::roll": _roll,
    **dict.fromkeys(("aten::pad", "aten::constant_pad_nd"), _pad),
}
