"""An integer network in one safetensors file: arrays, and the instructions as JSON in its header. Nothing in it is executed.

metadata "polarspike_integer"   format, inputs, outputs, sites, instructions (kind, inputs, output, attributes, range)
metadata "polarspike"           the description of the spiking network
metadata "polarspike_sha256"    the digest of all that (files of earlier versions have none)
tensors                         "<number of the instruction>.<name>" and "constant.<name>"
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from polarspike.common import seals
from polarspike.common.files import replacing
from polarspike.errors import CheckpointError
from polarspike.integer.execution import FLOAT_OPERATORS, run
from polarspike.integer.network import DESCRIPTION, KINDS, Array, Instruction, IntegerNetwork

FORMAT = 1
KEY = "polarspike_integer"
_CONSTANT = "constant."


def save(network: IntegerNetwork, path: str | os.PathLike[str]) -> None:
    """Write a network, whole or not at all; the same network makes the same bytes.

    Raises:
        CheckpointError: the place cannot be written.
    """
    header = {
        "format": FORMAT,
        "inputs": [[name, list(shape)] for name, shape in network.inputs],
        "outputs": [[name, list(shape)] for name, shape in network.outputs],
        "sites": dict(network.sites),
        "instructions": [
            [made.kind, list(made.inputs), made.output, dict(made.attributes), made.range and list(made.range)]
            for made in network.instructions
        ],
    }
    tensors = {f"{_CONSTANT}{name}": np.array(value, order="C") for name, value in network.constants.items()}
    for index, made in enumerate(network.instructions):
        # Of a scalar ascontiguousarray would make a vector.
        tensors.update({f"{index}.{name}": np.array(value, order="C") for name, value in made.tensors.items()})
    texts = {KEY: json.dumps(header), DESCRIPTION: network.description}
    try:
        with replacing(path) as partial:
            save_file(tensors, partial, metadata={**texts, seals.KEY: seals.arrays_digest(texts, tensors)})
            _sort_metadata(partial)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error}; choose a folder that exists and is writable"
        ) from error


def load(path: str | os.PathLike[str]) -> IntegerNetwork:
    """Read a network back.

    Raises:
        CheckpointError: not such a file, one of another version, a damaged one, or one whose parts do not fit each other.
    """
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, TypeError, ValueError) as error:  # the last two of types that NumPy lacks
        raise CheckpointError(
            f"{path}: expected an integer network, cannot be read: {error}; write it again"
        ) from error
    if KEY not in metadata:
        raise CheckpointError(
            f"{path}: expected an integer network, got another safetensors file; export with --to integer"
        )
    expected = metadata.pop(seals.KEY, None)
    if expected is not None and seals.arrays_digest(metadata, tensors) != expected:
        raise CheckpointError(str(seals.damaged(path)))
    try:
        header = json.loads(metadata[KEY])
        if header["format"] != FORMAT:
            raise CheckpointError(
                f"{path}: expected format {FORMAT}, got {header['format']!r}; read it with the version that wrote it"
            )
        network = _assembled(header, tensors, metadata[DESCRIPTION])
        _require_whole(network)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, ArithmeticError, AssertionError) as error:
        raise CheckpointError(f"{path}: a damaged integer network ({error!r}); write it again") from error
    return network


def is_integer_network(path: Path) -> bool:
    """Whether a file says that it is one; its content is not checked."""
    try:
        with safe_open(path, framework="numpy") as file:
            return KEY in (file.metadata() or {})
    except (OSError, SafetensorError):
        return False


def _sort_metadata(path: Path) -> None:
    """Put the entries of a file's metadata into the order of their names; safetensors writes them in any.

    file = length of the header (8 bytes, little-endian) | header (JSON) | bytes of the tensors
    """
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= length:  # else characters were written in another way; what is there is whole, too
            file.seek(8)
            file.write(text.ljust(length))  # spaces, as safetensors pads it


def _assembled(header: Mapping[str, Any], tensors: Mapping[str, Array], description: str) -> IntegerNetwork:
    own: dict[int, dict[str, Array]] = {}
    constants = {}
    for name, value in tensors.items():
        if name.startswith(_CONSTANT):
            constants[name.removeprefix(_CONSTANT)] = value
        else:
            index, _, label = name.partition(".")
            own.setdefault(int(index), {})[label] = value
    made = tuple(
        Instruction(kind, tuple(inputs), output, attributes, own.get(index, {}), tuple(span) if span else None)
        for index, (kind, inputs, output, attributes, span) in enumerate(header["instructions"])
    )
    return IntegerNetwork(
        tuple((name, tuple(map(int, shape))) for name, shape in header["inputs"]),
        tuple((name, tuple(map(int, shape))) for name, shape in header["outputs"]),
        made,
        constants,
        dict(header["sites"]),
        description,
    )


#: What an instruction cannot run without: tensors, attributes; a number stands for each input.
_NEEDED: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "quantize": (("step",), ()),
    "synapse": (("weight", "bias"), ("operator", "axis")),
    "averaged": (("weight", "bias", "divisor"), ("operator", "axis", "window")),
    "product": ((), ("axis",)),
    "combine": (("bias", "divisor"), ("axis", "dims")),
    "window_sum": ((), ()),
    "stretch": ((), ("factor",)),
    "shrink": (("divisor",), ()),
    "decode": (("step",), ()),
    "max_pool": ((), ("kernel", "stride", "padding", "dilation")),
    "largest": ((), ("axes", "keepdims")),
    "reshape": ((), ("shape",)),
    "transpose": ((), ("permutation",)),
    "concatenate": ((), ("axis",)),
    "slice": ((), ("axis", "start", "end", "stride")),
    "take": ((), ("axis", "places")),
    "pad": ((), ("padding",)),
    "expand": ((), ()),
    "float": ((), ("operator",)),
}
_FIRING = ("quantize", "averaged", "combine", "shrink")
_NEEDED_BY_OPERATOR: dict[str, tuple[str, ...]] = {
    "convolution": ("stride", "padding", "dilation", "groups"),
    "Conv": ("stride", "padding", "dilation", "groups"),
    "AveragePool": ("kernel", "stride", "padding"),
    "HardSigmoid": ("alpha", "beta"),
    "Elu": ("alpha",),
    "Gelu": ("approximate",),
    "Softmax": ("axis",),
    "LayerNormalization": ("axis", "epsilon"),
    "GroupNormalization": ("num_groups", "epsilon"),
    "ReduceMean": ("axes", "keepdims"),
}


def _require_parts(made: Instruction) -> None:
    """Refuse an instruction that would fail while it runs."""
    tensors, attributes = _NEEDED[made.kind]
    if made.kind in ("synapse", "product"):
        tensors = (*tensors, "scale" if made.range is None else "divisor")
    if made.kind == "combine":
        tensors = (*tensors, *(f"factor{index}" for index in range(len(made.inputs))))
    if made.kind == "window_sum":
        attributes = ("axes", "keepdims") if "axes" in made.attributes else ("kernel", "stride", "padding")
    attributes = (*attributes, *_NEEDED_BY_OPERATOR.get(str(made.attributes.get("operator")), ()))
    for name in tensors:
        if name not in made.tensors:
            raise ValueError(f"{made.output!r} has no {name!r}")
    for name in attributes:
        if name not in made.attributes:
            raise ValueError(f"{made.output!r} has no {name!r}")
    if made.range is None and made.kind in _FIRING:
        raise ValueError(f"{made.output!r} has no range of codes")
    if made.range is not None:
        low, high = made.range
        if not isinstance(low, int) or not isinstance(high, int) or low > high:
            raise ValueError(f"{made.output!r}: expected a range of whole numbers, got {made.range}")


def _require_whole(network: IntegerNetwork) -> None:
    """Every value is made before it is read, and arrays have the sizes that belong together."""
    known = {*network.constants, *(name for name, _ in network.inputs)}
    for made in network.instructions:
        if made.kind not in KINDS:
            raise ValueError(f"unknown instruction {made.kind!r}")
        if made.kind == "float" and made.attributes["operator"] not in FLOAT_OPERATORS:
            raise ValueError(f"unknown operator {made.attributes['operator']!r}")
        missing = [name for name in made.inputs if name not in known]
        if missing:
            raise ValueError(f"{made.output!r} reads {missing[0]!r}, which nothing makes")
        _require_parts(made)
        if made.kind in ("synapse", "averaged"):
            weight = made.tensors["weight"]
            ending = made.tensors["scale" if made.range is None else "divisor"]
            if weight.dtype != np.int8 or not len(weight) == len(made.tensors["bias"]) == len(ending):
                raise ValueError(
                    f"{made.output!r}: weights {weight.dtype} {weight.shape} with biases and endings of other sizes"
                )
        if "divisor" in made.tensors and not (np.asarray(made.tensors["divisor"]) > 0).all():
            raise ValueError(f"{made.output!r}: expected positive divisors")
        known.add(made.output)
    lost = [name for name in (*(name for name, _ in network.outputs), *network.sites.values()) if name not in known]
    if lost:
        raise ValueError(f"nothing makes {lost[0]!r}")
    # A run without samples: every shape and every number of operands.
    run(network, {name: np.zeros((0, *shape), dtype=np.float32) for name, shape in network.inputs})
