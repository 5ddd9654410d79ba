"""What an integer network means: every instruction against torch, and inputs that do not fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from polarspike import integer, ops
from polarspike.errors import InputError
from polarspike.integer import Instruction, IntegerNetwork
from polarspike.integer.execution import FLOAT_OPERATORS

Array = Any


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def codes(*shape: int, low: int = -4, high: int = 7, seed: int = 0) -> Array:
    return np.random.default_rng(seed).integers(low, high + 1, shape)


def network(made: Instruction, constants: Mapping[str, Array], *shapes: tuple[int, ...]) -> IntegerNetwork:
    """One instruction on inputs a, b, ..., each of whole numbers if it reads them as ``codes_a``, ... ."""
    inputs = tuple((chr(ord("a") + index), shape) for index, shape in enumerate(shapes))
    quantizers = tuple(
        Instruction("quantize", (name,), f"codes_{name}", {}, {"step": np.ones(())}, (-(2**20), 2**20))
        for name, _ in inputs
    )
    return IntegerNetwork(inputs, ((made.output, ()),), (*quantizers, made), constants, {}, "{}")


def whole(kind: str, arrays: list[Array], attributes: Any, tensors: Any, span: Any = None) -> Array:
    """The answer of an instruction that reads whole numbers."""
    names = [chr(ord("a") + index) for index in range(len(arrays))]
    made = Instruction(kind, tuple(f"codes_{name}" for name in names), "y", attributes, tensors, span)
    made_network = network(made, {}, *(array.shape[1:] for array in arrays))
    given = {name: array.astype(np.float32) for name, array in zip(names, arrays, strict=True)}
    return integer.run(made_network, given)[0]


def floating(operator: str, inputs: list[Tensor], constants: list[Tensor], **attributes: Any) -> Array:
    names = tuple(chr(ord("a") + index) for index in range(len(inputs)))
    known = {f"constant_{index}": tensor.numpy() for index, tensor in enumerate(constants)}
    made = Instruction("float", (*names, *known), "y", {"operator": operator, **attributes})
    made_network = network(made, known, *(tuple(x.shape[1:]) for x in inputs))
    answer = integer.run(made_network, {name: x.numpy() for name, x in zip(names, inputs, strict=True)})[0]
    assert answer.dtype == np.float32
    return answer


X, Y, IMAGES = random(3, 5, 8), random(3, 5, 8, seed=1), random(2, 6, 7, 9)
VECTOR, WEIGHT = random(6, seed=2), random(4, 3, 3, 2, seed=3)
#: operator -> inputs, constants, attributes, what torch makes of them
FLOATS: dict[str, tuple[list[Tensor], list[Tensor], dict[str, Any], Callable[[], Tensor]]] = {
    "Add": ([X, Y], [], {}, lambda: X + Y),
    "Sub": ([X, Y], [], {}, lambda: X - Y),
    "Mul": ([X], [random(8)], {}, lambda: X * random(8)),
    "Div": ([X, Y], [], {}, lambda: X / Y),
    "Relu": ([X], [], {}, X.relu),
    "Identity": ([X], [], {}, lambda: X),
    "PRelu": ([X], [torch.tensor(0.2)], {}, lambda: functional.leaky_relu(X, 0.2)),
    "Elu": ([X], [], {"alpha": 0.7}, lambda: functional.elu(X, 0.7)),
    "Clip": ([X], [torch.tensor(-0.3), torch.tensor(0.7)], {}, lambda: X.clamp(-0.3, 0.7)),
    "Tanh": ([X], [], {}, X.tanh),
    "Sigmoid": ([100 * X], [], {}, lambda: (100 * X).sigmoid()),
    "HardSigmoid": ([5 * X], [], {"alpha": 1 / 6, "beta": 0.5}, lambda: functional.hardsigmoid(5 * X)),
    "Gelu": ([3 * X], [], {"approximate": "none"}, lambda: functional.gelu(3 * X)),
    "Softmax": ([9 * X], [], {"axis": 1}, lambda: (9 * X).softmax(1)),
    "LayerNormalization": (
        [X],
        [Y[0], Y[1]],
        {"axis": -2, "epsilon": 1e-3},
        lambda: functional.layer_norm(X, (5, 8), Y[0], Y[1], 1e-3),
    ),
    "GroupNormalization": (
        [IMAGES],
        [VECTOR, VECTOR + 1],
        {"num_groups": 3, "epsilon": 1e-4},
        lambda: functional.group_norm(IMAGES, 3, VECTOR, VECTOR + 1, 1e-4),
    ),
    "ReduceMean": ([IMAGES], [], {"axes": [1, 3], "keepdims": True}, lambda: IMAGES.mean((1, 3), keepdim=True)),
    "AveragePool": (
        [IMAGES],
        [],
        {"kernel": [3, 2], "stride": [2, 3], "padding": [[1, 1], [1, 1]]},
        lambda: functional.avg_pool2d(IMAGES, (3, 2), (2, 3), (1, 1)),
    ),
    "MatMul": ([X], [random(8, 4)], {}, lambda: X @ random(8, 4)),
    "Conv": (
        [IMAGES],
        [WEIGHT, VECTOR[:4]],
        {"stride": [2, 1], "padding": [[1, 0], [1, 0]], "dilation": [1, 2], "groups": 2},
        lambda: functional.conv2d(IMAGES, WEIGHT, VECTOR[:4], (2, 1), (1, 0), (1, 2), 2),
    ),
}


def test_every_float_operator_is_tried() -> None:
    assert set(FLOATS) == set(FLOAT_OPERATORS)


@pytest.mark.parametrize("operator", sorted(FLOATS))
def test_a_float_operator_is_that_of_torch(operator: str) -> None:
    inputs, constants, attributes, meant = FLOATS[operator]
    expected = meant()
    made = floating(operator, inputs, constants, **attributes)
    assert made.shape == tuple(expected.shape)
    assert np.allclose(made, expected.numpy(), rtol=2e-6, atol=2e-6)


def test_the_other_gelu_and_other_axes() -> None:
    made = floating("Gelu", [3 * X], [], approximate="tanh")
    assert np.allclose(made, functional.gelu(3 * X, approximate="tanh").numpy(), rtol=2e-6, atol=2e-6)
    assert np.allclose(floating("ReduceMean", [X], [], axes=[1], keepdims=False), X.mean(1).numpy(), atol=1e-6)
    assert np.allclose(floating("Softmax", [X + 1e4], [], axis=2), X.add(1e4).softmax(2).numpy(), atol=1e-6)


# Whole numbers


def test_quantize_rounds_and_keeps_to_its_range() -> None:
    x = np.array([[-9.0, -0.76, -0.25, 0.2, 0.26, 0.6, 9.0]], dtype=np.float32)
    made = Instruction("quantize", ("a",), "y", {}, {"step": np.array(0.5)}, (-2, 3))
    assert integer.run(network(made, {}, (7,)), {"a": x})[0].tolist() == [[-2, -2, 0, 0, 1, 1, 3]]


def test_quantize_takes_halves_up_where_it_is_told_to() -> None:
    x = np.array([[-1.25, -0.75, -0.25, 0.25, 0.75, 1.25, np.nextafter(np.float32(0.25), 0)]], dtype=np.float32)
    for ties, meant in (
        (None, [-2, -2, 0, 0, 2, 2, 0]),
        ("up", ops.encode(torch.from_numpy(x), 0.5, 9, 9)[0].tolist()),
    ):
        made = Instruction("quantize", ("a",), "y", {"ties": ties} if ties else {}, {"step": np.array(0.5)}, (-9, 9))
        assert integer.run(network(made, {}, (7,)), {"a": x})[0].tolist() == [meant]


def test_an_average_is_of_rectified_sums() -> None:
    x, weight = codes(2, 4, 6, 6), codes(3, 4, 3, 3, low=-127, high=127, seed=1).astype(np.int8)
    bias, divisor = codes(3, low=-900, high=900, seed=2), np.array([36, 801, 4004])
    options = {"stride": [1, 1], "padding": [[1, 1], [1, 1]], "dilation": [1, 1], "groups": 1}
    window = {"kernel": [3, 2], "stride": [1, 2], "padding": [[1, 0], [1, 0]]}
    attributes = {"operator": "convolution", "axis": 1, **options, "window": window}
    made = whole("averaged", [x], attributes, {"weight": weight, "bias": bias, "divisor": divisor}, (0, 7))
    parts = [torch.from_numpy(array).double() for array in (x, weight, bias)]
    mean = functional.avg_pool2d(functional.conv2d(*parts, padding=1).relu(), (3, 2), (1, 2), (1, 0))
    meant = torch.floor(mean * 6 / torch.from_numpy(divisor).view(-1, 1, 1) + 0.5).clamp(0, 7)
    assert np.array_equal(made, meant.numpy()) and len(np.unique(made)) > 5


@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_fires_per_channel(groups: int) -> None:
    x, weight = codes(2, 4, 6, 7), codes(6, 4 // groups, 3, 3, low=-127, high=127, seed=1).astype(np.int8)
    bias, divisor = codes(6, low=-900, high=900, seed=2), np.array([1, 3, 99, 501, 1001, 2001])
    options = {"stride": [2, 1], "padding": [[1, 0], [1, 0]], "dilation": [1, 2], "groups": groups}
    attributes = {"operator": "convolution", "axis": 1, **options}
    tensors = {"weight": weight, "bias": bias, "divisor": divisor}
    made = whole("synapse", [x], attributes, tensors, (-3, 5))
    parts = [torch.from_numpy(array).double() for array in (x, weight, bias)]
    sums = functional.conv2d(parts[0], parts[1], parts[2], (2, 1), (1, 0), (1, 2), groups)
    meant = torch.floor(sums / torch.from_numpy(divisor).view(-1, 1, 1) + 0.5).clamp(-3, 5)
    assert np.array_equal(made, meant.numpy()) and len(np.unique(made)) > 5
    scaled = whole("synapse", [x], attributes, {**tensors, "scale": (1 / divisor).astype(np.float32)})
    assert (
        np.allclose(scaled, sums / torch.from_numpy(divisor).view(-1, 1, 1), rtol=1e-6) and scaled.dtype == np.float32
    )


def test_a_linear_layer_on_tokens() -> None:
    x, weight = codes(2, 3, 5), codes(4, 5, low=-127, high=127, seed=1).astype(np.int8)
    tensors = {"weight": weight, "bias": np.arange(4), "divisor": np.array([1, 3, 5, 701])}
    made = whole("synapse", [x], {"operator": "linear", "axis": 2}, tensors, (-100, 100))
    meant = np.floor((x @ weight.T.astype(int) + np.arange(4)) / np.array([1, 3, 5, 701]) + 0.5).clip(-100, 100)
    assert np.array_equal(made, meant)


def test_products_fire_by_a_fraction_or_are_scaled() -> None:
    x, y = codes(2, 3, 5), codes(2, 5, 4, seed=1)
    fired = whole("product", [x, y], {"factor": 3, "axis": 2}, {"divisor": np.array(7)}, (-9, 9))
    assert np.array_equal(fired, np.floor((x @ y) * 3 / 7 + 0.5).clip(-9, 9))
    scaled = whole("product", [x, y], {"axis": 2}, {"scale": np.array(0.25, dtype=np.float32)})
    assert np.array_equal(scaled, (x @ y) / 4) and scaled.dtype == np.float32


def test_combinations_weigh_and_shift_per_channel() -> None:
    x, y = codes(2, 3, 4, 4), codes(2, 3, 4, 4, seed=1)
    tensors = {"factor0": np.array(5), "factor1": np.array([1, -2, 30]), "bias": np.array([0, 7, -7])}
    tensors["divisor"] = np.array(11)
    made = whole("combine", [x, y], {"axis": 1, "dims": 4}, tensors, (-4, 6))
    along = [tensors[name].reshape(3, 1, 1) for name in ("factor1", "bias")]
    assert np.array_equal(made, np.floor((5 * x + along[0] * y + along[1]) / 11 + 0.5).clip(-4, 6))


def test_sums_stretched_and_decoded_codes() -> None:
    x = codes(2, 3, 4, 6)
    windows = {"kernel": [2, 3], "stride": [2, 3], "padding": [[0, 0], [0, 0]]}
    meant = 6 * functional.avg_pool2d(torch.from_numpy(x).double(), (2, 3))
    assert np.allclose(whole("window_sum", [x], windows, {}, (-24, 42)), meant)
    axes = whole("window_sum", [x], {"axes": [2, 3], "keepdims": False}, {}, (-96, 168))
    assert np.array_equal(axes, x.sum((2, 3)))
    stretched = whole("stretch", [x], {"factor": 4}, {}, (-4, 28))
    assert np.array_equal(stretched, np.where(x > 0, 4 * x, x))
    step = np.array([0.5, 2.0, 3.0], dtype=np.float32).reshape(1, 3, 1, 1)
    decoded = whole("decode", [x], {}, {"step": step})
    assert np.array_equal(decoded, x * step) and decoded.dtype == np.float32


def test_layouts() -> None:
    x, y = codes(2, 3, 4, 6), codes(2, 5, 4, 6, seed=1)
    pool = {"kernel": [2, 2], "stride": [2, 2], "padding": [[1, 0], [1, 0]], "dilation": [1, 2]}
    meant = functional.max_pool2d(torch.from_numpy(x).double(), 2, 2, (1, 0), (1, 2)).numpy()
    assert np.array_equal(whole("max_pool", [x], pool, {}, (-4, 7)), meant)
    assert np.array_equal(whole("reshape", [x], {"shape": ["batch", 12, 6]}, {}, (-4, 7)), x.reshape(2, 12, 6))
    turned = whole("transpose", [x], {"permutation": [0, 3, 1, 2]}, {}, (-4, 7))
    assert np.array_equal(turned, x.transpose(0, 3, 1, 2))
    assert np.array_equal(whole("concatenate", [x, y], {"axis": 1}, {}, (-4, 7)), np.concatenate([x, y], 1))
    part = {"axis": 3, "start": 1, "end": 6, "stride": 2}
    assert np.array_equal(whole("slice", [x], part, {}, (-4, 7)), x[..., 1:6:2])
    made = whole("pad", [x], {"padding": [[1, 0], [0, 2]]}, {}, (-4, 7))
    assert np.array_equal(made, np.pad(x, ((0, 0), (0, 0), (1, 0), (0, 2))))


@pytest.mark.parametrize("batch", [0, 1, 3])
def test_a_constant_for_each_sample(batch: int) -> None:
    value = random(1, 2, 4).numpy()
    made = network(Instruction("expand", ("token", "codes_a"), "y"), {"token": value}, (5, 6))
    (answer,) = integer.run(made, {"a": np.zeros((batch, 5, 6))})
    assert answer.dtype == np.float32 and np.array_equal(answer, np.repeat(value, batch, axis=0))


# What does not fit

ADD = Instruction("float", ("a", "b"), "y", {"operator": "Add"})


@pytest.mark.parametrize(("given", "why"), [
    ({}, "expected the inputs a, b, got none"),
    ({"a": np.zeros((1, 3))}, "expected the inputs a, b, got a"),
    ({"a": np.zeros((1, 3)), "b": np.zeros((1, 3)), "c": np.zeros((1, 3))}, "got a, b, c"),
    ({"a": np.zeros((1, 3)), "b": np.zeros((1, 4))}, r"input 'b': expected \(batch, 3\), got \(1, 4\)"),
    ({"a": np.zeros((1, 3)), "b": np.zeros((1, 3, 1))}, r"input 'b': expected \(batch, 3\)"),
    ({"a": np.zeros(3), "b": np.zeros((1, 3))}, r"input 'a': expected \(batch, 3\), got \(3,\)"),
    ({"a": np.zeros((2, 3)), "b": np.zeros((5, 3))}, "batch"),
    ({"a": [0.0, 0.0, 0.0], "b": np.zeros((1, 3))}, "'a'"),
])  # fmt: skip
def test_other_inputs_are_refused(given: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        integer.run(network(ADD, {}, (3,), (3,)), given)


def test_values_are_told_as_they_are_made_and_integers_are_taken() -> None:
    made = network(ADD, {}, (3,), (3,))
    given = {"a": np.ones((2, 3), dtype=np.int64), "b": np.ones((2, 3))}
    assert [name for name, _ in integer.trace(made, given)] == ["codes_a", "codes_b", "y"]
    assert integer.run(made, given)[0].tolist() == [[2.0] * 3] * 2
    assert made.float_operators() == {"Add": 1} and made.ranges == dict.fromkeys(
        ("codes_a", "codes_b"), (-(2**20), 2**20)
    )
