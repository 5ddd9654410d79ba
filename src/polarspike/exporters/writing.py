"""Write a spiking network for another runtime, read the file back, and compare its answers."""

from __future__ import annotations

import copy
import itertools
import os
import tempfile
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from polarspike.common.inputs import Inputs, batch_size, batches_of, float_leaves, require_finite, to_device
from polarspike.common.modules import apply, device_of
from polarspike.errors import ExportError, SpecError
from polarspike.exporters import formats, runtime
from polarspike.exporters.report import ExportReport, compare
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.through_time import TemporalNetwork

Format = Literal["onnx-int8", "onnx-float", "nir", "integer", "torch-export"]
FORMATS: tuple[str, ...] = get_args(Format)

# What shows how large signals become: so many batches, and more where they hold fewer samples than these.
_SHOWN, _SAMPLES = 16, 1024


def export(
    snn: SpikingNetwork,
    path: str | os.PathLike[str],
    format: Format,
    example: Inputs,
    batches: Iterable[Any] | Tensor | None = None,
) -> ExportReport:
    """Write the first timestep of a spiking network to a file that needs no polarspike.

    ================ ========================================================================================
    format           what the file is
    ================ ========================================================================================
    ``onnx-int8``    whole numbers (:mod:`polarspike.exporters.integer`) for the integer kernels of ONNX
                     Runtime: small and fast. Weights are rounded to 8 bits; give real ``batches``, which
                     show how large inputs and residual branches become
    ``integer``      the same numbers with the meaning that polarspike.integer defines in NumPy
    ``onnx-float``   float32 in ONNX, for GPUs; another order of sums may move a code next to a threshold
    ``torch-export`` a program of torch: the same operators in the same order
    ``nir``          the neuromorphic intermediate representation: linear operators and banks of thresholds
    ================ ========================================================================================

    The file appears when it is whole, has been read back, and has answered: else nothing is left behind. Its metadata hold
    levels, step and gain of every site, and the network's notes (:mod:`polarspike.exporters.description`).

    Args:
        snn: what :func:`polarspike.convert` made.
        path: of the file.
        format: see the table; all but ``torch-export`` and ``integer`` need the extra ``deploy``.
        example: inputs of one call; only their shapes matter, and the batch size stays free.
        batches: to compare answers on; the example if not given. The first 16 of them, and more until they hold 1,024
            samples, also show how large signals become, where a format has to know.

    Returns:
        What was written, and how far its answers are from those of ``snn`` at T = 1.

    Raises:
        SpecError: not a spiking network, or an unknown format.
        ExportError: the network cannot be written in this format, its notes name more or fewer classes than it has, or the
            file cannot be written.
        MissingExtraError: packages for the format are not installed.
    """
    if isinstance(snn, TemporalNetwork):
        raise SpecError(
            "export: a file holds one timestep from rest, and no format the leaking membranes of a network that is trained "
            "through time; export the network that it started from, or keep it with polarspike.save"
        )
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
    shared = snn.signature.shared
    if not batch_size(example, shared):
        raise ExportError("export: the example holds no samples; give at least one")
    _require_names(snn, example)
    shown, all_batches = _beginning(example, batches, shared)
    written = formats.prepare(format, snn, example, shown)

    def answers(inputs: Inputs) -> list[Tensor]:
        with torch.no_grad():
            return float_leaves(apply(snn, inputs))

    try:
        # In a folder of its own under its final name, by which the parts of a large file know each other.
        with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}.") as folder:
            place = Path(folder) / target.name
            written.write(place)
            parts = sorted(Path(folder).iterdir())
            size = sum(part.stat().st_size for part in parts)
            report = compare(target, format, size, all_batches, answers, written.read(place), written.codes, shared)
            for part in reversed(parts):  # the model itself last
                os.replace(part, target.with_name(part.name))
            for old in runtime.weights_of(target):  # of an earlier model of this name
                if not any(part.name == old.name for part in parts):
                    old.unlink(missing_ok=True)
    except OSError as error:
        raise ExportError(
            f"{target}: cannot be written ({error}); check the folder, permissions and free space"
        ) from error
    return report


def _require_names(snn: SpikingNetwork, example: Inputs) -> None:
    """A name for every class, where the notes name any: a reader of the file could only guess which is missing."""
    names = snn.notes.get("classes")
    if not isinstance(names, list | tuple) or not names:
        return
    with torch.no_grad():
        leaves = float_leaves(apply(snn, example))
    if len(leaves) == 1 and leaves[0].dim() == 2 and leaves[0].shape[1] != len(names):
        raise ExportError(
            f"export: expected {leaves[0].shape[1]} names of classes, one for each output, got {len(names)}; set "
            "snn.notes['classes'] to a list of that length, or to []"
        )


def _beginning(
    example: Inputs, batches: Iterable[Any] | Tensor | None, shared: Collection[str]
) -> tuple[list[Inputs], Iterator[Inputs]]:
    """The first batches, and all of them; an iterator is read once."""
    require_finite(example, "export, example,")
    if batches is None:
        return [example], iter([example])
    rest = _finite(to_device(inputs, torch.device("cpu")) for inputs, _ in batches_of(batches))
    shown: list[Inputs] = []
    samples = 0
    while len(shown) < _SHOWN or samples < _SAMPLES:
        if (inputs := next(rest, None)) is None:
            break
        shown.append(inputs)
        samples += batch_size(inputs, shared)
    return shown or [example], itertools.chain(shown, rest)


def _finite(batches: Iterable[Inputs]) -> Iterator[Inputs]:
    for position, inputs in enumerate(batches):
        require_finite(inputs, f"export, batch {position},")
        yield inputs
