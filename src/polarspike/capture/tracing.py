"""Capture by torch.fx: names are the model's own, sizes stay free, and modules keep following the mode of the network."""

from __future__ import annotations

import copy
import inspect
import itertools
from typing import Any

from torch import fx, nn
from torch.overrides import TorchFunctionMode

from polarspike.common.inputs import call_with, graph_inputs_of, holds_tensor, plain_output
from polarspike.graph.editing import SETTLED, require_names
from polarspike.graph.layers import DropPath, MultiheadAttention, blocking_mask, masked_softmax
from polarspike.graph.operator_table import FUNCTION_MEANINGS, Meaning
from polarspike.graph.operators import entry_of, mode_of

# Stochastic depth of other libraries, by class, without importing them: (share, mode) are read from the module.
_DROP_PATHS = {
    ("torchvision.ops.stochastic_depth", "StochasticDepth"): lambda module: (module.p, module.mode),
    ("timm.layers.drop", "DropPath"): lambda module: (module.drop_prob or 0.0, "row"),
}
# Their forward in evaluation mode asks their attention for its packed parameters; export sees through them.
_OWNS_ATTENTION = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


class Tracer(fx.Tracer):
    """Keep every module of the operator table whole, and every other module of torch (for a refusal by its name).

    Args:
        bound: the example's call; its arguments with tensors become inputs of the graph, all others keep their values
            in it, and stand among the inputs with that value as their default.
    """

    record_stack_traces = True

    def __init__(self, bound: inspect.BoundArguments) -> None:
        super().__init__(autowrap_functions=(blocking_mask, masked_softmax))
        self._bound = bound

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if "forward" in vars(m):  # somebody gave this one object a forward of its own: trace into it
            return False
        if isinstance(m, MultiheadAttention):
            return False
        return entry_of(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        proxies: dict[str, fx.Proxy] = {}
        rest: tuple[Any, ...] = ()  # behind an argument with a default, Python wants defaults: "..." stands for none
        for name, value in graph_inputs_of(self._bound).items():
            if holds_tensor(value):
                proxies[name] = self.create_proxy("placeholder", name, rest, {})
            else:
                self.create_proxy("placeholder", name, (value,), {})
                rest = (...,)

        def call(root: nn.Module) -> Any:
            args, kwargs = call_with(self._bound, proxies)
            return plain_output(root_fn(root, *args, **kwargs))

        return call, [self.root]


class _NoRandomness(TorchFunctionMode):
    """Refuse random numbers of a fixed size: tracing would run them once, and keep them as a constant."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if FUNCTION_MEANINGS.get(func) is Meaning.RANDOM and not any(isinstance(value, fx.Proxy) for value in args):
            raise RuntimeError(
                f"{func.__name__} stays random in evaluation mode, so no two runs agree; draw the numbers outside of "
                "forward and keep them as a buffer"
            )
        return func(*args, **(kwargs or {}))


def trace_graph(model: nn.Module, bound: inspect.BoundArguments) -> fx.GraphModule:
    """The graph of a model by torch.fx; what torch.fx raises passes.

    A norm or dropout that is called as a function with a mode of its own, ``training=False`` in place of
    ``training=self.training``, is marked by ``node.meta[SETTLED]``.
    """
    with _NoRandomness():
        graph = Tracer(bound).trace(model)
        if any(_is_off(node) for node in graph.nodes):
            _mark_settled(graph, model, bound)
    graph._tracer_cls = None  # a graph module that knows its tracer asks for one when it is unpickled
    require_names(graph)
    return fx.GraphModule(model, graph, type(model).__name__)


def _mark_settled(graph: fx.Graph, model: nn.Module, bound: inspect.BoundArguments) -> None:
    """Mark the functions that are off whatever the mode of their module is.

    What is off in a trace in training mode, too, is off always. That trace is of a copy, because norms count their batches
    while they are traced. Where it fails, or is another graph, nothing is known and nothing marked.
    """
    try:
        training = Tracer(bound).trace(copy.deepcopy(model).train())
    except Exception:  # whatever a model's own code does in training mode
        return
    pairs = list(itertools.zip_longest(graph.nodes, training.nodes))
    if all(one and other and (one.op, one.target) == (other.op, other.target) for one, other in pairs):
        for node, other in pairs:
            if _is_off(node) and _is_off(other):
                node.meta[SETTLED] = True


def _is_off(node: fx.Node) -> bool:
    return mode_of(node) is False


def open_up(model: nn.Module) -> nn.Module:
    """Replace modules that no tracer sees into by ours that compute the same; alters and returns the model."""
    for owner in list(model.modules()):
        for name, module in list(owner.named_children()):
            place = next((place for base in type(module).__mro__
                          if (place := (base.__module__, base.__name__)) in _DROP_PATHS), None)  # fmt: skip
            if place is not None:
                share, mode = _DROP_PATHS[place](module)  # type: ignore[no-untyped-call]
                replacement: nn.Module = DropPath(float(share), mode)
            elif _is_plain_attention(module) and not isinstance(owner, _OWNS_ATTENTION):
                replacement = MultiheadAttention(module)  # type: ignore[arg-type]
            else:
                continue
            replacement.train(module.training)
            setattr(owner, name, replacement)
    return model


def _is_plain_attention(module: nn.Module) -> bool:
    return (
        isinstance(module, nn.MultiheadAttention)
        and type(module).forward is nn.MultiheadAttention.forward
        and "forward" not in vars(module)
        and module.bias_k is None
        and not module.add_zero_attn
    )
