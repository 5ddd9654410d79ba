"""What a comparison's table lacks, why, and how that is said: on its pages, and as the error of runs that failed."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from polarspike.baselines.comparison import described
from polarspike.errors import RunError


@dataclass(frozen=True)
class Missing:
    """A run that the table lacks.

    Attributes:
        run: which.
        why: it is not there.
        failed: it was tried, and an error ended it.
    """

    run: Mapping[str, Any]
    why: str = "not run"
    failed: bool = False


def told(missing: Sequence[Missing], total: int) -> list[str]:
    """How many of all runs are missing, then which on each network and why; nothing where none is."""
    if not missing:
        return []
    found: dict[tuple[str, str], list[Mapping[str, Any]]] = defaultdict(list)
    for one in missing:
        why = f"failed: {one.why}" if one.failed else one.why
        found[f"{one.run['data']}, {one.run['network']}", why].append(one.run)
    lines = [f"{place}: {_which(runs)}: {why}" for (place, why), runs in found.items()]
    are = "is" if len(missing) == 1 else "are"
    return [f"{len(missing)} of {total} runs {are} missing: means and verdicts are not final without them.", *lines]


def require_none_failed(missing: Sequence[Missing], total: int, table: Path) -> None:
    """Refuse to end well where runs have failed.

    Args:
        missing: what the table lacks.
        total: how many runs there are.
        table: where the rows of the others are.

    Raises:
        RunError: some have; the message is which, and of each the reason.
    """
    failed = [f"\n  {described(one.run)}: {one.why}" for one in missing if one.failed]
    if failed:
        raise RunError(
            f"{len(failed)} of {total} runs failed; those that ended well are in {table}, and the same command tries the "
            f"others again, once the reason is gone:{''.join(failed)}"
        )


def _which(runs: Sequence[Mapping[str, Any]]) -> str:
    """One run with all that names it on its network; of several the methods."""
    if len(runs) == 1:
        return described({key: value for key, value in runs[0].items() if key not in ("data", "network")})
    counts = Counter(run["method"] for run in runs)
    return ", ".join(name if count == 1 else f"{name} ({count} runs)" for name, count in counts.items())
