"""Save a network to one safetensors file that holds everything, and load it without the code that made it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from polarspike.errors import CheckpointError, SpecError
from polarspike.files import replacing
from polarspike.inputs import Signature
from polarspike.quantized import QuantizedNetwork
from polarspike.serialization import build_graph, describe_graph
from polarspike.specs import ConvertSpec, QuantSpec
from polarspike.spiking import SpikingNetwork

FORMAT = 1
_KEY = "polarspike"


def save(network: QuantizedNetwork | SpikingNetwork, path: str | os.PathLike[str]) -> None:
    """Write a quantized or spiking network: tensors, graph, specs, versions and ``network.notes``, in one file.

    The file is complete or absent: it is written beside its place and then moved there. Tensors are stored in their own
    floating type; tied weights are stored twice.

    Args:
        network: what :func:`polarspike.quantize` or :func:`polarspike.convert` made.
        path: by convention ``*.safetensors``.

    Raises:
        SpecError: not such a network, or notes that JSON cannot hold.
        CheckpointError: a module that the operator table cannot express, or a place that cannot be written.
    """
    if not isinstance(network, (QuantizedNetwork, SpikingNetwork)):
        raise SpecError(f"save: expected a quantized or spiking network, got {type(network).__name__}")
    header = {
        "format": FORMAT,
        "kind": "spiking" if isinstance(network, SpikingNetwork) else "quantized",
        "versions": {"polarspike": version("polarspike"), "torch": torch.__version__},
        "spec": network.spec.to_dict(),
        "signature": [[name, list(shape)] for name, shape in network.signature.shapes],
        "report": network.report if isinstance(network, SpikingNetwork) else "",
        "notes": network.notes,
        "channels_last": [
            name
            for name, value in network.network.state_dict().items()
            if value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
        ],
        "graph": describe_graph(network.network),
    }
    try:
        text = json.dumps(header)
    except (TypeError, ValueError) as error:
        raise SpecError(f"save: expected notes of plain data (JSON), got {network.notes!r}: {error}") from error
    # A clone of each: safetensors refuses tensors that share memory or are not contiguous.
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in network.network.state_dict().items()}
    try:
        with replacing(path) as partial:
            save_file(tensors, partial, metadata={_KEY: text})
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error}; choose a folder that exists and is writable"
        ) from error


def load(path: str | os.PathLike[str], model: nn.Module | None = None) -> QuantizedNetwork | SpikingNetwork:
    """Read a network that :func:`save` wrote, in evaluation mode on the CPU; no code of the file or its author runs.

    Args:
        path: the file.
        model: optionally the float model that the network should have come from; a file of another model is refused.

    Raises:
        CheckpointError: not a checkpoint, truncated, of another format version, damaged, or of another model.
    """
    header, tensors = read(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: expected format {FORMAT}, got {header.get('format')!r}, written by "
            f"polarspike {header.get('versions', {}).get('polarspike', '?')}; install that release to read it"
        )
    try:
        for name in header["channels_last"]:
            # The memory format decides which kernels run, and with them the last bits of every sum.
            tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
        graph = build_graph(header["graph"], tensors)
        graph.load_state_dict(tensors, strict=True, assign=True)
        signature = Signature(tuple((name, tuple(shape)) for name, shape in header["signature"]))
        network: QuantizedNetwork | SpikingNetwork
        if header["kind"] == "spiking":
            network = SpikingNetwork(graph, signature, ConvertSpec.from_dict(header["spec"]), header["report"])
        else:
            network = QuantizedNetwork(graph.eval(), QuantSpec.from_dict(header["spec"]), signature)
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, SpecError) as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    network.notes = header["notes"]
    if model is not None:
        _require_model(path, network, model)
    return network


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file, as they stand in it.

    Raises:
        CheckpointError: the file is missing, no safetensors file, truncated, or holds no network of this library.
    """
    if not Path(path).is_file():
        raise CheckpointError(f"{path}: expected a file, found {'a folder' if Path(path).is_dir() else 'nothing'}")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: not a complete safetensors file ({error}); it is another kind of file, or was truncated in a copy: "
            "write it again with polarspike.save, or copy it again"
        ) from error
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not of polarspike: it holds tensors without a graph; "
            "load them into your model and call polarspike.quantize"
        )
    try:
        header = json.loads(metadata[_KEY])
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: damaged: its header is {type(header).__name__}, not an object")
    return header, tensors


def _require_model(path: str | os.PathLike[str], network: nn.Module, model: nn.Module) -> None:
    """Refuse a file whose weights have other names or shapes than the model's."""
    held = {name.removeprefix("network."): tuple(value.shape) for name, value in network.named_parameters()}
    wanted: Mapping[str, tuple[int, ...]] = {name: tuple(value.shape) for name, value in model.named_parameters()}
    for name, shape in wanted.items():
        if held.get(name) != shape:
            got = f"shape {held[name]}" if name in held else "no such parameter"
            raise CheckpointError(
                f"{path}: belongs to another model: {type(model).__name__} has {name!r} of shape {shape}, "
                f"the file has {got}"
            )
