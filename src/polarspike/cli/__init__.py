"""The command line: one short module per command, one for what turns specs into options, one that runs them all.

``app`` runs a command of ``commands``; ``options`` turns specs into flags. What several commands share is in ``command``,
``files``, ``network``, ``refinement``, ``deterministic``, ``memory``, ``report_pages`` and ``rivals_pages``; every other
file is a command.
"""

from polarspike.cli.app import main

__all__ = ["main"]
