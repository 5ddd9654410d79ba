"""One recorded run of a network: the values of constants, the shapes of signals, and nodes as functions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from polarspike.counting.connections import Connections, Links, ThroughOperator, of_resampling
from polarspike.errors import OperatorError
from polarspike.graph.contract import Rule, rules_of
from polarspike.graph.editing import scope_of, signals
from polarspike.graph.operators import describe_target, place_of


class Recording:
    """One run of the first timestep: what each node is worth (constants) or which shape it has (signals)."""

    def __init__(self, network: fx.GraphModule, inputs: Sequence[Any]) -> None:
        self.network = network
        self.signals = signals(network)
        self.rules: dict[fx.Node, Rule] = rules_of(network, self.signals)
        recorder = _Recorder(network, self.signals)
        recorder.run(*inputs)
        self.values = recorder.values
        self._resampling: dict[fx.Node, tuple[Links, bool]] = {}

    def shape(self, node: fx.Node) -> torch.Size:
        """The shape of a node that is one tensor."""
        shape: torch.Size = self.values[node].shape
        return shape

    def elements(self, node: fx.Node) -> int:
        """The real numbers that a node holds, in one tensor or in several."""
        leaves = pytree.tree_leaves(self.values[node])
        return sum(leaf.numel() for leaf in leaves if isinstance(leaf, Tensor) and leaf.is_floating_point())

    def arguments(self, node: fx.Node) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """What a node was called with; a signal is a tensor without data."""
        return map_arg(node.args, self.values.__getitem__), map_arg(node.kwargs, self.values.__getitem__)

    def value(self, argument: Any) -> Any:
        """One argument as it was given."""
        return map_arg(argument, self.values.__getitem__)

    def operator(self, node: fx.Node) -> Callable[[Any], Any]:
        """The node's operator as a function of its first argument."""
        args, kwargs = self.arguments(node)
        if not args:
            kwargs = {name: value for name, value in kwargs.items() if name not in ("input", "tensors")}
        rest = args[1:]
        if node.op == "call_module":
            module = self.module(node)
            return lambda x: module(x, *rest, **kwargs)
        if node.op == "call_method":
            # Codes may lie in memory as their signal does not, which a view cares for and a reshape does not.
            method = {"view": "reshape", "view_as": "reshape_as"}.get(str(node.target), str(node.target))
            return lambda x: getattr(x, method)(*rest, **kwargs)
        function = node.target
        return lambda x: function(x, *rest, **kwargs)  # type: ignore[operator]

    def module(self, node: fx.Node) -> nn.Module:
        """The module that a node calls."""
        return self.network.get_submodule(str(node.target))

    def called(self, node: fx.Node) -> str:
        """The bare name of what a node calls: ``LayerNorm``, ``softmax``, ``mul``."""
        return describe_target(self.network, node).rpartition(".")[2]

    def resampling(self, node: fx.Node) -> tuple[Links, bool]:
        """The connections of an averaging or interpolating node, and whether it only copies elements.

        Raises:
            OperatorError: sampling at free places, whose connections are not known.
        """
        if node not in self._resampling:
            source = self.shape(operand_of(node))
            name = self.called(node)
            if name in ("mean", "sum"):
                self._resampling[node] = Connections(1), source.numel() == self.shape(node).numel()
            elif name == "cumsum":
                self._resampling[node] = ThroughOperator(self.operator(node)), False
            elif name == "grid_sample":
                raise OperatorError(
                    f"{place_of(node)}: no count for {describe_target(self.network, node)}, which reads at free places; "
                    "resample with F.interpolate, or count the network without it"
                )
            else:
                self._resampling[node] = of_resampling(self.operator(node), source)
        return self._resampling[node]


class _Recorder(fx.Interpreter):
    def __init__(self, network: fx.GraphModule, dependent: set[fx.Node]) -> None:
        super().__init__(network)
        self.dependent = dependent
        self.values: dict[fx.Node, Any] = {}

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        self.values[n] = pytree.tree_map(_without_data, value) if n in self.dependent else value
        return value


def _without_data(value: Any) -> Any:
    return torch.empty_like(value, device="meta") if isinstance(value, Tensor) else value


def operand_of(node: fx.Node) -> Any:
    """The first argument of a node: its input signal."""
    return node.args[0] if node.args else node.kwargs.get("input", node.kwargs.get("tensors"))


def label(node: fx.Node) -> str:
    """A node for a reader: the path of its module, or its name behind the path that called it."""
    if node.op == "call_module":
        return str(node.target)
    return ".".join(filter(None, [scope_of(node), node.name]))
