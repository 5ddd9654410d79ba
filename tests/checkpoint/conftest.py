"""A file with a network, which a test may damage or write over."""

from __future__ import annotations

from pathlib import Path

import pytest

import polarspike as ps
from tests.checkpoint.saved import made


@pytest.fixture
def path(tmp_path: Path) -> Path:
    ps.save(made(), tmp_path / "net.safetensors")
    return tmp_path / "net.safetensors"
