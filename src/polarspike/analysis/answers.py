"""What a float network answers, and how far the answers of its quantized network are from it.

With z the float answers and z' those of the quantized network::

    classes   mean KL(softmax(z) || softmax(z'))      in nats, over images and positions
    values    sqrt(sum |z' - z|^2 / sum |z|^2)        root mean square, as a part of the float answers'
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor
from torch.nn import functional

from polarspike.common.inputs import Inputs, batches_of, float_leaves, map_inputs, require_batches, to_device
from polarspike.common.modules import apply, device_of
from polarspike.errors import CalibrationError, SpecError
from polarspike.quantized import QuantizedNetwork

#: What a network answers: any numbers, or scores of classes in dimension 1 (batch, classes, ...).
Answers = Literal["values", "classes"]

# The inputs of one batch and the float leaves that the float network answers.
Pair = tuple[Inputs, list[Tensor]]


@torch.no_grad()
def float_answers(verb: str, goal: QuantizedNetwork, batches: Iterable[Any] | Tensor, answers: Answers) -> list[Pair]:
    """Inputs (copied) and answers of a network without its quantizers, batch by batch, on its device; ``verb`` asks.

    Raises:
        CalibrationError: no batch came, or an answer is NaN or Inf.
        SpecError: classes are asked for and an output has none.
    """
    pairs: list[Pair] = []
    device = device_of(goal)
    with goal.float_activations():
        for inputs, _ in batches_of(batches):
            inputs = to_device(inputs, device)
            inputs = map_inputs(lambda value: value.clone() if isinstance(value, Tensor) else value, inputs)
            pairs.append((inputs, [leaf.clone() for leaf in float_leaves(apply(goal, inputs))]))
            if not all(bool(leaf.isfinite().all()) for leaf in pairs[-1][1]):
                raise CalibrationError(
                    f"{verb}, batch {len(pairs) - 1}: the float network answers NaN or Inf; look for it in this batch, "
                    "or in the weights"
                )
            if answers == "classes":
                require_scores(verb, pairs[-1][1])
    require_batches(bool(pairs), verb)
    return pairs


def require_answers(verb: str, answers: object) -> None:
    """Refuse what no network answers."""
    if answers not in get_args(Answers):
        raise SpecError(f"{verb}: answers: expected 'values' or 'classes', got {answers!r}")


def require_scores(verb: str, leaves: Sequence[Tensor]) -> None:
    """Refuse outputs that hold no scores of classes."""
    if any(leaf.dim() < 2 or leaf.shape[1] < 2 for leaf in leaves):
        raise SpecError(
            f"{verb}: answers='classes': expected outputs (batch, classes, ...) with two classes at least, got "
            f"{[tuple(leaf.shape) for leaf in leaves]}; take answers='values'"
        )


def distance(got: Sequence[Tensor], wanted: Sequence[Tensor], answers: Answers) -> Tensor:
    """Summed over the samples of a batch (and positions), all outputs together."""
    pairs = [(a.float(), b.float()) for a, b in zip(got, wanted, strict=True)]
    if answers == "values":
        return torch.stack([(a - b).square().sum() for a, b in pairs]).sum()
    logs = [(functional.log_softmax(a, 1), functional.log_softmax(b, 1)) for a, b in pairs]
    return torch.stack([functional.kl_div(a, b, reduction="sum", log_target=True) for a, b in logs]).sum()


def scale(pairs: Sequence[Pair], answers: Answers) -> float:
    """What a summed distance is a part of: the power of the float answers, or their number."""
    leaves = [leaf for _, wanted in pairs for leaf in wanted]
    if answers == "values":
        return max(sum(float(leaf.double().square().sum()) for leaf in leaves), 1e-30)
    return float(sum(leaf.numel() // leaf.shape[1] for leaf in leaves))


@torch.no_grad()
def error(qann: QuantizedNetwork, pairs: Sequence[Pair], answers: Answers) -> float:
    """How far the quantized network's answers are from the float ones (the equations above)."""
    total = sum(float(distance(float_leaves(apply(qann, inputs)), wanted, answers)) for inputs, wanted in pairs)
    ratio = total / scale(pairs, answers)
    return math.sqrt(ratio) if answers == "values" else ratio
