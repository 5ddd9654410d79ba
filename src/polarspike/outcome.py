"""What an experiment found: accuracy, proofs, operations and energy of a network before and after its conversion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from polarspike.counting import OperationCounts, count_operations
from polarspike.energy import CostTable, EnergyEstimate, estimate_energy
from polarspike.equivalence import verify
from polarspike.evaluation import Evaluation, evaluate
from polarspike.modules import device_of
from polarspike.proof import Proof
from polarspike.quantized import QuantizedNetwork
from polarspike.readings import AtOnce, OverFrames, verify_sequences
from polarspike.specs import Reading
from polarspike.spiking import SpikingNetwork

_READINGS: dict[Reading, str] = {
    "integrate": "ANN and QANN see the mean of all frames, the SNN equals the refined QANN on the mean of T",
    "frames": "ANN and QANN see every frame by itself, as the SNN does, and answers are averaged",
}


@dataclass(frozen=True)
class Outcome:
    """What an experiment found; ``str(outcome)`` is the table that the command line prints."""

    ann: Evaluation
    qann: Evaluation
    snn: Evaluation
    proofs: tuple[Proof, ...]
    counts: OperationCounts
    energy: EnergyEstimate
    network: SpikingNetwork
    reading: Reading = "channels"

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        return {
            "ann": self.ann.to_dict(),
            "qann": self.qann.to_dict(),
            "snn": self.snn.to_dict(),
            "proofs": [
                {
                    "timesteps": proof.timesteps,
                    "exact": proof.exact,
                    "conclusive": proof.conclusive,
                    "output_difference": proof.output_difference,
                    "scope": dict(proof.scope),
                    "sites": {name: asdict(site) for name, site in proof.sites.items()},
                }
                for proof in self.proofs
            ],
            "counts": self.counts.to_dict(),
            "energy": self.energy.to_dict(),
        }

    def __str__(self) -> str:
        header = f"{'network':<10} {'T':>3} {'accuracy':>9} {'codes compared':>15} {'different':>10} {'events':>8} " + (
            f"{'spikes':>8} {'positive':>9} {'negative':>9}"
        )
        lines = [
            header,
            f"{'ANN':<10} {'':>3} {self.ann.accuracy[1]:>9.2%}",
            f"{'QANN':<10} {'':>3} {self.qann.accuracy[1]:>9.2%}",
        ]
        firing = self.snn.firing or {}
        for proof in self.proofs:
            t = proof.timesteps
            shown = firing[t]
            lines.append(
                f"{'SNN':<10} {t:>3} {self.snn.accuracy[t]:>9.2%} {proof.compared:>15} {proof.different:>10} "
                f"{shown.events_per_neuron:>8.3f} {shown.spikes_per_neuron:>8.3f} "
                f"{shown.positive_spikes_per_neuron:>9.3f} {shown.negative_spikes_per_neuron:>9.3f}"
            )
        what = "image" if self.reading == "channels" else "sequence"
        lines.append(f"({self.snn.total} test {what}s; events and spikes per neuron and {what}, up to T)")
        if self.reading != "channels":
            lines.append(f"(T: the first T frames, streamed; {_READINGS[self.reading]})")
        for proof in self.proofs:
            if proof.different:
                lines.append(
                    f"T={proof.timesteps}: each difference lies within {proof.worst_margin:.1e} steps of a boundary "
                    f"(float32 sums); {proof.diverged} codes differ when both networks run freely"
                )
            if proof.void:
                lines.append(
                    f"T={proof.timesteps}: VOID at {', '.join(proof.void)}: too few different codes, or events"
                )
        lines += [f"T=1, one network under other conditions: {line}" for line in self.proofs[0].scope_lines()]
        return "\n".join([*lines, "", str(self.energy)])


def examine(
    ann: nn.Module,
    qann: QuantizedNetwork,
    snn: SpikingNetwork,
    test: Iterable[Any],
    proof_batches: Sequence[Any],
    timesteps: Sequence[int],
    reading: Reading = "channels",
) -> Outcome:
    """Evaluate the three networks on the whole test set, verify the conversion, count and price the first proof batch.

    Args:
        ann: the float network, which reads what ``test`` gives.
        qann: the quantized network; of sequences it reads what ``reading`` says.
        snn: what it became.
        test: batches (inputs, labels).
        proof_batches: others, on which codes are compared.
        timesteps: the T; of sequences, of their first T frames.
        reading: what the inputs are: images, or merged bins (``"channels"``), or sequences (batch, frames, C, H, W).
    """
    images, _ = proof_batches[0]
    inputs = images.to(device_of(snn))
    if reading == "channels":
        counts = count_operations(snn, inputs)
        proofs = tuple(verify(qann, snn, proof_batches, timesteps=t) for t in timesteps)
        whole: nn.Module = qann
        spiking: nn.Module = snn
    else:
        counts = count_operations(snn, inputs, time_dim=1)
        proofs = tuple(verify_sequences(qann, snn, [frames for frames, _ in proof_batches], t) for t in timesteps)
        whole, spiking = AtOnce(qann, reading), OverFrames(snn)
    return Outcome(
        ann=evaluate(ann, test, progress=True),
        qann=evaluate(whole, test, progress=True),
        snn=evaluate(spiking, test, timesteps, progress=True),
        proofs=proofs,
        counts=counts,
        energy=estimate_energy(counts, CostTable.cmos45()),
        network=snn,
        reading=reading,
    )
