"""What all commands share."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, dataclass, fields

from polarspike.errors import PolarspikeError, RunError, SpecError


@dataclass(frozen=True, kw_only=True)
class Command(ABC):
    """A command: its fields are its options, its docstring is its help.

    Args:
        debug: show the traceback of an error.
    """

    debug: bool = False

    @abstractmethod
    def execute(self) -> int:
        """Do it, write the result to standard output, and return the exit code."""

    def after_interrupt(self, arguments: Sequence[str]) -> str:
        """What to do after Ctrl-C, for a command that was given as ``arguments``."""
        del arguments
        return "nothing was written"


def options_given(command: Command) -> list[str]:
    """The fields of a command that are not what they would be if nobody had asked for anything."""
    given = []
    for field in fields(command):
        default = field.default if field.default_factory is MISSING else field.default_factory()
        if getattr(command, field.name) != default:
            given.append(field.name)
    return given


def refuse(options: Mapping[str, bool], why: str) -> None:
    """Refuse those options that were given and would change nothing.

    Raises:
        SpecError: there are some.
    """
    if given := [option for option, is_given in options.items() if is_given]:
        raise SpecError(f"{' and '.join(given)}: {why}; leave {'it' if len(given) == 1 else 'them'} out")


def show(text: object) -> None:
    """Write a result to standard output, from the main process alone."""
    if not _is_main():
        return
    sys.stdout.write(f"{text}\n")


def tell(text: object) -> None:
    """Write anything that is not a result to standard error, from the main process alone."""
    if not _is_main():
        return
    sys.stderr.write(f"{text}\n")
    sys.stderr.flush()


@contextmanager
def ending_together() -> Iterator[None]:
    """Where several processes work, the error of one is told once, and ends the others without a word of their own.

    Raises:
        RunError: another process has ended; in place of what the connection to it then raises.
    """
    from polarspike.parallel import distributed

    try:
        yield
    except Exception as error:
        if distributed.ended_elsewhere(error):
            raise RunError("another process of this run has ended; its own message says why") from error
        if isinstance(error, PolarspikeError) and not _is_main() and distributed.KNOWN not in _notes(error):
            sys.stderr.write(f"error in process {distributed.rank()}: {error}\n")
        raise


def _notes(error: BaseException) -> Sequence[str]:
    return getattr(error, "__notes__", ())


def _is_main() -> bool:
    """Whether this process writes; without torch there is only one."""
    if "torch" not in sys.modules:
        return True
    from polarspike.parallel import distributed

    return distributed.is_main()
