"""What one process finds, and two, is found once for all tests here: they run in one worker."""

from __future__ import annotations

from typing import Any

import pytest

from tests.parallel.launching import found_by


@pytest.fixture(scope="session")
def findings(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """What came of every task, by the number of processes."""
    place = tmp_path_factory.mktemp("findings")
    tasks = ("train", "own_loader", "shares", "dealt_out", "long_dealt_out")
    return {1: found_by(1, place, *tasks), 2: found_by(2, place, *tasks, "long", "masks", "averaged", "environment")}
