"""Every error that the library raises on purpose, and its one warning class.

An error says four things: what was expected, what came, where (site, layer, batch or file), and how to repair it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def closest(name: object, known: Iterable[str]) -> str:
    """The end of a message about an unknown name: the known one that is most like it, or nothing.

    >>> closest("resnet2", ["resnet20", "vgg16"])
    "; did you mean 'resnet20'?"
    """
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f"; did you mean {found[0]!r}?" if found else ""


class PolarspikeError(Exception):
    """Base class: catch this to catch every deliberate error of the library."""


class SpecError(PolarspikeError, ValueError):
    """A configuration contradicts itself or names something that does not exist."""


class CaptureError(PolarspikeError):
    """A model cannot be captured as a graph, or its graph does not compute what the model computes."""


class GraphMismatchError(CaptureError):
    """A captured graph runs, and computes something else than its model."""


class OperatorError(PolarspikeError):
    """A graph holds an operator that a rule table does not know."""


class CalibrationError(PolarspikeError):
    """Statistics for the steps cannot be had: an empty loader, NaN or Inf, a site without a law."""


class InputError(PolarspikeError, ValueError):
    """An input has the wrong shape, type or content."""


class DataError(PolarspikeError):
    """A dataset is unknown, missing, truncated or not in the format it should be in."""


class CheckpointError(PolarspikeError):
    """A file is not a checkpoint, is damaged, or belongs to another model or version."""


class ExportError(PolarspikeError):
    """A network cannot be written in a format, or what was written does not answer like the network."""


class RunError(PolarspikeError):
    """A run directory cannot be written, or a run cannot be resumed."""


class WriteError(RunError):
    """The files of a run cannot be written: no space is left, or permissions forbid it. What comes next would fail, too."""


class MissingExtraError(PolarspikeError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"the optional package {package!r} is not installed; install it with: pip install 'polarspike[{extra}]'"
        )
        self._given = package, extra

    def __reduce__(self) -> tuple[type[MissingExtraError], tuple[str, str]]:  # it crosses from a worker to its process
        return type(self), self._given


class PolarspikeWarning(UserWarning):
    """Something was repaired or left out, and the result is still well defined."""
