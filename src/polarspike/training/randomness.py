"""Randomness of a training run: every epoch starts from one number, and nothing is left changed behind it."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from polarspike.common.samplers import generators_of, sources_of


def epoch_seed(seed: int, epoch: int, rank: int | None = None) -> int:
    """The seed of epoch ``epoch`` (from 1): the first 63 bits of SHA-256 of the text ``polarspike/<seed>/<epoch>``.

    With a rank, ``/<rank>`` follows: what one process draws for itself.
    """
    return number_of(f"{seed}/{epoch}" + ("" if rank is None else f"/{rank}"))


def number_of(text: str) -> int:
    """A number below 2^63 for a text: the first 63 bits of SHA-256 of ``polarspike/<text>``."""
    digest = hashlib.sha256(f"polarspike/{text}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def seed_everything(seed: int, loader: object, epoch: int) -> None:
    """Seed torch, Python, NumPy and the loader's own generators; tell distributed samplers the epoch."""
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed % 2**32)
    for number, generator in enumerate(generators_of(loader), start=1):
        generator.manual_seed(seed + number)
    for source in {id(source): source for source in sources_of(loader)}.values():
        if callable(set_epoch := getattr(source, "set_epoch", None)):  # the convention of distributed samplers
            set_epoch(epoch)


@contextmanager
def randomness_kept(loader: object) -> Iterator[None]:
    """Put every generator that :func:`seed_everything` seeds back to where it was."""
    own = [(generator, generator.get_state()) for generator in generators_of(loader)]
    cpu, python, numpy = torch.get_rng_state(), random.getstate(), np.random.get_state()
    devices = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        yield
    finally:
        torch.set_rng_state(cpu)
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in own:
            generator.set_state(state)
        if devices:
            torch.cuda.set_rng_state_all(devices)


class Stream:
    """What a network draws in one process, apart from what all processes draw alike (the order and changes of samples).

    Args:
        seed: where it starts.
        device: of the network, whose generator is meant beside the CPU's.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self._cuda = device if device.type == "cuda" else None
        before = self._states()
        torch.manual_seed(seed)
        self._own = self._states()
        self._set(before)

    @contextmanager
    def drawing(self) -> Iterator[None]:
        """Within this context torch's global generators go on from where this stream was left."""
        common = self._states()
        self._set(self._own)
        try:
            yield
        finally:
            self._own = self._states()
            self._set(common)

    def _states(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        return torch.get_rng_state(), None if self._cuda is None else torch.cuda.get_rng_state(self._cuda)

    def _set(self, states: tuple[torch.Tensor, torch.Tensor | None]) -> None:
        torch.set_rng_state(states[0])
        if self._cuda is not None and states[1] is not None:
            torch.cuda.set_rng_state(states[1], self._cuda)
