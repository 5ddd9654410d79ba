"""A captured graph as plain data, and back, through the operator table alone.

Nothing in the data is ever executed: operators are looked up by name in the table, modules are built from the constructor
arguments that the table lists, and every name that reaches generated code must be an identifier.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn

from polarspike.errors import CheckpointError
from polarspike.graph.editing import INTEGERS, attribute
from polarspike.graph.operator_table import ATTRIBUTES, FUNCTIONS, METHODS, MODULES, NAME_OF_FUNCTION, Meaning
from polarspike.graph.operators import base_of, describe_target, entry_of, is_reserved, place_of
from polarspike.neurons import CappedNeuron, HoldingNeuron, PolarityNeuron
from polarspike.quantizers import PolarityQuantizer
from polarspike.sites import Site
from polarspike.specs import SiteSpec

Sites = Mapping[str, type[Site]]
#: The kinds of site in quantized and spiking networks.
KNOWN_SITES: Sites = {kind.__name__: kind for kind in (PolarityQuantizer, PolarityNeuron, HoldingNeuron, CappedNeuron)}
_MODULES = {kind.__name__: kind for kind in MODULES}
_DTYPES = {
    str(kind).removeprefix("torch."): kind
    for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int32, torch.int64, torch.bool)
}
_PATH = re.compile(r"[A-Za-z_0-9]+(\.[A-Za-z_0-9]+)*")


def describe_graph(network: fx.GraphModule) -> dict[str, Any]:
    """The nodes and modules of a graph as JSON-ready data; tensors are left to the state dict.

    Raises:
        CheckpointError: a module or value that the operator table cannot express, named by its place.
    """
    nodes, modules, constants = [], {}, {}
    for node in network.graph.nodes:
        target: Any = node.target
        if node.op == "call_function":
            if node.target not in NAME_OF_FUNCTION:
                raise CheckpointError(
                    f"{place_of(node)}: {describe_target(network, node)} is not in the operator table"
                )
            target = NAME_OF_FUNCTION[node.target]
        elif node.op == "call_module":
            modules[target] = describe_module(network.get_submodule(target), target)
        elif node.op == "get_attr":
            constants[target] = "parameter" if isinstance(attribute(network, target), nn.Parameter) else "buffer"
        nodes.append(
            {
                "op": node.op,
                "name": node.name,
                "target": target,
                "args": [_encode(value, node) for value in node.args],
                "kwargs": {name: _encode(value, node) for name, value in node.kwargs.items()},
            }
        )
    integers = list(network.meta.get(INTEGERS, ()))
    return {"nodes": nodes, "modules": modules, "constants": constants, "integers": integers}


def build_graph(data: Mapping[str, Any], tensors: Mapping[str, Tensor], sites: Sites = KNOWN_SITES) -> fx.GraphModule:
    """The graph module that :func:`describe_graph` described, with uninitialized modules.

    Args:
        data: the description.
        tensors: by name, for the shapes of constants that stand in the graph itself.
        sites: the kinds of site that may stand in it, by the names of their types.

    Raises:
        CheckpointError: the data is not such a description.
    """
    try:
        with torch.device("meta"):  # no memory and no random numbers for values that the tensors replace
            roots: dict[str, Any] = {
                _path(name): build_module(module, name, sites) for name, module in data["modules"].items()
            }  # fmt: skip
        for name, kind in data["constants"].items():
            value = tensors[name]
            roots[_path(name)] = nn.Parameter(value, value.is_floating_point()) if kind == "parameter" else value
        graph = _build_nodes(data["nodes"])
        for node in graph.nodes:
            kind = {"call_module": "modules", "get_attr": "constants"}.get(node.op)
            if kind and node.target not in data[kind]:
                raise CheckpointError(f"node {node.name!r}: {node.target!r} is not among the {kind} of the file")
        network = fx.GraphModule(roots, graph)
        network.meta[INTEGERS] = [_identifier(name) for name in data["integers"]]
        return network
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged description makes torch raise
        raise CheckpointError(f"the graph in this file is damaged: {type(error).__name__}: {error}") from error


def describe_module(module: nn.Module, path: str) -> dict[str, Any]:
    """One module as its type's name and the constructor arguments that the table lists."""
    if isinstance(module, Site):
        return {"type": type(module).__name__, "spec": module.spec.to_dict(), **module.options()}
    entry, kind = entry_of(module), base_of(module)
    if entry is None or kind is None:
        raise CheckpointError(f"module {path!r}: {type(module).__name__} is not in the operator table")
    if module._forward_hooks or module._forward_pre_hooks:
        raise CheckpointError(f"module {path!r}: hooks cannot be saved; remove them, or apply what they compute")
    arguments = {field: _plain(getattr(module, field), path) for field in entry.fields}
    if entry.meaning is Meaning.NORM and module.affine and module.bias is None:
        arguments["bias"] = False  # written only here, because older releases of torch do not know it
    return {"type": kind.__name__, "arguments": arguments}


def build_module(data: Mapping[str, Any], path: str, sites: Sites = KNOWN_SITES) -> nn.Module:
    """The module that :func:`describe_module` described."""
    kind = data["type"]
    if kind in sites:
        return sites[kind].restored(SiteSpec.from_dict(data["spec"]), path, data)
    if kind not in _MODULES:
        raise CheckpointError(f"module {path!r}: unknown type {kind!r}; the file needs a newer release")
    entry = MODULES[_MODULES[kind]]
    allowed = {*entry.fields, "bias"} if entry.meaning is Meaning.NORM else {*entry.fields}
    if unknown := sorted(set(data["arguments"]) - allowed):
        raise CheckpointError(f"module {path!r}: unknown arguments {unknown} of {kind}")
    return _MODULES[kind](**{name: _tupled(value) for name, value in data["arguments"].items()})


def _build_nodes(rows: list[dict[str, Any]]) -> fx.Graph:
    graph = fx.Graph()
    made: dict[str, fx.Node] = {}
    for row in rows:
        operation, target = row["op"], row["target"]
        args = tuple(_decode(value, made) for value in row["args"])
        kwargs = {_identifier(name): _decode(value, made) for name, value in row["kwargs"].items()}
        if operation == "call_function":
            if target not in FUNCTIONS:
                raise CheckpointError(f"unknown function {target!r}; the file needs a newer release")
            if target == "builtins.getattr" and (len(args) != 2 or args[1] not in ATTRIBUTES):
                raise CheckpointError(f"attribute {args[1:]!r} is not in the operator table")
            target = FUNCTIONS[target]
        elif operation == "call_method" and target not in METHODS:
            raise CheckpointError(f"unknown method {target!r}; the file needs a newer release")
        elif operation == "placeholder":
            _identifier(target)
        elif operation in ("call_module", "get_attr"):
            _path(target)
        elif operation not in ("call_method", "output"):
            raise CheckpointError(f"unknown kind of node {operation!r}")
        if row["name"] in made:
            raise CheckpointError(f"two nodes are called {row['name']!r}")
        made[row["name"]] = graph.create_node(operation, target, args, kwargs, name=_identifier(row["name"]))
    if [row["op"] for row in rows].index("output") != len(rows) - 1:
        raise CheckpointError("expected one output, after all other nodes")
    graph.lint()
    return graph


def _encode(value: Any, node: fx.Node) -> Any:
    """An argument of a node as JSON-ready data; containers and references are tagged."""
    if isinstance(value, fx.Node):
        return {"node": value.name}
    if isinstance(value, (bool, int, str)) or value is None:
        return value
    if isinstance(value, float):
        return {"float": repr(value)}
    if isinstance(value, (tuple, list)):
        return {"tuple" if isinstance(value, tuple) else "list": [_encode(item, node) for item in value]}
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: _encode(item, node) for key, item in value.items()}}
    if isinstance(value, slice):
        return {"slice": [_encode(item, node) for item in (value.start, value.stop, value.step)]}
    if value is Ellipsis:
        return {"ellipsis": True}
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    raise CheckpointError(f"{place_of(node)}: an argument of type {type(value).__name__} cannot be saved")


def _decode(value: Any, made: Mapping[str, fx.Node]) -> Any:
    if value is None or isinstance(value, (bool, int, str)):
        return value
    ((tag, content),) = value.items()
    if tag == "node":
        return made[content]
    if tag == "float":
        return float(content)
    if tag in ("tuple", "list"):
        items = [_decode(item, made) for item in content]
        return tuple(items) if tag == "tuple" else items
    if tag == "dict":
        return {str(key): _decode(item, made) for key, item in content.items()}
    if tag == "slice":
        return slice(*(_decode(item, made) for item in content))
    if tag == "ellipsis":
        return ...
    if tag == "dtype":
        return _DTYPES[content]
    raise CheckpointError(f"unknown kind of argument {tag!r}")


def _plain(value: Any, path: str) -> Any:
    """A constructor argument: tensors (a bias) as whether they are there, tuples as lists."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        return True
    if isinstance(value, (tuple, list)):
        return [_plain(item, path) for item in value]
    raise CheckpointError(f"module {path!r}: an argument of type {type(value).__name__} cannot be saved")


def _tupled(value: Any) -> Any:
    return tuple(_tupled(item) for item in value) if isinstance(value, list) else value


def _identifier(name: Any) -> str:
    """A name that may appear in generated code, where ``self`` is the network."""
    if not isinstance(name, str) or not name.isidentifier() or keyword.iskeyword(name) or name == "self":
        raise CheckpointError(f"expected an identifier, got {name!r}")
    return name


def _path(name: Any) -> str:
    """A module path that may appear in generated code."""
    if not isinstance(name, str) or not _PATH.fullmatch(name):
        raise CheckpointError(f"expected a module path, got {name!r}")
    if is_reserved(name):
        raise CheckpointError(f"module path {name!r} holds a name that Python or torch keeps for itself")
    return name
