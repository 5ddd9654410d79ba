"""What all tests share: one thread, one seed, and the same Hypothesis examples on every run."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

settings.register_profile(
    "polarspike",
    derandomize=True,  # a failure on one machine is a failure on all
    deadline=None,  # no timed assertions
    max_examples=40,
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
settings.load_profile("polarspike")
torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed() -> int:
    """The seed that torch's global generator has at the start of every test."""
    value = 20250820
    torch.manual_seed(value)
    return value


@pytest.fixture
def no_grad() -> Iterator[None]:
    """A test, or a file with ``pytest.mark.usefixtures``, that keeps no gradients."""
    with torch.no_grad():
        yield
