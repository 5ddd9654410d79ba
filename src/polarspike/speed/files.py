"""The ONNX files of a subject: its float network, plain 8-bit quantization of that, and the spiking network.

Plain quantization is what a user without this library would do: ``onnxruntime.quantization.quantize_static`` with QDQ
nodes, activations in unsigned bytes, weights in signed ones with a scale for each channel, calibrated by the smallest and
largest values on the images that calibrate the spiking network.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from polarspike.errors import ExportError, MissingExtraError, PolarspikeError
from polarspike.exporters import onnx_float, runtime
from polarspike.exporters.description import KEY
from polarspike.exporters.onnx_int8 import model_of
from polarspike.speed.subject import Subject

INPUT = "x"


@dataclass(frozen=True)
class Files:
    """What could be written.

    Args:
        paths: by what is in the file: fp32, int8, snn.
        missing: why a file is not there.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def size(self, kind: str) -> int:
        """Bytes of a file, and of the weights beside it."""
        path = self.paths[kind]
        return sum(part.stat().st_size for part in (path, path.with_name(f"{path.name}.data")) if part.exists())


def write_files(subject: Subject, folder: Path) -> Files:
    """Write all of them that the installed packages and the network allow."""
    files = Files()

    def attempt(kind: str, write: Callable[[Path], None]) -> None:
        path = folder / f"{kind}.onnx"
        try:
            write(path)
        except PolarspikeError as error:
            files.missing[kind] = str(error)
        else:
            files.paths[kind] = path

    attempt("fp32", lambda path: _write_float(subject, path))
    if "fp32" in files.paths:
        attempt("int8", lambda path: _quantize(subject, files.paths["fp32"], path))
    else:
        files.missing["int8"] = f"needs the fp32 file: {files.missing['fp32']}"
    attempt("snn", lambda path: runtime.save(model_of(subject.network, KEY), path))
    return files


def _write_float(subject: Subject, path: Path) -> None:
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad():
            program = torch.export.export(subject.ann, (subject.images[:2],), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch has no common base for what can go wrong here
        raise ExportError(f"torch.export cannot write the float network: {error}") from error
    onnx_float.save(program, path, "{}", [INPUT])


def _quantize(subject: Subject, source: Path, path: Path) -> None:
    try:
        from onnxruntime import quantization
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as error:
        raise MissingExtraError("onnxruntime", "deploy") from error

    class Reader(quantization.CalibrationDataReader):  # type: ignore[misc]
        """Gives the images once."""

        def __init__(self) -> None:
            self._batches = iter([{INPUT: subject.images.numpy()}])

        def get_next(self) -> Any:
            return next(self._batches, None)

    prepared = path.with_suffix(".prepared.onnx")
    root, level = logging.getLogger(), logging.getLogger().level
    root.setLevel(logging.ERROR)  # it talks to the root logger
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
            quantization.quantize_static(
                str(prepared),
                str(path),
                Reader(),
                quant_format=quantization.QuantFormat.QDQ,
                per_channel=True,
                activation_type=quantization.QuantType.QUInt8,
                weight_type=quantization.QuantType.QInt8,
                extra_options={"WeightSymmetric": True},
            )
    except Exception as error:  # its errors have no common base
        raise ExportError(f"onnxruntime.quantization cannot quantize the float network: {error}") from error
    finally:
        root.setLevel(level)
        prepared.unlink(missing_ok=True)
