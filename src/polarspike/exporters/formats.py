"""The formats: for each, what makes a network ready, writes it, and reads it back to run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from polarspike import integer
from polarspike.common.inputs import Inputs, as_call, bind
from polarspike.common.modules import apply
from polarspike.errors import ExportError
from polarspike.exporters import nir_graph, nir_modules, onnx_float, onnx_int8, programs, runtime
from polarspike.exporters.description import KEY, describe
from polarspike.exporters.first_timestep import first_timestep
from polarspike.exporters.integer import as_arrays, integer_network
from polarspike.exporters.report import CodeCheck, Runner
from polarspike.integer import IntegerNetwork
from polarspike.quantized import parameters_of
from polarspike.spiking import SpikingNetwork


@dataclass(frozen=True)
class Prepared:
    """A network that is ready to be written.

    Args:
        write: the file at a path.
        read: it back; what runs it.
        codes: compares codes on a batch; None where a format has none.
    """

    write: Callable[[Path], None]
    read: Callable[[Path], Runner]
    codes: CodeCheck | None = None


def prepare(format_name: str, snn: SpikingNetwork, example: Inputs, shown: Sequence[Inputs]) -> Prepared:
    """Everything that can fail before a file is begun.

    Args:
        format_name: one of the formats.
        snn: on the CPU.
        example: inputs of one call.
        shown: batches that show how large signals become.

    Raises:
        ExportError: the network cannot be written in this format.
        MissingExtraError: packages for the format are not installed.
    """
    _require_type(format_name, snn)
    if format_name != "torch-export":
        _require_tensors(format_name, snn, example)
    if format_name in ("integer", "onnx-int8"):
        return _whole_numbers(format_name, snn, example, shown)
    if format_name == "nir":
        return _nir(snn, example)
    return _float(format_name, snn, example)


def _require_type(format_name: str, snn: SpikingNetwork) -> None:
    """Refuse weights in half precision, whose codes other kernels round otherwise, and types that a format does not know."""
    known = (torch.float32, torch.float64) if format_name == "torch-export" else (torch.float32,)
    for name, value in snn.network.state_dict().items():
        if value.is_floating_point() and value.dtype not in known:
            raise ExportError(
                f"{format_name}: expected a float32 network, got {value.dtype} at {name!r}; use snn.float(), and inputs "
                "of that type"
            )


def _require_tensors(format_name: str, snn: SpikingNetwork, example: Inputs) -> None:
    """Refuse an answer of which a file would lose a part; None is none."""
    with torch.no_grad():
        leaves = pytree.tree_leaves_with_path(apply(snn, example))
    for path, leaf in leaves:
        if leaf is not None and not (isinstance(leaf, Tensor) and leaf.is_floating_point()):
            kind = f"a tensor of {leaf.dtype}" if isinstance(leaf, Tensor) else repr(leaf)
            raise ExportError(
                f"{format_name}: expected an answer of float tensors, got {kind} at answer{pytree.keystr(path)}; leave it "
                "out of what the model answers, or export as torch-export"
            )


def _float(format_name: str, snn: SpikingNetwork, example: Inputs) -> Prepared:
    plain = first_timestep(snn, example)
    arguments = bind(parameters_of(plain), *as_call(example))
    program = programs.program_of(plain, arguments, snn.signature.shared)
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    description = describe(snn)

    def ordered(read: Callable[[Path], Runner]) -> Callable[[Path], Runner]:
        def reader(path: Path) -> Runner:
            run = read(path)
            return lambda inputs: run(tuple(bind(parameters_of(plain), *as_call(inputs)).values()))

        return reader

    if format_name == "torch-export":
        return Prepared(lambda path: programs.save(program, path, description), ordered(programs.runner))
    write = _sealed(lambda path: onnx_float.save(program, path, description, names))
    return Prepared(write, ordered(onnx_float.runner))


def _whole_numbers(format_name: str, snn: SpikingNetwork, example: Inputs, shown: Sequence[Inputs]) -> Prepared:
    network = integer_network(snn, example, shown)
    parameters = parameters_of(snn.network)

    def arrays(inputs: Inputs) -> dict[str, Any]:
        return as_arrays(network, inputs, parameters)

    if format_name == "integer":

        def read(path: Path) -> Runner:
            again = integer.load(path)
            return lambda inputs: [torch.from_numpy(y) for y in integer.run(again, arrays(inputs))]

        def apart(inputs: Inputs) -> tuple[int, int, int]:
            return (*_against(snn, network, inputs, _meaning(network, arrays(inputs))), 0)

        return Prepared(lambda path: integer.save(network, path), read, apart)
    model = onnx_int8.model_of(network, KEY)
    with_codes = runtime.session(onnx_int8.model_of(network, KEY, codes=True))
    points = onnx_int8.zero_points(network)

    def read_model(path: Path) -> Runner:
        session = runtime.session(path)
        return lambda inputs: [torch.from_numpy(y) for y in session.run(None, arrays(inputs))]

    def codes(inputs: Inputs) -> tuple[int, int, int]:
        given = arrays(inputs)
        meant = _meaning(network, given)
        compared, apart = _against(snn, network, inputs, meant)
        names = [f"{site}/bytes" for site in network.sites]
        found = dict(zip(network.sites, with_codes.run(names, given), strict=True))
        wrong = sum(
            int((found[site].astype(np.int64) - points[value] != meant[value]).sum())
            for site, value in network.sites.items()
        )
        if wrong and not network.float_operators():
            raise ExportError(
                f"ONNX Runtime answers {wrong} of {compared} codes otherwise than whole numbers are defined. This is a "
                "defect, of polarspike or of the runtime's kernels for this machine; report it, and export as onnx-float"
            )
        return compared, apart, wrong

    return Prepared(_sealed(lambda path: runtime.save(model, path)), read_model, codes)


def _sealed(write: Callable[[Path], None]) -> Callable[[Path], None]:
    def written(path: Path) -> None:
        write(path)
        runtime.seal(path)

    return written


def _meaning(network: IntegerNetwork, given: dict[str, Any]) -> dict[str, Any]:
    """The codes of all sites by the names of their values, as NumPy defines them."""
    values = set(network.sites.values())
    return {name: value for name, value in integer.trace(network, given) if name in values}


def _against(snn: SpikingNetwork, network: IntegerNetwork, inputs: Inputs, meant: dict[str, Any]) -> tuple[int, int]:
    """Codes compared, and how many differ between the spiking network and the integer network."""
    fired: dict[str, Any] = {}

    def see(site: str, timestep: int, spikes: Tensor) -> None:
        del timestep
        fired[site] = spikes.numpy()

    with torch.no_grad(), snn.observe(see):
        apply(snn, inputs)
    compared = sum(codes.size for codes in fired.values())
    return compared, sum(int((fired[site] != meant[name]).sum()) for site, name in network.sites.items())


def _nir(snn: SpikingNetwork, example: Inputs) -> Prepared:
    graph = nir_graph.graph_of(snn, example)
    return Prepared(lambda path: nir_graph.save(graph, path), nir_modules.runner)
