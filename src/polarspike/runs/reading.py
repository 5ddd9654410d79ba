"""What a run directory says, read without a lock and without a change, also while it is being written."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from polarspike.errors import RunError

FORMAT = "polarspike-run"
VERSION = 1


def read_config(path: Path) -> dict[str, Any]:
    """What ``config.json`` of the run at ``path`` says; nothing is created or changed.

    Raises:
        RunError: there is none, or it is that of something else.
    """
    place = path / "config.json"
    config = read_json(place)
    if not isinstance(config, dict) or config.get("format") != FORMAT or config.get("version") != VERSION:
        raise RunError(
            f"{place}: expected the configuration of a run, format {FORMAT!r} version {VERSION}; it was written by "
            "something else or by another release; give another directory"
        )
    return config


def read_records(path: Path) -> list[dict[str, Any]]:
    """The records of the run at ``path``, without a torn last line; none if it has no log.

    Raises:
        RunError: a line before the last one is not a record.
    """
    place = path / "log.jsonl"
    if not place.exists():
        return []
    *lines, torn = place.read_bytes().split(b"\n")  # a whole log ends with a newline, so torn is then empty
    del torn
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except ValueError:
            record = None
        if not isinstance(record, dict):
            raise RunError(f"{place}, line {number}: expected a JSON object; repair or remove the line")
        records.append(record)
    return records


def read_json(place: Path) -> Any:
    """What a JSON file holds.

    Raises:
        RunError: it is missing, or none.
    """
    try:
        return json.loads(place.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{place}: no such file; this run has not written it") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{place}: expected a JSON file, got {error}") from error


def differences(first: object, second: object, where: str) -> list[str]:
    """Where two plain values differ, one sentence for each place."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        keys = sorted({*first, *second})
        return [
            line
            for key in keys
            for line in differences(first.get(key), second.get(key), f"{where}.{key}")
        ]  # fmt: skip
    return [] if first == second else [f"{where} was {first!r} and is {second!r} now"]
