"""The neurons of conversion rivals: integrate and fire with another rule of firing than ours.

All of them reset softly, so that one residue says everything::

    R[t] = A[t] - theta C[t-1],   A[t] = I[1] + ... + I[t],   C[t] = k[1] + ... + k[t]

    binary (IF)               k = 1 if R + v0 >= theta                                    (v0 = 0, or theta / 2)
    signed with memory        k = 1 if R >= theta;  -1 if R <= -theta and C[t-1] > 0
    multi-spike               k = clip(floor((R + v0) / theta), 0, P)                     (v0 = theta / 2)

ST-BIF+ is not here: it is our capped neuron (:mod:`polarspike.baselines.settling`).
A neuron takes the inputs of all timesteps at once and answers with its spikes at all of them, because two of the rivals look
at a rehearsal before they fire. The step of a site is the threshold theta, the value of one spike.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor

from polarspike import ops
from polarspike.specs import SiteSpec
from polarspike.spiking.sequences import SequenceNeuron, SpikeTrain

# What a potential is moved beyond a threshold by, in thresholds: as in the code published with COS (ICLR 2023).
_MARGIN = 1e-3


class SoftResetNeuron(SequenceNeuron):
    """A neuron whose spikes follow from the residue and from what it has fired so far."""

    @abstractmethod
    def rule(self, residue: Tensor, fired: Tensor, threshold: Tensor) -> Tensor:
        """The spikes k[t], float-typed integers, from R[t] and C[t-1]."""

    def train_of(self, currents: Tensor) -> SpikeTrain:
        threshold = self.broadcast_step(currents[0])
        total = torch.zeros_like(currents[0])
        fired = torch.zeros_like(total)
        spikes = []
        for current in ops.widen(currents):
            total = total + current
            k = self.rule(total - threshold * fired, fired, threshold)
            fired = fired + k
            spikes.append(k)
        return SpikeTrain(torch.stack(spikes))


class BinaryNeuron(SoftResetNeuron):
    """Integrate and fire: one spike where the potential reaches the threshold (Rueckauer et al. 2017, soft reset).

    Args:
        spec, name: as for any site.
        start: v0 in thresholds: 0, or 1/2 as QCFS and its successors take it.
    """

    def __init__(self, spec: SiteSpec, name: str = "", start: float = 0.5) -> None:
        super().__init__(spec, name)
        self.starting = start

    def rule(self, residue: Tensor, fired: Tensor, threshold: Tensor) -> Tensor:
        del fired
        return (residue + self.starting * threshold >= threshold).to(residue.dtype)


class SignedMemoryNeuron(SoftResetNeuron):
    """Signed neuron with memory (SNM, IJCAI 2022): a negative spike only takes back an earlier positive one."""

    def rule(self, residue: Tensor, fired: Tensor, threshold: Tensor) -> Tensor:
        up = (residue >= threshold).to(residue.dtype)
        return up - ((residue <= -threshold) & (fired > 0)).to(residue.dtype)


class MultiSpikeNeuron(SoftResetNeuron):
    """Up to P spikes a step and none negative: a group of P graded members (ICASSP 2024), or scale-and-fire (2510.23383)."""

    def rule(self, residue: Tensor, fired: Tensor, threshold: Tensor) -> Tensor:
        del fired
        # floor((R + theta / 2) / theta), by the one rounding of the library.
        return ops.encode(residue, threshold, 0, self.levels[1])


class ResidualMembraneNeuron(BinaryNeuron):
    """SRP (AAAI 2023): what is left below zero after ``rehearsal`` steps silences the neuron in the steps that count.

    The first ``rehearsal`` inputs are simulated as by :class:`BinaryNeuron` and sent on; then every neuron starts anew, and
    fires only where its residual potential was positive.
    """

    def __init__(self, spec: SiteSpec, name: str = "", rehearsal: int = 4) -> None:
        super().__init__(spec, name)
        self.pre_run = rehearsal

    def train_of(self, currents: Tensor) -> SpikeTrain:
        before, counted = currents[: self.pre_run], currents[self.pre_run :]
        first = super().train_of(before).spikes
        if not len(counted):
            return SpikeTrain(first)
        threshold = self.broadcast_step(currents[0])
        potential = before.sum(0) + threshold * (self.starting - first.sum(0))
        alive = (potential > _MARGIN * threshold).to(first.dtype)
        return SpikeTrain(torch.cat((first, super().train_of(counted).spikes * alive)))


class OffsetSpikeNeuron(BinaryNeuron):
    """COS (ICLR 2023): a rehearsal tells who fires a spike too many or too few, and its start is shifted by about one.

        residual < 0 and fired > 0     v0 - max(theta, smallest potential that fired - theta + margin)
        residual >= theta              v0 + max(theta, theta - largest potential that stayed silent + margin)

    The rehearsal sees the first ``rehearsal`` inputs of this site, which are the corrected outputs of the sites before it.
    """

    def __init__(self, spec: SiteSpec, name: str = "", rehearsal: int = 4) -> None:
        super().__init__(spec, name)
        self.own_rehearsal = rehearsal

    def train_of(self, currents: Tensor) -> SpikeTrain:
        inputs = ops.widen(currents)
        threshold = self.broadcast_step(currents[0])
        potential = torch.zeros_like(inputs[0]) + self.starting * threshold
        fired = torch.zeros_like(potential)
        lowest_firing = torch.full_like(potential, torch.inf)
        highest_silent = torch.full_like(potential, -torch.inf)
        rehearsed = []
        for t in range(self.own_rehearsal):
            potential = potential + inputs[t % len(inputs)]
            spike = potential >= threshold
            lowest_firing = torch.where(spike, torch.minimum(lowest_firing, potential), lowest_firing)
            highest_silent = torch.where(spike, highest_silent, torch.maximum(highest_silent, potential))
            fired = fired + spike
            potential = potential - threshold * spike
            rehearsed.append(spike.to(inputs.dtype))
        one_less = torch.maximum(threshold, lowest_firing - (1.0 - _MARGIN) * threshold)
        one_more = torch.maximum(threshold, (1.0 + _MARGIN) * threshold - highest_silent)
        start = torch.zeros_like(potential)  # beyond theta / 2, which the rule adds
        start = torch.where((potential < 0) & (fired > 0), start - one_less, start)
        start = torch.where(potential >= threshold, start + one_more, start)
        shifted = torch.cat((inputs[:1] + start, inputs[1:]))
        return SpikeTrain(super().train_of(shifted).spikes, torch.stack(rehearsed))
