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
from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from polarspike.capture import capture, passes
from polarspike.capture.programs import model_of
from polarspike.common import seals
from polarspike.common.files import replacing
from polarspike.common.inputs import Inputs, to_device
from polarspike.common.modules import ranks_behind_linear
from polarspike.common.signatures import Signature
from polarspike.errors import CaptureError, CheckpointError, PolarspikeError, SpecError
from polarspike.graph.editing import attribute
from polarspike.graph.serialization import KNOWN_SITES, Sites, build_graph, describe_graph
from polarspike.quantized import QuantizedNetwork, inputs_like
from polarspike.specs import ConvertSpec, QuantSpec
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.through_time import LeakyPolarityNeuron, TemporalNetwork
from polarspike.weights import trained_weights

FORMAT = 2
Saved = QuantizedNetwork | SpikingNetwork | TemporalNetwork
_KEY = "polarspike"
_DIGEST = "sha256"  # an entry of the description, not of the metadata, whose entries are written in any order
_ENTRIES = {"format", "kind", "versions", "spec", "signature", "fixed_sizes", "shared", "report", "notes", "frozen",
            "channels_last", "strides", "graph"}  # fmt: skip
_EXPORTED = "polarspike_integer"  # of polarspike.integer, whose files are of this kind, too
# "temporal" came later: a release that does not know it says so.
_KINDS: dict[str, type[Saved]] = {
    "quantized": QuantizedNetwork,
    "spiking": SpikingNetwork,
    "temporal": TemporalNetwork,
}
_SITES: Sites = {**KNOWN_SITES, LeakyPolarityNeuron.__name__: LeakyPolarityNeuron}


def save(network: Saved, path: str | os.PathLike[str]) -> None:
    """Write a quantized, spiking or temporal network: tensors, graph, specs, versions and ``network.notes``, in one file.

    The file is complete or absent: it is written beside its place and then moved there. It holds a SHA-256 of all that is
    in it, and the same network makes the same bytes. Tensors are stored in their own floating type; tied weights are stored
    twice. Which weights are tied or need no gradient is not stored: say so again before a loaded network is trained on.

    Args:
        network: what :func:`polarspike.quantize`, :func:`polarspike.convert` or :func:`polarspike.unroll` made.
        path: by convention ``*.safetensors``.

    Raises:
        SpecError: not such a network, or notes that JSON cannot hold.
        CheckpointError: a module that the operator table cannot express, or a place that cannot be written.
    """
    if not isinstance(network, Saved):
        raise SpecError(f"save: expected a quantized, spiking or temporal network, got {type(network).__name__}")
    rounded = trained_weights(network)
    if rounded:
        raise SpecError(
            f"save: the weights of {rounded[0]!r} are still rounded while they train (quantize_weights), which a file does "
            "not hold; call polarspike.fix_weights(network) first"
        )
    header: dict[str, Any] = {
        "format": FORMAT,
        "kind": next(kind for kind, known in _KINDS.items() if isinstance(network, known)),
        "versions": {"polarspike": version("polarspike"), "torch": torch.__version__},
        "spec": {} if isinstance(network, TemporalNetwork) else network.spec.to_dict(),
        "signature": [[name, list(shape)] for name, shape in network.signature.shapes],
        "fixed_sizes": network.signature.fixed,
        **({"shared": sorted(network.signature.shared)} if network.signature.shared else {}),
        "report": network.report if isinstance(network, SpikingNetwork) else "",
        "notes": network.notes,
        **({"frozen": network.frozen} if isinstance(network, QuantizedNetwork) and network.frozen else {}),
        "channels_last": [
            name
            for name, value in network.network.state_dict().items()
            if value.dim() == 4 and not value.is_contiguous() and value.is_contiguous(memory_format=torch.channels_last)
        ],
        "strides": {
            name: value.stride() for name, value in network.network.state_dict().items() if _is_permuted(value)
        },
        "graph": describe_graph(network.network),
    }
    try:
        _require_names(network.notes)
        text = json.dumps(header)
    except (TypeError, ValueError, RecursionError) as error:
        raise SpecError(f"save: expected notes of plain data (JSON), got {network.notes!r}: {error}") from error
    # A clone of each: safetensors refuses tensors that share memory or are not contiguous.
    state = network.network.state_dict()
    for name in header["graph"]["constants"]:  # also buffers that a state dict leaves out
        state.setdefault(name, attribute(network.network, name))
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}
    _assemble(json.loads(text), dict(tensors))  # what cannot be loaded again must not be written
    try:
        sealed = json.dumps({**header, _DIGEST: _digest(text, tensors)})
        with replacing(path) as partial:
            save_file(tensors, partial, metadata={_KEY: sealed})
    except (OSError, SafetensorError) as error:
        raise CheckpointError(
            f"{path}: cannot be written: {error}; choose a folder that exists and is writable"
        ) from error


def load(path: str | os.PathLike[str], model: nn.Module | ExportedProgram | None = None) -> Saved:
    """Read a network that :func:`save` wrote, in evaluation mode on the CPU; no code of the file or its author runs.

    Args:
        path: the file.
        model: optionally the float model that the network should have come from (a module or an exported program, as
            :func:`polarspike.quantize` takes it), also where its batch norms were folded; a file whose weights have other
            names or shapes is refused. Its values are not asked for: all are the file's.

    Raises:
        CheckpointError: not a checkpoint, truncated, of another format version, damaged, or of another model.
    """
    header, tensors = read(path)
    if header.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: expected format {FORMAT}, got {header.get('format')!r}, written by "
            f"{header.get('versions')}; install that release to read it"
        )
    try:
        network = _assemble(header, tensors)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    if model is not None:
        if not isinstance(model, nn.Module | ExportedProgram):
            raise CheckpointError(
                f"load: expected the float model as an nn.Module or an exported program, got {type(model).__name__}"
            )
        try:
            model = model_of(model)
        except CaptureError as error:
            raise CheckpointError(f"load: {error}") from error
        _require_model(path, network, model)
    return network


def _assemble(header: Mapping[str, Any], tensors: dict[str, Tensor]) -> Saved:
    """The network that a header describes, with these tensors."""
    try:
        if header["kind"] not in _KINDS:
            raise CheckpointError(f"unknown kind of network {header['kind']!r}; the file needs a newer release")
        for name in header["channels_last"]:
            # The memory format decides which kernels run, and with them the last bits of every sum.
            tensors[name] = tensors[name].contiguous(memory_format=torch.channels_last)
        for name, strides in header.get("strides", {}).items():
            tensors[name] = tensors[name].new_empty_strided(tensors[name].shape, strides).copy_(tensors[name])
        # Memory of their own: some kernels sum in another order where it does not start at a multiple of 64 bytes.
        tensors = {name: value.clone() for name, value in tensors.items()}
        graph = build_graph(header["graph"], tensors, _SITES if header["kind"] == "temporal" else KNOWN_SITES)
        graph.load_state_dict(tensors, strict=True, assign=True)
        shapes = tuple((name, tuple(shape)) for name, shape in header["signature"])
        # Older files say neither.
        signature = Signature(shapes, header.get("fixed_sizes") is True, frozenset(header.get("shared", ())))
        network: Saved
        if header["kind"] == "spiking":
            network = SpikingNetwork(graph, signature, ConvertSpec.from_dict(header["spec"]), header["report"])
        elif header["kind"] == "quantized":
            network = QuantizedNetwork(graph.eval(), QuantSpec.from_dict(header["spec"]), signature)
            network.frozen = tuple(header.get("frozen", ()))  # older files do not say
            network.eval()  # finds every one of them
        else:
            network = TemporalNetwork(graph.eval(), signature, contract="none")
        network.notes = dict(header["notes"])
    except CheckpointError:
        raise
    except Exception as error:  # whatever a damaged header makes Python or torch raise
        raise CheckpointError(f"damaged: {type(error).__name__}: {error}") from error
    return network


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """The header and the tensors of a file, as they stand in it.

    Raises:
        CheckpointError: the file is missing, no safetensors file, truncated or damaged, or holds no network of this library.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise CheckpointError(f"load: expected a path, got {type(path).__name__}")
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
    if _EXPORTED in metadata:
        raise CheckpointError(
            f"{path}: expected a quantized, spiking or temporal network, got an exported one; polarspike run and "
            "polarspike.integer.load take it"
        )
    if _KEY not in metadata:
        raise CheckpointError(
            f"{path}: a safetensors file, but not of polarspike: it holds tensors without a graph; "
            "load them into your model and call polarspike.quantize"
        )
    try:
        header = json.loads(metadata[_KEY])
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: damaged: its header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise CheckpointError(f"{path}: damaged: its header is {type(header).__name__}, not an object")
    expected = header.pop(_DIGEST, None)  # files of earlier releases have none
    # Where the digest's own name was damaged, the header has an entry that no release writes.
    damaged = not header.keys() <= _ENTRIES if expected is None else _digest(json.dumps(header), tensors) != expected
    if header.get("format") == FORMAT and damaged:
        raise CheckpointError(
            f"{path}: damaged: expected the SHA-256 that it holds of itself, got another: a weight or its description was "
            "changed in a copy or by another program; write it again with polarspike.save, or copy it again"
        )
    return header, tensors


def kind_of(path: str | os.PathLike[str]) -> str | None:
    """Which network of this library a safetensors file holds: quantized, spiking, temporal; None for other tensors.

    Raises:
        SafetensorError: the file is none, or truncated.
    """
    with safe_open(path, framework="pt") as file:
        text = (file.metadata() or {}).get(_KEY)
    try:
        header = json.loads(text or "null")
    except (ValueError, RecursionError):
        return None
    kind = header.get("kind") if isinstance(header, dict) else None
    return kind if kind in _KINDS else None


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of a description and of the type, shape and bytes of each tensor."""
    layouts = {name: f"{value.dtype} {tuple(value.shape)}" for name, value in sorted(tensors.items())}
    content = {name: value.reshape(-1).view(torch.uint8).numpy() for name, value in tensors.items()}
    return seals.arrays_digest({_KEY: text, "layouts": json.dumps(layouts)}, content)


def _is_permuted(value: Tensor) -> bool:
    """Whether a tensor is dense, but lies in memory in another order than the two that have a name."""
    named = value.is_contiguous() or (value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last))
    order = sorted(range(value.dim()), key=value.stride, reverse=True)
    return not named and value.permute(order).is_contiguous()


def _require_names(notes: Any) -> None:
    """Refuse keys that JSON would turn into strings."""
    if isinstance(notes, Mapping):
        if other := [key for key in notes if not isinstance(key, str)]:
            raise TypeError(f"keys must be strings, got {other[:3]}")
        for value in notes.values():
            _require_names(value)
    elif isinstance(notes, (list, tuple)):
        for value in notes:
            _require_names(value)


def _require_model(path: str | os.PathLike[str], network: Saved, model: nn.Module) -> None:
    """Refuse a file whose weights have other names or shapes than those that take part in the model's evaluation."""
    sites = tuple(f"{name}." for name in network.sites())
    held = _shapes(network.network, skip=sites)
    first = next(model.parameters(), torch.zeros(0))
    example = inputs_like(network.network, network.signature, 2, lambda shape: torch.ones(shape, dtype=first.dtype))
    example = to_device(example, first.device)
    try:
        graph = capture(model, example)
        wanted = _shapes(graph)
        if held != wanted and held == _shapes(_folded(graph, example)):
            return
    except PolarspikeError as error:
        raise CheckpointError(f"{path}: belongs to another model than this {type(model).__name__}: {error}") from error
    for name in [*wanted, *held]:
        if held.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{path}: belongs to another model: {type(model).__name__} has {name!r} of shape {wanted.get(name)}, "
                f"the file has it of shape {held.get(name)}"
            )


def _folded(graph: fx.GraphModule, example: Inputs) -> fx.GraphModule:
    """The graph of a float model with its batch norms folded, as :func:`polarspike.quantized.fold_batch_norm` does it."""
    ranks = ranks_behind_linear(graph, example)
    return passes.fold_batch_norm(graph, {name for name, rank in ranks.items() if rank == 2})


def _shapes(network: nn.Module, skip: tuple[str, ...] = ()) -> dict[str, tuple[int, ...]]:
    """What was learned, by name: parameters, and statistics of batch norms, some of which have nothing else."""
    named: dict[str, Tensor] = dict(network.named_parameters(remove_duplicate=False))
    for name, module in network.named_modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            named[f"{name}.running_mean"] = module.running_mean
    return {name: tuple(value.shape) for name, value in named.items() if not name.startswith(skip)}
