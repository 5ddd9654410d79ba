"""The input shapes that a network was captured with, and which of its inputs are the same for all samples."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from polarspike.common.inputs import BY_KEYWORD, Inputs, named_values, tensors_of
from polarspike.errors import InputError


def _fits(got: tuple[int, ...], shape: tuple[int, ...], real: bool) -> bool:
    """Whether the channels agree: where the layout does not say which dimension they are, one of the two must."""
    if len(shape) == 1 and not real:  # the length of a sequence of tokens
        return True
    if len(shape) == 2:
        square = got[0] == got[1] and shape[0] == shape[1]  # a mask of a sequence on itself
        return square or got[0] == shape[0] or got[1] == shape[1]
    return not shape or got[0] == shape[0]


@dataclass(frozen=True)
class Signature:
    """What the example of a network looked like: the shape of each tensor input behind its batch dimension.

    The number of dimensions must agree, and the channels: dimension 1, or in a sequence (batch, length, features) one of
    the two. Spatial sizes may differ, and so may the length of a sequence.

    Args:
        shapes: by input; the whole shape of what is shared.
        fixed: they may not, because the graph holds the example's sizes as numbers (torch.export).
        shared: the inputs that are the same for all samples (the mask of a sequence on itself), by position and by name,
            so that it holds however a call passes them. They are never cut, however many rows they and a batch have.
    """

    shapes: tuple[tuple[str, tuple[int, ...]], ...]
    fixed: bool = False
    shared: frozenset[str] = frozenset()

    @classmethod
    def of(cls, inputs: Inputs, *, fixed: bool = False, shared: Collection[str] = ()) -> Signature:
        bare = cls((), fixed, frozenset(shared))
        return replace(bare, shapes=tuple((name, bare._shape(name, tensor)) for name, tensor in tensors_of(inputs)))

    def named(self, parameters: Iterable[str]) -> Signature:
        """The same with the parameters' names in place of positions, so that it holds however a call passes them."""
        names = {str(index): name for index, name in enumerate(parameters) if not name.startswith("*")}
        return replace(self, shapes=tuple((names.get(position, position), shape) for position, shape in self.shapes))

    def _shape(self, name: str, tensor: Tensor) -> tuple[int, ...]:
        return tuple(tensor.shape if name in self.shared else tensor.shape[1:])

    def _wanted(self, name: str, sizes: Iterable[str]) -> str:
        return ", ".join([*([] if name in self.shared else ["batch"]), *sizes])

    def check(self, inputs: Inputs) -> None:
        """Refuse inputs that the network cannot have been built for.

        Raises:
            InputError: another number of dimensions, another number of channels, another size where sizes are fixed, or no
                tensor.
        """
        expected = dict(self.shapes)
        for name, value in named_values(inputs).items():
            if name in expected and not isinstance(value, Tensor):
                hint = BY_KEYWORD if isinstance(value, Mapping) else ""
                raise InputError(f"input {name!r}: expected a tensor, got {type(value).__name__}{hint}")
        for name, tensor in tensors_of(inputs):
            shape = expected.get(name)
            if shape is None:
                continue
            got = self._shape(name, tensor)
            if self.fixed and got != shape and len(got) == len(shape):
                raise InputError(
                    f"input {name!r}: expected shape ({self._wanted(name, map(str, shape))}), got {tuple(tensor.shape)}; "
                    "torch.export captured the network, and its graph holds the example's sizes as numbers: quantize the "
                    "model again with an example of this size"
                )
            rows = 1 if name in self.shared else 0  # as free as the length of a sequence
            if len(got) != len(shape) or not _fits(got[rows:], shape[rows:], tensor.is_floating_point()):
                wanted = self._wanted(name, (str(n) if d == rows else f"*({n})" for d, n in enumerate(shape)))
                raise InputError(
                    f"input {name!r}: expected shape ({wanted}) as in the example that the network was captured with, "
                    f"got {tuple(tensor.shape)}"
                )

    def explain(self, inputs: Inputs) -> str:
        """One clause on how these inputs differ from the example; empty if they do not."""
        expected = dict(self.shapes)
        different = [
            f"input {name!r} has shape {tuple(tensor.shape)} where the example had "
            f"({self._wanted(name, map(str, expected[name]))})"
            for name, tensor in tensors_of(inputs)
            if name in expected and self._shape(name, tensor) != expected[name]
        ]
        return "; ".join(different)
