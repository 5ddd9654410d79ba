"""ONNX models and ONNX Runtime: write a model, open one, and say what is wrong with it."""

from __future__ import annotations

import re
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polarspike.common import seals
from polarspike.errors import ExportError
from polarspike.sessions import open_session

if TYPE_CHECKING:
    import onnx

#: A protobuf message ends at 2 GiB; beyond it the weights are in a file beside it.
MOST_BYTES = 1_900_000_000
#: How many hexadecimal digits of its SHA-256 the name of a file of weights holds.
_DIGITS = 16


def save(model: onnx.ModelProto, path: Path) -> None:
    """Write a model, and ``<path>.data`` beside it where the weights are too large for one file."""
    import onnx

    large = _is_large(model)
    if not large:  # the checker takes a message, which ends at 2 GiB
        onnx.checker.check_model(model)
    place: dict[str, Any] = {"location": f"{path.name}.data", "size_threshold": 100} if large else {}
    onnx.save(model, str(path), save_as_external_data=large, **place)


def seal(path: Path) -> None:
    """Seal a written model (:mod:`polarspike.common.seals`), and name ``<path>.data`` beside it by its content.

    ``<path>.<the first digits of its SHA-256>.data``: between the replacement of one file and of the other, a model finds
    its own weights or none, in any runtime.
    """
    import onnx

    weights = path.with_name(f"{path.name}.data")
    if not weights.exists():
        seals.seal(path)
        return
    digest = seals.file_digest(weights)
    named = weights.rename(path.with_name(f"{path.name}.{digest[:_DIGITS]}.data"))
    model = onnx.load(str(path), load_external_data=False)
    for tensor in model.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = named.name
    path.write_bytes(model.SerializeToString())
    seals.seal(path, (named.name, digest))


def weights_of(path: Path) -> list[Path]:
    """The files beside a model that hold weights of it, or of earlier models of its name."""
    ours = re.compile(rf"{re.escape(path.name)}(\.[0-9a-f]{{{_DIGITS}}})?\.data")
    return [other for other in path.parent.iterdir() if ours.fullmatch(other.name)]


def session(model: onnx.ModelProto | Path, threads: int = 0) -> Any:
    """A session of ONNX Runtime on the CPU.

    Args:
        model: a model, or the path of one.
        threads: 0 for all cores.

    Raises:
        MissingExtraError: it is not installed.
        ExportError: it cannot run the model, or the file is damaged.
    """
    if isinstance(model, Path):
        sealed = seals.require_whole(model)
        opened = _opened(model, threads)
        seals.require_last(model, sealed, opened.get_modelmeta().custom_metadata_map)
        return opened
    return _opened(model, threads)


def _opened(model: onnx.ModelProto | Path, threads: int) -> Any:
    try:
        if isinstance(model, Path):
            return open_session(model, threads)
        if not _is_large(model):
            return open_session(model.SerializeToString(), threads)
        with tempfile.TemporaryDirectory() as folder:
            save(model, Path(folder) / "model.onnx")
            return open_session(Path(folder) / "model.onnx", threads)
    except ExportError as error:
        raise ExportError(f"ONNX Runtime cannot run what was written: {error}") from error


def _is_large(model: onnx.ModelProto) -> bool:
    return sum(len(tensor.raw_data) for tensor in model.graph.initializer) > MOST_BYTES
