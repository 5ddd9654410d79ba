"""What the C library is told about memory."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import pytest

from polarspike.cli.memory import keep_memory

# A block of 64 MiB in pieces below the largest that glibc maps by itself: given back, and asked for again.
FAULTS = """
import ctypes, resource, sys
from polarspike.cli.memory import keep_memory
if sys.argv[1] == "kept":
    assert keep_memory()
library = ctypes.CDLL(None)
library.malloc.restype, library.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
library.free.argtypes = [ctypes.c_void_p]
def use():
    places = [library.malloc(16 << 20) for _ in range(4)]
    for place in places:
        ctypes.memset(place, 1, 16 << 20)
    for place in places:
        library.free(place)
use()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    use()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="glibc alone")
def test_what_was_given_back_is_there_again(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GLIBC_TUNABLES", "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.delenv(name, raising=False)
    faults = {
        how: int(subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True).stdout)
        for how in ("kept", "default")
    }
    assert 4 * faults["kept"] < faults["default"]  # none, but for what the interpreter itself does


@pytest.mark.parametrize(
    ("name", "value"), [("MALLOC_TRIM_THRESHOLD_", "1"), ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1")]
)
def test_what_a_user_has_said_stays(monkeypatch: pytest.MonkeyPatch, name: str, value: str) -> None:
    monkeypatch.setenv(name, value)
    monkeypatch.setattr(ctypes, "CDLL", lambda name: pytest.fail("the library was told something"))
    assert not keep_memory()


def test_another_library_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    for error in (OSError, TypeError):

        def missing(name: object, error: type[Exception] = error) -> None:
            raise error("no such library")

        monkeypatch.setattr(ctypes, "CDLL", missing)
        assert not keep_memory()
    monkeypatch.setattr(ctypes, "CDLL", lambda name: object())
    assert not keep_memory()
