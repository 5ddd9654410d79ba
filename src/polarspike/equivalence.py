"""Show that a spiking network equals its quantized network, code for code, or name the first site where it does not."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from polarspike import ops
from polarspike.errors import InputError, SpecError
from polarspike.inputs import (
    Inputs,
    batch_size,
    batches_of,
    frames_of,
    map_inputs,
    running_means,
    tensors_of,
    to_device,
)
from polarspike.modules import apply, device_of, evaluating
from polarspike.proof import Proof, SiteComparison
from polarspike.quantized import QuantizedNetwork, refine
from polarspike.simulator import simulate
from polarspike.sites import Site
from polarspike.spiking import SpikingNetwork, SpikingState

# Outputs after several steps are means of rounded sums: this much of their size is rounding.
_OUTPUT_TOLERANCE = {torch.float64: 1e-10}
_FLOAT_TOLERANCE = 1e-4
# A float32 network against a float64 simulation: its own sums are rounded by about this many steps.
_EVENT_MARGIN = {torch.float64: 1e-9}
_FLOAT_MARGIN = 1e-4
_SCOPE_SAMPLES = 64


@dataclass
class _Tally:
    """Running totals of one site over batches."""

    compared: int = 0
    different: int = 0
    diverged: int = 0
    different_values: int = 0
    worst_margin: float = 0.0
    histogram: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))

    def finish(self, site: Site) -> SiteComparison:
        negative, positive = site.levels
        total = int(self.histogram.sum())
        nonzero = total - int(self.histogram[negative]) if total else 0  # code 0 stands behind N negative ones
        return SiteComparison(
            self.compared,
            self.different,
            self.diverged,
            self.different_values,
            self.worst_margin,
            int((self.histogram > 0).sum()),
            nonzero / max(1, total),
            negative + positive == 1,
        )


@dataclass(frozen=True)
class _Record:
    """What one run of one network left at every site: the signal in the mean domain, the codes, perhaps the values."""

    codes: dict[str, Tensor]
    signals: dict[str, Tensor]
    values: dict[str, Tensor]
    output: Any


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
    T = 1 the sites' values and the outputs must agree in every bit. Run it inside
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
        A :class:`~polarspike.proof.Proof`: ``proof.exact``, ``proof.sites``, ``proof.first_difference``.

    Raises:
        SpecError: the two networks do not have the same sites, or a contradictory request.
        InputError: no batch, an empty one, one with NaN or Inf, or sequences of different lengths; a site of the
            quantized network that gets NaN from finite inputs.
    """
    if not isinstance(qann, QuantizedNetwork) or not isinstance(snn, SpikingNetwork):
        raise SpecError(
            f"verify: expected a quantized and a spiking network, got {type(qann).__name__} and {type(snn).__name__}"
        )
    if list(qann.sites()) != list(snn.sites()):
        raise SpecError("verify: the two networks have different sites; the second was not converted from the first")
    if against not in ("network", "events"):
        raise SpecError(f"verify: expected against='network' or 'events', got {against!r}")
    if time_dim is not None and snn.spec.reading != "integrate":
        raise SpecError(
            f"verify: a network with reading={snn.spec.reading!r} takes every frame as a first timestep; "
            "give the frames as a batch, with timesteps=1 and no time_dim"
        )
    tallies = {name: _Tally() for name in snn.sites()}
    worst, equal, figures, extent, total = 0.0, True, [0, 0], {}, timesteps
    device = device_of(qann)
    with evaluating(qann):
        fine: QuantizedNetwork | None = None
        for position, (given, _) in enumerate(batches_of(batches)):
            inputs = to_device(given, device)
            _require_finite(inputs, position)
            frames = _frames(inputs, timesteps, time_dim)
            if fine is None:
                total = len(frames)
                fine = refine(qann, total).eval() if total > 1 else qann
            if len(frames) != total:
                raise InputError(
                    f"verify, batch {position}: expected {total} frames as in the first batch, got {len(frames)}; "
                    "verify sequences of one length at a time"
                )
            *_, mean = running_means(frames)
            expected = _run_quantized(fine, mean)
            if against == "events":
                got, spikes, additions = _run_events(snn, frames)
                figures = [figures[0] + spikes, figures[1] + additions]
            else:
                got = _run_spiking(snn, frames)
            if _tally_free(fine, expected, got, tallies):
                expected = _run_quantized(fine, mean, forced=got.codes)
                _tally_forced(fine, expected, got, tallies, total)
            gap, scale = _output_gap(expected.output, got.output)
            exact_output = total == 1 and against == "network"
            equal &= gap == 0.0 if exact_output else gap <= _tolerance(expected.output) * scale
            worst = max(worst, gap)
            if position == 0 and scope and total == 1 and against == "network":
                extent = _scope(snn, frames[0])
    if fine is None:
        raise InputError("verify: expected at least one batch, got none; nothing was compared")
    margin = 0.0
    note = ""
    if against == "events":
        margin = _EVENT_MARGIN.get(next(qann.parameters()).dtype, _FLOAT_MARGIN)
        note = f"{figures[0]} unit spikes, {figures[1]} additions; margin {margin:g} steps"
    sites = {name: tallies[name].finish(site) for name, site in fine.sites().items()}
    return Proof(total, against, sites, worst, equal, extent, margin, note)


def _frames(inputs: Inputs, timesteps: int, time_dim: int | None) -> list[Inputs]:
    length = None if time_dim is not None and timesteps == 1 else timesteps
    frames = frames_of(inputs, length, time_dim)
    if batch_size(frames[0]) == 0:
        raise InputError("verify: expected at least one sample in every batch, got none")
    return frames


@contextlib.contextmanager
def _recording(sites: dict[str, Any], record: _Record) -> Iterator[None]:
    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            record.codes[name] = module.encode(inputs[0])  # type: ignore[operator]
            record.signals[name] = inputs[0]
            record.values[name] = output

        return hook

    handles = [site.register_forward_hook(keep(name)) for name, site in sites.items()]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run_quantized(qann: QuantizedNetwork, inputs: Inputs, forced: dict[str, Tensor] | None = None) -> _Record:
    """Run the quantized network; with ``forced`` every site hands on these codes in place of its own."""
    record = _Record({}, {}, {}, None)
    with _recording(qann.sites(), record), _forcing(qann.sites(), forced or {}):
        output = apply(qann, inputs)
    return _Record(record.codes, record.signals, record.values, output)


@contextlib.contextmanager
def _forcing(sites: dict[str, Any], codes: dict[str, Tensor]) -> Iterator[None]:
    handles = [
        sites[name].register_forward_hook(
            lambda module, inputs, output, value=value: module.decode(value.to(ops.widen(output))).to(output.dtype)
        )
        for name, value in codes.items()
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _run_spiking(snn: SpikingNetwork, frames: list[Inputs]) -> _Record:
    if len(frames) == 1:
        record = _Record({}, {}, {}, None)
        with _recording(snn.sites(), record):
            output = apply(snn, frames[0])
        return _Record(record.codes, record.signals, record.values, output)
    state: SpikingState | None = None
    for frame in frames:
        output, state = snn.step(frame, state)
    assert state is not None
    return _Record({name: state.operators[name].codes for name in snn.sites()}, {}, {}, output)


def _run_events(snn: SpikingNetwork, frames: list[Inputs]) -> tuple[_Record, int, int]:
    result = simulate(snn, frames)
    figures = sum(result.spikes.values()), sum(result.additions.values())
    return _Record(dict(result.codes), {}, {}, result.output), *figures


def _tally_free(fine: QuantizedNetwork, expected: _Record, got: _Record, tallies: dict[str, _Tally]) -> bool:
    """Compare site by site, both networks having run freely; whether any code differs."""
    for name, site in fine.sites().items():
        want, have, tally = expected.codes[name], got.codes[name].to(expected.codes[name]), tallies[name]
        if want.shape != have.shape:
            raise SpecError(
                f"verify: site {name!r} has shape {tuple(have.shape)} where {tuple(want.shape)} was expected"
            )
        if bool(want.isnan().any()):
            raise InputError(
                f"verify: site {name!r} of the quantized network gets NaN from finite inputs; "
                "look for NaN or Inf in the weights before it"
            )
        tally.compared += want.numel()
        tally.diverged += int((want != have).sum())
        if name in got.values:
            tally.different_values += int((expected.values[name] != got.values[name]).sum())
        negative, positive = site.levels
        counts = torch.bincount((want + negative).flatten().long(), minlength=negative + positive + 1).cpu()
        tally.histogram = counts if not len(tally.histogram) else tally.histogram + counts
    return any(tally.diverged for tally in tallies.values())


def _tally_forced(
    fine: QuantizedNetwork, expected: _Record, got: _Record, tallies: dict[str, _Tally], timesteps: int
) -> None:
    """Compare again where every site saw the other network's earlier codes: only a site's own differences remain."""
    for name, site in fine.sites().items():
        differs = expected.codes[name] != got.codes[name].to(expected.codes[name])
        if bool(differs.any()):
            signal = ops.widen(expected.signals[name])
            scaled = signal / site.broadcast_step(signal).to(signal.dtype) + 0.5
            margin = float((scaled - scaled.round()).abs()[differs].max()) / timesteps
            tallies[name].different += int(differs.sum())
            tallies[name].worst_margin = max(tallies[name].worst_margin, margin)


def _scope(snn: SpikingNetwork, inputs: Inputs) -> dict[str, tuple[int, int]]:
    """Codes of one network that change with the conditions of the run: what a claim of equality does not cover."""
    inputs = map_inputs(lambda value: value[:_SCOPE_SAMPLES] if isinstance(value, Tensor) else value, inputs)
    size = batch_size(inputs)
    reference = _run_spiking(snn, [inputs]).codes

    def differing(other: dict[str, Tensor]) -> tuple[int, int]:
        return (
            sum(int((codes != other[name]).sum()) for name, codes in reference.items()),
            sum(codes.numel() for codes in reference.values()),
        )

    single = [
        _run_spiking(snn, [map_inputs(lambda value, i=i: value[i : i + 1], inputs)]).codes for i in range(size)
    ]  # fmt: skip
    found = {f"batch 1 against {size}": differing({name: torch.cat([c[name] for c in single]) for name in reference})}
    threads = torch.get_num_threads()
    other_threads = 1 if threads > 1 else 2
    try:
        torch.set_num_threads(other_threads)
        found[f"{threads} against {other_threads} threads"] = differing(_run_spiking(snn, [inputs]).codes)
    finally:
        torch.set_num_threads(threads)
    if any(tensor.dim() == 4 for _, tensor in tensors_of(inputs)):

        def last(value: Any) -> Any:
            if not isinstance(value, Tensor) or value.dim() != 4:
                return value
            contiguous = value.is_contiguous()
            return value.contiguous(memory_format=torch.channels_last if contiguous else torch.contiguous_format)

        found["contiguous against channels_last"] = differing(_run_spiking(snn, [map_inputs(last, inputs)]).codes)
    return found


def _output_gap(expected: Any, got: Any) -> tuple[float, float]:
    gap, scale = 0.0, 0.0
    for left, right in zip(pytree.tree_leaves(expected), pytree.tree_leaves(got), strict=True):
        if isinstance(left, Tensor) and left.numel():
            difference = (left.double() - right.double()).abs()
            # NaN on both sides is no agreement: it compares greater than any tolerance.
            gap = max(gap, float(difference.nan_to_num(nan=float("inf")).max()))
            scale = max(scale, float(left.double().abs().max()))
    return gap, max(scale, 1e-30)


def _tolerance(output: Any) -> float:
    kinds = {leaf.dtype for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)}
    return max((_OUTPUT_TOLERANCE.get(kind, _FLOAT_TOLERANCE) for kind in kinds), default=_FLOAT_TOLERANCE)


def _require_finite(inputs: Inputs, position: int) -> None:
    for name, tensor in tensors_of(inputs):
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise InputError(f"verify, batch {position}, input {name!r}: expected finite values, got NaN or Inf")
