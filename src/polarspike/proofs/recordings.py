"""What one run of a quantized or a spiking network leaves at every site: codes, signals, values."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from polarspike import ops
from polarspike.common.inputs import Inputs
from polarspike.common.modules import apply, hooked
from polarspike.quantized import QuantizedNetwork
from polarspike.spiking import SpikingNetwork, SpikingState

#: Told the name of a site and the codes that it fires at one timestep.
Fired = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Record:
    """What one run of one network left at every site: the signal in the mean domain, the codes, perhaps the values."""

    codes: dict[str, Tensor]
    signals: dict[str, Tensor]
    values: dict[str, Tensor]
    output: Any


@contextlib.contextmanager
def _recording(sites: dict[str, Any], record: Record) -> Iterator[None]:
    def keep(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            record.codes[name] = module.encode(inputs[0])  # type: ignore[operator]
            record.signals[name] = inputs[0]
            record.values[name] = output

        return hook

    with hooked(site.register_forward_hook(keep(name)) for name, site in sites.items()):
        yield


def run_quantized(qann: QuantizedNetwork, inputs: Inputs, forced: dict[str, Tensor] | None = None) -> Record:
    """Run the quantized network; with ``forced`` every site hands on these codes in place of its own."""
    record = Record({}, {}, {}, None)
    with _recording(qann.sites(), record), _forcing(qann.sites(), forced or {}):
        output = apply(qann, inputs)
    return Record(record.codes, record.signals, record.values, output)


@contextlib.contextmanager
def _forcing(sites: dict[str, Any], codes: dict[str, Tensor]) -> Iterator[None]:
    handles = [
        sites[name].register_forward_hook(
            lambda module, inputs, output, value=value: module.decode(value.to(ops.widen(output))).to(output.dtype)
        )
        for name, value in codes.items()
    ]
    with hooked(handles):
        yield


def run_spiking(snn: SpikingNetwork, frames: Sequence[Inputs], fired: Fired | None = None) -> Record:
    """Run the spiking network on the frames of a sequence; ``fired`` is told what every site fires at every step."""
    if len(frames) == 1 and snn.spec.max_spikes_per_step is None:
        record = Record({}, {}, {}, None)
        with _recording(snn.sites(), record):
            output = apply(snn, frames[0])
        if fired:
            for name, codes in record.codes.items():
                fired(name, codes)
        return Record(record.codes, record.signals, record.values, output)
    state: SpikingState | None = None
    with contextlib.ExitStack() as stack:
        if fired:
            stack.enter_context(snn.observe(lambda name, _, spikes: fired(name, spikes)))
        for frame in frames:
            output, state = snn.step(frame, state)
        assert state is not None
        if snn.spec.max_spikes_per_step is not None:
            output, state = snn.drain(frames[-1], state)
    # A holding neuron sums T answers of the same grid.
    share = len(frames) if snn.spec.neuron == "holding" else 1
    return Record({name: state.neurons[name].codes / share for name in snn.sites()}, {}, {}, output)
