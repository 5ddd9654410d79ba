"""The operator table: subclasses, names there and back, and what messages call a node."""

from __future__ import annotations

import inspect
import operator

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

from polarspike.graph.operator_table import (
    FUNCTION_MEANINGS,
    FUNCTIONS,
    IN_PLACE,
    METHODS,
    MODULES,
    NAME_OF_FUNCTION,
    NAMESPACES,
    Meaning,
)
from polarspike.graph.operators import base_of, describe_target, entry_of, meaning_of, place_of, unknown


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
    for module in (Other(), Standardized(1, 1, 1), nn.Bilinear(1, 1, 1), nn.Sequential()):
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
        namespace, *path = name.split(".")
        assert namespace in NAMESPACES and all(part.isidentifier() for part in path)


def test_functions_and_methods_of_one_name_mean_the_same() -> None:
    for name, function in FUNCTIONS.items():
        if name.startswith(("builtins.", "math.")):  # int(size) is no conversion of a tensor
            continue
        method = METHODS.get(name.rpartition(".")[2])
        assert method in (None, FUNCTION_MEANINGS[function]), name


def test_nothing_in_the_table_can_run_code_or_touch_files() -> None:
    named = {name.split(".")[1] for name in FUNCTIONS} | set(METHODS)
    assert not named & {"eval", "exec", "compile", "open", "load", "save", "import_module", "apply_", "map_", "numpy"}
    assert {name for name in FUNCTIONS if name.startswith("builtins.")} == {
        f"builtins.{name}" for name in ("getattr", "int", "float", "max", "min", "round", "abs")
    }


def test_in_place_operators_and_their_counterparts_mean_the_same() -> None:
    for altering, pure in IN_PLACE.items():
        if isinstance(altering, str):
            assert altering.removesuffix("_") == (pure if isinstance(pure, str) else pure.__name__.strip("_"))
            meaning = METHODS[pure] if isinstance(pure, str) else FUNCTION_MEANINGS[pure]
            assert METHODS.get(altering) in (None, meaning)
        else:
            assert callable(pure) and FUNCTION_MEANINGS[altering] is FUNCTION_MEANINGS[pure]


# What a constructor takes besides: where and of which type (the file's tensors say it), how (in place), for a graph
# between processes, or what is refused.
_LEFT_OUT = {"device", "dtype", "inplace", "process_group", "return_indices", "padding_mode", "kwargs", "args", "bias",
             "min_value", "max_value", "init"}  # fmt: skip
# An embedding that renormalizes its rows alters itself in every forward.
_LEFT_OUT |= {"max_norm", "norm_type", "scale_grad_by_freq", "sparse", "_weight", "_freeze"}


@pytest.mark.parametrize("kind", MODULES, ids=lambda kind: kind.__name__)
def test_the_fields_of_a_row_are_all_that_its_constructor_takes(kind: type[nn.Module]) -> None:
    fields, taken = set(MODULES[kind].fields), set(inspect.signature(kind).parameters)
    assert fields <= taken
    assert taken - fields <= _LEFT_OUT


def graph_of(function: object) -> fx.GraphModule:
    root = nn.Module()
    root.bilinear, root.cell = nn.Bilinear(1, 1, 1), nn.GRUCell(1, 1)
    graph = fx.Graph()
    x = graph.placeholder("x")
    if function in ("bilinear", "cell"):
        y = graph.call_module(str(function), (x,))
    elif isinstance(function, str):
        y = graph.call_method(function, (x,))
    else:
        y = graph.call_function(function, (x, x) if function is operator.pow else (x,))  # type: ignore[arg-type]
    graph.output(y)
    return fx.GraphModule(root, graph)


@pytest.mark.parametrize(
    ("function", "name", "meaning"),
    [
        (torch.sin, "torch.sin", Meaning.ELEMENTWISE),
        (functional.gelu, "F.gelu", Meaning.ACTIVATION),
        (functional.silu, "F.silu", Meaning.ACTIVATION),
        (operator.pow, "operator.pow", Meaning.ELEMENTWISE),
        (functional.relu, "F.relu", Meaning.ACTIVATION),
        ("clamp", "Tensor.clamp", Meaning.ELEMENTWISE),
        ("cell", "GRUCell", Meaning.RECURRENT),
        (torch.rand_like, "torch.rand_like", Meaning.RANDOM),
        (torch.special.i0, "i0", None),
        (functional.ctc_loss, "F.ctc_loss", None),
        ("cummax", "Tensor.cummax", None),
        ("bilinear", "Bilinear", None),
    ],
)
def test_messages_call_operators_as_users_write_them(function: object, name: str, meaning: Meaning | None) -> None:
    network = graph_of(function)
    node = next(node for node in network.graph.nodes if node.op.startswith("call"))
    assert describe_target(network, node).endswith(name)
    assert meaning_of(network, node) is meaning
    message = str(unknown(network, node))
    assert f"node {node.name!r}: no rule for " in message and name in message
    repair = {Meaning.RECURRENT: "replace it by a convolution over time", Meaning.RANDOM: "keep them as a buffer"}
    assert repair.get(meaning, "Write it with operators of the table") in message  # type: ignore[arg-type]


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
