"""What can be proved of a network that was trained through time.

Its weights have left the quantized network that it started from, so no code of it is compared with that one any more. What
holds, whatever it has learned::

    first frame     k[1] is the code of the quantized network with its own weights, steps and levels
    every frame     k[t] of a stream, frame by frame through ``step``, is k[t] of the whole sequence at once, layer by layer
    events          k[t] is what neurons fire that only add weights and leak, simulated spike by spike (small networks)

The first two (``against="stream"``) run the same neuron code on both sides, so they are about time and not about the law of
the neuron; the simulator (``against="events"``) calls nothing of that code.

All of it is compared in float64, on a copy: a sum that float32 rounds across a boundary in one order of execution and not in
the other changes a code there, and the membranes of all frames behind it. Codes of one batch are held at a time.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from polarspike.common.frames import frames_of
from polarspike.common.inputs import Inputs, batches_of, map_inputs, require_finite, to_device
from polarspike.common.modules import apply, device_of
from polarspike.errors import InputError, SpecError
from polarspike.graph.editing import finish
from polarspike.proofs.proof import Proof
from polarspike.proofs.recordings import run_quantized
from polarspike.proofs.simulator import simulate
from polarspike.proofs.tallies import Tally, output_gap
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import QuantSpec
from polarspike.spiking.through_time import StreamState, TemporalNetwork

# Of means of float64 sums, taken in two orders.
_TOLERANCE = 1e-10
# Codes of fewer levels are held in two bytes, and so is what they are counted by.
_FEW = 2**14
_CPU = torch.device("cpu")


@torch.no_grad()
def verify_temporal(
    net: TemporalNetwork,
    batches: Iterable[Any] | Tensor,
    timesteps: int | None = None,
    against: Literal["stream", "events"] = "stream",
) -> Proof:
    """Prove what holds of a network that was trained through time, on the first T frames of sequences, in float64.

    It runs where the network is, or on the CPU where that device has no float64.

    Args:
        net: the network, left untouched.
        batches: sequences (B, frames, ...), or (sequences, target).
        timesteps: T; all frames if not given.
        against: its own stream (and, at the first frame, the quantized network of its own weights), or the event-by-event
            simulator (small networks).

    Raises:
        SpecError: not such a network, or an unknown ``against``.
        InputError: no batch, one with NaN or Inf, one that the network cannot read, one of fewer than T frames, or of
            another number than the first where T is not given; a site that gets NaN from finite inputs; for ``"events"``,
            what the simulator refuses.
    """
    if not isinstance(net, TemporalNetwork):
        raise SpecError(f"verify_temporal: expected what polarspike.unroll returns, got {type(net).__name__}")
    if against not in ("stream", "events"):
        raise SpecError(f"verify_temporal: expected against='stream' or 'events', got {against!r}")
    place = device_of(net)
    if place.type == "mps":  # it has no float64
        place = _CPU
    precise = copy.deepcopy(net).to(place).double().eval()
    first = quantized_at_first_frame(precise) if against == "stream" else None
    tallies = {name: Tally(reach=sum(site.levels)) for name, site in net.sites().items()}
    worst, equal, length = 0.0, True, 0
    for position, (given, _) in enumerate(batches_of(batches)):
        inputs = map_inputs(_widened, to_device(given, place))
        where = f"verify_temporal, batch {position}"
        require_finite(inputs, f"{where},")
        frames = frames_of(inputs, None, 1)
        if timesteps is None and length not in (0, len(frames)):
            raise InputError(
                f"{where}: expected {length} frames as in the first batch, got {len(frames)}; verify sequences of one "
                "length at a time, or give timesteps"
            )
        answer, reached, length = _both(precise, first, inputs, frames, timesteps, tallies)
        gap, scale = output_gap(answer, reached)
        worst, equal = max(worst, gap), equal and gap <= _TOLERANCE * scale
    if not length:
        raise InputError("verify_temporal: expected at least one batch of sequences, got none; nothing was compared")
    return Proof(
        timesteps=length,
        against=against,
        sites={name: tallies[name].finish(site) for name, site in net.sites().items()},
        output_difference=worst,
        output_equal=equal,
        note="in float64; codes of every frame" + (
            ", those of the first also with the quantized network of the same weights" if against == "stream" else ""
        ),
    )  # fmt: skip


def quantized_at_first_frame(net: TemporalNetwork) -> QuantizedNetwork:
    """A copy without time: the quantized network that this one is at its first frame, with its weights, steps and levels."""
    network = copy.deepcopy(net.network)
    for name, site in net.sites().items():
        quantizer = PolarityQuantizer(site.spec, site.name).to(site.start).adopt(site)
        network.add_submodule(name, quantizer)
    made = QuantizedNetwork(finish(network), QuantSpec(), net.signature)
    made.notes = dict(net.notes)
    return made.train(net.training)


def _widened(value: Any) -> Any:
    return value.double() if isinstance(value, Tensor) and value.is_floating_point() else value


def _both(
    net: TemporalNetwork,
    first: QuantizedNetwork | None,
    inputs: Inputs,
    frames: Sequence[Inputs],
    timesteps: int | None,
    tallies: dict[str, Tally],
) -> tuple[Any, Any, int]:
    """The answers of a batch at once, and of its frames one by one, and T; codes are compared as they are fired.

    ``first`` is the network at its first frame, compared beside the stream; the simulator is asked where it is None.
    """
    codes, answer = _whole(net, inputs, timesteps)
    length = len(next(iter(codes.values()), frames))
    frames = frames[:length]
    for name, have in codes.items():
        for frame_codes in have:
            tallies[name].fire(frame_codes)
    if first is None:
        simulated = simulate(net, [to_device(frame, _CPU) for frame in frames])
        _compare(codes, simulated.codes, tallies)
        return answer, simulated.output, length
    reached, state, fired = None, StreamState(), dict[str, Tensor]()
    with net.observe(lambda name, _, spikes: fired.update({name: spikes})):
        for t, frame in enumerate(frames):
            fired.clear()
            reached, state = net.step(frame, state)
            _compare({name: have[t] for name, have in codes.items()}, fired, tallies)
    _compare({name: have[0] for name, have in codes.items()}, run_quantized(first, frames[0]).codes, tallies)
    return answer, reached, length


def _whole(net: TemporalNetwork, inputs: Inputs, timesteps: int | None) -> tuple[dict[str, Tensor], Any]:
    """The codes of every frame, (T, batch, ...) by site, and the answer of a whole batch, which may be run in pieces."""
    fired: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    kinds = {name: torch.int16 if sum(site.levels) < _FEW else torch.int64 for name, site in net.sites().items()}

    def keep(name: str, timestep: int, spikes: Tensor) -> None:
        if bool(spikes.isnan().any()):
            raise InputError(
                f"verify_temporal: site {name!r} gets NaN from finite inputs; look for NaN or Inf in the weights before it"
            )
        fired[name][timestep].append(spikes.to(kinds[name]))

    with net.observe(keep):
        answer = apply(net, inputs, timesteps=timesteps)
    return {
        name: torch.stack([torch.cat(pieces) for _, pieces in sorted(frames.items())]) for name, frames in fired.items()
    }, answer


def _compare(codes: Mapping[str, Tensor], others: Mapping[str, Tensor], tallies: Mapping[str, Tally]) -> None:
    for name, have in codes.items():
        found, tally = others[name], tallies[name]
        if have.shape != found.shape:
            raise SpecError(
                f"verify_temporal: site {name!r} has shape {tuple(found.shape)} where {tuple(have.shape)} was expected"
            )
        differing = int((have != found.to(have.device)).sum())
        tally.compared += have.numel()
        tally.different += differing
        tally.diverged += differing
        if differing:
            tally.worst_margin = float("inf")  # no distance from a boundary excuses a difference in float64
