"""The tests of the spiking network keep no gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch


@pytest.fixture
def no_grad() -> Any:
    with torch.no_grad():
        yield
