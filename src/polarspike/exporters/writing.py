"""Write a spiking network for another runtime, read the file back, and compare its answers."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from polarspike.errors import ExportError, SpecError
from polarspike.exporters import onnx_float, programs
from polarspike.exporters.description import describe
from polarspike.exporters.first_timestep import first_timestep
from polarspike.exporters.report import ExportReport, Runner, compare
from polarspike.inputs import Inputs, as_call, batches_of, bind, float_leaves, to_device
from polarspike.modules import apply, device_of
from polarspike.quantized import parameters_of
from polarspike.spiking import SpikingNetwork

Format = Literal["onnx-float", "torch-export"]
FORMATS: tuple[str, ...] = get_args(Format)


def export(
    snn: SpikingNetwork,
    path: str | os.PathLike[str],
    format: Format,
    example: Inputs,
    batches: Iterable[Any] | Tensor | None = None,
) -> ExportReport:
    """Write the first timestep of a spiking network to a file that needs no polarspike.

    The file appears when it is whole, has been read back, and has answered: else nothing is left behind. Its metadata hold
    levels, step and gain of every site, and the network's notes (:mod:`polarspike.exporters.description`).

    Args:
        snn: what :func:`polarspike.convert` made.
        path: of the file.
        format: ``"torch-export"`` (a program of torch, the same operators in the same order) or ``"onnx-float"`` (needs the
            extra ``deploy``; another runtime sums in another order, which may move a code where a sum lies next to a
            threshold).
        example: inputs of one call; only their shapes matter, and the batch size stays free.
        batches: to compare answers on; the example if not given.

    Returns:
        What was written, and how far its answers are from those of ``snn`` at T = 1.

    Raises:
        SpecError: not a spiking network, or an unknown format.
        ExportError: the network cannot be written in this format, or the file cannot.
        MissingExtraError: packages for the format are not installed.
    """
    if not isinstance(snn, SpikingNetwork):
        raise SpecError(f"export: expected what polarspike.convert returns, got {type(snn).__name__}")
    if format not in FORMATS:
        raise SpecError(f"export: unknown format {format!r}; expected one of {', '.join(FORMATS)}")
    target = Path(path)
    if target.is_dir() or not target.parent.is_dir():
        wrong = "is a folder" if target.is_dir() else f"there is no folder {str(target.parent)!r}"
        raise ExportError(f"{target}: cannot be written ({wrong}); give the path of a file in a folder that is there")
    if device_of(snn).type != "cpu":  # files are traced and run there
        snn = copy.deepcopy(snn).cpu()
    example = to_device(example, torch.device("cpu"))
    plain = first_timestep(snn, example)
    if format == "onnx-float":
        onnx_float.require_float32(plain)
    arguments = bind(parameters_of(plain), *as_call(example))
    program = programs.program_of(plain, arguments)
    names = [name for name, value in arguments.items() if isinstance(value, Tensor)]
    write: Callable[[Path], None]
    read: Callable[[Path], Runner]
    if format == "torch-export":
        write, read = lambda place: programs.save(program, place, describe(snn)), programs.runner
    else:
        write, read = lambda place: onnx_float.save(program, place, describe(snn), names), onnx_float.runner

    def answers(inputs: Inputs) -> list[Tensor]:
        with torch.no_grad():
            return float_leaves(apply(snn, inputs))

    def ordered(inputs: Inputs) -> tuple[Any, ...]:
        return tuple(bind(parameters_of(plain), *as_call(inputs)).values())

    seen = [example] if batches is None else (inputs for inputs, _ in batches_of(batches))
    seen = (to_device(inputs, torch.device("cpu")) for inputs in seen)
    try:
        # In a folder of its own under its final name, by which the parts of a large file know each other.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            place = Path(folder) / target.name
            write(place)
            parts = sorted(Path(folder).iterdir())
            size = sum(part.stat().st_size for part in parts)
            run = read(place)
            report = compare(target, format, size, seen, answers, lambda inputs: run(ordered(inputs)))
            for part in reversed(parts):  # the model itself last
                os.replace(part, target.with_name(part.name))
    except OSError as error:
        raise ExportError(
            f"{target}: cannot be written ({error}); check the folder, permissions and free space"
        ) from error
    return report
