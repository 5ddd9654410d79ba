"""Capture a model as a graph, and show that the graph computes what the model computes.

The graph is a :class:`torch.fx.GraphModule`: an ordinary module with the model's own parameters under their own names,
whose nodes carry the module path and, where torch knows it, the source line that they come from.
"""

from __future__ import annotations

import copy
import inspect
import os
import traceback
from collections import OrderedDict
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from torch.utils import _pytree as pytree

from polarspike.errors import CaptureError, InputError
from polarspike.inputs import Inputs, as_call, batch_size, map_inputs, tensors_of
from polarspike.operators import entry_of, is_reserved

# A captured graph runs the model's own kernels on the model's own weights; anything beyond this relative difference is
# another computation, not rounding.
_TOLERANCE = 1e-5

# Options of SpikingNetwork.forward, which would swallow an input of the same name.
_OPTIONS = frozenset({"timesteps", "every_step", "execution", "time_dim"})


class _Tracer(fx.Tracer):
    """Keep every module of the operator table whole, and every other module of torch (for a refusal by its name).

    Args:
        bound: the example's call; its arguments with tensors become inputs of the graph, all others keep their values
            in it, and stand among the inputs with that value as their default.
    """

    record_stack_traces = True

    def __init__(self, bound: inspect.BoundArguments) -> None:
        super().__init__()
        self._bound = bound

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if "forward" in vars(m):  # somebody gave this one object a forward of its own: trace into it
            return False
        return entry_of(m) is not None or super().is_leaf_module(m, module_qualified_name)

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> tuple[Any, list[Any]]:
        proxies: dict[str, fx.Proxy] = {}
        rest: tuple[Any, ...] = ()  # behind an argument with a default, Python wants defaults: "..." stands for none
        for name, value in _inputs_of(self._bound).items():
            if _holds_tensor(value):
                proxies[name] = self.create_proxy("placeholder", name, rest, {})
            else:
                self.create_proxy("placeholder", name, (value,), {})
                rest = (...,)

        def call(root: nn.Module) -> Any:
            args, kwargs = _call_with(self._bound, proxies)
            return root_fn(root, *args, **kwargs)

        return call, [self.root]


def capture(model: nn.Module, example: Inputs) -> fx.GraphModule:
    """Trace a copy of the model, in evaluation mode, into a graph module with the model's own names.

    Args:
        model: any module that torch.fx can trace; it is left untouched.
        example: an example input batch: a tensor, a tuple (positional) or a dict (keyword).

    Raises:
        InputError: the example does not fit the model, or holds NaN or Inf.
        CaptureError: a parameter is not finite, or the model cannot be traced (control flow on values).
    """
    _check_model(model)
    _check_example(model, example)
    original = _frozen(_copy(model).eval())
    try:
        graph = _Tracer(_bound(model, example)).trace(original)
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be traced{_user_line(error)}: {error}. "
            "Control flow must not depend on the values of a signal: decide it by an attribute or by shapes, or move "
            "the branch out of the model"
        ) from error
    graph._tracer_cls = None  # a graph module that knows its tracer asks for one when it is unpickled
    for node in graph.nodes:
        if node.op in ("call_module", "get_attr") and is_reserved(str(node.target)):
            raise CaptureError(
                f"{node.target!r}: a part of the model has a name that Python or torch keeps for itself; rename it"
            )
        if node.op == "placeholder" and node.target in _OPTIONS:
            raise CaptureError(
                f"the model's input {node.target!r} has the name of an option of spiking networks; rename it"
            )
    return fx.GraphModule(original, graph, type(model).__name__).eval()


def graph_inputs(model: nn.Module, example: Inputs) -> dict[str, Any]:
    """The inputs of a model's captured graph by name, in order, with their values in an example."""
    return _inputs_of(_bound(model, example))


@torch.no_grad()
def check_capture(model: nn.Module, graph_module: nn.Module, example: Inputs) -> None:
    """Show that the graph computes what the model computes, on the example and on another batch size and content.

    Raises:
        CaptureError: an output differs, or only the example's batch size can be run.
    """
    reference = _copy(model).eval()
    size = batch_size(example)
    fixed = "A batch size or shape is fixed somewhere in forward; compute it from x.shape[0] or x.size(0)"
    rows: list[list[int]] = []
    for inputs, label in ((example, "the example"), (_other_batch(example), "another batch size and content")):
        args, kwargs = as_call(_clone(inputs))
        try:
            expected = reference(*args, **kwargs)
        except Exception as error:
            raise CaptureError(
                f"{type(model).__name__} itself fails on {label} (batch {batch_size(inputs)} where the example had {size}): "
                f"{error}. {fixed}; if an input has no batch dimension, give an example with another batch size than its "
                "length"
            ) from error
        try:
            got = graph_module(**_clone(graph_inputs(model, inputs)))
        except Exception as error:
            raise CaptureError(
                f"the captured graph fails on {label} (batch {batch_size(inputs)}): {error}. {fixed}"
            ) from error
        _compare(expected, got, label)
        leaves = [leaf for leaf in pytree.tree_leaves(expected) if isinstance(leaf, Tensor)]
        rows.append([leaf.shape[0] if leaf.dim() > 1 else 0 for leaf in leaves])  # a vector may well be no batch
    for index, (before, after) in enumerate(zip(*rows, strict=False)):
        if before == after == size:
            raise CaptureError(
                f"output {index}: {type(model).__name__} answers {size + 1} samples with {size} rows, as it did for the "
                f"{size} of the example, so samples are mixed up. {fixed}"
            )


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module, got {type(model).__name__}")
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(value):
            raise CaptureError(f"{name!r} has no values yet (a lazy module); call the model once on an example first")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            count = int((~torch.isfinite(value)).sum())
            raise CaptureError(
                f"parameter {name!r}: expected finite values, got {count} NaN or Inf of {value.numel()}; "
                "load a sound checkpoint or train again with a lower learning rate"
            )


def _check_example(model: nn.Module, example: Inputs) -> None:
    if batch_size(example) == 0:
        raise InputError(
            "expected an example of at least one sample, got an empty batch; nothing could be checked on it"
        )
    for name, tensor in tensors_of(example):
        if tensor.is_complex():
            raise InputError(f"example input {name!r}: expected real numbers, got {tensor.dtype}")
        if tensor.layout is not torch.strided:
            raise InputError(f"example input {name!r}: expected a dense tensor, got {tensor.layout}; call x.to_dense()")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"example input {name!r}: expected finite values, got NaN or Inf")
    args, kwargs = as_call(_clone(example))
    reference = _copy(model).eval()
    try:
        with torch.no_grad():
            reference(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(f"{name!r}: {tuple(tensor.shape)}" for name, tensor in tensors_of(example))
        raise InputError(f"{type(model).__name__} itself fails on the example input ({shapes}): {error}") from error


def _clone(value: Any) -> Any:
    """Copies of all tensors, so that in-place operators of a model cannot alter its caller's inputs."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def _copy(model: nn.Module) -> nn.Module:
    """A deep copy, also of modules that hold a computed tensor (old weight norm, pruning), which torch refuses to copy."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(model, dict(computed))
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied: {error}. Keep open files, locks and computed tensors out of its "
            "attributes"
        ) from error


@torch.no_grad()
def _frozen(model: nn.Module) -> nn.Module:
    """Computed weights (weight norm, spectral norm, pruning) replaced by their present values, and hooks removed.

    Hooks are no part of a graph; if one changes an output, the capture check finds it. The model is altered in place.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            _fix_parametrized(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)  # type: ignore[no-untyped-call]
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
    return model


def _fix_parametrized(module: nn.Module) -> None:
    # Not parametrize.remove_parametrizations: it edits the module's class, which a deep copy shares with its original.
    parametrizations = dict(cast(nn.ModuleDict, module.parametrizations))
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        if any(True for _ in parametrizations[name].parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)


def _bound(model: nn.Module, example: Inputs) -> inspect.BoundArguments:
    args, kwargs = as_call(example)
    bound = inspect.signature(model.forward).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound


def _inputs_of(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments of a call that a graph takes: all with tensors, and plain values that have a name of their own.

    The arguments of ``*name`` are called ``name_0``, ``name_1``, ...
    """
    inputs: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            inputs |= {f"{name}_{index}": item for index, item in enumerate(value) if _holds_tensor(item)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            inputs |= {key: item for key, item in value.items() if _holds_tensor(item)}
        elif _holds_tensor(value) or isinstance(value, (bool, int, float, str, type(None))):
            inputs[name] = value
    return inputs


def _call_with(bound: inspect.BoundArguments, replaced: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with some arguments replaced, named as :func:`_inputs_of` does."""
    call = inspect.BoundArguments(bound.signature, OrderedDict(bound.arguments))
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            call.arguments[name] = tuple(replaced.get(f"{name}_{i}", item) for i, item in enumerate(value))
        elif kind is inspect.Parameter.VAR_KEYWORD:
            call.arguments[name] = {key: replaced.get(key, item) for key, item in value.items()}
        elif name in replaced:
            call.arguments[name] = replaced[name]
    return call.args, call.kwargs


def _holds_tensor(value: Any) -> bool:
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def _user_line(error: BaseException) -> str:
    """The last line of the user's own code in a traceback."""
    inner = (f"{Path(torch.__file__).parent}{os.sep}", f"{Path(__file__).parent}{os.sep}")
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not frame.filename.startswith(inner)]
    frames = [frame for frame in frames if "<eval_with_key>" not in frame.filename]
    if not frames or frames[-1].name == "<module>":
        return ""
    return f" at {frames[-1].filename}:{frames[-1].lineno} (`{frames[-1].line}`)"


def _other_batch(example: Inputs) -> Inputs:
    """Inputs of the same kind with one more sample and other content; draws from a generator of its own.

    An input whose first dimension is not the batch gets other content alone.
    """
    generator = torch.Generator().manual_seed(0)
    size = batch_size(example)

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        more = torch.cat([value, value[:1]]) if value.shape[0] == size else value
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
        raise CaptureError(
            f"the captured graph returns another structure than the model on {label}: expected "
            f"{pytree.tree_structure(expected)}, got {pytree.tree_structure(got)}; return tensors in tuples, lists and dicts"
        )
    for index, (left, right) in enumerate(zip(want, have, strict=True)):
        if not isinstance(left, Tensor):
            continue
        if left.shape != right.shape:
            raise CaptureError(
                f"output {index} on {label}: the model gives shape {tuple(left.shape)}, its captured graph "
                f"{tuple(right.shape)}; a batch size or shape is fixed somewhere in forward"
            )
        left, right = left.double().flatten(), right.double().flatten()
        if bool(left.isnan().any()):
            raise CaptureError(
                f"output {index} on {label}: the model itself answers NaN; look for a division by zero in it"
            )
        scale = float(torch.cat([left[left.isfinite()].abs(), left.new_tensor([1e-30])]).max())
        gap = float(torch.cat([(left - right)[left != right].abs(), left.new_zeros(1)]).max())  # equal Infs are equal
        if not gap <= _TOLERANCE * scale:
            raise CaptureError(
                f"output {index} on {label}: the captured graph differs from the model by {gap:.3g} (outputs reach "
                f"{scale:.3g}). Something in forward is not in the graph: a value fixed while tracing, an in-place "
                "change of a view, randomness that stays on in eval, or a hook"
            )
