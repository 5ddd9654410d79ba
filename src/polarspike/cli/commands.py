"""All commands by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from polarspike.cli.bench import Bench
from polarspike.cli.catalogue import Datasets, Models
from polarspike.cli.convert import Convert
from polarspike.cli.diagnose import Diagnose
from polarspike.cli.doctor import Doctor
from polarspike.cli.evaluate import Evaluate
from polarspike.cli.experiments import Demo, Train
from polarspike.cli.export import Export
from polarspike.cli.inspect import Inspect
from polarspike.cli.report import Report
from polarspike.cli.run import Run
from polarspike.cli.verify import Verify


def commands(arguments: Sequence[str]) -> dict[str, Any]:
    """The type of each command, or an instance where its defaults depend on the arguments."""
    return {
        "demo": Demo(),
        "train": Train.starting(arguments if arguments[:1] == ["train"] else []),
        "inspect": Inspect,
        "convert": Convert,
        "diagnose": Diagnose,
        "evaluate": Evaluate,
        "verify": Verify,
        "export": Export,
        "run": Run,
        "bench": Bench,
        "report": Report,
        "datasets": Datasets,
        "models": Models,
        "doctor": Doctor,
    }
