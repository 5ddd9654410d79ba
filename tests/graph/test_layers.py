"""Our own layers compute what the modules compute whose place they take."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import nn

from polarspike.graph.layers import DropPath, MultiheadAttention, additive_mask, causal_mask

X = torch.randn(3, 5, 8, generator=torch.Generator().manual_seed(4))
Y = torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(5))
ORIGINALS: dict[str, tuple[dict[str, Any], bool]] = {
    "batch first": ({"batch_first": True}, False),
    "length first": ({}, False),
    "without bias": ({"bias": False, "batch_first": True}, False),
    "other widths": ({"kdim": 6, "vdim": 6, "batch_first": True}, True),
}


@torch.no_grad()
@pytest.mark.parametrize("name", ORIGINALS)
@pytest.mark.parametrize("average", [True, False])
def test_it_answers_what_the_original_answers(name: str, average: bool) -> None:
    options, cross = ORIGINALS[name]
    original = nn.MultiheadAttention(8, 2, **options).eval()
    if original.in_proj_bias is not None:
        nn.init.uniform_(original.in_proj_bias)
    ours = MultiheadAttention(original)
    assert not ours.training
    query, other = (X, Y) if cross else (X, X)
    if not original.batch_first:
        query = other = X.transpose(0, 1)
    keys = other.shape[1] if original.batch_first else other.shape[0]
    mask = torch.zeros(5, keys).bool()
    mask[0, 1] = mask[2, 0] = True
    padding = torch.zeros(3, keys).bool()
    padding[1, -1] = True
    for given in (
        {},
        {"attn_mask": mask},
        {"attn_mask": mask.float()},
        {"key_padding_mask": padding},
        {"attn_mask": mask.expand(6, -1, -1), "key_padding_mask": padding},
    ):
        want = original(query, other, other, **given, average_attn_weights=average)
        got = ours(query, other, other, **given, average_attn_weights=average)
        for have, expected in zip(got, want, strict=True):
            torch.testing.assert_close(have, expected, rtol=1e-5, atol=1e-6)
        assert ours(query, other, other, **given, need_weights=False)[1] is None


def test_it_owns_copies_of_the_parameters() -> None:
    original = nn.MultiheadAttention(8, 2)
    ours = MultiheadAttention(original)
    pointers = {value.data_ptr() for value in original.parameters()}
    assert not pointers & {value.data_ptr() for value in ours.parameters()}
    assert sum(value.numel() for value in ours.parameters()) == sum(value.numel() for value in original.parameters())


def test_masks_to_add() -> None:
    keep = torch.tensor([[True, False]])
    assert torch.equal(additive_mask(keep, torch.float64), torch.tensor([[0.0, -math.inf]], dtype=torch.float64))
    added = torch.tensor([[0.5, -1.0]])
    assert torch.equal(additive_mask(added, torch.float32), added)
    assert additive_mask(added, torch.bfloat16).dtype == torch.bfloat16
    mask = causal_mask(torch.randn(2, 3, 4, dtype=torch.float64))
    assert mask.dtype == torch.float64
    assert torch.equal(mask.isinf(), torch.ones(3, 4).triu(1).bool()) and bool((mask[~mask.isinf()] == 0).all())


@pytest.mark.parametrize(("mode", "kinds"), [("row", {0.0, 2.0}), ("batch", {0.0, 2.0})])
def test_paths_are_dropped_as_a_whole_and_in_training_alone(mode: Any, kinds: set[float]) -> None:
    layer, x = DropPath(0.5, mode), torch.ones(64, 3, 2)
    rows = {tuple(row.unique().tolist()) for _ in range(8) for row in layer(x)}
    assert rows == {(value,) for value in kinds}
    if mode == "batch":
        assert all(len(layer(x).unique()) == 1 for _ in range(8))
    assert layer.eval()(x) is x
    assert DropPath(0.0)(x) is x
    assert "p=0.5" in repr(layer)
