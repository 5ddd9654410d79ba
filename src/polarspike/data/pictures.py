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
from polarspike.errors import DataError, MissingExtraError

#: How the names of pictures end, in lower case.
SUFFIXES = (".jpg", ".jpeg", ".png")


class Pictures(ABC):
    """Labelled pictures in a fixed order.

    Args:
        labels: (N,) int64.
    """

    def __init__(self, labels: Tensor) -> None:
        self.labels = labels

    def __len__(self) -> int:
        return len(self.labels)

    @abstractmethod
    def content(self, index: int) -> tuple[bytes, str]:
        """The bytes of a picture's file, and where they come from."""

    def picture(self, index: int) -> Any:
        """One picture, decoded, in RGB.

        Raises:
            DataError: its file cannot be read, or is no picture.
            MissingExtraError: Pillow is not installed.
        """
        try:
            from PIL import Image
        except ImportError as error:
            raise MissingExtraError("pillow", "vision") from error
        content, place = self.content(index)
        try:
            with Image.open(io.BytesIO(content)) as file:
                return file.convert("RGB")
        except (OSError, ValueError, SyntaxError) as error:
            raise DataError(f"{place}: expected a picture, got: {error}; fetch it again") from error


class Files(Pictures):
    """One file for each picture."""

    def __init__(self, paths: Sequence[Path], labels: Sequence[int]) -> None:
        super().__init__(torch.tensor(labels, dtype=torch.int64))
        self.paths = list(paths)

    def content(self, index: int) -> tuple[bytes, str]:
        path = self.paths[index]
        return bytes_of(path), str(path)


class Shards(Pictures):
    """Members of tar files, as WebDataset lays them out: ``KEY.jpg`` beside ``KEY.cls`` (or ``KEY.json`` with a label).

    Only the headers are read to find them; a picture is then read at its place.

    Args:
        paths: of the shards, in order.

    Raises:
        DataError: a shard is no whole tar file, or a picture has no label.
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
    pictures: dict[str, tuple[int, int]] = {}
    labels: dict[str, int] = {}
    try:
        with tarfile.open(path, "r:") as shard:
            for member in shard:
                folder, _, name = member.name.rpartition("/")
                key, _, suffix = name.partition(".")
                key = f"{folder}/{key}"
                if f".{suffix.lower()}" in SUFFIXES:
                    pictures[key] = member.offset_data, member.size
                elif suffix in ("cls", "json") and (file := shard.extractfile(member)) is not None:
                    labels[key] = _label(file.read(), suffix, f"{path}: {member.name}")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DataError(f"{path}: expected a whole tar file, got: {error}; fetch it again") from error
    if missing := [key for key in pictures if key not in labels]:
        raise DataError(
            f"{path}: expected {missing[0].lstrip('/')}.cls or .json with a label beside the picture, found none"
        )
    if not pictures:
        raise DataError(f"{path}: expected pictures ({', '.join(SUFFIXES)}) in this shard, found none")
    return [(*place, labels[key]) for key, place in pictures.items()]


def _label(content: bytes, suffix: str, place: str) -> int:
    try:
        if suffix == "cls":
            return int(content.decode("ascii").strip())
        return int(json.loads(content)["label"])
    except (ValueError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise DataError(f"{place}: expected the number of a class, got {content[:40]!r}") from error
