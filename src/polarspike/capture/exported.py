"""Capture by :func:`torch.export.export`, for models that torch.fx cannot trace or traces without understanding.

An exported program is a flat list of ATen overloads. Each is translated into the function or method of the operator table
that computes the same, parameters come back under their own names, and the result is the same kind of graph that tracing
gives: the batch size stays free, and :mod:`polarspike.capture.modularize` puts modules back where the model had them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import warnings
from collections.abc import Collection, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.utils import _pytree as pytree

from polarspike.common.inputs import plain_output
from polarspike.errors import CaptureError
from polarspike.graph.editing import WRITES, require_names
from polarspike.graph.operators import entry_of
from polarspike.graph.overloads import base_name, translation

Named = Mapping[str, Any]

# Checks of an exported program that compute nothing.
_CHECKS = frozenset({"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
                     "sym_constrain_range_for_size"})  # fmt: skip
# Views of a part of a tensor.
_PARTS = frozenset({"slice", "select", "narrow", "diagonal", "view", "reshape", "transpose",
                    "permute", "unsqueeze", "squeeze", "expand"})  # fmt: skip
# Regions of another mode; what they hold is computed as any other part.
_WRAPPERS = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})


def export_graph(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inputs: Named,
    shared: Collection[str] = (),
) -> fx.GraphModule:
    """The graph of a model by export.

    Args:
        model: in evaluation mode, a copy that may be altered.
        args: positional values of an example call; kwargs its keyword values.
        kwargs: see ``args``.
        inputs: the graph's inputs by name, in order, with their values in the example.
        shared: those that are the same for all samples, whose rows are no batch.

    Raises:
        CaptureError: an overload that cannot be translated.
        Exception: whatever torch.export raises.
    """
    call = {**{str(index): value for index, value in enumerate(args)}, **kwargs}
    held = [value for name, value in call.items() if name not in shared]
    size = next((leaf.shape[0] for leaf in pytree.tree_leaves(held) if isinstance(leaf, Tensor) and leaf.dim()), 1)
    batch = Dim("batch", min=1)

    def free(name: str, leaf: Any) -> Any:
        return {0: batch} if name not in shared and _has_batch(leaf, max(2, size)) else None

    def called(values: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(values[str(index)] for index in range(len(args))), {name: values[name] for name in kwargs}

    for name in call.keys() - set(shared):
        call[name] = pytree.tree_map(lambda leaf: _batched(leaf, size), call[name])
    shapes = called({name: pytree.tree_map(partial(free, name), value) for name, value in call.items()})
    args, kwargs = called(call)
    with _quiet():
        program = torch.export.export(
            model, args, kwargs, strict=False, dynamic_shapes=_by_name(model, shapes, args, kwargs)
        )
    with torch.no_grad():
        answer = model(*args, **kwargs)
    return graph_of_program(program, model, inputs, answer)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep torch.export from talking: of what it finds odd the capture check finds what matters, and failures are errors."""
    talking = [logging.getLogger(name) for name in ("torch.fx.experimental.symbolic_shapes", "torch.export")]
    before = [logger.disabled for logger in talking]
    try:
        for logger in talking:
            logger.disabled = True
        silence = io.StringIO()
        with warnings.catch_warnings(), contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(talking, before, strict=True):
            logger.disabled = disabled


def graph_of_program(program: ExportedProgram, root: nn.Module, inputs: Named, answer: Any) -> fx.GraphModule:
    """The graph module of an exported program, over the parameters of ``root``.

    Args:
        program: what was exported.
        root: a module that holds the program's parameters and buffers under their names; constants are added to it.
        inputs: the graph's inputs by name, in order, with their values in an example.
        answer: what the model answers, for the structure of the output.
    """
    writes = any(_is_in_place(node) for node in program.graph.nodes)
    if any(_writes_into_view(node) for node in program.graph.nodes):
        with _quiet():
            program = program.run_decompositions({})  # writes nothing in place, and names batch norms otherwise
    graph_module = _Translator(program, root, inputs).graph_module(answer)
    graph_module.meta[WRITES] = writes
    return graph_module


def _is_in_place(node: fx.Node) -> bool:
    base = base_name(node)
    return base.endswith("_") and not base.endswith("__")


def _writes_into_view(node: fx.Node) -> bool:
    """Whether a node alters a part of a tensor that is read as a whole: ``x[:, 1:] = y``."""
    if not _is_in_place(node) or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    return base_name(node.args[0]) in _PARTS


class _Translator:
    def __init__(self, program: ExportedProgram, root: nn.Module, inputs: Named) -> None:
        self.program = program
        self.root = root
        self.graph = fx.Graph()
        self.new: dict[fx.Node, Any] = {}
        self._place_inputs(inputs)

    def graph_module(self, answer: Any) -> fx.GraphModule:
        for node in self.program.graph.nodes:
            if node.op == "output":
                self._close(node, answer)
            else:
                self._take(node, self.program.graph_module)
        require_names(self.graph)
        graph_module = fx.GraphModule(self.root, self.graph, type(self.root).__name__)
        for (
            path,
            module,
        ) in self.root.named_modules():  # a graph module takes over what its nodes name, here tensors alone
            if path and entry_of(module) is not None:
                graph_module.add_submodule(path, module)
        return graph_module

    def _place_inputs(self, inputs: Named) -> None:
        """Placeholders of our own names; leaves of a nested input by indexing; parameters by name."""
        specs = {spec.arg.name: spec for spec in self.program.graph_signature.input_specs}
        given: dict[str, Any] = {}  # torch.export's name of every leaf: that of its argument and its place in it
        rest: tuple[Any, ...] = ()
        for name, value in inputs.items():
            if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value)):
                top = self.graph.create_node("placeholder", name, rest)
                for path, _ in pytree.tree_leaves_with_path(value):
                    given["_".join([name, *(str(_place(key)) for key in path)])] = (top, path)
            else:
                self.graph.create_node("placeholder", name, (value,))
                rest = (...,)
        for node in self.program.graph.nodes:
            if node.op != "placeholder" or not node.users:
                continue
            spec = specs[node.name]
            if spec.kind is InputKind.USER_INPUT and node.name in given:
                self.new[node] = self._leaf(*given[node.name])
            elif spec.kind in (InputKind.PARAMETER, InputKind.BUFFER):
                self.new[node] = self.graph.get_attr(str(spec.target))
            elif spec.kind is InputKind.CONSTANT_TENSOR:
                self.new[node] = self.graph.get_attr(
                    self._keep(str(spec.target), self.program.constants[str(spec.target)])
                )
            else:
                raise CaptureError(
                    f"the exported program needs {spec.kind.name} {node.name!r}, which is no tensor input"
                )

    def _leaf(self, top: fx.Node, path: Any) -> fx.Node:
        node = top
        for key in path:
            node = self.graph.call_function(operator.getitem, (node, _place(key)))
        return node

    def _take(self, node: fx.Node, owner: fx.GraphModule) -> None:
        if node.op == "call_function" and str(node.target) in _WRAPPERS:
            self._open(node, owner)
        elif node.op == "call_function":
            self._translate(node)
        elif node.op == "get_attr" and not isinstance(getattr(owner, str(node.target)), fx.GraphModule):
            self.new[node] = self.graph.get_attr(self._keep(str(node.target), getattr(owner, str(node.target))))

    def _open(self, node: fx.Node, owner: fx.GraphModule) -> None:
        """Put the body of a region (of another gradient or autocast mode) in the place of its call."""
        position = next(i for i, value in enumerate(node.args) if isinstance(value, fx.Node) and value.op == "get_attr")
        body: fx.GraphModule = getattr(owner, str(node.args[position].target))  # type: ignore[union-attr]
        given = iter(node.args[position + 1 :])
        for part in body.graph.nodes:
            if part.op == "placeholder":
                self.new[part] = self.new[next(given)]  # type: ignore[index]
            elif part.op == "output":
                results = fx.node.map_arg(part.args[0], lambda old: self.new[old])
                self.new[node] = results
            else:
                self._take(part, body)

    def _keep(self, name: str, value: Tensor) -> str:
        """Keep a constant tensor of the program as a buffer of the root."""
        path = "constant_" + name.replace(".", "_")
        if not hasattr(self.root, path):
            self.root.register_buffer(path, value.detach().clone())
        return path

    def _translate(self, node: fx.Node) -> None:
        base = base_name(node)
        if base in _CHECKS:
            return
        if node.target is operator.getitem and isinstance(self.new.get(node.args[0]), (tuple, list)):  # type: ignore[arg-type]
            self.new[node] = self.new[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda old: self.new[old])
        translated = translation(node, base, args, kwargs)
        if not isinstance(translated, tuple):
            self.new[node] = translated
            return
        operation, target, args, kwargs = translated
        new = self.graph.create_node(operation, target, args, kwargs, name=node.name)
        new.meta = {"nn_module_stack": _stack_of(node), "stack_trace": node.meta.get("stack_trace")}
        if isinstance(value := node.meta.get("val"), Tensor):
            new.meta |= {"dtype": value.dtype, "dims": value.dim()}
        self.new[node] = new

    def _close(self, node: fx.Node, answer: Any) -> None:
        (flat,) = node.args
        leaves = iter(fx.node.map_arg(flat, lambda old: self.new[old]))  # type: ignore[arg-type]
        kept = len(self.program.graph_signature.output_specs) - len(self.program.graph_signature.user_outputs)
        for _ in range(kept):  # mutated buffers come first
            next(leaves)
        self.graph.output(plain_output(answer, lambda _: next(leaves)))


def _place(key: Any) -> Any:
    return getattr(key, "idx", getattr(key, "key", None))


def _stack_of(node: fx.Node) -> dict[str, tuple[str, Any]]:
    """The modules around a node, outermost first, by path; a second call of a module is that module."""
    stack = node.meta.get("nn_module_stack") or {}
    return {
        key: (path.partition("@")[0], kind) for key, (path, kind) in stack.items() if not str(path).startswith("_empty")
    }


def _has_batch(leaf: Any, size: int) -> bool:
    return isinstance(leaf, Tensor) and leaf.dim() > 0 and leaf.shape[0] == size


def _batched(leaf: Any, size: int) -> Any:
    """An example of at least two samples: torch.export takes a batch of one for a constant."""
    return torch.cat([leaf, leaf]) if size == 1 and _has_batch(leaf, 1) else leaf


def _by_name(model: nn.Module, shapes: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any] | None:
    import inspect

    bound = inspect.signature(model.forward).bind(*shapes[0], **shapes[1])
    named: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_KEYWORD:
            named |= value
        else:
            named[name] = value
    return named
