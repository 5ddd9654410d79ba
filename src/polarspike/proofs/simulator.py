"""The second proof: an event-by-event simulator that expands every code into unit spikes and only adds weights.

    a unit integrates   v += sum of the synaptic weights of the spikes that reach it + constant and graded current
    a unit fires        +1 while v >= s/2 and c < P t,  v -= s;      -1 while v < -s/2 and c > -N t,  v += s
    a spike is worth    s between codes c and c + 1 with c >= 0,  g s with c < 0;  less that if it takes one back

A spike of site A at position p adds the column of p, the effective weights from p to every position that it reaches,
to the membranes there. Between two junctions lie affine operators f only, which is tested, so the column is the impulse
response f(e_p) - f(0), taken in float64 from the network's own operators and scaled once by the value of a spike; f(0),
the biases, arrives once per timestep. Nothing of the neurons' law, of ``ops.encode`` and ``ops.decode``, or of the
operators in time is called.

Any operator f that is not affine (softmax, a normalization, GELU, a product of two signals) is a *graded junction*: it
adds up the spikes and currents S that arrive at each of its inputs, and injects as an analog current what ``t f(S / t)``
changed by, as the network's input is injected. Injection is the one place that multiplies; :attr:`Simulation.injections`
counts it, and :attr:`Simulation.graded` names the junctions. Max pooling of spikes needs none: a *comparator* counts the
spikes at its inputs, and fires unit spikes until its own code is the largest count in its window.

A holding neuron fires until its code is t times what the mean input passes; a capped one fires at most its cap in a step,
and after the last input steps without input follow until nothing waits (:attr:`Simulation.drained`).

In a network that is trained through time (:mod:`polarspike.spiking.through_time`) membranes leak from frame to frame, and
codes, counts and graded junctions start anew at each.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from polarspike.common.inputs import Inputs, as_call, batch_size, bind, require_finite, tensors_of
from polarspike.errors import InputError, SpecError
from polarspike.graph.editing import INTEGERS
from polarspike.proofs.circuit import Circuit
from polarspike.proofs.junctions import GradedJunction
from polarspike.proofs.stretches import double
from polarspike.proofs.units import Comparators, Neurons, Unit
from polarspike.quantized import parameters_of
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.through_time import TemporalNetwork


@dataclass(frozen=True)
class Simulation:
    """What the simulator found after T timesteps.

    Attributes:
        timesteps: T.
        codes: C[T] of every site, int64, (batch, ...); of a network that is trained through time k[t] of every frame,
            (T, batch, ...), and so its margins.
        margins: how far each final membrane is from the nearest boundary at which its code would change, in steps,
            float64, (batch, ...). A network in another precision must agree where this exceeds its rounding.
        output: the running mean of the output, float64.
        spikes: unit spikes that each site emitted, the sum of abs(k[t]) over samples, positions and steps.
        comparator_spikes: the same for each max pooling that works on spikes.
        additions: weights added by the spikes of each site and comparator (spikes times fan-out; a spike of gain zero
            adds none, a comparator's counting is included).
        injections: non-zero graded values injected by each input and graded junction.
        graded: the names of the graded junctions.
        drained: steps without input after the last, until nothing waited (capped neurons alone).
    """

    timesteps: int
    codes: Mapping[str, Tensor]
    margins: Mapping[str, Tensor]
    output: Any
    spikes: Mapping[str, int]
    comparator_spikes: Mapping[str, int]
    additions: Mapping[str, int]
    injections: Mapping[str, int]
    graded: tuple[str, ...]
    drained: int = 0


@torch.no_grad()
def simulate(snn: SpikingNetwork | TemporalNetwork, inputs: Sequence[Inputs]) -> Simulation:
    """Run a small spiking network event by event, in float64 on the CPU; the network itself is left untouched.

    Steps and gains are taken as the network holds them, in its own precision. Frames are integrated, whatever the
    network's ``ConvertSpec.reading``: for the reading "frames", simulate each frame by itself.

    Args:
        snn: what :func:`polarspike.convert` or :func:`polarspike.unroll` made.
        inputs: one input batch per timestep, ``[x] * T`` for a repeated one.

    Raises:
        SpecError: not a spiking network.
        InputError: inputs that do not fit, are not finite or differ in shape between steps; a parameter that is not
            finite; a network of more than 5e7 synapses (positions times fan-out), or 2e10 values to probe for them.
        OperatorError: operators between two junctions are not affine in each sample by itself.
    """
    if not isinstance(snn, SpikingNetwork | TemporalNetwork):
        raise SpecError(
            f"simulate: expected what polarspike.convert or polarspike.unroll returns, got {type(snn).__name__}"
        )
    _require_sound(snn)
    frames = _checked_frames(snn, inputs)
    doubled = copy.deepcopy(snn.network).cpu().double()
    by_frame = isinstance(snn, TemporalNetwork)
    shared = snn.signature.shared
    circuit = Circuit(snn.network, doubled, frames[0], batch_size(inputs[0], shared), shared, by_frame)
    passed = []
    for timestep, frame in enumerate(frames, start=1):
        circuit.step(frame, timestep)
        if by_frame:
            passed.append(_found(circuit, 1))
    circuit.drain(len(frames))
    found = _found(circuit, len(frames))
    if not by_frame:
        return found
    return dataclasses.replace(
        found,
        codes={name: torch.stack([one.codes[name] for one in passed]) for name in found.codes},
        margins={name: torch.stack([one.margins[name] for one in passed]) for name in found.margins},
    )


def _found(circuit: Circuit, timesteps: int) -> Simulation:
    sites: list[Neurons] = circuit.of_kind(Neurons)
    graded: list[GradedJunction] = circuit.of_kind(GradedJunction)
    return Simulation(
        timesteps=timesteps,
        codes={site.name: site.fired.shaped(site.codes) for site in sites},
        margins={site.name: site.fired.shaped(site.margin(timesteps)) for site in sites},
        output=circuit.answer(timesteps),
        spikes={site.name: site.spikes for site in sites},
        comparator_spikes={pool.name: pool.spikes for pool in circuit.of_kind(Comparators)},
        additions={unit.name: unit.additions for unit in circuit.of_kind(Unit)},
        injections={**circuit.injected, **{junction.name: junction.injected for junction in graded}},
        graded=tuple(junction.name for junction in graded),
        drained=circuit.drained,
    )


def _require_sound(snn: SpikingNetwork | TemporalNetwork) -> None:
    """Refuse NaN and Inf, except for the minus infinity of a mask, which is a buffer."""
    learned = {name for name, _ in snn.named_parameters()}
    for name, value in snn.state_dict().items():
        if value.is_floating_point():
            masked = torch.isneginf(value) if name not in learned else torch.zeros_like(value, dtype=torch.bool)
            if not bool((torch.isfinite(value) | masked).all()):
                raise InputError(
                    f"simulate: expected finite parameters, but {name!r} holds NaN or Inf; load a sound network"
                )


def _checked_frames(snn: SpikingNetwork | TemporalNetwork, inputs: Sequence[Inputs]) -> list[dict[str, Any]]:
    """Every timestep's input by placeholder name, in float64."""
    if not isinstance(inputs, (list, tuple)) or not inputs:
        raise InputError(
            f"simulate: expected a list with one input batch per timestep, got {type(inputs).__name__}; "
            "for one timestep give [x], for T steps of the same input [x] * T"
        )
    parameters = parameters_of(snn.network)
    signature = snn.signature.named(parameters)
    constant = snn.network.meta.get(INTEGERS, ())
    frames: list[dict[str, Any]] = []
    shapes: list[Any] = []
    for timestep, given in enumerate(inputs, start=1):
        frame = bind(parameters, *as_call(given))
        signature.check(frame)
        shapes.append(
            (batch_size(given, signature.shared), [(name, tensor.shape) for name, tensor in tensors_of(given)])
        )
        if shapes[-1] != shapes[0]:
            raise InputError(f"timestep {timestep}: expected the shapes of the first, {shapes[0]}, got {shapes[-1]}")
        require_finite(given, f"timestep {timestep},")
        frames.append({name: double(value) for name, value in frame.items()})
        for name in constant:
            first, value = frames[0][name], frames[-1][name]
            if isinstance(value, Tensor) and not torch.equal(first, value):
                raise InputError(
                    f"timestep {timestep}, input {name!r}: expected the integers of the first step, which are the same at "
                    "every step, got others; give floats"
                )
    return frames
