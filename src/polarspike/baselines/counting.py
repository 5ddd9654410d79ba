"""Count what a rival's network does, by the same rows and rules as ours."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import torch
from torch import Tensor, nn

from polarspike.common.checks import is_integer
from polarspike.common.inputs import as_call, batch_size, batches_of, bind, map_inputs
from polarspike.common.modules import apply
from polarspike.counting.counts import OperationCounts
from polarspike.counting.recording import Recording
from polarspike.counting.tally import Tally
from polarspike.errors import SpecError
from polarspike.neurons import NeuronState
from polarspike.quantized import parameters_of
from polarspike.readings import OverFrames


@torch.no_grad()
def count_rival(network: nn.Module, batch: Any, timesteps: int = 1) -> OperationCounts:
    """Every step counts, those of a rehearsal too: the result is of ``network.rehearsal + timesteps`` steps.

    A rehearsal inside a site (COS) is counted as if the sites before it had sent the same spikes in it, and needs as many
    corrected steps of theirs, which are run and counted where T is less. Behind a rehearsal all starts from rest again. A
    network that settles sooner has as many steps as it took. The layers behind the input are counted at every step, as
    everywhere: where the image enters but once, ``static_input_macs`` is what they cost.

    Args:
        network: of neurons of ours (all rivals' are), with ``network`` (the graph) and ``observe``.
        batch: inputs, or (inputs, target); for a network over frames (batch, frames, ...).
        timesteps: T.

    Raises:
        SpecError: T is no positive integer.
    """
    if not is_integer(timesteps, 1):
        raise SpecError(f"timesteps: expected a positive integer, got {timesteps!r}")
    inputs, _ = next(iter(batches_of([batch])))
    over_frames = isinstance(network, OverFrames)
    inner: Any = network.network if over_frames else network
    simulated = max(timesteps, getattr(inner, "rehearsal", 0) - getattr(inner, "pre_run", 0))
    fired: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    with inner.observe(lambda site, t, spikes: fired[site][t].append(spikes)):  # in pieces of the batch
        apply(network, inputs, timesteps=simulated)
    trains = {site: [torch.cat(found[t]) for t in sorted(found)] for site, found in fired.items()}
    first = map_inputs(lambda value: value[:, 0], inputs) if over_frames else inputs
    recording = Recording(inner.network, list(bind(parameters_of(inner.network), *as_call(first)).values()))
    steps = min(len(train) for train in trains.values())
    restart = min(getattr(inner, "rehearsal", 0), steps)
    tally = Tally(
        recording,
        steps,
        steps,
        batch_size(inputs, inner.signature.shared),
        repeated=not over_frames,
        restarts=int(0 < restart < steps),
        pooled="sums" if getattr(inner, "contract", "all") == "all" else "steps",
    )
    before: dict[str, NeuronState] = {}
    for t in range(steps):
        if t == restart:
            before = {}
        codes = {site: train[t] + (before[site].codes if before else 0) for site, train in trains.items()}
        now = {site: NeuronState(value, value) for site, value in codes.items()}
        tally.step(before, now)
        before = now
    return tally.result()
