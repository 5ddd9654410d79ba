"""The operator table: subclasses, names there and back, and what messages call a node."""

from __future__ import annotations

import inspect
import operator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from polarspike.operators import (
    FUNCTIONS,
    IN_PLACE,
    METHODS,
    MODULES,
    NAME_OF_FUNCTION,
    Meaning,
    base_of,
    describe_target,
    entry_of,
    meaning_of,
    place_of,
    unknown,
)


class Same(nn.ReLU):
    """A subclass that computes what ReLU does."""


class Other(nn.ReLU):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class Standardized(nn.Conv2d):
    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight - weight.mean(), bias)


def test_a_subclass_counts_as_its_base_only_if_it_computes_the_same() -> None:
    assert base_of(Same()) is nn.ReLU and entry_of(Same()) is MODULES[nn.ReLU]
    for module in (Other(), Standardized(1, 1, 1), nn.GELU(), nn.Sequential()):
        assert entry_of(module) is None and base_of(module) is None


def test_one_object_with_a_forward_of_its_own_is_not_its_class() -> None:
    module = nn.ReLU()
    module.forward = torch.sin  # type: ignore[method-assign]
    assert entry_of(module) is None


def test_names_and_functions_are_inverse() -> None:
    for function, name in NAME_OF_FUNCTION.items():
        assert FUNCTIONS[name] is function
    assert set(NAME_OF_FUNCTION) == set(FUNCTIONS.values())
    for name in FUNCTIONS:
        namespace, attribute = name.split(".")
        assert namespace in ("torch", "F", "operator", "builtins") and attribute.isidentifier()


def test_nothing_in_the_table_can_run_code_or_touch_files() -> None:
    named = {name.split(".")[1] for name in FUNCTIONS} | set(METHODS)
    assert not named & {"eval", "exec", "compile", "open", "load", "save", "import_module", "apply_", "map_", "numpy"}
    assert {name for name in FUNCTIONS if name.startswith("builtins.")} == {"builtins.getattr", "builtins.int"}


def test_in_place_operators_and_their_counterparts_mean_the_same() -> None:
    for altering, pure in IN_PLACE.items():
        if isinstance(altering, str):
            assert METHODS[altering] is METHODS[str(pure)] and altering == f"{pure}_"
        else:
            assert altering in NAME_OF_FUNCTION and pure in NAME_OF_FUNCTION


# What a constructor takes besides: where and of which type (the file's tensors say it), how (in place), for a graph
# between processes, or what is refused.
_LEFT_OUT = {"device", "dtype", "inplace", "process_group", "return_indices", "padding_mode", "kwargs", "args", "bias"}


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_the_fields_of_a_row_are_all_that_its_constructor_takes(kind: type[nn.Module]) -> None:
    fields, taken = set(MODULES[kind].fields), set(inspect.signature(kind).parameters)
    assert fields <= taken
    assert taken - fields <= _LEFT_OUT


def graph_of(function: object) -> fx.GraphModule:
    root = nn.Module()
    root.gelu = nn.GELU()
    graph = fx.Graph()
    x = graph.placeholder("x")
    if isinstance(function, str) and function == "gelu":
        y = graph.call_module("gelu", (x,))
    elif isinstance(function, str):
        y = graph.call_method(function, (x,))
    else:
        y = graph.call_function(function, (x, x) if function is operator.pow else (x,))  # type: ignore[arg-type]
    graph.output(y)
    return fx.GraphModule(root, graph)


@pytest.mark.parametrize(
    ("function", "name"),
    [
        (torch.sin, "torch.sin"),
        (functional.gelu, "F.gelu"),
        (functional.silu, "F.silu"),
        (operator.pow, "operator.pow"),
        (functional.relu, "F.relu"),
        ("clamp", "Tensor.clamp"),
        ("gelu", "GELU"),
    ],
)
def test_messages_call_operators_as_users_write_them(function: object, name: str) -> None:
    network = graph_of(function)
    node = next(node for node in network.graph.nodes if node.op.startswith("call"))
    assert describe_target(network, node) == name
    if name != "F.relu":
        assert meaning_of(network, node) is None
        message = str(unknown(network, node))
        assert f"no rule for {name};" in message and "LeakyReLU" in message


def test_only_shape_attributes_are_known() -> None:
    for attribute, meaning in (("shape", Meaning.SIZE), ("dtype", Meaning.SIZE), ("data", None), ("__class__", None)):
        graph = fx.Graph()
        node = graph.call_function(getattr, (graph.placeholder("x"), attribute))
        assert meaning_of(fx.GraphModule(nn.Module(), graph), node) is meaning


def test_a_place_names_the_last_line_outside_of_torch() -> None:
    network = graph_of(torch.sin)
    node = next(node for node in network.graph.nodes if node.op == "call_function")
    inside = f'File "{torch.__file__}", line 1, in f'
    # A package that lies beside torch and whose name begins alike is the user's code, not torch.
    outside = f'File "{torch.__file__.removesuffix("/__init__.py")}vision/resnet.py", line 7, in forward'
    node.stack_trace = f"{outside}\n    y = torch.sin(x)\n{inside}\n    return 1"
    assert "torchvision/resnet.py" in place_of(node) and "y = torch.sin(x)" in place_of(node)
    assert "line 1," not in place_of(node)
