"""Pictures that stay on disk: files in folders, or members of WebDataset shards, decoded when a batch asks for them."""

from __future__ import annotations

import io
import json
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polarspike.data.reading import bytes_of
from polarspike.decoding import SUFFIXES, decoded
from polarspike.errors import DataError


class Pictures(ABC):
    """Labelled pictures in a fixed order.

    Args:
        labels: (N,) int64.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    def subset(self, indices: Tensor) -> Pictures:
        """The pictures at ``indices`` (M,) int64, in that order."""
        return _Subset(self, indices)

    @abstractmethod
    def content(self, index: int) -> tuple[bytes, str]:
        """The bytes of a picture's file, and where they come from."""

    def picture(self, index: int) -> Any:
        """One picture, decoded, in RGB.

        Raises:
            DataError: its file cannot be read, is no picture, or one of too many or too deep pixels.
            MissingExtraError: Pillow is not installed.
        """
        content, place = self.content(index)
        try:
            return decoded(io.BytesIO(content), 3, place)
        except DataError as error:
            raise DataError(f"{error}; fetch it again") from error


class _Subset(Pictures):
    """Chosen pictures of others."""

    def __init__(self, pictures: Pictures, indices: Tensor) -> None:
        super().__init__(pictures.labels[indices])
        self.pictures, self.indices = pictures, indices

    def content(self, index: int) -> tuple[bytes, str]:
        return self.pictures.content(int(self.indices[index]))


class Files(Pictures):
    """One file for each picture."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]) -> None:
        super().__init__(torch.tensor(labels, dtype=torch.int64))
        self.paths = list(paths)

    def content(self, index: int) -> tuple[bytes, str]:
        path = self.paths[index]
        return bytes_of(path), str(path)


class Shards(Pictures):
    """Members of tar files, as WebDataset lays them out: ``KEY.jpg`` beside ``KEY.cls``.

    Where there is no ``KEY.cls``, ``KEY.json`` must have an integer ``label``. Only the headers are read to
    find the pictures; each is then read at its place.

    Args:
        paths: of the shards, in order.

    Raises:
        DataError: a shard is no whole tar file, a picture has no label, or two members have the same name or key.
    """

    def __init__(self, paths: Sequence[Path]) -> None:
        self.places: list[tuple[Path, int, int]] = []  # shard, offset, bytes
        labels: list[int] = []
        for path in paths:
            found = _members(path)
            self.places += [(path, offset, size) for offset, size, _ in found]
            labels += [label for _, _, label in found]
        super().__init__(torch.tensor(labels, dtype=torch.int64))

    def content(self, index: int) -> tuple[bytes, str]:
        path, offset, size = self.places[index]
        try:
            with path.open("rb") as file:
                file.seek(offset)
                return file.read(size), f"{path} at byte {offset}"
        except OSError as error:
            raise DataError(f"{path}: expected a readable file, got: {error.strerror or error}") from error


def _members(path: Path) -> list[tuple[int, int, int]]:
    """(offset, bytes, label) of every picture of a shard."""
    kinds = ("picture", "cls", "json")
    found: dict[str, dict[str, tarfile.TarInfo]] = {kind: {} for kind in kinds}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                key = f"{folder}/{key}"
                kind = "picture" if f".{suffix.lower()}" in SUFFIXES else suffix
                if kind not in kinds or member.isdir():
                    continue
                if (other := found[kind].setdefault(key, member)) is not member:
                    raise DataError(
                        f"{path}: expected one {kind} of a key, got {other.name} and {member.name}; "
                        "make the shard again"
                    )
            for suffix in ("json", "cls"):  # the class file's word is the last one
                for key, member in found[suffix].items():
                    if suffix == "cls" or key not in found["cls"]:
                        file = shard.extractfile(member)
                        labels[key] = _label(file.read() if file else b"", suffix, f"{path}: {member.name}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: expected a whole tar file, got: {error}; fetch it again") from error
    pictures = found["picture"]
    if missing := [key for key in pictures if key not in labels]:
        raise DataError(
            f"{path}: expected {missing[0].lstrip('/')}.cls or .json with a label beside the picture, found none"
        )
    if not pictures:
        raise DataError(f"{path}: expected pictures ({', '.join(SUFFIXES)}) in this shard, found none")
    return [(member.offset_data, member.size, labels[key]) for key, member in pictures.items()]


def _label(content: bytes, suffix: str, place: str) -> int:
    try:
        if suffix == "cls":
            return int(content.decode("ascii").strip())
        label = json.loads(content)["label"]
        if type(label) is not int:  # nor a bool, which is one, too
            raise TypeError
        return label
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: expected the number of a class, got {content[:40]!r}") from error
