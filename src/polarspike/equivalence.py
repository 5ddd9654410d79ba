"""Show that a spiking network equals its quantized network, code for code, or name the first site where it does not."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import Tensor

from polarspike import ops
from polarspike.common.frames import frames_of, running_means
from polarspike.common.inputs import Inputs, batch_size, batches_of, float_leaves, require_finite, to_device
from polarspike.common.modules import apply, device_of, evaluating
from polarspike.errors import InputError, SpecError
from polarspike.proofs.proof import Proof
from polarspike.proofs.recordings import Record, run_quantized, run_spiking
from polarspike.proofs.scope import Changes, changes
from polarspike.proofs.simulator import simulate
from polarspike.proofs.tallies import Tally, output_gap
from polarspike.quantized import QuantizedNetwork, refine
from polarspike.sites import require_exact_codes
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.through_time import TemporalNetwork

# Outputs after several steps are means of rounded sums: this much of their size is rounding.
_OUTPUT_TOLERANCE = {torch.float64: 1e-10}
_FLOAT_TOLERANCE = 1e-4
# A float32 network against a float64 simulation: its own sums are rounded by about this many steps.
_EVENT_MARGIN = {torch.float64: 1e-9}
_FLOAT_MARGIN = 1e-4


@torch.no_grad()
def verify(
    qann: QuantizedNetwork,
    snn: SpikingNetwork,
    batches: Iterable[Any] | Tensor,
    timesteps: int = 1,
    *,
    against: Literal["network", "events"] = "network",
    time_dim: int | None = None,
    scope: bool = True,
) -> Proof:
    """Run both networks on the same tensors and compare the codes of every site.

    After T steps the codes C[T] of the spiking network are compared with those of the quantized network refined T-fold,
    on the mean input. Both run freely first; if any code differs, the quantized network runs again with every site
    handing on the spiking network's codes, which tells a site's own differences from what follows from earlier ones. At
    T = 1 the sites' values and the outputs must agree in every bit; and a plain call, which nobody watches, must answer as
    the run whose codes were compared. Run it inside
    ``torch.autocast`` to prove that case; call ``.double()`` on both networks to prove T > 1 free of rounding.

    Args:
        qann: the quantized network.
        snn: what :func:`polarspike.convert` made of it.
        batches: inputs or (inputs, target).
        timesteps: T; the length of the sequence if ``time_dim`` is given.
        against: ``"network"``, or ``"events"``: an independent simulator that expands every code into unit spikes and
            only adds weights, in float64 (small networks).
        time_dim: the inputs are sequences, with varying input, in this dimension.
        scope: also count codes that change when the same network runs with batch 1, with another number of threads and
            with another memory format; no network is independent of these in floating point (T = 1, first batch).

    Returns:
        A :class:`~polarspike.proofs.proof.Proof`: ``proof.exact``, ``proof.sites``, ``proof.first_difference``.

    Raises:
        SpecError: the two networks do not have the same sites, T is too large for exact codes, or a contradictory request.
        InputError: no batch, an empty one, one with NaN or Inf, or sequences of different lengths; a site of the
            quantized network that gets NaN from finite inputs.
    """
    if isinstance(snn, TemporalNetwork):
        raise SpecError(
            "verify: the weights of a network that is trained through time are not those of its quantized network any more, "
            "and no code is compared with it; what holds is proved by polarspike.proofs.temporal_equivalence.verify_temporal"
        )
    if not isinstance(qann, QuantizedNetwork) or not isinstance(snn, SpikingNetwork):
        raise SpecError(
            f"verify: expected a quantized and a spiking network, got {type(qann).__name__} and {type(snn).__name__}"
        )
    if list(qann.sites()) != list(snn.sites()):
        raise SpecError("verify: the two networks have different sites; the second was not converted from the first")
    if against not in ("network", "events"):
        raise SpecError(f"verify: expected against='network' or 'events', got {against!r}")
    require_timesteps(snn, timesteps, sequences=time_dim is not None)
    tallies: dict[str, Tally] = {}

    def fired(name: str, codes: Tensor) -> None:
        tallies[name].fire(codes)

    worst, equal, figures, total = 0.0, True, [0, 0], timesteps
    extent: Changes = {}
    device = device_of(qann)
    with evaluating(qann):
        fine: QuantizedNetwork | None = None
        for position, (given, _) in enumerate(batches_of(batches)):
            inputs = to_device(given, device)
            require_finite(inputs, f"verify, batch {position},")
            frames = _frames(inputs, timesteps, time_dim)
            if fine is None:
                total = len(frames)
                snn.spec.require_within_window("verify", total)
                require_exact_codes("verify", snn.sites(), total)
                factor = 1 if snn.spec.neuron == "holding" else total
                fine = refine(qann, factor).eval() if factor > 1 else qann
                # Over T steps a code C runs through the refined levels, and one k[t] may take back all of them.
                tallies |= {
                    name: Tally(reach=sum(site.levels) * (total // factor)) for name, site in fine.sites().items()
                }
            if len(frames) != total:
                raise InputError(
                    f"verify, batch {position}: expected {total} frames as in the first batch, got {len(frames)}; "
                    "verify sequences of one length at a time"
                )
            *_, mean = running_means(frames)
            expected = run_quantized(fine, mean)
            _require_sound(expected)
            records = [run_spiking(snn, frames, fired)]
            gap, same = _unobserved(snn, inputs, timesteps, time_dim, records[0].output, expected.output)
            equal, worst = equal and same, max(worst, gap)
            if against == "events":  # the spiking network itself must agree, too
                simulated, spikes, additions = _run_events(snn, frames)
                figures = [figures[0] + spikes, figures[1] + additions]
                records.append(simulated)
            for got in records:
                seen = expected
                if _tally_free(expected, got, tallies):
                    seen = run_quantized(fine, mean, forced=got.codes)
                    _tally_forced(fine, seen, got, tallies, factor)
                gap, scale = output_gap(seen.output, got.output)
                exact_output = total == 1 and against == "network" and snn.spec.max_spikes_per_step is None
                equal &= gap == 0.0 if exact_output else gap <= _tolerance(seen.output) * scale
                worst = max(worst, gap)
            if position == 0 and scope and total == 1 and against == "network":
                extent = changes(snn, frames[0])
    if fine is None:
        raise InputError("verify: expected at least one batch, got none; nothing was compared")
    margin = 0.0
    note = ""
    if against == "events":
        margin = _EVENT_MARGIN.get(next(qann.parameters()).dtype, _FLOAT_MARGIN)
        note = f"{figures[0]} unit spikes, {figures[1]} additions; margin {margin:g} steps"
    return Proof(
        timesteps=total,
        against=against,
        sites={name: tallies[name].finish(site) for name, site in qann.sites().items()},
        output_difference=worst,
        output_equal=equal,
        scope=extent,
        margin=margin,
        note=note,
    )


def require_timesteps(snn: SpikingNetwork, timesteps: int, *, sequences: bool = False, verb: str = "verify") -> None:
    """Refuse so many timesteps of a network, before anything is compared, in the name of who asks for them.

    Raises:
        SpecError: it has no time, starts again before, or its codes leave the integers that are exact.
    """
    if (sequences or timesteps != 1) and snn.spec.reading != "integrate":
        raise SpecError(
            f"{verb}: a network with reading={snn.spec.reading!r} takes every frame as a first timestep; "
            "give the frames as a batch, with timesteps=1 and no time_dim"
        )
    snn.spec.require_within_window(verb, timesteps)
    require_exact_codes(verb, snn.sites(), timesteps)


def _frames(inputs: Inputs, timesteps: int, time_dim: int | None) -> list[Inputs]:
    frames = frames_of(inputs, _length(timesteps, time_dim), time_dim)
    if batch_size(frames[0]) == 0:
        raise InputError("verify: expected at least one sample in every batch, got none")
    return frames


def _length(timesteps: int, time_dim: int | None) -> int | None:
    """The number of steps that a call is asked for; None for the length of its sequence."""
    return None if time_dim is not None and timesteps == 1 else timesteps


def _unobserved(
    snn: SpikingNetwork, inputs: Inputs, timesteps: int, time_dim: int | None, observed: Any, refined: Any
) -> tuple[float, bool]:
    """How far the answers of plain calls are from those of the runs whose codes were recorded, and whether they agree.

    Looking changes the run: a network that nobody watches writes its values over memory that it no longer needs. Step by
    step the answer is that of the watched walk, in the mean domain that of the refined quantized network: in every bit at
    T = 1, to rounding at T > 1.
    """
    length = _length(timesteps, time_dim)
    capped = snn.spec.max_spikes_per_step is not None
    once = time_dim is None and timesteps == 1
    plain = {"steps": observed} if once or capped else {"steps": observed, "mean": refined}
    worst, same = 0.0, True
    for execution, wanted in plain.items():
        answer = apply(snn, inputs, timesteps=length, time_dim=time_dim, execution=execution)
        gap, scale = output_gap(wanted, answer)
        worst, same = max(worst, gap), same and gap <= (0.0 if once else _tolerance(wanted) * scale)
    return worst, same


def _run_events(snn: SpikingNetwork, frames: list[Inputs]) -> tuple[Record, int, int]:
    result = simulate(snn, frames)
    figures = sum(result.spikes.values()), sum(result.additions.values())
    share = len(frames) if snn.spec.neuron == "holding" else 1  # as in run_spiking
    return Record({name: codes / share for name, codes in result.codes.items()}, {}, {}, result.output), *figures


def _tally_free(expected: Record, got: Record, tallies: dict[str, Tally]) -> bool:
    """Compare site by site, both networks having run freely; whether any code of this batch differs."""
    found = False
    for name, tally in tallies.items():
        want, have = expected.codes[name], got.codes[name].to(expected.codes[name])
        if want.shape != have.shape:
            raise SpecError(
                f"verify: site {name!r} has shape {tuple(have.shape)} where {tuple(want.shape)} was expected"
            )
        differing = int((want != have).sum())
        tally.compared += want.numel()
        tally.diverged += differing
        if name in got.values:
            tally.different_values += int((expected.values[name] != got.values[name]).sum())
        found |= differing > 0
    return found


def _tally_forced(
    fine: QuantizedNetwork, expected: Record, got: Record, tallies: dict[str, Tally], timesteps: int
) -> None:
    """Compare again where every site saw the other network's earlier codes: only a site's own differences remain."""
    for name, site in fine.sites().items():
        have = got.codes[name].to(expected.codes[name])
        differs = expected.codes[name] != have
        if bool(differs.any()):
            signal = ops.widen(expected.signals[name])
            scaled = signal / site.broadcast_step(signal).to(signal.dtype)
            distance = _distance(scaled[differs], have[differs], site.levels) / timesteps
            tallies[name].different += int(differs.sum())
            tallies[name].worst_margin = max(tallies[name].worst_margin, float(distance.max()))


def _distance(scaled: Tensor, codes: Tensor, levels: tuple[int, int]) -> Tensor:
    """How far ``x / s`` lies outside of the interval [k - 1/2, k + 1/2) of a code, which is open outwards at a clip."""
    negative, positive = levels
    below = torch.where(codes <= -negative, -torch.inf, codes - 0.5)
    above = torch.where(codes >= positive, torch.inf, codes + 0.5)
    return torch.maximum(below - scaled, scaled - above).clamp(min=0.0)


def _require_sound(expected: Record) -> None:
    for name, codes in expected.codes.items():
        if bool(codes.isnan().any()):
            raise InputError(
                f"verify: site {name!r} of the quantized network gets NaN from finite inputs; "
                "look for NaN or Inf in the weights before it"
            )


def _tolerance(output: Any) -> float:
    kinds = {leaf.dtype for leaf in float_leaves(output)}  # integers round nothing
    return max((_OUTPUT_TOLERANCE.get(kind, _FLOAT_TOLERANCE) for kind in kinds), default=_FLOAT_TOLERANCE)
