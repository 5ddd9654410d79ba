"""The command line: one short module per command, one for what turns specs into options, one that runs them all."""

from polarspike.cli.app import main

__all__ = ["main"]
