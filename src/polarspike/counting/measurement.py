"""Run a spiking network on a batch and count what it does."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import fx

from polarspike.common.frames import frames_of
from polarspike.common.inputs import Inputs, as_call, batch_size, batches_of, bind, require_finite
from polarspike.counting.counts import OperationCounts
from polarspike.counting.recording import Recording
from polarspike.counting.rows import ElementwiseCounts
from polarspike.counting.tally import Tally
from polarspike.errors import InputError, SpecError
from polarspike.neurons import NeuronState
from polarspike.quantized import parameters_of
from polarspike.spiking import SpikingNetwork, SpikingState
from polarspike.spiking.through_time import StreamState, TemporalNetwork


@torch.no_grad()
def count_operations(
    snn: SpikingNetwork | TemporalNetwork, batch: Any, timesteps: int | None = None, *, time_dim: int | None = None
) -> OperationCounts:
    """Count what a spiking network does with a batch in T timesteps, and what the float network would do.

    The batch is run once, with the same input or the next frame at every step, and every spike is followed to every
    connection that it crosses. What is counted how: :class:`~polarspike.counting.OperationCounts`.

    Args:
        snn: what :func:`polarspike.convert` or :func:`polarspike.unroll` made. The latter always reads sequences; its float
            network runs once for each frame, and a membrane that leaks costs a multiplication at every frame but the first.
        batch: inputs, or (inputs, target).
        timesteps: T; 1 if not given, or the length of the sequences.
        time_dim: the inputs are sequences with their time in this dimension. Where each frame is a first timestep
            (``ConvertSpec(reading="frames")``), the float network runs once for each, too; else once for the mean frame.

    Raises:
        SpecError: not a spiking network, one of capped neurons, T is not a positive integer or not the length of the
            sequences, or the network takes the frames of a sequence as channels.
        InputError: the batch does not fit the network, is empty, or holds NaN or Inf.
        OperatorError: an operator has no count.
    """
    if isinstance(snn, TemporalNetwork):
        return _through_time(snn, batch, timesteps, 1 if time_dim is None else time_dim)
    if not isinstance(snn, SpikingNetwork):
        raise SpecError(f"count_operations: expected what polarspike.convert returns, got {type(snn).__name__}")
    if snn.spec.max_spikes_per_step is not None:
        raise SpecError(
            f"count_operations: max_spikes_per_step={snn.spec.max_spikes_per_step} spreads spikes over steps without input, "
            "which have no count; convert without the cap, whose codes are the same once nothing waits (snn.latency tells "
            "how long that takes)"
        )
    if snn.spec.reading == "channels" and time_dim is not None:
        raise SpecError(
            "count_operations: reading='channels' takes a sequence as one timestep; convert with "
            "ConvertSpec(), and give the frames side by side as channels, without time_dim"
        )
    inputs, _ = next(iter(batches_of([batch])))
    _check(inputs)
    frames = frames_of(inputs, timesteps, time_dim)
    timesteps = len(frames)
    passes = timesteps if time_dim is not None and snn.spec.reading == "frames" else 1
    period = 1 if snn.spec.reading == "frames" else snn.spec.window or timesteps  # steps until all starts from rest
    state: SpikingState | None = None
    tally: Tally | None = None
    for step, frame in enumerate(frames):
        before: Mapping[str, NeuronState] = {} if state is None or step % period == 0 else state.neurons
        _, state = snn.step(frame, state)  # checks the inputs first
        if tally is None:
            recording = Recording(snn.network, _in_order(snn.network, frame))
            images, repeated = batch_size(frame, snn.signature.shared), time_dim is None
            tally = Tally(recording, timesteps, period, images, passes=passes, repeated=repeated)
        tally.step(before, state.neurons)
    assert tally is not None  # timesteps >= 1
    return tally.result()


def _through_time(net: TemporalNetwork, batch: Any, timesteps: int | None, time_dim: int) -> OperationCounts:
    """Codes start anew at every frame, so every frame is counted as a first timestep, and then the leaks."""
    inputs, _ = next(iter(batches_of([batch])))
    _check(inputs)
    frames = frames_of(inputs, timesteps, time_dim)
    fired: dict[str, NeuronState] = {}
    state: StreamState | None = None
    tally: Tally | None = None
    with net.observe(lambda site, t, spikes: fired.update({site: NeuronState(spikes, spikes)})):
        for frame in frames:
            _, state = net.step(frame, state)
            if tally is None:
                recording = Recording(net.network, _in_order(net.network, frame))
                images = batch_size(frame, net.signature.shared)
                tally = Tally(recording, len(frames), 1, images, passes=len(frames), repeated=False)
            tally.step({}, fired)
    assert tally is not None  # timesteps >= 1
    counts = tally.result()
    again, kept = counts.images * (len(frames) - 1), net.leaks()
    leaks = [
        ElementwiseCounts(f"{row.site} (leak)", "scale", 0, again * row.neurons)
        for row in counts.sites
        if again and kept[row.site] != 1.0
    ]
    return dataclasses.replace(counts, elementwise=(*counts.elementwise, *leaks))


def _check(inputs: Inputs) -> None:
    if batch_size(inputs) == 0:
        raise InputError("count_operations: expected at least one image, got an empty batch")
    require_finite(inputs, "count_operations,")


def _in_order(network: fx.GraphModule, inputs: Inputs) -> list[Any]:
    return list(bind(parameters_of(network), *as_call(inputs)).values())
