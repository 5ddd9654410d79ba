"""Products of float32 as such, where something is measured.

GPUs since Ampere may round the factors of a product to 10 bits of mantissa (TF32), and torch lets them do so in
convolutions unless told otherwise. A code is then right to two thousandths of a step instead of a millionth: as accurate for
learning, but no ground for a proof, nor for a comparison of networks.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import torch

Value = TypeVar("Value")

_lock = threading.Lock()
_inside = 0
_before: list[Callable[[], None]] = []


@contextlib.contextmanager
def float32_products() -> Iterator[None]:
    """Within this context float32 is multiplied as such on every device; then torch's settings are what they were.

    The settings are the process's own: while one thread is within, no other has TF32 either.
    """
    global _inside
    with _lock:
        if not _inside:
            _before[:] = _switched_off()
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                for restore in _before:
                    restore()


def _switched_off() -> list[Callable[[], None]]:
    """Switch every rounding of factors off; what brings each setting back, in order."""
    backends: Any = torch.backends
    places = (
        *(backends.cudnn.conv, backends.cudnn.rnn, backends.cuda.matmul),
        *(backends.mkldnn.conv, backends.mkldnn.rnn, backends.mkldnn.matmul),
    )
    restoring = [_restore(place, place.fp32_precision) for place in places]
    # torch has an older switch for the same, and refuses to be asked where the two disagree: so both are moved.
    convolutions = _readable(lambda: bool(backends.cudnn.allow_tf32))
    products = _readable(torch.get_float32_matmul_precision)
    if convolutions is not None:
        restoring.insert(0, lambda: setattr(backends.cudnn, "allow_tf32", convolutions))
    if products is not None:
        restoring.insert(0, lambda: torch.set_float32_matmul_precision(products))
    backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    for place in places:
        if place.fp32_precision not in ("ieee", "none"):  # of a switch above it
            place.fp32_precision = "ieee"
    return restoring


def _restore(place: Any, value: str) -> Callable[[], None]:
    def restore() -> None:
        if place.fp32_precision != value:
            place.fp32_precision = value

    return restore


def _readable(read: Callable[[], Value]) -> Value | None:
    try:
        return read()
    except RuntimeError:  # the older switch and the newer one disagree already
        return None
