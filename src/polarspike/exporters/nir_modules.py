"""Run a NIR graph through nirtorch: how each of its nodes becomes a module of torch."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from polarspike.common import seals
from polarspike.common.inputs import Inputs, tensors_of
from polarspike.errors import ExportError, MissingExtraError
from polarspike.exporters.description import KEY
from polarspike.exporters.report import Runner

#: What nodes of ours hold.
_HELD = ("weight", "bias", "threshold", "stride", "padding", "dilation", "groups", "kernel_size", "start_dim", "end_dim",
         "input_shape")  # fmt: skip


def runner(path: Path) -> Runner:
    """Read a graph back, to run it through nirtorch.

    Raises:
        MissingExtraError: the package nirtorch is not installed.
        ExportError: it cannot run the graph, or the file is damaged.
    """
    try:
        import nir
        import nirtorch
    except ImportError as error:
        raise MissingExtraError("nirtorch", "deploy") from error
    try:
        graph = nir.read(str(path))
    except Exception as error:  # its errors have no common base
        raise ExportError(f"{path}: expected a NIR graph, cannot be read: {error}; export it again") from error
    expected = _text(graph.metadata.get(seals.KEY))
    if expected is not None and expected != digest_of(graph):
        raise seals.damaged(path)
    try:
        module = nirtorch.nir_to_torch(graph, node_map())
    except Exception as error:  # its errors have no common base
        raise ExportError(f"nirtorch cannot run what was written: {error}") from error

    def run(inputs: Inputs) -> list[Tensor]:
        given = [value for _, value in tensors_of(inputs)]
        with torch.no_grad():
            answer = module(*given)
        return [answer[0] if isinstance(answer, tuple) else answer]

    return run


def digest_of(graph: Any) -> str:
    """SHA-256 of a graph: of its edges, its description, and the kind, arrays and sizes of each node."""
    texts = {"edges": repr(sorted((str(source), str(target)) for source, target in graph.edges))}
    texts["description"] = str(_text(graph.metadata.get(KEY)))
    arrays: dict[str, Any] = {}
    for name, node in graph.nodes.items():
        texts[f"node {name}"] = type(node).__name__
        held = {key: getattr(node, key) for key in _HELD if getattr(node, key, None) is not None}
        if type(node).__name__ in ("Input", "Output", "Flatten"):
            held["shape"] = node.input_type["input"]
        for key, value in held.items():
            array = np.asarray(value)
            arrays[f"{name} {key}"] = array.astype(np.int64) if array.dtype.kind in "iu" else array
    return seals.arrays_digest(texts, arrays)


def _text(value: Any) -> Any:
    """NIR gives texts back as bytes."""
    return value.decode() if isinstance(value, bytes) else value


def node_map() -> dict[Any, Callable[[Any], nn.Module]]:
    """How each node becomes a module; nirtorch 2.6 has rules of its own, which lose biases and groups."""
    import nir

    return {
        nir.Affine: _affine,
        nir.Conv2d: _conv2d,
        nir.Threshold: _Threshold,
        nir.Flatten: lambda node: nn.Flatten(1),
        nir.AvgPool2d: _average_module,
        nir.Input: lambda node: nn.Identity(),
        nir.Output: lambda node: nn.Identity(),
    }


class _Threshold(nn.Module):
    threshold: Tensor

    def __init__(self, node: Any) -> None:
        super().__init__()
        self.register_buffer("threshold", torch.from_numpy(np.asarray(node.threshold)))

    def forward(self, x: Tensor) -> Tensor:
        return (x > self.threshold).to(x.dtype)


def _affine(node: Any) -> nn.Module:
    module = nn.Linear(node.weight.shape[1], node.weight.shape[0])
    module.load_state_dict({key: torch.from_numpy(np.asarray(getattr(node, key))) for key in ("weight", "bias")})
    return module


def _conv2d(node: Any) -> nn.Module:
    outputs, inputs, *kernel = node.weight.shape
    stride, padding, dilation = (_pair(value) for value in (node.stride, node.padding, node.dilation))
    groups = int(node.groups)
    module = nn.Conv2d(inputs * groups, outputs, _pair(kernel), stride, padding, dilation, groups)
    module.load_state_dict({key: torch.from_numpy(np.asarray(getattr(node, key))) for key in ("weight", "bias")})
    return module


def _average_module(node: Any) -> nn.Module:
    return nn.AvgPool2d(_pair(node.kernel_size), _pair(node.stride), _pair(node.padding))


def _pair(value: Any) -> tuple[int, int]:
    height, width = (int(size) for size in value)
    return height, width
