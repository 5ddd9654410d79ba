"""Other tools' packages, which may not be there, and the batches that they take."""

from __future__ import annotations

import importlib
import importlib.metadata
import warnings
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from polarspike.common.inputs import batches_of
from polarspike.errors import InputError, MissingExtraError


def version(package: str) -> str:
    """The installed version, for a table.

    Raises:
        MissingExtraError: it is not installed.
    """
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise MissingExtraError(package, "baselines") from None


def imported(distribution: str, module: str) -> Any:
    """A module of a distribution.

    Raises:
        MissingExtraError: it is not installed.
    """
    version(distribution)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a peer's import warns of is not ours to repair
        return importlib.import_module(module)


def pairs(batches: Iterable[Any]) -> list[tuple[Tensor, Any]]:
    """Batches as the tools take them: inputs of one tensor, each with targets, which nobody reads.

    Raises:
        InputError: a batch has other inputs.
    """
    found = []
    for inputs, target in batches_of(batches):
        if not isinstance(inputs, Tensor):
            raise InputError(f"peers: expected batches of one tensor, got {type(inputs).__name__}")
        found.append((inputs, torch.zeros(len(inputs)) if target is None else target))
    return found
