"""What a row of a comparison's table holds, and what it may not."""

from __future__ import annotations

from collections.abc import Mapping

from polarspike.baselines.comparison import ASKED
from polarspike.baselines.measurement import MEASURED
from polarspike.runs.ledger import require_numbers

#: Own: of the method; in all: with those of the float network that it started from. CPU seconds are of the run, and do not
#: count what else the machine did.
_COST = ("ann_accuracy", "own_epochs", "epochs", "own_seconds", "setting", "cpu_seconds")
COLUMNS = (*ASKED, *MEASURED, *_COST)
_WHOLE = ("levels", "trained_steps", "seed", "latency", "timesteps", "spike_bits", "weight_bits", "bits", "own_epochs",
          "epochs")  # fmt: skip
_WORDS = ("data", "network", "method", "budget", "setup", "setting")
_FINITE = tuple(column for column in COLUMNS if column not in _WHOLE + _WORDS)
#: Of a method that was refused all are empty.
_ANSWER = ("latency", "timesteps", "accuracy")


def check_row(row: Mapping[str, str]) -> None:
    """Refuse a row that no run has written.

    Raises:
        ValueError: a number is none, or only a part of an answer is there.
    """
    require_numbers(row, _WHOLE, whole=True)
    require_numbers(row, _FINITE)
    require_numbers(row, ("seed", "cpu_seconds"), empty=False)
    if any(row[column] for column in _ANSWER):
        require_numbers(row, _ANSWER, empty=False)
