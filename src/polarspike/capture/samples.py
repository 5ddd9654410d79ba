"""Which inputs of a model hold the samples of a batch, and which are the same for all of them.

Shapes do not say: the mask of a sequence on itself may have as many rows as a batch has samples. The model does. The
inputs that hold samples are those of which a row more adds a row to the answer and leaves the others alone::

    f(x[1..n+1])[1..n] = f(x[1..n])
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from polarspike.capture.preparation import clone_tensors, copy_model
from polarspike.common.inputs import Inputs, as_call, batch_size, map_named, rows_of, tensors_of

# Batches of another size are summed in another order; what another row changes is of the size of the answer.
_TOLERANCE = 1e-4

# Inputs of one length of which every part is tried, and all but two: k inputs have 2^k - 1 parts and k (k - 1) / 2 of
# these, and the model runs twice for each.
_FEW, _SEVERAL = 4, 6


@torch.no_grad()
def shared_inputs(model: nn.Module, example: Inputs) -> frozenset[str]:
    """The tensors of an example that are the same for all samples, by position or name as the example is given.

    Of several inputs of one length all hold samples if the model can be so understood, else as many as can; of more than
    four, all, all but one, all but two (up to six, as two sequences have two masks), or one alone. Where the example has
    one sample, its length tells nothing, and every input of that length is said to hold samples. Where the answer tells
    nothing (it has no rows, or not first, or samples are mixed in it), the first input decides by its length.

    Args:
        model: left untouched; it is run on other batch sizes, in evaluation mode.
        example: inputs of one call.
    """
    lengths = {name: len(tensor) for name, tensor in tensors_of(example) if tensor.dim()}
    if len(lengths) < 2:
        return frozenset()
    reference = copy_model(model).eval()
    for held in _possible(lengths):
        if _hold_samples(reference, example, held):
            return frozenset(lengths) - held
    first = next(iter(lengths.values()))
    return frozenset(name for name, length in lengths.items() if length != first)


def other_batch(example: Inputs, shared: Collection[str] = ()) -> Inputs:
    """Inputs of the same kind with one more sample and other content; draws from a generator of its own.

    An input that is the same for all samples, or whose first dimension is not the batch, gets other content alone.
    """
    generator = torch.Generator().manual_seed(0)
    size = batch_size(example, shared)

    def other(name: str, value: Any) -> Any:
        if not isinstance(value, Tensor) or value.dim() == 0:
            return value
        more = torch.cat([value, value[:1]]) if name not in shared and value.shape[0] == size else value
        if bool(more.isinf().any()):  # a mask to add, of which another may leave nothing
            return more
        if not value.is_floating_point():
            order = torch.randperm(more.numel(), generator=generator).to(more.device)
            return more.flatten()[order].view_as(more)
        spread = value.float().std().item() if value.numel() > 1 else 0.0
        noise = torch.randn(more.shape, generator=generator).to(more)
        return noise * (spread or 1.0) + value.float().mean().to(more.dtype)

    return map_named(other, example)


def _possible(lengths: dict[str, int]) -> Iterator[frozenset[str]]:
    """Which inputs may hold the samples together: all of one length before any part of them, the first input's first.

    Of many inputs only the largest and the smallest parts: one or two are the same for all samples, or all others are.
    """
    groups = [[name for name, own in lengths.items() if own == length] for length in dict.fromkeys(lengths.values())]
    yield from map(frozenset, groups)
    for group in groups:
        size = len(group)
        largest = (size - 1, size - 2) if size <= _SEVERAL else (size - 1,)
        for count in range(size - 1, 0, -1) if size <= _FEW else (*largest, 1):
            yield from map(frozenset, itertools.combinations(group, count))


def _hold_samples(model: nn.Module, example: Inputs, held: frozenset[str]) -> bool:
    """Whether a row more of these inputs is a row more of the answer, and no other."""
    shared = {name for name, _ in tensors_of(example)} - held
    size = batch_size(example, shared)
    more = other_batch(example, shared)
    answers = []
    for inputs in (more, rows_of(more, slice(0, size), size + 1, shared)):
        args, kwargs = as_call(clone_tensors(inputs))
        try:
            answers.append([leaf for leaf in pytree.tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)])
        except Exception:  # whatever a model raises at shapes that do not fit
            return False
    if len(answers[0]) != len(answers[1]):
        return False
    pairs = [(large, small) for large, small in zip(*answers, strict=True) if large.dim() and small.dim()]
    grown = [(large, small) for large, small in pairs if (len(large), len(small)) == (size + 1, size)]
    return bool(grown) and all(_agree(large[:size], small) for large, small in grown)


def _agree(some: Tensor, others: Tensor) -> bool:
    if some.shape != others.shape:
        return False
    some, others = some.double(), others.double()
    finite = others[others.isfinite()]
    scale = float(finite.abs().max()) if len(finite) else 0.0
    return torch.allclose(some, others, rtol=0.0, atol=_TOLERANCE * scale, equal_nan=True)
