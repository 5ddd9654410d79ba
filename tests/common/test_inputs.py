"""How batches and inputs are read, and what is said about those that cannot be."""

from __future__ import annotations

from inspect import Parameter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from polarspike.common.inputs import (
    as_call,
    batch_size,
    batches_of,
    bind,
    map_inputs,
    to_device,
    unsound_input,
)
from polarspike.errors import InputError

X = torch.arange(12.0).view(4, 3)
Y = torch.arange(4)


def test_a_call_is_positional_or_by_keyword() -> None:
    assert as_call(3) == ((3,), {})  # type: ignore[arg-type]
    assert as_call([1, 2]) == ((1, 2), {})  # type: ignore[arg-type]
    assert as_call({"x": 1}) == ((), {"x": 1})


@pytest.mark.parametrize("batches", [X, [X], (X,), iter([X]), [[X]], [(X, Y)], [[X, Y]], [(X, None)]])
def test_batches_with_or_without_target(batches: Any) -> None:
    ((inputs, _),) = list(batches_of(batches))
    assert inputs is X


def test_batches_of_loaders_generators_and_dicts() -> None:
    assert [target.tolist() for _, target in batches_of(DataLoader(TensorDataset(X, Y), 2))] == [[0, 1], [2, 3]]
    assert [target for _, target in batches_of(DataLoader(TensorDataset(X), 2))] == [None, None]
    assert len(list(batches_of(X for _ in range(3)))) == 3
    ((inputs, target),) = batches_of([({"a": X, "b": X}, Y)])
    assert set(inputs) == {"a", "b"} and target is Y  # type: ignore[arg-type]


@pytest.mark.parametrize("wrong", [[(X, Y, Y)], ["image.png"], [None], [1.0], [X.numpy()], [()], [("a", Y)]])
def test_a_batch_of_another_kind_is_named_by_its_position(wrong: list[Any]) -> None:
    with pytest.raises(InputError, match=r"batch 1: expected inputs .* pack several inputs into a dict"):
        list(batches_of([X, *wrong]))


@pytest.mark.parametrize("wrong", [5, None, 1.5, torch.nn.ReLU()])
def test_what_is_no_iterable_is_refused(wrong: Any) -> None:
    with pytest.raises(InputError, match="expected an iterable of batches"):
        list(batches_of(wrong))


def test_inputs_keep_their_form() -> None:
    for inputs in (X, (X, 2), {"x": X, "flag": True}):
        assert type(map_inputs(lambda value: value, inputs)) is type(inputs)
        assert type(to_device(inputs, torch.device("cpu"))) is type(inputs)
    assert map_inputs(lambda value: value + 1, {"x": 1}) == {"x": 2}


def test_the_batch_size_is_the_first_tensors() -> None:
    assert batch_size({"flag": True, "x": X}) == 4
    for wrong in ({"flag": True}, (), torch.tensor(1.0), None):
        with pytest.raises(InputError, match="at least one input tensor with a batch dimension"):
            batch_size(wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("args", "named", "message"),
    [
        ((1, 2, 3, 4), {}, "at most 3 positional inputs, got 4"),
        ((1,), {"b": 2, "z": 3}, r"unknown inputs \['z'\]"),
        ((1,), {"a": 2, "b": 2}, r"\['a'\] are given twice"),
        ((1,), {}, r"inputs \['b'\] are missing"),
        ((1, 2, False), {}, r"input 'c': the network was captured with True, which is part of its graph, got False"),
    ],
)
def test_calls_are_bound_as_python_does(args: tuple[Any, ...], named: dict[str, Any], message: str) -> None:
    parameters = {"a": Parameter.empty, "b": Parameter.empty, "c": True}
    assert bind(parameters, (1,), {"b": 2}) == {"a": 1, "b": 2, "c": True}
    assert bind(parameters, (1, 2, True), {}) == {"a": 1, "b": 2, "c": True}
    with pytest.raises(InputError, match=message):
        bind(parameters, args, named)


@pytest.mark.parametrize("array", [np.zeros(3), np.ones((1, 1)), np.zeros(0)])
def test_an_array_is_no_value_that_the_graph_holds(array: Any) -> None:
    with pytest.raises(InputError, match=r"input 'c': the network was captured with 1, .*, got array"):
        bind({"a": Parameter.empty, "c": 1}, (2, array), {})
    assert bind({"a": Parameter.empty, "c": 1}, (2, np.int64(1)), {}) == {"a": 2, "c": 1}


@pytest.mark.parametrize("names", [["x"], ["x", "y"]])
def test_inputs_come_as_in_a_batch_too(names: list[str]) -> None:
    parameters, values = dict.fromkeys(names, Parameter.empty), {name: torch.randn(2) for name in names}
    for args in (tuple(values.values()), (tuple(values.values()),), (values,)):
        bound = bind(parameters, args, {})
        assert list(bound) == names and all(bound[name] is value for name, value in values.items())
    several = (torch.randn(2), torch.randn(2))
    assert bind({"x": Parameter.empty}, (several,), {})["x"] is several  # one input that is a tuple
    assert list(bind({"*x": Parameter.empty}, (several,), {})) == ["0", "1"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            (X,),
            r"the network takes \['x', 'y'\]; in a batch, several inputs are a dict by name, \{'x': ..., 'y': ...\}$",
        ),
        (({"x": X, "z": X},), r"pass a dict of inputs by keyword: network\(\*\*inputs\)$"),
        (([X, X],), r"pass a list of inputs by position: network\(\*inputs\)$"),
    ],
    ids=["half of a pair", "dict", "list"],
)
def test_several_inputs_that_came_as_one_are_told_how_to_come(args: tuple[Any, ...], message: str) -> None:
    with pytest.raises(InputError, match=r"inputs \['y'\] are missing; .*" + message):
        bind({"x": Parameter.empty, "y": Parameter.empty}, args, {})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (([X, X],), "got '0': list of 2 tensors; every tensor must be an argument of its own: wrap the model"),
        ({"pair": {"x": X, "y": X}}, "got 'pair': dict of 2 tensors; every tensor must be"),
        ((X.numpy(),), r"got '0': ndarray; make tensors of arrays: torch.from_numpy\(array\)$"),
        ((torch.tensor(1.0), 3), r"got '0': a tensor of shape \(\), '1': int$"),
        ({}, "got no inputs$"),
    ],
    ids=["list", "dict", "array", "scalar", "nothing"],
)
def test_what_is_no_batch_is_named_with_what_to_do(inputs: Any, message: str) -> None:
    with pytest.raises(InputError, match=f"expected at least one input tensor with a batch dimension, {message}"):
        batch_size(inputs)


def test_beside_integers_alone_a_mask_holds_zeros_and_minus_infinity() -> None:
    ids, mask, data = torch.arange(3), torch.tensor([0.0, -torch.inf, 0.0]), torch.tensor([0.5, -torch.inf, 1.0])
    assert unsound_input({"ids": ids, "mask": mask}) is None
    assert unsound_input({"ids": ids, "x": data}) == "x"  # the logarithm of zero is no mask
    assert unsound_input({"x": ids.float(), "mask": data}) is None  # positions may weigh, too
    assert unsound_input({"mask": mask}) == "mask"
