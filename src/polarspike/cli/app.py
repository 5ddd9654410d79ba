"""Parse the command line, run one command, and turn errors into one line and an exit code.

Exit codes: 0 done; 1 done, and the answer is no (a proof failed, a picture was not read); 2 an error; 3 a defect of
polarspike; 4 a proof of too few codes to mean anything; 130 Ctrl-C.
"""

from __future__ import annotations

import os
import sys
import traceback
import warnings
from collections.abc import Sequence
from functools import reduce
from operator import or_
from typing import Annotated, Any, TextIO

import tyro

from polarspike import __version__
from polarspike.cli.command import Command, show, tell
from polarspike.cli.options import RefusedError, registry
from polarspike.errors import PolarspikeError

_ABOUT = (
    "Turn PyTorch networks into spiking networks that are exact at their first timestep. "
    "`polarspike COMMAND --help` lists the options of a command, `polarspike --version` prints the version. "
    "Exit codes: 0 done, 1 a proof failed, 2 an error, 3 a defect of polarspike, 4 a void proof, 130 interrupted."
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line with these arguments (the process's own if none are given) and return the exit code."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given == ["--version"]:
        show(f"polarspike {__version__}")
        return 0
    command: Command | None = None
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        try:
            command = parse(given)
            return command.execute()
        except (PolarspikeError, RefusedError) as error:
            if "--debug" in given:
                traceback.print_exc()
            tell(f"error: {error}")
            return 2
        except KeyboardInterrupt:
            tell(f"interrupted: {command.after_interrupt(given) if command else 'nothing was begun'}")
            return 130
        except BrokenPipeError:  # a reader such as `head` has seen enough
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else the interpreter complains at its end
            return 0
        except Exception:  # the traceback is what a report of the defect needs
            traceback.print_exc()
            tell("error: this is a defect of polarspike; please report it with the lines above")
            return 3


def parse(arguments: Sequence[str]) -> Command:
    """The command that the arguments describe; help and malformed options leave by SystemExit (0 and 2)."""
    config = (tyro.conf.FlagCreatePairsOff,)
    if arguments[:1] == ["run"]:  # alone, so that torch is not loaded
        from polarspike.cli.run import Run

        return tyro.cli(Run, prog="polarspike run", args=arguments[1:], config=config)
    from polarspike.cli.commands import commands

    choices = [
        Annotated[entry, tyro.conf.subcommand(name)]
        if isinstance(entry, type)
        else Annotated[type(entry), tyro.conf.subcommand(name, default=entry)]
        for name, entry in commands(arguments).items()
    ]
    union: Any = reduce(or_, choices)
    chosen: Command = tyro.cli(
        union,
        prog="polarspike",
        description=_ABOUT,
        args=arguments,
        config=config,
        registry=registry(),
    )
    return chosen


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    del category, filename, lineno, file, line
    tell(f"warning: {message}")
