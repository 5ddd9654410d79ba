"""A data set in parts: train, test, and a validation part where one was cut."""

from __future__ import annotations

import dataclasses
from typing import Any, Generic, Protocol, Self, TypeVar

from torch import Tensor

from polarspike.data.splits import stratified
from polarspike.errors import DataError


class Part(Protocol):
    """Labelled samples in a fixed order."""

    @property
    def labels(self) -> Tensor:
        """(N,) int64."""

    def __len__(self) -> int: ...

    def subset(self, indices: Tensor) -> Any:
        """The samples at ``indices`` (M,) int64, in that order."""


AnyPart = TypeVar("AnyPart", bound=Part)


class Parted(Generic[AnyPart]):
    """What every data set does with its parts; a frozen dataclass of ``name``, ``train``, ``test`` and ``validation``."""

    name: str

    def parts(self) -> dict[str, AnyPart]:
        """The parts that there are, by name: train, validation where it was cut, test."""
        parts = {name: getattr(self, name) for name in ("train", "validation", "test")}
        return {name: part for name, part in parts.items() if part is not None}

    def part(self, name: str) -> AnyPart:
        """The part that is asked for.

        Raises:
            DataError: there is none; the message lists those that there are.
        """
        parts = self.parts()
        if name not in parts:
            how = "; split_validation cuts one" if name == "validation" else ""
            raise DataError(f"{self.name}: expected a part among {', '.join(parts)}, got {name!r}{how}")
        return parts[name]

    def count(self, part: str) -> int:
        """How many samples a part has; a part that is not there is a :class:`DataError`."""
        return len(self.part(part))

    def split_validation(self, fraction: float, seed: int = 0) -> Self:
        """The same data set with ``fraction`` of every class of the training part moved to a validation part.

        Raises:
            DataError: there already is a validation part, or the fraction leaves a class out of a part.
        """
        if "validation" in self.parts():
            raise DataError(f"{self.name}: a validation part was already cut; cut it from the data set as loaded")
        train = self.part("train")
        kept, moved = stratified(train.labels, fraction, seed)
        whole: Any = self
        made: Self = dataclasses.replace(whole, train=train.subset(kept), validation=train.subset(moved))
        return made
