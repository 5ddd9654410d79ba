"""What an experiment found: accuracy, proofs, operations and energy of a network before and after its conversion."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from polarspike.common.modules import device_of
from polarspike.counting import OperationCounts, count_operations
from polarspike.energy import CostTable, EnergyEstimate, estimate_energy
from polarspike.equivalence import verify
from polarspike.evaluation import Evaluation, Firing, evaluate
from polarspike.proofs.proof import Proof
from polarspike.proofs.temporal_equivalence import verify_temporal
from polarspike.quantized import QuantizedNetwork
from polarspike.readings import SAID, AtOnce, OverFrames, verify_sequences
from polarspike.specs import Reading
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.through_time import TemporalNetwork

_TRAINED = "SNN through time"
_LOSS = 0.002  # of accuracy by more timesteps, beyond which the report says so


@dataclass(frozen=True)
class ThroughTime:
    """What training through time made of a converted network.

    Attributes:
        ann: the control: the ANN after as many more epochs.
        snn: after T = 1, 2, ... frames.
        proof: of all frames, see :mod:`polarspike.proofs.temporal_equivalence`.
        counts, energy: of whole sequences.
        network: what was trained.
    """

    ann: Evaluation
    snn: Evaluation
    proof: Proof
    counts: OperationCounts
    energy: EnergyEstimate
    network: TemporalNetwork

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        return {
            "ann": self.ann.to_dict(),
            "snn": self.snn.to_dict(),
            "proof": self.proof.to_dict(),
            "counts": self.counts.to_dict(),
            "energy": self.energy.to_dict(),
            "leaks": self.network.leaks(),
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
    through_time: ThroughTime | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain data for ``results.json``."""
        return {
            "ann": self.ann.to_dict(),
            "qann": self.qann.to_dict(),
            "snn": self.snn.to_dict(),
            "proofs": [proof.to_dict() for proof in self.proofs],
            "counts": self.counts.to_dict(),
            "energy": self.energy.to_dict(),
            **({} if self.through_time is None else {"through_time": self.through_time.to_dict()}),
        }

    def __str__(self) -> str:
        trained, firing = self.through_time, self.snn.firing or {}
        width = 10 if trained is None else len(_TRAINED)
        header = (
            f"{'network':<{width}} {'T':>3} {'accuracy':>9} {'codes compared':>15} {'different':>10} {'events':>8} "
            f"{'spikes':>8} {'positive':>9} {'negative':>9}"
        )
        lines = [
            header,
            f"{'ANN':<{width}} {'':>3} {self.ann.accuracy[1]:>9.2%}",
            f"{'QANN':<{width}} {'':>3} {self.qann.accuracy[1]:>9.2%}",
        ]
        for proof in self.proofs:
            t = proof.timesteps
            lines.append(f"{'SNN':<{width}} {_row(self.snn, t, proof)} {_fired(firing[t])}")
        if trained is not None:
            lines.append(f"{'ANN, continued':<{width}} {'':>3} {trained.ann.accuracy[1]:>9.2%}")
            for t, fired in (trained.snn.firing or {}).items():
                shown = trained.proof if t == trained.proof.timesteps else None
                lines.append(f"{_TRAINED:<{width}} {_row(trained.snn, t, shown)} {_fired(fired)}")
        what = "image" if self.reading == "channels" else "sequence"
        lines.append(f"({self.snn.total} test {what}s; events and spikes per neuron and {what}, up to T)")
        if self.reading != "channels":
            lines.append(f"(T: the first T frames, streamed; {SAID[self.reading]})")
        if trained is not None:
            lines += _of_training(trained)
        lines += self._losses()
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
        lines += ["", str(self.energy)]
        if trained is not None:
            lines += ["", f"{_TRAINED} (ANN and QANN beside it keep nothing from frame to frame):", str(trained.energy)]
        return "\n".join(lines)

    def _losses(self) -> list[str]:
        """A line where more timesteps of the same image cost accuracy, with its remedy."""
        accuracy = self.snn.accuracy
        worst = min(accuracy, key=lambda t: accuracy[t])
        loss = accuracy[1] - accuracy[worst]
        if self.reading != "channels" or loss <= _LOSS:
            return []
        return [
            f"(T={worst} has {100 * loss:.1f} points fewer right than T=1: weights that are trained for T=1 alone "
            "have not seen the finer grid of more timesteps; see TrainSpec.timesteps, --qann.timesteps 1 2 4 8)"
        ]


def _of_training(trained: ThroughTime) -> list[str]:
    """What the rows of training through time mean."""
    leaks = trained.network.leaks().values()
    proof = trained.proof
    return [
        f"({_TRAINED}: from the SNN above; its weights moved, so its codes are not those of the QANN any more. Compared are",
        " its own, in float64: of every frame, streamed one by one, with those of the whole sequence at once, and of the",
        " first frame with those of the quantized network of the same weights. ANN, continued: for the same epochs)",
        f"({_TRAINED}: of a membrane {min(leaks):.3f} to {max(leaks):.3f} stays from frame to frame)",
        *([f"{_TRAINED}: NOT EXACT, first difference at {proof.first_difference}"] if not proof.exact else []),
        *([f"{_TRAINED}: VOID at {', '.join(proof.void)}: too few different codes, or events"] if proof.void else []),
    ]


def _row(found: Evaluation, timesteps: int, proof: Proof | None) -> str:
    compared, different = ("", "") if proof is None else (str(proof.compared), str(proof.different))
    return f"{timesteps:>3} {found.accuracy[timesteps]:>9.2%} {compared:>15} {different:>10}"


def _fired(firing: Firing) -> str:
    return (
        f"{firing.events_per_neuron:>8.3f} {firing.spikes_per_neuron:>8.3f} "
        f"{firing.positive_spikes_per_neuron:>9.3f} {firing.negative_spikes_per_neuron:>9.3f}"
    )


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


def examine_through_time(
    ann: nn.Module,
    net: TemporalNetwork,
    test: Iterable[Any],
    proof_batches: Sequence[Any],
    timesteps: Sequence[int],
) -> ThroughTime:
    """Evaluate a network that was trained through time, and its control, prove what can be proved, count and price.

    Args:
        ann: the float network after as many more epochs, which reads what ``test`` gives.
        net: the network.
        test: batches (sequences, labels).
        proof_batches: others, on which codes are compared and the first of which is counted.
        timesteps: the T, of the first T frames.
    """
    frames, _ = proof_batches[0]
    counts = count_operations(net, frames.to(device_of(net)), time_dim=1)
    return ThroughTime(
        ann=evaluate(ann, test, progress=True),
        snn=evaluate(net, test, timesteps, progress=True),
        proof=verify_temporal(net, [sequences for sequences, _ in proof_batches]),
        counts=counts,
        energy=estimate_energy(counts, CostTable.cmos45()),
        network=net,
    )
