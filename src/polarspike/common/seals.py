"""Digests in files: what was damaged or changed behind our back is noticed before it answers; without torch.

An ONNX model is sealed by one more entry of its metadata, appended as protobuf allows. Whoever checks it parses no graph:

    file = model bytes | metadata entry "polarspike_sha256": {"model": SHA-256 of the model bytes, "data": [name, SHA-256]}

``data`` is null but where weights lie in a file beside the model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from polarspike.errors import ExportError

#: Under what name metadata hold a digest.
KEY = "polarspike_sha256"
_CHUNK = 1 << 22
#: A seal is shorter than this.
_TAIL = 4096


def arrays_digest(texts: Mapping[str, str], arrays: Mapping[str, Any]) -> str:
    """SHA-256 of named texts and named arrays, in the order of their names.

    Args:
        texts: what is said about the arrays.
        arrays: of NumPy; of each count its type, its shape and its values.
    """
    digest = hashlib.sha256()
    for name in sorted(texts):
        _add(digest, name.encode(), texts[name].encode())
    for name in sorted(arrays):
        value = np.asarray(arrays[name], order="C")
        # Strings of any length are objects, which have no bytes of their own.
        content = repr(value.tolist()).encode() if value.dtype.hasobject else value.tobytes()
        _add(digest, name.encode(), value.dtype.str.encode(), repr(value.shape).encode(), content)
    return digest.hexdigest()


def file_digest(path: Path, length: int | None = None) -> str:
    """SHA-256 of the first ``length`` bytes of a file, of all if not given; never all of it in memory."""
    digest = hashlib.sha256()
    left = path.stat().st_size if length is None else length
    with open(path, "rb") as file:
        while left > 0 and (part := file.read(min(left, _CHUNK))):
            digest.update(part)
            left -= len(part)
    return digest.hexdigest()


def seal(path: Path, data: tuple[str, str] | None = None) -> None:
    """Append the seal of an ONNX model.

    Args:
        path: of the model, which has none.
        data: name and SHA-256 of the file beside it that holds its weights.
    """
    told = {"model": file_digest(path), "data": None if data is None else list(data)}
    with open(path, "ab") as file:
        file.write(_entry(json.dumps(told, separators=(",", ":")).encode()))


def require_whole(path: Path) -> bool:
    """Compare an ONNX model, and the weights beside it, with its seal.

    Returns:
        Whether there is a seal; a file of another program has none.

    Raises:
        ExportError: the file is not the one that was sealed.
    """
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(0, size - _TAIL))
        tail = file.read()
    at = tail.rfind(_text(b"\x0a", KEY.encode()) + b"\x12")
    if at < 0:
        return False
    value = tail[max(tail.find(b"{", at), 0) :]
    try:
        told = json.loads(value)
        own, data = told["model"], told["data"]
        name, weights = (None, None) if data is None else data
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise damaged(path) from error
    entry = _entry(value)
    if not tail.endswith(entry) or file_digest(path, size - len(entry)) != own:
        raise damaged(path)
    if name is not None:
        _require_weights(path, str(name), weights)
    return True


def require_last(path: Any, sealed: bool, metadata: Mapping[str, str]) -> None:
    """Refuse a model whose metadata hold a seal that no longer stands where it was written, behind everything else.

    Args:
        path: of the model, for the message.
        sealed: what :func:`require_whole` has answered.
        metadata: of the model.

    Raises:
        ExportError: the file was changed behind its seal.
    """
    if KEY in metadata and not sealed:
        raise damaged(path)


def damaged(path: Any) -> ExportError:
    """The error of a file that is not the one that was written."""
    return ExportError(
        f"{path}: the file is damaged: expected the SHA-256 that it holds of itself, got another (or another program "
        f"changed it); export it again, or, if the change is yours, remove its metadata entry {KEY}"
    )


def _require_weights(path: Path, name: str, expected: object) -> None:
    if Path(name).name != name:
        raise damaged(path)
    place = path.parent / name
    if not place.is_file():  # behind a link, they lie beside the model itself
        place = path.resolve().parent / name
    if not place.is_file():
        raise ExportError(f"{path}: expected its weights in {name!r} beside it, there is no such file; export it again")
    if file_digest(place) != expected:
        raise damaged(place)


def _add(digest: Any, *parts: bytes) -> None:
    """Each with its length in front, so that no two lists of parts are the same bytes."""
    for part in parts:
        digest.update(len(part).to_bytes(8, "little"))
        digest.update(part)


def _entry(value: bytes) -> bytes:
    """``metadata_props`` (field 14 of a model) with one key and its value."""
    return _text(b"\x72", _text(b"\x0a", KEY.encode()) + _text(b"\x12", value))


def _text(tag: bytes, content: bytes) -> bytes:
    """A field of protobuf: its tag, the length in groups of 7 bits, the content."""
    length, left = b"", len(content)
    while left >= 128:
        length += bytes([left % 128 | 128])
        left //= 128
    return tag + length + bytes([left]) + content
