"""Instructions of an integer network, one by one: values, float operators, layouts, and sums of codes of one site."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from torch import Tensor

from polarspike.errors import ExportError
from polarspike.exporters.channels import spread
from polarspike.exporters.signals import Analog, Averaged, Codes, Constant, Moved, Shape, Signal, Sums, Vector, View
from polarspike.integer.lattice import fire, odd_at_most
from polarspike.integer.network import Array, Instruction, laid

#: Means of very many codes are rounded to this many parts of the largest one, and sums to be rounded so are smaller than
#: ``_LARGEST_SHRUNK``: their quotients are then exact enough in float32, whether a runtime divides or multiplies.
_PARTS, _LARGEST_SHRUNK = 2047, 2**22


class Instructions:
    """Collects instructions; every method answers with the signal that it has made.

    Args:
        where: of the operator that is being written, for messages.
    """

    def __init__(self) -> None:
        self.instructions: list[Instruction] = []
        self.constants: dict[str, Array] = {}
        self.where = ""
        self._taken: set[str] = set()

    def free(self, name: str) -> str:
        """``name``, or the first of ``name_1``, ... that no value has."""
        candidate, count = name, 0
        while candidate in self._taken:
            count += 1
            candidate = f"{name}_{count}"
        self._taken.add(candidate)
        return candidate

    def refuse(self, why: str) -> ExportError:
        """The error for what this format does not hold."""
        return ExportError(f"{self.where}: {why}")

    def unbatched(self) -> ExportError:
        """The error for a layout that the batch does not lead."""
        return self.refuse(
            "a layout in which the first dimension is no longer the batch; keep the batch in front, or export as onnx-float"
        )

    def constant(self, value: Tensor | Array | float, name: str = "constant") -> str:
        """A float32 constant by its name."""
        array = value.detach().cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)
        name = self.free(name)
        self.constants[name] = np.ascontiguousarray(array, dtype=np.float32).reshape(array.shape)
        return name

    def floating(self, operator: str, inputs: Iterable[str], shape: Shape, **attributes: Any) -> Analog:
        """One operator of ONNX in float32."""
        name = self.free(operator.lower())
        self._add("float", inputs, name, {"operator": operator, **attributes})
        return Analog(name, shape)

    def quantized(
        self,
        x: Analog,
        step: Vector,
        axis: int,
        low: int,
        high: int,
        name: str,
        offset: Vector | None = None,
        *,
        ties_up: bool = False,
    ) -> Codes:
        """Codes of a float signal, ``clip(rint((x - offset) / step), low, high)``; they stand for ``step k + offset``.

        ``ties_up`` takes ``floor(x / step + 1/2)`` as the spiking network does: where steps are powers of two, values that
        lie on the grid of floats meet thresholds.
        """
        name = self.free(name)
        dims = len(x.shape) + 1
        tensors = {"step": laid(step, axis, dims).astype(np.float32)}
        if offset is not None and offset.any():
            tensors["shift"] = laid(offset, axis, dims).astype(np.float32)
        self._add("quantize", [x.name], name, {"ties": "up"} if ties_up else {}, tensors, (low, high))
        return Codes(name, step, axis, low, high, x.shape, np.zeros(()) if offset is None else offset)

    # Layouts, of whole numbers and of float alike

    def viewed(self, signal: Signal, view: View) -> Signal:
        """The signal in another layout; sums remember it until they fire."""
        kind, how = view
        if isinstance(signal, Sums):
            return replace(signal, views=(*signal.views, view))
        assert not isinstance(signal, Averaged | Moved)  # the walk asks for their float value
        if isinstance(signal, Constant):
            shape = (len(signal.tensor), *how) if kind == "reshape" else how
            return Constant(
                signal.tensor.reshape(shape) if kind == "reshape" else signal.tensor.permute(*how).contiguous()
            )
        if kind == "reshape":
            shape = how
            attributes: dict[str, Any] = {"shape": ["batch", *how]}
        else:
            if how[0] != 0:
                raise self.refuse("a layout that moves the batch to another place")
            shape = tuple(signal.shape[d - 1] for d in how[1:])
            attributes = {"permutation": list(how)}
        return self.rearranged(
            kind, signal, shape, attributes, lambda x: x.reshape(1, *how) if kind == "reshape" else x.permute(*how)
        )

    def rearranged(
        self,
        kind: str,
        signal: Codes | Analog,
        shape: Shape,
        attributes: dict[str, Any],
        same: Callable[[Tensor], Tensor],
    ) -> Codes | Analog:
        """An instruction that moves values and computes none.

        Args:
            kind: of the instruction.
            signal: what is moved.
            shape: afterwards.
            attributes: of the instruction.
            same: does the same to a tensor with a batch of one, so that steps per channel can be followed.
        """
        name = self.free(f"{signal.name}_{kind}")
        span = (signal.low, signal.high) if isinstance(signal, Codes) else None
        self._add(kind, [signal.name], name, attributes, {}, span)
        if isinstance(signal, Analog):
            return Analog(name, shape, signal.raw)
        step, axis = self._moved(signal.step, signal.axis, signal.shape, same)
        offset, _ = self._moved(signal.offset, signal.axis, signal.shape, same)
        return replace(signal, name=name, shape=shape, step=step, axis=axis, offset=offset)

    def _moved(self, step: Vector, axis: int, shape: Shape, same: Callable[[Tensor], Tensor]) -> tuple[Vector, int]:
        if step.ndim == 0:
            return step, axis
        full = same(spread(step, axis, shape))
        for dim in range(1, full.dim()):
            along = full.movedim(dim, 0).flatten(1)
            if bool((along == along[:, :1]).all()):
                return along[:, 0].numpy(), dim
        raise self.refuse("a layout in which steps per channel lie along no dimension; use one step per site")

    def pooled(self, signal: Codes | Analog, shape: Shape, attributes: dict[str, Any]) -> Codes | Analog:
        """The largest of each window; the order of codes is that of their values."""
        name = self.free(f"{signal.name}_pool")
        span = (signal.low, signal.high) if isinstance(signal, Codes) else None
        self._add("max_pool", [signal.name], name, attributes, {}, span)
        return replace(signal, name=name, shape=shape)

    def largest(self, signal: Codes | Analog, shape: Shape, axes: list[int], keepdims: bool) -> Codes | Analog:
        """The largest over whole dimensions, none of which has steps per channel along it."""
        name = self.free(f"{signal.name}_largest")
        span = (signal.low, signal.high) if isinstance(signal, Codes) else None
        self._add("largest", [signal.name], name, {"axes": axes, "keepdims": keepdims}, {}, span)
        if isinstance(signal, Analog):
            return Analog(name, shape)
        axis = signal.axis if keepdims or signal.uniform else signal.axis - sum(d < signal.axis for d in axes)
        return replace(signal, name=name, shape=shape, axis=axis)

    def summed(self, codes: Codes, shape: Shape, count: int, attributes: dict[str, Any], axis: int) -> Codes:
        """Sums of ``count`` codes each, which stand for their mean."""
        name = self.free(f"{codes.name}_sum")
        low, high = codes.low * count, codes.high * count
        self._add("window_sum", [codes.name], name, attributes, {}, (low, high))
        return replace(
            codes, name=name, shape=shape, step=codes.step / count, low=low, high=high, axis=axis, summed=True
        )

    def shrunk(self, codes: Codes) -> Codes:
        """Sums of codes in coarser units, ``floor(k / d + 1/2)`` with an odd d, so that at most 2047 are left.

        Raises:
            ExportError: the sums reach 2^22.
        """
        if codes.largest >= _LARGEST_SHRUNK:
            raise self.refuse(
                f"sums of codes up to {codes.largest:,}, more than {_LARGEST_SHRUNK:,}; take the mean in two stages"
            )
        divisor = odd_at_most(math.ceil(codes.largest / _PARTS) + 1)
        if divisor == 1:
            return codes
        low, high = (int(fire(np.array(end), divisor, -_PARTS, _PARTS)) for end in (codes.low, codes.high))
        name = self.free(f"{codes.name}_shrunk")
        self._add("shrink", [codes.name], name, {}, {"divisor": np.array(divisor)}, (low, high))
        return replace(codes, name=name, step=codes.step * divisor, low=low, high=high, summed=True)

    def joined(self, parts: list[Codes], shape: Shape, axis: int) -> Codes:
        """Codes of several sites behind each other, each with its own step."""
        low, high = min(part.low for part in parts), max(part.high for part in parts)
        name = self.concatenated([part.name for part in parts], axis, (low, high))
        lengths = [part.shape[axis - 1] for part in parts]
        summed = any(part.wide for part in parts)
        if all(part.uniform and part.step == parts[0].step for part in parts):
            return replace(parts[0], name=name, shape=shape, low=low, high=high, summed=summed)
        if any(not part.uniform and part.axis != axis for part in parts):
            raise self.refuse("a concatenation across steps per channel; use one step per site")
        steps = [np.broadcast_to(part.step, length) for part, length in zip(parts, lengths, strict=True)]
        return Codes(name, np.concatenate(steps), axis, low, high, shape, summed=summed)

    def concatenated(self, names: Iterable[str], axis: int, span: tuple[int, int] | None) -> str:
        """Values of one kind behind each other, by the name of what they make; ``span`` of whole numbers."""
        name = self.free("concatenate")
        self._add("concatenate", names, name, {"axis": axis}, {}, span)
        return name

    def expanded(self, value: Tensor, shape: Shape, like: str) -> Analog:
        """A constant (1, ...) once for each sample of the value ``like``."""
        name = self.free("expand")
        self._add("expand", [self.constant(value), like], name, {})
        return Analog(name, shape)

    def stretched(self, codes: Codes, factor: int, step: Vector) -> Codes:
        """Codes in units of a finer step, in which a gain of 1 / factor below zero is a whole number."""
        name = self.free(f"{codes.name}_stretched")
        self._add("stretch", [codes.name], name, {"factor": factor}, {}, (codes.low, codes.high * factor))
        return replace(codes, name=name, step=step, high=codes.high * factor)

    def _add(
        self,
        kind: str,
        inputs: Iterable[str],
        output: str,
        attributes: Mapping[str, Any],
        tensors: Mapping[str, Array] | None = None,
        span: tuple[int, int] | None = None,
    ) -> None:
        self.instructions.append(Instruction(kind, tuple(inputs), output, attributes, tensors or {}, span))
