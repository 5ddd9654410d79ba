"""How networks read a sequence of frames (batch, T, C, ...): the readings of docs/theory.md, as modules and as proofs.

::

    reading      a network without time sees            its spiking network, after T frames x[1..T]
    integrate    the mean frame                         the refined quantized network on mean(x[1..T])
    frames       every frame, answers averaged          the mean of the quantized network's answers to x[1] ... x[T]
    channels     the frames side by side as channels    one timestep

Neither of the first two knows the order of the frames.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, get_args

import torch
from torch import Tensor, nn

from polarspike.common.inputs import to_device
from polarspike.common.modules import apply, device_of, evaluating
from polarspike.equivalence import verify
from polarspike.errors import InputError, SpecError
from polarspike.proofs.proof import Proof
from polarspike.quantized import QuantizedNetwork
from polarspike.specs import ConvertSpec, Reading
from polarspike.spiking import Observer, SpikingNetwork, SpikingState

#: What T frames of a sequence mean to each network, in a report.
SAID: dict[Reading, str] = {
    "integrate": "ANN and QANN see the mean of all frames, the SNN equals the refined QANN on the mean of T",
    "frames": "ANN and QANN see every frame by itself, as the SNN does, and answers are averaged",
}
# Means of float32 answers, taken in two orders: this much of their size is rounding.
_TOLERANCE = 1e-4


def seen(frames: Tensor, reading: Reading) -> Tensor:
    """What a network without time sees of sequences (B, T, C, ...).

    ``"integrate"``: the mean frames (B, C, ...). ``"frames"``: all frames (B * T, C, ...), sequence by sequence.
    ``"channels"``: (B, T * C, ...).

    Raises:
        InputError: these are no sequences.
        SpecError: an unknown reading.
    """
    _require_frames(frames, 1)
    if reading == "integrate":
        return frames.mean(1)
    if reading == "frames":
        return frames.flatten(0, 1)
    if reading == "channels":
        return frames.flatten(1, 2)
    raise SpecError(f"reading: expected one of {', '.join(get_args(Reading))}, got {reading!r}")


class AtOnce(nn.Module):
    """A network without time, float or quantized, that reads sequences: the mean of its answers to what it sees."""

    def __init__(self, network: nn.Module, reading: Reading) -> None:
        super().__init__()
        self.network, self.reading = network, reading

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, C, ...) to (B, classes)."""
        answers: Tensor = self.network(seen(frames, self.reading))
        return answers.view(len(frames), -1, *answers.shape[1:]).mean(1)


class OverFrames(nn.Module):
    """A spiking network that reads (batch, frames, ...), so that T steps are the first T frames."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def observe(self, observer: Observer) -> AbstractContextManager[Any]:
        """As of the network."""
        context: AbstractContextManager[Any] = self.network.observe(observer)  # type: ignore[operator]
        return context

    @property
    def fires_late(self) -> bool:
        """As of the network."""
        return bool(getattr(self.network, "fires_late", False))

    def forward(self, frames: Tensor, *, timesteps: int | None = None, every_step: bool = False) -> Any:
        """The running mean of the outputs over the first ``timesteps`` frames, all of them if not given.

        Raises:
            InputError: these are no sequences, or there are fewer frames.
        """
        _require_frames(frames, timesteps or 1)
        return self.network(frames[:, :timesteps], time_dim=1, every_step=every_step)


class Seen:
    """Batches of sequences and labels as batches of what a network without time sees of them, without labels."""

    def __init__(self, loader: Any, reading: Reading) -> None:
        self.loader, self.reading = loader, reading

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Tensor]:
        return (seen(frames, self.reading) for frames, _ in self.loader)

    def every(self, first: int, step: int) -> Iterator[Tensor]:
        """As of the loader: some of its batches."""
        return (seen(frames, self.reading) for frames, _ in self.loader.every(first, step))


def conversion_for(reading: Reading) -> ConvertSpec:
    """How a network that has learned sequences in this reading is converted.

    Bins that are channels are an image to it, which may be shown for several timesteps.
    """
    return ConvertSpec() if reading == "channels" else ConvertSpec(reading=reading)


def timesteps_of(asked: Sequence[int], frames: int) -> tuple[int, ...]:
    """The asked numbers of timesteps that sequences of so many frames have, and their own number.

    >>> timesteps_of((1, 2, 4, 8), 6)
    (1, 2, 4, 6)
    """
    return (*(t for t in sorted(set(asked)) if t < frames), frames)


@torch.no_grad()
def verify_sequences(
    qann: QuantizedNetwork, snn: SpikingNetwork, sequences: Sequence[Tensor], timesteps: int = 1, *, scope: bool = True
) -> Proof:
    """Prove what a spiking network does with the first T frames of sequences, in the reading that it was converted with.

    ``"integrate"``: its codes after T frames are those of the refined quantized network on the mean frame.
    ``"frames"``: at each of the T frames its codes are those of the quantized network, and its answer, streamed through
    ``step``, is the mean of the quantized network's answers (to rounding at T > 1).

    Args:
        qann: what it was converted from.
        snn: the spiking network.
        sequences: batches (B, frames, C, ...).
        timesteps: T.
        scope: as :func:`polarspike.verify` has it, at T = 1.

    Raises:
        SpecError: the reading has one timestep, or what :func:`polarspike.verify` refuses.
        InputError: fewer than T frames, or what :func:`polarspike.verify` refuses.
    """
    reading = snn.spec.reading
    if reading == "channels":
        raise SpecError("verify_sequences: reading='channels' has one timestep; verify it on the merged channels")
    for batch in sequences:
        _require_frames(batch, timesteps)
    if reading == "integrate" and timesteps > 1:
        return verify(qann, snn, [batch[:, :timesteps] for batch in sequences], timesteps, time_dim=1)
    frames_apart = [batch[:, t] for batch in sequences for t in range(timesteps)]
    proof = verify(qann, snn, frames_apart, scope=scope and timesteps == 1)
    if timesteps == 1:
        return proof
    worst, equal = proof.output_difference, proof.output_equal
    with evaluating(qann):
        for batch in sequences:
            frames = to_device(batch[:, :timesteps], device_of(qann)).unbind(1)  # type: ignore[union-attr]
            wanted = torch.stack([apply(qann, frame) for frame in frames]).mean(0)
            gap = float((_streamed(snn, frames) - wanted).abs().max())
            worst, equal = max(worst, gap), equal and gap <= _TOLERANCE * max(float(wanted.abs().max()), 1e-30)
    return dataclasses.replace(proof, timesteps=timesteps, output_difference=worst, output_equal=equal)


def _require_frames(frames: Tensor, least: int) -> None:
    if frames.dim() < 2 or 0 in frames.shape or frames.shape[1] < least:
        raise InputError(
            f"expected sequences (batch, frames, ...) of at least {least} frames, got the shape {tuple(frames.shape)}"
        )


def _streamed(snn: SpikingNetwork, frames: Sequence[Tensor]) -> Tensor:
    state: SpikingState | None = None
    for frame in frames:
        answer, state = snn.step(frame, state)
    result: Tensor = answer
    return result
