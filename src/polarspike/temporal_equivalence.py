"""What can be proved of a network that was trained through time.

Its weights have left the quantized network that it started from, so no code of it is compared with that one any more. What
holds, whatever it has learned::

    first frame     k[1] is the code of the quantized network with its own weights, steps and levels
    every frame     k[t] of a stream, frame by frame through ``step``, is k[t] of the whole sequence at once, layer by layer
    events          k[t] is what neurons fire that only add weights and leak, simulated spike by spike (small networks)

All of it is compared in float64, on a copy: a sum that float32 rounds across a boundary in one order of execution and not in
the other changes a code there, and the membranes of all frames behind it.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from polarspike.errors import InputError, SpecError
from polarspike.graph import finish
from polarspike.inputs import to_device
from polarspike.modules import device_of
from polarspike.proof import Proof, SiteComparison
from polarspike.quantized import QuantizedNetwork
from polarspike.quantizers import PolarityQuantizer
from polarspike.recordings import run_quantized
from polarspike.simulator import simulate
from polarspike.sites import Site
from polarspike.specs import QuantSpec
from polarspike.through_time import StreamState, TemporalNetwork

# Of means of float64 sums, taken in two orders.
_TOLERANCE = 1e-10
_Codes = dict[str, Tensor]  # (T, batch, ...) by site


@torch.no_grad()
def verify_temporal(
    net: TemporalNetwork,
    sequences: Sequence[Tensor],
    timesteps: int | None = None,
    against: Literal["stream", "events"] = "stream",
) -> Proof:
    """Prove what holds of a network that was trained through time, on the first T frames of sequences, in float64.

    Args:
        net: the network, left untouched.
        sequences: batches (B, frames, ...).
        timesteps: T; all frames if not given.
        against: its own stream (and, at the first frame, the quantized network of its own weights), or the event-by-event
            simulator.

    Raises:
        SpecError: not such a network, or an unknown ``against``.
        InputError: no batch, or one that the network cannot read or that has fewer than T frames; for ``"events"``, what
            the simulator refuses.
    """
    if not isinstance(net, TemporalNetwork):
        raise SpecError(f"verify_temporal: expected what polarspike.unroll returns, got {type(net).__name__}")
    if against not in ("stream", "events"):
        raise SpecError(f"verify_temporal: expected against='stream' or 'events', got {against!r}")
    if not sequences:
        raise InputError("verify_temporal: expected at least one batch of sequences, got none; nothing was compared")
    precise = copy.deepcopy(net).double().eval()
    first = quantized_at_first_frame(precise)
    tallies: dict[str, list[tuple[Tensor, Tensor]]] = defaultdict(list)
    worst, equal, length = 0.0, True, 0
    for batch in sequences:
        frames: Tensor = to_device(batch, device_of(precise)).double()  # type: ignore[union-attr]
        codes, answer = _recorded(precise, lambda frames=frames: precise(frames, timesteps=timesteps))  # type: ignore[misc]
        length = len(next(iter(codes.values())))
        steps = list(frames[:, :length].unbind(1))
        others = [_streamed(precise, steps) if against == "stream" else _simulated(precise, steps)]
        if against == "stream":
            begun = run_quantized(first, steps[0])
            others.append(({name: found.unsqueeze(0) for name, found in begun.codes.items()}, None))
        for found, reached in others:
            for name, have in codes.items():
                tallies[name].append((have[: len(found[name])].cpu(), found[name].to(have).cpu()))
            if reached is not None:
                gap, scale = _gap(answer, reached)
                worst, equal = max(worst, gap), equal and gap <= _TOLERANCE * scale
    return Proof(
        timesteps=length,
        against=against,
        sites={name: _compared(site, tallies[name]) for name, site in net.sites().items()},
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


def _recorded(net: TemporalNetwork, run: Callable[[], Any]) -> tuple[_Codes, Any]:
    """The codes of every frame and the answer of a run, which may take the batch in pieces."""
    fired: dict[str, dict[int, list[Tensor]]] = defaultdict(lambda: defaultdict(list))
    with net.observe(lambda site, t, spikes: fired[site][t].append(spikes)):
        answer = run()
    return {
        site: torch.stack([torch.cat(pieces) for _, pieces in sorted(frames.items())]) for site, frames in fired.items()
    }, answer


def _streamed(net: TemporalNetwork, frames: Sequence[Tensor]) -> tuple[_Codes, Any]:
    def run() -> Any:
        answer, state = None, StreamState()
        for frame in frames:
            answer, state = net.step(frame, state)
        return answer

    return _recorded(net, run)


def _simulated(net: TemporalNetwork, frames: Sequence[Tensor]) -> tuple[_Codes, Any]:
    result = simulate(net, [frame.cpu() for frame in frames])
    return dict(result.codes), result.output


def _compared(site: Site, pairs: Sequence[tuple[Tensor, Tensor]]) -> SiteComparison:
    different = sum(int((have != found).sum()) for have, found in pairs)
    fired = torch.cat([have.flatten() for have, _ in pairs])
    return SiteComparison(
        compared=fired.numel(),
        different=different,
        diverged=different,
        different_values=0,
        worst_margin=float("inf") if different else 0.0,
        distinct=len(torch.unique(fired)),
        nonzero_share=int(fired.count_nonzero()) / max(1, fired.numel()),
        binary=sum(site.levels) == 1,
    )


def _gap(expected: Any, found: Any) -> tuple[float, float]:
    gap, scale = 0.0, 1e-30
    for left, right in zip(pytree.tree_leaves(expected), pytree.tree_leaves(found), strict=True):
        if isinstance(left, Tensor) and left.numel():
            difference = (left.cpu() - right.cpu()).abs().nan_to_num(nan=float("inf"))
            gap, scale = max(gap, float(difference.max())), max(scale, float(left.abs().max()))
    return gap, scale
