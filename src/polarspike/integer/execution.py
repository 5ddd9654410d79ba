"""What an integer network means: every instruction in NumPy, without any runtime.

Whole numbers are exact. Float32 parts (softmax, layer norm, GELU, ...) follow the definitions of ONNX; another runtime may
sum them in another order, and its last bit may move a code that lies next to a threshold.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from polarspike.errors import InputError
from polarspike.integer.lattice import fire
from polarspike.integer.network import Array, Instruction, IntegerNetwork, laid
from polarspike.integer.windows import convolve, largest, padded, total

Values = dict[str, Array]


def run(network: IntegerNetwork, inputs: Mapping[str, Array]) -> list[Array]:
    """The outputs at T = 1.

    Args:
        network: to run.
        inputs: by name, float32, (batch, ...).

    Raises:
        InputError: an input is missing, unknown, or of another shape.
    """
    names = [name for name, _ in network.outputs]
    values = {name: value for name, value in trace(network, inputs) if name in names}
    return [values[name] for name in names]


def trace(network: IntegerNetwork, inputs: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    """All values of one run by name, each as soon as it is made; what nobody reads any more is forgotten."""
    values: Values = {**network.constants, **_checked(network, inputs)}
    last = {name: index for index, made in enumerate(network.instructions) for name in made.inputs}
    for index, made in enumerate(network.instructions):
        answer = _MEANINGS[made.kind](made, *(values[name] for name in made.inputs))
        values[made.output] = answer
        yield made.output, answer
        for name in made.inputs:
            if last[name] == index:
                values.pop(name, None)


def _checked(network: IntegerNetwork, inputs: Mapping[str, Array]) -> Values:
    wanted = dict(network.inputs)
    if set(inputs) != set(wanted):
        raise InputError(f"integer network: expected the inputs {', '.join(wanted)}, got {', '.join(inputs) or 'none'}")
    given = {name: np.asarray(inputs[name], dtype=np.float32) for name in wanted}
    for name, shape in wanted.items():
        if given[name].ndim != len(shape) + 1 or given[name].shape[1:] != shape:
            expected = ", ".join(("batch", *map(str, shape)))
            raise InputError(f"integer network: input {name!r}: expected ({expected}), got {given[name].shape}")
    sizes = {name: len(value) for name, value in given.items()}
    if len(set(sizes.values())) > 1:
        raise InputError(f"integer network: expected inputs of one batch size, got {sizes}")
    return given


def _quantize(made: Instruction, x: Array) -> Array:
    x = x - made.tensors["shift"] if "shift" in made.tensors else x
    scaled = x / made.tensors["step"].astype(np.float32)
    codes = np.floor(scaled + np.float32(0.5)) if made.attributes.get("ties") == "up" else np.rint(scaled)
    assert made.range is not None
    return np.clip(codes, *made.range).astype(np.int64)


def _synapse(made: Instruction, x: Array) -> Array:
    return _ended(made, _sums(made, x))


def _averaged(made: Instruction, x: Array) -> Array:
    window = made.attributes["window"]
    whole = total(np.maximum(_sums(made, x), 0), window["kernel"], window["stride"], window["padding"])
    return _ended(made, whole)


def _sums(made: Instruction, x: Array) -> Array:
    weight, options = made.tensors["weight"].astype(np.float64), made.attributes
    if options["operator"] == "linear":
        sums = x.astype(np.float64) @ weight.T
    else:
        sums = convolve(
            x.astype(np.float64),
            weight,
            options["stride"],
            options["padding"],
            options["dilation"],
            options["groups"],
        )
    whole: Array = sums.astype(np.int64) + _along(made, "bias", sums.ndim).astype(np.int64)
    return whole


def _product(made: Instruction, x: Array, y: Array) -> Array:
    sums = (x.astype(np.float64) @ y.astype(np.float64)).astype(np.int64)
    return _ended(made, sums * made.attributes.get("factor", 1))


def _ended(made: Instruction, sums: Array) -> Array:
    if made.range is not None:
        return fire(sums, _along(made, "divisor", sums.ndim), *made.range)
    scaled: Array = sums.astype(np.float32) * _along(made, "scale", sums.ndim)
    return scaled


def _along(made: Instruction, name: str, dims: int) -> Any:
    """A vector of the output channels, or one number, to be broadcast over (batch, ..., channels, ...)."""
    return laid(made.tensors[name], made.attributes["axis"], dims)


def _combine(made: Instruction, *parts: Array) -> Array:
    dims = parts[0].ndim
    sums = _along(made, "bias", dims)
    for index, x in enumerate(parts):
        sums = sums + x * _along(made, f"factor{index}", dims)
    return _ended(made, sums)


def _window_sum(made: Instruction, x: Array) -> Any:
    options = made.attributes
    if "axes" in options:
        return x.sum(axis=tuple(options["axes"]), keepdims=options["keepdims"])
    return total(x, options["kernel"], options["stride"], options["padding"])


def _stretch(made: Instruction, x: Array) -> Array:
    return np.where(x >= 0, x * made.attributes["factor"], x)


def _shrink(made: Instruction, x: Array) -> Array:
    assert made.range is not None
    return fire(x, made.tensors["divisor"], *made.range)


def _decode(made: Instruction, x: Array) -> Any:
    return x.astype(np.float32) * made.tensors["step"].astype(np.float32)


def _max_pool(made: Instruction, x: Array) -> Array:
    options = made.attributes
    return largest(x, options["kernel"], options["stride"], options["padding"], options["dilation"])


def _reshape(made: Instruction, x: Array) -> Array:
    return x.reshape([len(x) if size == "batch" else size for size in made.attributes["shape"]])


def _slice(made: Instruction, x: Array) -> Any:
    options = made.attributes
    where = slice(options["start"], options["end"], options["stride"])
    return x[(slice(None),) * options["axis"] + (where,)]


def _expand(made: Instruction, x: Array, like: Array) -> Array:
    del made
    return np.broadcast_to(x, (len(like), *x.shape[1:]))


def _float(made: Instruction, *given: Array) -> Array:
    answer = _FLOATS[made.attributes["operator"]](made.attributes, *given)
    return np.asarray(answer, dtype=np.float32)


def _sigmoid(x: Array) -> Any:
    with np.errstate(over="ignore"):  # to 0, as it should be
        return 1 / (1 + np.exp(-x))


_erf: Any = np.frompyfunc(math.erf, 1, 1)


def _gelu(options: Mapping[str, Any], x: Array) -> Any:
    if options["approximate"] == "tanh":
        return 0.5 * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * (x + 0.044715 * x**3)))
    return 0.5 * x * (1 + _erf(x / math.sqrt(2)).astype(np.float32))


def _softmax(options: Mapping[str, Any], x: Array) -> Any:
    raised = np.exp(x - x.max(axis=options["axis"], keepdims=True))
    return raised / raised.sum(axis=options["axis"], keepdims=True)


def _layer_norm(options: Mapping[str, Any], x: Array, scale: Array, bias: Array) -> Any:
    axes = tuple(range(options["axis"], 0))
    centred = x - x.mean(axis=axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + options["epsilon"]) * scale + bias


def _group_norm(options: Mapping[str, Any], x: Array, scale: Array, bias: Array) -> Any:
    parts = x.reshape(len(x), options["num_groups"], -1)
    centred = parts - parts.mean(axis=-1, keepdims=True)
    normal = (centred / np.sqrt((centred**2).mean(axis=-1, keepdims=True) + options["epsilon"])).reshape(x.shape)
    laid = (-1, *[1] * (x.ndim - 2))
    return normal * scale.reshape(laid) + bias.reshape(laid)


def _average_pool(options: Mapping[str, Any], x: Array) -> Any:
    return total(x, options["kernel"], options["stride"], options["padding"]) / np.float32(math.prod(options["kernel"]))


def _conv(options: Mapping[str, Any], x: Array, weight: Array, bias: Array) -> Any:
    made = convolve(x, weight, options["stride"], options["padding"], options["dilation"], options["groups"])
    return made + bias.reshape(-1, *[1] * (made.ndim - 2))


_MEANINGS: dict[str, Callable[..., Array]] = {
    "quantize": _quantize,
    "synapse": _synapse,
    "averaged": _averaged,
    "product": _product,
    "combine": _combine,
    "window_sum": _window_sum,
    "stretch": _stretch,
    "shrink": _shrink,
    "decode": _decode,
    "max_pool": _max_pool,
    "reshape": _reshape,
    "transpose": lambda made, x: x.transpose(made.attributes["permutation"]),
    "concatenate": lambda made, *parts: np.concatenate(parts, axis=made.attributes["axis"]),
    "slice": _slice,
    "largest": lambda made, x: x.max(axis=tuple(made.attributes["axes"]), keepdims=made.attributes["keepdims"]),
    "take": lambda made, x: x.take(made.attributes["places"], axis=made.attributes["axis"]),
    "pad": lambda made, x: padded(x, made.attributes["padding"], 0),
    "expand": _expand,
    "float": _float,
}

#: The float operators that an integer network may hold, by their names in ONNX.
_FLOATS: dict[str, Callable[..., Any]] = {
    "Add": lambda _, x, y: x + y,
    "Sub": lambda _, x, y: x - y,
    "Mul": lambda _, x, y: x * y,
    "Div": lambda _, x, y: x / y,
    "Identity": lambda _, x: x,
    "Relu": lambda _, x: np.maximum(x, 0),
    "PRelu": lambda _, x, slope: np.where(x < 0, slope * x, x),
    "Elu": lambda options, x: np.where(x < 0, np.float32(options["alpha"]) * np.expm1(np.minimum(x, 0)), x),
    "Clip": lambda _, x, low, high: np.clip(x, low, high),
    "Tanh": lambda _, x: np.tanh(x),
    "Sigmoid": lambda _, x: _sigmoid(x),
    "HardSigmoid": lambda options, x: np.clip(x * np.float32(options["alpha"]) + np.float32(options["beta"]), 0, 1),
    "Gelu": _gelu,
    "Softmax": _softmax,
    "LayerNormalization": _layer_norm,
    "GroupNormalization": _group_norm,
    "ReduceMean": lambda options, x: x.mean(axis=tuple(options["axes"]), keepdims=options["keepdims"]),
    "AveragePool": _average_pool,
    "MatMul": lambda _, x, y: x @ y,
    "Conv": _conv,
}
FLOAT_OPERATORS = frozenset(_FLOATS)
