"""Turn an ATen program with named sites into an integer network: one rule per operator.

A signal is codes, sums that have not fired, or float (:mod:`polarspike.exporters.signals`). Affine operators on codes make
sums; a site makes codes of them; every other operator asks for the float value. What has no rule is refused by name.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, fx

from polarspike.exporters.aten import Arguments, arguments_of, leaves_of, place_of, shape_of
from polarspike.exporters.constants import for_one_sample, only_shapes
from polarspike.exporters.emission import Emitter
from polarspike.exporters.observed import Ranges
from polarspike.exporters.signals import (
    ONE,
    ZERO,
    Analog,
    Averaged,
    Codes,
    Constant,
    Normalized,
    Shape,
    Sums,
    Term,
    Vector,
    array_of,
)
from polarspike.graph.editing import attribute
from polarspike.neurons import PolarityNeuron

#: Step, offset, the smallest and the largest code.
Grid = tuple[Vector, Vector, int, int]
#: What one operator makes of its signals: the walk, the node, and its arguments by name.
Rule = Callable[["Lowering", fx.Node, Arguments], Any]


#: Constants of a size that is given, beside a signal that lends them its type and no value: a causal mask's, for one.
_MADE_LIKE = frozenset({"aten::new_zeros", "aten::new_ones", "aten::new_full"})


class Lowering:
    """One walk through a program.

    Args:
        program: of :func:`~polarspike.exporters.marking.marked_program`.
        neurons: of its sites, by name.
        ranges: of its values on the given batches.
        grid_of: of an input, as the network normalizes it, with this range: the step and the offset of its grid, one number
            or one per channel, and its codes; None where the batches do not show one.
        rules: by the name of an operator (:mod:`polarspike.exporters.rules`).
    """

    def __init__(
        self,
        program: fx.GraphModule,
        neurons: Mapping[str, PolarityNeuron],
        ranges: Ranges,
        grid_of: Callable[[Normalized, tuple[float, float]], Grid | None],
        rules: Mapping[str, Rule],
    ) -> None:
        self.program, self.neurons, self.ranges, self.grid_of = program, neurons, ranges, grid_of
        self.rules = rules
        self.emitter = Emitter()
        self.signals: dict[fx.Node, Any] = {}
        self.sites: dict[str, str] = {}
        self.inputs: list[tuple[str, Shape]] = []
        self.outputs: list[tuple[str, Shape]] = []
        self._grids: dict[str, Codes] = {}
        self._floats: dict[fx.Node, Analog] = {}

    def run(self) -> None:
        """Write everything."""
        for node in self.program.graph.nodes:
            self.emitter.where = place_of(node)
            if node.op == "placeholder":
                self._input(node)
            elif node.op == "get_attr":
                self.signals[node] = Constant(attribute(self.program, str(node.target)))
            elif node.op == "output":
                for leaf in leaves_of(node.args):
                    self._output(leaf)
            elif node.op == "call_function":
                self.signals[node] = self._called(node)
        # call_module: guards on shapes, which compute nothing

    def _input(self, node: fx.Node) -> None:
        value = node.meta["val"]
        if value is None or (isinstance(value, bool | int | float | str) and not _reads(node)):
            return  # an argument that the example does not give, or one that the program already holds
        name = self.emitter.free(str(node.target))
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise self.emitter.refuse(
                f"input {name!r} is {getattr(value, 'dtype', type(value).__name__)}; the integer format takes float inputs"
            )
        if not value.dim() or isinstance(value.shape[0], int):
            raise self.emitter.refuse(
                f"input {name!r} is the same for all samples; the integer format takes inputs with a batch in front: "
                "keep it in a buffer of the model, or export as onnx-float"
            )
        shape = shape_of(node)
        self.inputs.append((name, shape))
        self.signals[node] = Analog(name, shape, raw=True)

    def _output(self, leaf: fx.Node) -> None:
        if isinstance(self.signals.get(leaf), Averaged):
            self.signals[leaf] = self.float(leaf)
        if not isinstance(self.signals.get(leaf), Codes | Analog | Sums):
            raise self.emitter.refuse(f"output {leaf.name!r}, which is no float signal")
        answer = self.emitter.analog(self.signals[leaf], "output")
        if answer.raw or answer.name in dict(self.outputs):  # a name of its own
            answer = self.emitter.floating("Identity", [answer.name], answer.shape)
        self.outputs.append((answer.name, answer.shape))

    def _called(self, node: fx.Node) -> Any:
        if node.target is operator.getitem:
            return self.signals[node.all_input_nodes[0]][node.args[1]]
        if not isinstance(node.target, torch._ops.OpOverload):
            return None  # sizes
        if not isinstance(node.meta.get("val"), (Tensor, list, tuple)):
            return None
        operands = [self.signals.get(leaf) for leaf in leaves_of((node.args, node.kwargs))]
        name = node.target._schema.name
        if name in _MADE_LIKE or all(part is None or isinstance(part, Constant) for part in operands):
            return self._computed(node)
        rule = self.rules.get(name)
        if rule is None:
            raise self.emitter.refuse(
                f"no rule for {name.removeprefix('aten::')} in whole numbers; there are rules for "
                f"{', '.join(sorted(known.removeprefix('aten::') for known in self.rules))}. Export as onnx-float instead"
            )
        if not only_shapes(node):
            raise self.emitter.refuse("values that depend on the size of the batch")
        return rule(self, node, arguments_of(node))

    def _computed(self, node: fx.Node) -> Any:
        """What depends on no input, now."""

        def known(leaf: fx.Node) -> Tensor | None:
            signal = self.signals.get(leaf)
            if isinstance(signal, Constant):
                return signal.tensor
            # Of what a constant is made like, its type alone is read.
            return None if signal is None else torch.empty(1, *shape_of(leaf), dtype=leaf.meta["val"].dtype)

        made = for_one_sample(node, known)
        if made is None:
            raise self.emitter.refuse("a constant whose values depend on the size of the batch")
        return Constant(made) if isinstance(made, Tensor) else [Constant(part) for part in made]

    # Operands

    def float(self, node: fx.Node) -> Analog:
        """The float value of a node, written once."""
        if node not in self._floats:
            signal = self.signals[node]
            if isinstance(signal, Averaged):
                name = self.float(signal.source).name
                self._floats[node] = self.emitter.floating("AveragePool", [name], signal.shape, **signal.windows)
            else:
                self._floats[node] = self.emitter.analog(signal)
        return self._floats[node]

    def expanded(self, node: fx.Node) -> Analog:
        """A constant for each sample of the batch, which is that of the network's inputs."""
        value, shape = self.signals[node].tensor, shape_of(node)
        if value.shape != (1, *shape):
            raise self.emitter.refuse(f"a constant of {tuple(value.shape)} in the place of a batch of {shape}")
        return self.emitter.expanded(value, shape, self.inputs[0][0])

    def name(self, operand: Any) -> str:
        """The name of a float operand: a node's, or a new constant's."""
        if isinstance(operand, fx.Node):
            signal = self.signals[operand]
            return self.emitter.constant(signal.tensor) if isinstance(signal, Constant) else self.float(operand).name
        return self.emitter.constant(float(operand))

    def vector(self, node: fx.Node | None) -> Vector:
        """A constant operand in float64; zero if there is none."""
        return ZERO if node is None else array_of(self.signals[node].tensor)

    def placed(self, node: fx.Node) -> Codes | Analog:
        """An operand whose values are moved or compared and not computed with: codes as they are, all else as float."""
        signal = self.signals[node]
        return signal if isinstance(signal, Codes) else self.float(node)

    def codes(self, node: fx.Node) -> Codes | None:
        """The operand of a synapse as codes: a site's, or an input's on its grid of bytes; None for other float signals."""
        signal = self.signals[node]
        if isinstance(signal, Codes):
            return signal
        if not isinstance(signal, Analog) or not (signal.raw or signal.normalized):
            return None
        if signal.name not in self._grids:
            known = signal.normalized or Normalized(_root(node), ONE, ZERO)
            grid = self.grid_of(known, self.ranges[node])
            if grid is None:
                raise self.emitter.refuse(
                    f"the batches show one value of input {signal.name!r} alone, or none that is finite; give some that vary"
                )
            step, offset, low, high = grid
            axis = 1
            if step.ndim and signal.shape[0] != len(step):
                step, offset = step.max(keepdims=True)[0], ZERO  # another layout: one grid for all
            self._grids[signal.name] = self.emitter.quantized(
                signal, step, axis, low, high, f"{signal.name}_codes", offset
            )
        return self._grids[signal.name]

    def sums(self, node: fx.Node) -> Sums | None:
        """An operand of an affine operator as sums: codes are a term of their own; None for float signals."""
        signal = self.signals[node]
        if isinstance(signal, Sums):
            return signal.shown(self.ranges[node])
        if isinstance(signal, Codes):
            term = Term("identity", (signal,), None, {}, ONE, self.ranges[node])
            return Sums((term,), ZERO, signal.axis, signal.shape)
        return None


def _reads(node: fx.Node) -> bool:
    """Whether anything but the guards on arguments reads a value."""
    return any(user.op != "call_module" for user in node.users)


def _root(node: fx.Node) -> str:
    while node.op != "placeholder":
        node = node.all_input_nodes[0]
    return str(node.target)
