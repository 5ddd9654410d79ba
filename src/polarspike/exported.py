"""Capture by :func:`torch.export.export`, for models that torch.fx cannot trace or traces without understanding.

An exported program is a flat list of ATen overloads. Each is translated into the function or method of the operator table
that computes the same, parameters come back under their own names, and the result is the same kind of graph that tracing
gives: the batch size stays free, and :mod:`polarspike.modularize` puts modules back where the model had them.
"""

from __future__ import annotations

import contextlib
import io
import logging
import operator
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import InputKind
from torch.nn import functional
from torch.utils import _pytree as pytree

from polarspike.errors import CaptureError, OperatorError
from polarspike.graph import WRITES, require_names
from polarspike.inputs import plain_output
from polarspike.layers import masked_softmax
from polarspike.operator_table import FUNCTIONS, IN_PLACE, METHODS
from polarspike.operators import entry_of, place_of

Translation = tuple[str, Any, tuple[Any, ...], dict[str, Any]]
Named = Mapping[str, Any]

# Checks of an exported program that compute nothing.
_CHECKS = frozenset({"_assert_tensor_metadata", "_assert_scalar", "_assert_async", "sym_constrain_range",
                     "sym_constrain_range_for_size"})  # fmt: skip
# Overloads that answer (values, indices), and the function of the table that answers the values alone.
_WITH_INDICES = {
    f"{kind}max_pool{dims}d{end}": getattr(functional, f"{kind}max_pool{dims}d")
    for kind, end in (("", "_with_indices"), ("adaptive_", ""))
    for dims in (1, 2, 3)
}
_PLACING = ("device", "layout", "pin_memory", "memory_format", "non_blocking", "copy")
_DUNDER = {
    "__and__": operator.and_,
    "__or__": operator.or_,
    "__xor__": operator.xor,
    "__invert__": operator.invert,
}
_NO_END = sys.maxsize
# Answers (normalized, mean, rate); where nothing may be written in place, batch norms are called so.
_BATCH_NORM = "_native_batch_norm_legit_no_training"
# Views of a part of a tensor.
_PARTS = frozenset({"slice", "select", "narrow", "diagonal", "view", "reshape", "transpose",
                    "permute", "unsqueeze", "squeeze", "expand"})  # fmt: skip
# Regions of another mode; what they hold is computed as any other part.
_WRAPPERS = frozenset({"wrap_with_set_grad_enabled", "wrap_with_autocast"})


def export_graph(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], inputs: Named) -> fx.GraphModule:
    """The graph of a model by export.

    Args:
        model: in evaluation mode, a copy that may be altered.
        args: positional values of an example call; kwargs its keyword values.
        kwargs: see ``args``.
        inputs: the graph's inputs by name, in order, with their values in the example.

    Raises:
        CaptureError: an overload that cannot be translated.
        Exception: whatever torch.export raises.
    """
    example = (args, kwargs)
    size = next((leaf.shape[0] for leaf in pytree.tree_leaves(example) if isinstance(leaf, Tensor) and leaf.dim()), 1)
    args, kwargs = pytree.tree_map(lambda leaf: _batched(leaf, size), example)
    batch = Dim("batch", min=1)
    shapes = pytree.tree_map(lambda leaf: {0: batch} if _has_batch(leaf, max(2, size)) else None, (args, kwargs))
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
    base = _base(node)
    return base.endswith("_") and not base.endswith("__")


def _writes_into_view(node: fx.Node) -> bool:
    """Whether a node alters a part of a tensor that is read as a whole: ``x[:, 1:] = y``."""
    if not _is_in_place(node) or not node.args or not isinstance(node.args[0], fx.Node):
        return False
    return _base(node.args[0]) in _PARTS


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
        base = _base(node)
        if base in _CHECKS:
            return
        if node.target is operator.getitem and isinstance(self.new.get(node.args[0]), (tuple, list)):  # type: ignore[arg-type]
            self.new[node] = self.new[node.args[0]][node.args[1]]  # type: ignore[index]
            return
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda old: self.new[old])
        translated = _translation(node, base, args, kwargs)
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


def _base(node: fx.Node) -> str:
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else str(schema.name).removeprefix("aten::")


def _stack_of(node: fx.Node) -> dict[str, tuple[str, Any]]:
    """The modules around a node, outermost first, by path; a second call of a module is that module."""
    stack = node.meta.get("nn_module_stack") or {}
    return {
        key: (path.partition("@")[0], kind) for key, (path, kind) in stack.items() if not str(path).startswith("_empty")
    }


def _translation(node: fx.Node, base: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation | Any:
    """The operator of the table that computes what an overload computes; not a tuple: a value that stands for it."""
    if not base:  # arithmetic of sizes, or one of several answers
        source = node.args[0] if node.target is operator.getitem else None
        if isinstance(source, fx.Node) and _base(source) in _WITH_INDICES:
            return _value_of_pooling(node, args)
        if isinstance(source, fx.Node) and _base(source) == _BATCH_NORM and args[1] == 0:
            return args[0]
        return "call_function", node.target, args, kwargs
    if base in _WITH_INDICES:
        return "call_function", _WITH_INDICES[base], args, kwargs
    if base in _SPECIAL:
        return _SPECIAL[base](node, args, kwargs)
    if base in _DUNDER:
        return "call_function", _DUNDER[base], args, kwargs
    kwargs = {name: value for name, value in kwargs.items() if name not in _PLACING}
    for name in (f"torch.{base}", f"F.{base}", f"F.{base.removesuffix('_')}_"):
        if name in FUNCTIONS and (name.endswith("_") == base.endswith("_")):
            return "call_function", FUNCTIONS[name], args, kwargs
    if base in METHODS or base in IN_PLACE:
        return "call_method", base, args, kwargs
    return "call_function", node.target, args, kwargs  # refused by name, with its place


def _batch_norm(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    del node
    x, weight, bias, mean, variance, momentum, eps = args
    return "call_function", torch.batch_norm, (x, weight, bias, mean, variance, False, momentum, eps, False), kwargs


def _value_of_pooling(node: fx.Node, args: tuple[Any, ...]) -> Any:
    if args[1] == 0 or not node.users:  # both answers are taken apart, whoever reads them
        return args[0]
    raise OperatorError(f"{place_of(node)}: max pooling with return_indices=True has no running mean; drop it")


def _size(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    return "call_method", "size", args, kwargs


def _slice(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    defaults: tuple[Any, ...] = (None, 0, None, None, 1)
    source, dim, start, end, step = args + defaults[len(args) :]
    if dim < 0:
        dim += node.args[0].meta["val"].dim()  # type: ignore[union-attr]
    part = slice(start, None if isinstance(end, int) and end >= _NO_END else end, step)
    return "call_function", operator.getitem, (source, (*(slice(None),) * dim, part)), {}


def _index(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    source, places = args
    return "call_function", operator.getitem, (source, tuple(slice(None) if at is None else at for at in places)), {}


def _to(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    kinds = [value for value in (*args[1:], *kwargs.values()) if isinstance(value, torch.dtype)]
    before = node.args[0].meta["val"].dtype  # type: ignore[union-attr]
    # A network moves and changes its type as a whole: a conversion between real types is left to it.
    if not kinds or kinds[0] == before or (kinds[0].is_floating_point and before.is_floating_point):
        return args[0]
    return "call_method", "to", (args[0], kinds[0]), {}


def _same(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0]


def _clone(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    return "call_function", torch.clone, args[:1], {}


def _embedding(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    weight, ids, *rest = args
    return "call_function", functional.embedding, (ids, weight, *rest[:1]), {}


def _upsample(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    names = [item.name for item in node.target._schema.arguments]  # type: ignore[union-attr]
    named = dict(zip(names, args, strict=False)) | kwargs
    kinds = ("bilinear", "trilinear", "linear", "bicubic", "exact")
    mode = next((kind for kind in kinds if kind in _base(node)), "nearest").replace("exact", "nearest-exact")
    source = named.get("input", named.get("self"))
    options: dict[str, Any] = {"mode": mode}
    if named.get("output_size") is not None:
        options["size"] = named["output_size"]
    else:
        options["scale_factor"] = named["scale_factors"]
    if "nearest" not in mode:
        options["align_corners"] = named["align_corners"]
    return "call_function", functional.interpolate, (source,), options


def _vector_norm(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    return "call_function", torch.linalg.vector_norm, args, kwargs


def _einsum(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    return "call_function", torch.einsum, (args[0], *args[1]), {}


def _reversed(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    dims = node.meta["val"].dim()
    return "call_function", torch.permute, (args[0], tuple(reversed(range(dims)))), kwargs


def _swapped(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    del node
    return "call_function", torch.transpose, (args[0], -2, -1), kwargs


def _copied(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    target, source = node.args[:2]
    if isinstance(source, fx.Node) and source.meta["val"].dtype != target.meta["val"].dtype:  # type: ignore[union-attr]
        raise OperatorError(
            f"{place_of(node)}: writes {source.meta['val'].dtype} into a tensor of another type; convert it before, by "
            ".to(y.dtype)"
        )
    return "call_method", "expand_as", (args[1], args[0]), kwargs


def _filled(node: fx.Node, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Translation:
    if isinstance(args[1], fx.Node):
        return _copied(node, args, kwargs)
    return "call_function", torch.full_like, args, kwargs


_SPECIAL: dict[str, Callable[[fx.Node, tuple[Any, ...], dict[str, Any]], Any]] = {
    "sym_size": _size,
    "slice": _slice,
    "index": _index,
    "to": _to,
    "_to_copy": _to,
    "alias": _same,
    "lift_fresh": _same,
    "detach": _same,
    "lift_fresh_copy": _clone,
    "clone": _clone,
    "embedding": _embedding,
    "linalg_vector_norm": _vector_norm,
    "einsum": _einsum,
    _BATCH_NORM: _batch_norm,
    "copy": _copied,
    "zero": lambda node, args, kwargs: ("call_function", torch.zeros_like, args, {}),
    "fill": _filled,
    "numpy_T": _reversed,
    "_safe_softmax": lambda node, args, kwargs: ("call_function", masked_softmax, args[:2], {}),
    **dict.fromkeys(("mT", "mH", "matrix_H", "adjoint"), _swapped),
    **dict.fromkeys(
        (f"upsample_{kind}" for kind in ("nearest1d", "nearest2d", "nearest3d", "_nearest_exact2d", "linear1d",
                                         "bilinear2d", "trilinear3d", "bicubic2d")), _upsample),
}  # fmt: skip


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
