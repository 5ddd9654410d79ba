"""How inputs and batches are read, everywhere: a tensor, a tuple (positional) or a dict (keyword)."""

from __future__ import annotations

import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from inspect import Parameter
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from polarspike.errors import CalibrationError, InputError

Inputs = Tensor | tuple[Any, ...] | Mapping[str, Any]
Call = tuple[tuple[Any, ...], dict[str, Any]]
#: What to do where a dict came as one positional input.
BY_KEYWORD = "; pass a dict of inputs by keyword: network(**inputs)"


def as_call(inputs: Inputs) -> Call:
    """Positional and keyword arguments of one forward call.

    >>> as_call((1, 2)), as_call({"x": 3})
    (((1, 2), {}), ((), {'x': 3}))
    """
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, (tuple, list)):
        return tuple(inputs), {}
    return (inputs,), {}


def bind_call(function: Callable[..., Any], example: Inputs) -> inspect.BoundArguments:
    """The example as a call of a function, with the defaults of what it leaves out."""
    args, kwargs = as_call(example)
    bound = inspect.signature(function).bind(*args, **kwargs)
    bound.apply_defaults()
    return bound


def graph_inputs_of(bound: inspect.BoundArguments) -> dict[str, Any]:
    """The arguments of a call that a graph takes: all with tensors, and plain values that have a name of their own.

    The arguments of ``*name`` are called ``name_0``, ``name_1``, ...
    """
    inputs: dict[str, Any] = {}
    for name, value in bound.arguments.items():
        kind = bound.signature.parameters[name].kind
        if kind is inspect.Parameter.VAR_POSITIONAL:
            inputs |= {f"{name}_{index}": item for index, item in enumerate(value) if holds_tensor(item)}
        elif kind is inspect.Parameter.VAR_KEYWORD:
            inputs |= {key: item for key, item in value.items() if holds_tensor(item)}
        elif holds_tensor(value) or isinstance(value, (bool, int, float, str, type(None))):
            inputs[name] = value
    return inputs


def call_with(bound: inspect.BoundArguments, replaced: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with some arguments replaced, named as :func:`graph_inputs_of` does."""
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


def holds_tensor(value: Any) -> bool:
    """Whether there is a tensor anywhere in a value."""
    return any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))


def batches_of(batches: Iterable[Any] | Tensor) -> Iterator[tuple[Inputs, Any]]:
    """Read batches as (inputs, target); a batch is inputs alone or the pair, and several inputs are then a dict.

    A single tensor is one batch, not an iterable of samples.

    Raises:
        InputError: something that is not a batch, named by its position.
    """
    if isinstance(batches, Tensor):
        batches = [batches]
    if not isinstance(batches, Iterable):
        raise InputError(f"batches: expected an iterable of batches, or one tensor, got {type(batches).__name__}")
    for position, batch in enumerate(batches):
        if isinstance(batch, (Tensor, Mapping)):
            yield batch, None
        elif isinstance(batch, (tuple, list)) and len(batch) in (1, 2) and isinstance(batch[0], (Tensor, Mapping)):
            yield batch[0], batch[1] if len(batch) == 2 else None
        else:
            raise InputError(
                f"batch {position}: expected inputs (a tensor or a dict) or a pair (inputs, target), "
                f"got {type(batch).__name__}; pack several inputs into a dict by argument name"
            )


def require_batches(found: bool, where: str, what: str = "batch") -> None:
    """Refuse a loader in which nothing was found.

    Raises:
        CalibrationError: it was empty.
    """
    if not found:
        raise CalibrationError(
            f"{where}: expected at least one {what}, got an empty loader; check the dataset's size against batch_size and "
            "drop_last (an iterator that was read before is empty, too)"
        )


def to_device(inputs: Inputs, device: torch.device) -> Inputs:
    """The same inputs with every tensor on ``device``."""

    def move(value: Any) -> Any:
        return value.to(device, non_blocking=True) if isinstance(value, Tensor) else value

    return map_inputs(move, inputs)


def map_inputs(function: Any, inputs: Inputs) -> Inputs:
    """Apply a function to every value of the inputs, keeping their form."""
    if isinstance(inputs, Mapping):
        return {name: function(value) for name, value in inputs.items()}
    if isinstance(inputs, (tuple, list)):
        return tuple(function(value) for value in inputs)
    result: Inputs = function(inputs)
    return result


def map_named(function: Callable[[str, Any], Any], inputs: Inputs) -> Inputs:
    """Apply a function to every value of the inputs and its position or name, keeping their form."""
    values = iter([function(name, value) for name, value in named_values(inputs).items()])
    return map_inputs(lambda _: next(values), inputs)


def tensors_of(inputs: Inputs) -> list[tuple[str, Tensor]]:
    """Every tensor of the inputs with its position or name."""
    return [(name, value) for name, value in named_values(inputs).items() if isinstance(value, Tensor)]


def named_values(inputs: Inputs) -> dict[str, Any]:
    """Every value of the inputs by its position or name.

    >>> named_values((1, 2)), named_values({"x": 3})
    ({'0': 1, '1': 2}, {'x': 3})
    """
    args, kwargs = as_call(inputs)
    return {**{str(index): value for index, value in enumerate(args)}, **kwargs}


def plain_output(answer: Any, leaf: Callable[[Any], Any] = lambda value: value) -> Any:
    """An answer in plain containers, with a function applied to every leaf, in order.

    Mappings of any class (ordered dictionaries, the outputs of Hugging Face models) become dictionaries, named tuples
    become tuples: a graph returns these, so that its file needs no class of anybody's.
    """
    if isinstance(answer, Mapping):
        return {name: plain_output(value, leaf) for name, value in answer.items()}
    if isinstance(answer, list):
        return [plain_output(value, leaf) for value in answer]
    if isinstance(answer, tuple):
        return tuple(plain_output(value, leaf) for value in answer)
    return leaf(answer)


def float_leaves(answer: Any) -> list[Tensor]:
    """The float tensors of an answer in any containers, in order: what means, errors and losses are taken over."""
    return [leaf for leaf in pytree.tree_leaves(answer) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def batch_size(inputs: Inputs, shared: Collection[str] = ()) -> int:
    """The length of dimension 0 of the first tensor that holds samples.

    Args:
        inputs: of one call.
        shared: what is the same for all samples, by position or name (:attr:`Signature.shared`).

    Raises:
        InputError: there is no such tensor, or it has no dimensions.
    """
    tensors = [tensor for name, tensor in tensors_of(inputs) if name not in shared]
    if not tensors or tensors[0].dim() == 0:
        raise InputError(f"expected at least one input tensor with a batch dimension, got {_described(inputs)}")
    return tensors[0].shape[0]


def is_batched(value: Any, length: int) -> bool:
    """Whether a value has something for each sample of a batch of this length; the mask of a sequence on itself has not."""
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == length


def rows_of(inputs: Inputs, rows: slice, length: int, shared: Collection[str] = ()) -> Inputs:
    """Some samples of a batch of this length; what is the same for all samples stays whole.

    Args:
        inputs: of one call.
        rows: of the batch.
        length: of the batch.
        shared: what is the same for all samples also where it has as many rows, as :func:`batch_size` takes it.
    """

    def part(name: str, value: Any) -> Any:
        return value[rows] if name not in shared and is_batched(value, length) else value

    return map_named(part, inputs)


def _described(inputs: Inputs) -> str:
    """Inputs that are no batch, and how to make one of them."""
    named = named_values(inputs)
    found = ", ".join(f"{name!r}: {_kind(value)}" for name, value in named.items()) or "no inputs"
    if any(holds_tensor(value) and not isinstance(value, Tensor) for value in named.values()):
        return (
            f"{found}; every tensor must be an argument of its own: wrap the model in a module whose forward takes them one "
            "by one and packs them"
        )
    if any(hasattr(value, "__array_interface__") for value in named.values()):
        return f"{found}; make tensors of arrays: torch.from_numpy(array)"
    return found


def _kind(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    held = sum(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(value))
    return f"{type(value).__name__} of {held} tensors" if held else type(value).__name__


def unsound_input(inputs: Inputs) -> str | None:
    """The first input that holds NaN or infinity; of several tensors one may be a mask to add, with minus infinity.

    Beside integers alone a mask holds zeros and minus infinity, and anything else is data.
    """
    tensors = tensors_of(inputs)
    floats = sum(tensor.is_floating_point() for _, tensor in tensors)
    for name, tensor in tensors:
        if tensor.is_floating_point():
            finite = tensor.isfinite()
            mask = floats > 1 or (len(tensors) > 1 and not bool(tensor[finite].any()))
            sound = finite | tensor.isneginf() if mask else finite
            if not bool(sound.all()):
                return name
    return None


def require_finite(inputs: Inputs, where: str) -> None:
    """Refuse what :func:`unsound_input` finds.

    Raises:
        InputError: such a value.
    """
    if (name := unsound_input(inputs)) is not None:
        raise InputError(f"{where} input {name!r}: expected finite values, got NaN or Inf")


def as_whole(value: Any) -> Any:
    """An integer of another library as Python's; anything else as it is."""
    return operator.index(value) if hasattr(value, "__index__") and not isinstance(value, bool | Tensor) else value


def bind(parameters: Mapping[str, Any], args: tuple[Any, ...], named: Mapping[str, Any]) -> dict[str, Any]:
    """The values of one call with their names, in the order of the parameters: what Python does, with our errors.

    Several inputs may also come as one, as they do in a batch: a tuple by position, a dict by name.

    Args:
        parameters: name to default, or to ``inspect.Parameter.empty``; ``*name`` takes all further positional values,
            which are then named by their position.
        args: positional values.
        named: keyword values.

    Raises:
        InputError: an unknown, doubled, missing or surplus input.
    """
    names = [name for name in parameters if not name.startswith("*")]
    starred = len(names) < len(parameters)
    expected = f"the network takes {list(parameters)}"
    if len(args) == 1 and not named and _is_call(args[0], names, starred):
        args, named = as_call(args[0])
    if len(args) > len(names) and not starred:
        raise InputError(f"expected at most {len(names)} positional inputs, got {len(args)}; {expected}")
    if unknown := sorted(set(named) - set(names)):
        raise InputError(f"unknown inputs {unknown}; {expected}")
    if doubled := [name for name in names[: len(args)] if name in named]:
        raise InputError(f"inputs {doubled} are given twice, by position and by name; {expected}")
    values = {**dict(zip(names, args, strict=False)), **named}
    if missing := [name for name in names if name not in values and parameters[name] is Parameter.empty]:
        raise InputError(f"inputs {missing} are missing; {expected}{_packed(args, names)}")
    for name, value in values.items():
        default = parameters[name]
        if default is not Parameter.empty and _differs(value, default):
            raise InputError(
                f"input {name!r}: the network was captured with {default!r}, which is part of its graph, got {value!r}; "
                "leave it out, or quantize the model again with an example that holds the other value"
            )
    bound = {name: values.get(name, parameters[name]) for name in names}
    return bound | {str(index): args[index] for index in range(len(names), len(args))}


def _differs(value: Any, default: Any) -> bool:
    """Whether a value is not a plain default; an array never is, and compares element by element."""
    return isinstance(value, Tensor) or bool(getattr(value, "shape", ())) or bool(value != default)


def _is_call(value: Any, names: list[str], starred: bool) -> bool:
    """Whether one value holds all inputs of a call; that of a single parameter may itself be a tuple of tensors."""
    if isinstance(value, Mapping):
        return bool(value) and set(value) <= set(names)
    one = len(names) == 1 and not starred
    return isinstance(value, tuple) and (len(value) == 1 and isinstance(value[0], Tensor) if one else len(value) > 0)


def _packed(args: tuple[Any, ...], names: list[str]) -> str:
    """A hint for several inputs that came as one."""
    if args and isinstance(args[0], Mapping):
        return BY_KEYWORD
    if args and isinstance(args[0], (tuple, list)):
        return "; pass a list of inputs by position: network(*inputs)"
    packed = ", ".join(f"{name!r}: ..." for name in names)
    return f"; in a batch, several inputs are a dict by name, {{{packed}}}" if len(names) > 1 else ""
