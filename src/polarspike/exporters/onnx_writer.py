"""What the operators of an integer network are written with: nodes, initializers, and which byte stands for 0."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from polarspike.integer.network import Instruction, IntegerNetwork, laid

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]
#: The largest byte.
BYTE = 255
#: ``onnx.TensorProto.FLOAT``, and ``INT32``.
FLOAT, INT32 = 1, 6
_MOVING = ("max_pool", "largest", "reshape", "transpose", "slice", "take", "pad")


def zero_points(network: IntegerNetwork) -> dict[str, int]:
    """The byte that stands for 0, of every value that is stored in bytes."""
    ranges = network.ranges
    common = max((-ranges[name][0] for name in network.sites.values()), default=0)
    points: dict[str, int] = {}
    for made in network.instructions:
        if made.range is None or made.range[1] - made.range[0] > BYTE or _of_sums(made, points, ranges):
            continue
        own = made.kind == "quantize" and made.output not in network.sites.values()
        branch = made.kind in ("synapse", "product", "combine") and made.range[1] - made.range[0] == BYTE
        inherited = [points[name] for name in made.inputs if name in points]
        if made.kind in _MOVING:
            points[made.output] = inherited[0]
        elif own or branch or common + made.range[1] > BYTE:
            points[made.output] = -made.range[0]
        else:
            points[made.output] = max(common, -made.range[0])
    return points


def _of_sums(made: Instruction, points: dict[str, int], ranges: dict[str, tuple[int, int]]) -> bool:
    """Whether a value is whole numbers in float32, because sums of codes are."""
    if made.kind in ("window_sum", "shrink"):
        return True
    moved = made.kind in (*_MOVING, "concatenate")
    return moved and any(name in ranges and name not in points for name in made.inputs)


class Writer:
    """Collects nodes and initializers.

    Args:
        network: whose values are written.
    """

    def __init__(self, network: IntegerNetwork) -> None:
        from onnx import helper, numpy_helper

        self._make_node, self._from_array = helper.make_node, numpy_helper.from_array
        self.network = network
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []
        self.points = zero_points(network)
        self.ranges = network.ranges
        self._known: dict[tuple[Any, ...], str] = {}
        self._count = 0
        for name, value in network.constants.items():
            self.initializers.append(self._from_array(np.asarray(value, dtype=np.float32), name))

    def free(self, hint: str) -> str:
        """A name that no value has."""
        self._count += 1
        return f"{hint}#{self._count}"

    def node(self, kind: str, inputs: list[str], output: str | None = None, **attributes: Any) -> str:
        """A node, by the name of its output."""
        output = output or self.free(kind)
        self.nodes.append(self._make_node(kind, inputs, [output], **attributes))
        return output

    def constant(self, value: Any, dtype: Any = np.float32) -> str:
        """An initializer; equal ones are one."""
        array = np.asarray(value, dtype=dtype)
        key = (array.dtype.str, array.shape, array.tobytes())
        if key not in self._known:
            self._known[key] = self.free("constant")
            self.initializers.append(self._from_array(array, self._known[key]))
        return self._known[key]

    def is_bytes(self, name: str) -> bool:
        """Whether a value is stored in bytes."""
        return name in self.points

    def dequantized(self, name: str, scale: Any = 1.0, axis: int | None = None, dims: int = 0) -> str:
        """The whole numbers of a value of ``dims`` dimensions times a scale (along ``axis``), in float32."""
        if not self.is_bytes(name):
            if np.ndim(scale) == 0 and float(scale) == 1.0:
                return name
            return self.node("Mul", [name, self.constant(laid(np.asarray(scale), axis or 0, dims))])
        point = self.points[name]
        if np.ndim(scale) == 0:
            return self.node("DequantizeLinear", [name, self.constant(scale), self.constant(point, np.uint8)])
        vector = np.asarray(scale, dtype=np.float32).reshape(-1)
        points = self.constant(np.full(len(vector), point), np.uint8)
        return self.node("DequantizeLinear", [name, self.constant(vector), points], axis=axis)

    def unfused(self, name: str) -> str:
        """The whole numbers of a value in float32, by operators that no runtime takes for a quantized layer's.

        Between DequantizeLinear and QuantizeLinear, ONNX Runtime rounds the float weights of a convolution by itself.
        """
        if not self.is_bytes(name):
            return name
        whole = self.node("Cast", [name], to=FLOAT)
        point = self.points[name]
        return self.node("Sub", [whole, self.constant(float(point))]) if point else whole

    def fired(self, made: Instruction, sums: str, scale: Any = 1.0, axis: int = 1) -> None:
        """Bytes of ``sums / scale``, within the range of the instruction."""
        assert made.range is not None
        low, high = made.range
        if not self.is_bytes(made.output):
            raise AssertionError(f"{made.output}: fired codes are bytes")
        point = self.points[made.output]
        points = self.constant(point if np.ndim(scale) == 0 else np.full(np.shape(scale), point), np.uint8)
        extra = {} if np.ndim(scale) == 0 else {"axis": axis}
        clipped = low + point > 0 or high + point < BYTE
        output = self.free("bytes") if clipped else made.output
        self.node("QuantizeLinear", [sums, self.constant(scale), points], output, **extra)
        if clipped:
            ends = [self.constant(end + point, np.uint8) for end in (low, high)]
            self.node("Clip", [output, *ends], made.output)
