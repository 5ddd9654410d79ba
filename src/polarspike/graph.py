"""Capture a model as a graph, and read and edit that graph; knows nothing of quantization.

The graph is a :class:`torch.fx.GraphModule`: an ordinary module with the model's own parameters under their own names,
whose nodes carry the module path and, where torch knows it, the source line that they come from.
"""

from __future__ import annotations

import copy
import inspect
import traceback
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils import _pytree as pytree

from polarspike.errors import CaptureError, InputError
from polarspike.inputs import Inputs, as_call, batch_size, map_inputs, tensors_of
from polarspike.operators import Meaning, entry_of, meaning_of

# A captured graph runs the model's own kernels on the model's own weights; anything beyond this relative difference is
# another computation, not rounding.
_TOLERANCE = 1e-5


class _Tracer(fx.Tracer):
    """Keep every module of the operator table whole, and every other module of torch (for a refusal by its name)."""

    record_stack_traces = True

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return entry_of(m) is not None or super().is_leaf_module(m, module_qualified_name)


def capture(model: nn.Module, example: Inputs) -> fx.GraphModule:
    """Trace a copy of the model, in evaluation mode, into a graph module with the model's own names.

    Args:
        model: any module that torch.fx can trace; it is left untouched.
        example: an example input batch: a tensor, a tuple (positional) or a dict (keyword).

    Raises:
        InputError: the example does not fit the model, or holds NaN or Inf.
        CaptureError: a parameter is not finite, or the model cannot be traced (control flow on values).
    """
    _check_example(model, example)
    original = copy.deepcopy(model).eval()
    tracer = _Tracer()
    try:
        graph = tracer.trace(original, concrete_args=_baked_arguments(original, example))
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be traced{_user_line(error)}: {error}. "
            "Control flow must not depend on the values of a signal: decide it by an attribute or by shapes, or move "
            "the branch out of the model"
        ) from error
    graph_module = fx.GraphModule(original, graph, type(model).__name__)
    _drop_baked(graph_module)
    return graph_module.eval()


@torch.no_grad()
def check_capture(model: nn.Module, graph_module: nn.Module, example: Inputs) -> None:
    """Show that the graph computes what the model computes, on the example and on another batch size and content.

    Raises:
        CaptureError: an output differs, or the graph only runs at the example's batch size.
    """
    reference = copy.deepcopy(model).eval()
    for inputs, label in ((example, "the example"), (_other_batch(example), "another batch size and content")):
        args, kwargs = as_call(inputs)
        expected = reference(*_clone(args), **_clone(kwargs))
        try:
            got = graph_module(*_clone(args), **_clone(kwargs))
        except Exception as error:
            raise CaptureError(
                f"the captured graph fails on {label} (batch {batch_size(inputs)}): {error}. A batch size or shape is "
                "fixed somewhere in forward; compute it from x.shape[0] or x.size(0)"
            ) from error
        _compare(expected, got, label)


def signals(graph_module: fx.GraphModule) -> set[fx.Node]:
    """The nodes whose value depends on the values of an input: not constants, not sizes."""
    dependent: set[fx.Node] = set()
    for node in graph_module.graph.nodes:
        if node.op == "placeholder":
            dependent.add(node)
        elif meaning_of(graph_module, node) is Meaning.SIZE:
            continue
        elif any(parent in dependent for parent in node.all_input_nodes):
            dependent.add(node)
    return dependent


def scope_of(node: fx.Node) -> str:
    """The path of the module whose forward made a node; empty for the model itself."""
    if node.op == "call_module":
        return str(node.target)
    stack = node.meta.get("nn_module_stack") or {}
    if not stack:
        return ""
    last = list(stack.values())[-1]
    return str(last[0] if isinstance(last, tuple) else last)


def free_path(graph_module: fx.GraphModule, path: str) -> str:
    """``path``, or the first of ``path_1``, ``path_2``, ... that no attribute of the module tree has."""
    candidate, count = path, 0
    while _exists(graph_module, candidate):
        count += 1
        candidate = f"{path}_{count}"
    return candidate


def replace_by_module(graph_module: fx.GraphModule, node: fx.Node, path: str, module: nn.Module) -> fx.Node:
    """Let ``module``, installed at ``path``, compute what ``node`` computed; return the new node.

    The new module gets the node's first argument alone. Whoever calls this recompiles the graph module afterwards.
    """
    graph_module.add_submodule(path, module)
    if node.op == "call_module" and node.target == path:
        return node
    with graph_module.graph.inserting_before(node):
        new = graph_module.graph.call_module(path, (node.args[0] if node.args else node.kwargs["input"],))
    new.meta = dict(node.meta)
    new.stack_trace = node.stack_trace
    node.replace_all_uses_with(new)
    graph_module.graph.erase_node(node)
    return new


def finish(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Drop modules that no node calls any more, check the graph and generate its code."""
    graph_module.graph.lint()
    graph_module.recompile()
    graph_module.delete_all_unused_submodules()
    return graph_module


def _exists(root: nn.Module, path: str) -> bool:
    part: Any = root
    for name in path.split("."):
        if not hasattr(part, name):
            return False
        part = getattr(part, name)
    return True


def _check_example(model: nn.Module, example: Inputs) -> None:
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise CaptureError(
                f"parameter {name!r}: expected finite values, got {count} NaN or Inf of {value.numel()}; "
                "load a sound checkpoint or train again with a lower learning rate"
            )
    batch_size(example)
    for name, tensor in tensors_of(example):
        if tensor.is_complex():
            raise InputError(f"example input {name!r}: expected real numbers, got {tensor.dtype}")
        if tensor.is_sparse:
            raise InputError(f"example input {name!r}: expected a dense tensor, got a sparse one; call x.to_dense()")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"example input {name!r}: expected finite values, got NaN or Inf")
    args, kwargs = as_call(example)
    reference = copy.deepcopy(model).eval()
    try:
        with torch.no_grad():
            reference(*_clone(args), **_clone(kwargs))
    except Exception as error:
        shapes = ", ".join(f"{name!r}: {tuple(tensor.shape)}" for name, tensor in tensors_of(example))
        raise InputError(f"{type(model).__name__} itself fails on the example input ({shapes}): {error}") from error


def _clone(value: Any) -> Any:
    """Copies of all tensors, so that in-place operators of a model cannot alter its caller's inputs."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _baked_arguments(model: nn.Module, example: Inputs) -> dict[str, Any]:
    """Arguments of forward that the example does not give as tensors: they keep their values in the graph."""
    args, kwargs = as_call(example)
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    given = {name: value for name, value in bound.arguments.items() if not _holds_tensor(value)}
    bound.apply_defaults()
    kinds = inspect.signature(model.forward).parameters
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    defaults = {
        name: value
        for name, value in bound.arguments.items()
        if kinds[name].kind not in variadic and not _holds_tensor(value)
    }
    return {**defaults, **given}


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _drop_baked(graph_module: fx.GraphModule) -> None:
    """Remove what torch.fx leaves of baked arguments: unused placeholders and the assertions on their values."""
    graph = graph_module.graph
    for node in reversed(graph.nodes):
        name = getattr(node.target, "__name__", "")
        if node.op == "call_function" and name in ("_assert", "_assert_is_none"):
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users and node.args:
            graph.erase_node(node)
    graph_module.recompile()


def _user_line(error: BaseException) -> str:
    """The last line of the user's own code in a traceback."""
    inner = (str(Path(torch.__file__).parent), str(Path(__file__).parent))
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(inner)]
    frames = [frame for frame in frames if "<eval_with_key>" not in frame.filename]
    if not frames or frames[-1].name == "<module>":
        return ""
    return f" at {frames[-1].filename}:{frames[-1].lineno} (`{frames[-1].line}`)"


def _other_batch(example: Inputs) -> Inputs:
    """Inputs of the same kind with one more sample and other content; draws from a generator of its own."""
    generator = torch.Generator().manual_seed(0)

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        more = torch.cat([value, value[:1]])
        if not value.is_floating_point():
            order = torch.randperm(more.numel(), generator=generator).to(more.device)
            return more.flatten()[order].view_as(more)
        spread = value.float().std().item() if value.numel() > 1 else 0.0
        noise = torch.randn(more.shape, generator=generator).to(more)
        return noise * (spread or 1.0) + value.float().mean().to(more.dtype)

    return map_inputs(other, example)


def _compare(expected: Any, got: Any, label: str) -> None:
    want, have = pytree.tree_leaves(expected), pytree.tree_leaves(got)
    if pytree.tree_structure(expected) != pytree.tree_structure(got):
        raise CaptureError(f"the captured graph returns another structure than the model on {label}")
    for index, (left, right) in enumerate(zip(want, have, strict=True)):
        if not isinstance(left, Tensor):
            continue
        if left.shape != right.shape:
            raise CaptureError(
                f"output {index} on {label}: the model gives shape {tuple(left.shape)}, its captured graph "
                f"{tuple(right.shape)}; a batch size or shape is fixed somewhere in forward"
            )
        scale = max(float(left.abs().max()), 1e-30) if left.numel() else 1.0
        gap = float((left.double() - right.double()).abs().max()) if left.numel() else 0.0
        if not gap <= _TOLERANCE * scale:
            raise CaptureError(
                f"output {index} on {label}: the captured graph differs from the model by {gap:.3g} (outputs reach "
                f"{scale:.3g}). Something in forward is not in the graph: a value fixed while tracing, an in-place "
                "change of a view, randomness that stays on in eval, or a hook"
            )
