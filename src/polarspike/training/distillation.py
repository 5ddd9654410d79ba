"""Distillation without labels: move weights and steps of a quantized network until it answers as its float network."""

from __future__ import annotations

import copy
import math
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from polarspike.analysis.answers import Answers, Pair, distance, error, float_answers, require_answers, scale
from polarspike.common.checks import is_integer, is_positive
from polarspike.common.inputs import float_leaves
from polarspike.common.modules import apply, evaluating, require_ordinary
from polarspike.errors import CalibrationError, SpecError
from polarspike.graph.synaptic import mark_changed, require_goal
from polarspike.quantized import QuantizedNetwork, require_calibrated, require_same_graph
from polarspike.sites import Site
from polarspike.training.optimization import keep_within, learned_gains

# Every fourth batch is held out, where there are as many.
_FOLD = 4


@dataclass(frozen=True)
class Distillation:
    """What a distillation did.

    Attributes:
        before: the distance to the float network's answers, on the batches that were held out; on all of them where there
            are fewer than four. For values: the root mean square of the difference, as a part of the float output's; for
            classes: the mean Kullback-Leibler divergence, in nats.
        after: the same at the end.
        answers: what was compared.
        steps: optimizer steps.
        kept: whether the new weights are kept: the error fell.
        held_out: whether the error was measured on batches that nothing was fitted to.
    """

    before: float
    after: float
    answers: Answers
    steps: int
    kept: bool
    held_out: bool

    def __str__(self) -> str:
        where = "held-out batches" if self.held_out else "the batches themselves"
        verdict = "" if self.kept else "; no better, so the network is left as it was"
        change = (
            f"error of the output {self.before:.2%} -> {self.after:.2%}"
            if self.answers == "values"
            else f"divergence of the classes {self.before:.4f} -> {self.after:.4f} nats"
        )
        return f"{self.steps} steps: {change} on {where}{verdict}"


def distill(
    qann: QuantizedNetwork,
    batches: Iterable[Any] | Tensor,
    *,
    reference: QuantizedNetwork | None = None,
    answers: Answers = "values",
    steps: int = 1000,
    learning_rate: float = 1e-3,
    seed: int = 0,
    progress: bool = False,
) -> Distillation:
    """Fit all weights, steps and learned gains, in place and without labels, to the float network's answers.

        values    min over weights, s, g:   sum over images |z - z_float|^2 / sum |z_float|^2
        classes   min over weights, s, g:   mean over images KL(softmax(z_float) || softmax(z))

    z is the output (all its float tensors), behind the quantizers with their straight-through gradients. Adam walks the
    batches in random order, with a cosine from ``learning_rate`` to 0; every step moves by parts of its start, so
    that the same rate fits all of them. Batch norms keep their statistics and dropout is off: the network is the one that
    will be converted. Every fourth batch is held out, and what is found is kept only if the error there falls.

    It is training, though without labels: gradients through the whole network, a few passes over the calibration images.
    It reaches further than :func:`polarspike.reconstruct` where few levels meet many sites, and comes best after it. The
    more images the better: with a thousand, a network learns them rather than its float network.

    Args:
        qann: calibrated; evaluation mode is used and the former mode restored. Its float activations compute something
            else afterwards, and its notes say so.
        batches: an iterable of inputs or (inputs, target), or one tensor; read once and kept, with the float answers. A
            batch is one optimizer step, as it is.
        reference: the network whose float activations are the goal: a copy of ``qann`` from before the first change, which
            is required after a reconstruction or a correction; default: ``qann`` as it is now.
        answers: ``"classes"`` where every output holds scores of classes (logits) in dimension 1: then only what changes a
            decision counts, which is worth up to half a point of accuracy; ``"values"`` for anything else.
        steps: of the optimizer.
        learning_rate: the rate at the start.
        seed: of the order of the batches, from a generator of its own.
        progress: show a progress bar where standard error is a terminal.

    Raises:
        CalibrationError: no step has been set, no batch came, or the error became NaN or infinite; then the network is as
            it was.
        SpecError: not a quantized network, another network as reference, or none where one is required.

    Source: knowledge distillation (Hinton, Vinyals, Dean, 2015) on the outputs before any softmax, with learned steps
    (Esser et al., 2020); held-out batches and relative steps are this project's own.
    """
    _check_arguments(qann, reference, answers, steps, learning_rate)
    goal = copy.deepcopy(qann) if reference is None else reference
    former = copy.deepcopy(qann.state_dict())
    with evaluating(qann, goal):
        pairs = float_answers("distill", goal, batches, answers)
        held = pairs[_FOLD - 1 :: _FOLD]
        fitted = [pair for index, pair in enumerate(pairs) if index % _FOLD != _FOLD - 1] if held else pairs
        before = error(qann, held or fitted, answers)
        try:
            hidden = not progress or None  # None: where standard error is no terminal
            with tqdm(range(steps), desc="distill", unit="step", leave=False, disable=hidden) as bar:
                _descend(qann, fitted, answers, bar, learning_rate, seed)
            after = error(qann, held or fitted, answers)
            kept = after < before
        except BaseException:
            qann.load_state_dict(former)
            raise
        finally:
            qann.zero_grad(set_to_none=True)
    if kept:
        mark_changed("distill", qann.notes)
    else:
        qann.load_state_dict(former)
    return Distillation(before, after, answers, steps, kept, bool(held))


def _descend(
    qann: QuantizedNetwork, pairs: list[Pair], answers: Answers, turns: Collection[int], rate: float, seed: int
) -> None:
    offsets = _offsets(qann)
    rest = [value for value in qann.parameters() if value.requires_grad and all(value is not one for one in offsets)]
    optimizer = torch.optim.Adam([*offsets, *rest], lr=rate)
    keep_within(optimizer, learned_gains(qann.modules()))
    mean = scale(pairs, answers) / len(pairs)
    order = _endless(len(pairs), seed)
    with torch.enable_grad():
        for index in turns:
            for group in optimizer.param_groups:
                group["lr"] = rate * 0.5 * (1.0 + math.cos(math.pi * index / len(turns)))
            inputs, wanted = pairs[next(order)]
            loss = distance(float_leaves(apply(qann, inputs)), wanted, answers) / mean
            if not bool(loss.isfinite()):
                raise CalibrationError(
                    f"distill, step {index}: the error became {float(loss.detach())}; lower learning_rate (the network is "
                    "as it was before)"
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            before = [offset.detach().clone() for offset in offsets]
            optimizer.step()
            # Adam's moves do not depend on the size of a parameter; as parts of each step they fit steps of every size.
            with torch.no_grad():
                for offset, old, step in zip(offsets, before, offsets.values(), strict=True):
                    offset.copy_(old + (offset - old) * step)


def _offsets(qann: QuantizedNetwork) -> dict[Tensor, Tensor]:
    """The learned offset of every site, and the steps where it starts."""
    sites = [module for module in qann.modules() if isinstance(module, Site)]
    return {site.offset: site.step.detach().clone() for site in sites if site.offset.requires_grad}


def _endless(count: int, seed: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(seed)
    while True:
        yield from torch.randperm(count, generator=generator).tolist()


def _check_arguments(qann: object, reference: object, answers: object, steps: object, learning_rate: object) -> None:
    network = require_calibrated("distill", qann)
    if torch.is_inference_mode_enabled():
        raise SpecError(
            "distill: expected to be called outside of torch.inference_mode(), in which nothing can be trained"
        )
    require_ordinary("distill", network)
    require_answers("distill", answers)
    if not is_integer(steps, 1):
        raise SpecError(f"distill: steps: expected a positive integer, got {steps!r}")
    if not is_positive(learning_rate):
        raise SpecError(f"distill: learning_rate: expected a positive number, got {learning_rate!r}")
    if not any(parameter.requires_grad for parameter in network.parameters()):
        raise SpecError("distill: no parameter requires a gradient; thaw what may change: network.requires_grad_(True)")
    require_goal("distill", network.notes, given=reference is not None)
    require_same_graph("distill", network, reference)
