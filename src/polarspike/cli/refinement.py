"""Label-free improvements that ``polarspike convert`` offers, and how near its result is to the float network."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from polarspike.allocation import Allocation, allocate
from polarspike.allocation.candidates import Resource
from polarspike.analysis.answers import Answers
from polarspike.cli.command import show, tell
from polarspike.common.inputs import float_leaves
from polarspike.common.modules import evaluating
from polarspike.quantized import QuantizedNetwork
from polarspike.spiking import SpikingNetwork


def equalized(model: nn.Module, example: Tensor, batches: Sequence[Tensor] | None) -> nn.Module:
    """The float network with its channels balanced across layers, by their signals if there are images."""
    from polarspike.equalization import equalize

    tell("equalizing channels across layers")
    return equalize(model, example, batches)


def improved(
    qann: QuantizedNetwork,
    batches: Sequence[Tensor],
    *,
    reconstruction: bool = False,
    bias_correction: bool = False,
    distillation: int = 0,
) -> None:
    """Improve a calibrated network in place, without labels, as asked for; ``distillation`` is its number of steps."""
    if not (reconstruction or bias_correction or distillation):
        return
    reference = copy.deepcopy(qann)  # whose float activations stay the goal
    if reconstruction:
        from polarspike.reconstruction import reconstruct

        tell("reconstructing layer by layer")
        reconstruct(qann, batches, progress=True)
    if bias_correction:
        from polarspike.correction import correct_bias

        tell("correcting biases")
        correct_bias(qann, batches, reference=reference)
    if distillation:
        from polarspike.training.distillation import distill

        tell(f"distilling from the float network in {distillation} steps")
        answers = _answers(qann, batches)
        show(str(distill(qann, batches, reference=reference, answers=answers, steps=distillation, progress=True)))


def within_budget(qann: QuantizedNetwork, batches: Sequence[Tensor], budget: float, resource: Resource) -> Allocation:
    """Give every site of a calibrated network levels and a step under one budget, in place."""
    tell(f"choosing levels for at most {budget:g} {resource} per image")
    return allocate(qann, batches, budget, resource, answers=_answers(qann, batches))


@torch.no_grad()
def _answers(qann: QuantizedNetwork, batches: Sequence[Tensor]) -> Answers:
    """What answers (batch, classes) is taken for a classifier, as in Likeness."""
    answer = qann(batches[0])
    return "classes" if isinstance(answer, Tensor) and answer.dim() == 2 and answer.shape[1] > 1 else "values"


@dataclass(frozen=True)
class Likeness:
    """How near a spiking network is to its float network, without labels.

    Attributes:
        timesteps: T.
        difference: square root of the summed squares of the outputs' differences over those of the float outputs.
        agreeing: images with the same largest output; None where the output is not (batch, classes).
        total: images.
    """

    timesteps: int
    difference: float
    agreeing: int | None
    total: int

    @classmethod
    @torch.no_grad()
    def measure(cls, model: nn.Module, snn: SpikingNetwork, batches: Iterable[Tensor], timesteps: int) -> Self:
        """Run both on the same images."""
        error, power, agreeing, total, classes = 0.0, 0.0, 0, 0, True
        with evaluating(model):
            for images in batches:
                wanted, got = float_leaves(model(images)), float_leaves(snn(images, timesteps=timesteps))
                error += sum(float((a.double() - b.double()).square().sum()) for a, b in zip(got, wanted, strict=True))
                power += sum(float(a.double().square().sum()) for a in wanted)
                classes &= len(wanted) == 1 and wanted[0].dim() == 2 and wanted[0].shape[1] > 1
                agreeing += int((got[0].argmax(1) == wanted[0].argmax(1)).sum()) if classes else 0
                total += len(images)
        return cls(timesteps, (error / power) ** 0.5 if power else 0.0, agreeing if classes else None, total)

    def __str__(self) -> str:
        line = f"T={self.timesteps}: the output differs from the float network's by {self.difference:.2%}"
        if self.agreeing is not None:
            line += f"; same first class for {self.agreeing} of {self.total} images ({self.agreeing / self.total:.1%})"
        return line
