"""Modules of our own that take the place of modules of other libraries, or of torch's, that cannot be traced into."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional


class DropPath(nn.Module):
    """Stochastic depth: in training, whole samples of a residual branch are dropped, and the others scaled up.

        y = x b / (1 - p),   b ~ Bernoulli(1 - p) per sample (``mode="row"``) or per batch (``mode="batch"``)

    In evaluation mode it is the identity. It stands for the modules of the same purpose in torchvision
    (``StochasticDepth``) and timm (``DropPath``), so that neither has to be installed to load a network.

    Args:
        p: the share that is dropped, in [0, 1).
        mode: what is dropped as a whole.
    """

    def __init__(self, p: float, mode: Literal["row", "batch"] = "row") -> None:
        super().__init__()
        self.p = p
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        rows = x.shape[0] if self.mode == "row" else 1
        kept = torch.empty((rows, *(1,) * (x.dim() - 1)), dtype=x.dtype, device=x.device).bernoulli_(1.0 - self.p)
        return x * kept / (1.0 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}, mode={self.mode!r}"


class MultiheadAttention(nn.Module):
    """What :class:`torch.nn.MultiheadAttention` computes, as operators that a tracer sees.

        q, k, v = x_q W_q + b_q,  x_k W_k + b_k,  x_v W_v + b_v
        p = softmax(q k^T / sqrt(d) + mask),   y = (p v) W_o + b_o

    The packed projection of the original becomes three linear layers (views of its rows, copied), so that query, key and
    value are signals of their own. It answers what the original answers, ``(y, weights or None)``.

    Args:
        original: the module that it replaces; its parameters are copied.

    Shapes: as the original's, (batch, length, features) with ``batch_first``, else (length, batch, features).
    """

    def __init__(self, original: nn.MultiheadAttention) -> None:
        super().__init__()
        width = original.embed_dim
        if original._qkv_same_embed_dim:
            weights = original.in_proj_weight.detach().chunk(3)
        else:
            weights = tuple(
                part.detach() for part in (original.q_proj_weight, original.k_proj_weight, original.v_proj_weight)
            )
        biases = (None, None, None) if original.in_proj_bias is None else original.in_proj_bias.detach().chunk(3)
        self.q_proj, self.k_proj, self.v_proj = (
            _linear(weight, bias) for weight, bias in zip(weights, biases, strict=True)
        )
        out_bias = original.out_proj.bias
        self.out_proj = _linear(original.out_proj.weight.detach(), None if out_bias is None else out_bias.detach())
        self.num_heads = original.num_heads
        self.head_dim = width // original.num_heads
        self.batch_first = original.batch_first
        self.drop = nn.Dropout(original.dropout)
        self.train(original.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        del is_causal  # a hint that attn_mask is causal; the original demands the mask, too
        if not self.batch_first:
            query, key, value = (x.transpose(0, 1) for x in (query, key, value))
        q, k, v = (
            self._heads(projection(x))
            for projection, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        scores = torch.matmul(q * (1.0 / math.sqrt(self.head_dim)), k.transpose(-2, -1))  # (B, H, L, S)
        if attn_mask is not None:
            mask = blocking_mask(attn_mask, scores.dtype)
            scores = scores + (torch.unflatten(mask, 0, (-1, self.num_heads)) if attn_mask.dim() == 3 else mask)
        if key_padding_mask is not None:
            scores = scores + blocking_mask(key_padding_mask, scores.dtype)[:, None, None, :]
        masked = attn_mask is not None or key_padding_mask is not None
        # Without weights the original calls the fused attention, which answers zeros where all is masked.
        p = masked_softmax(scores, -1) if masked and not need_weights else functional.softmax(scores, dim=-1)
        dropped = self.drop(p)
        y = self.out_proj(torch.matmul(dropped, v).transpose(1, 2).flatten(2))  # (B, L, E)
        if not self.batch_first:
            y = y.transpose(0, 1)
        if not need_weights:
            return y, None
        return y, p.mean(1) if average_attn_weights else p

    def _heads(self, x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (self.num_heads, self.head_dim)).transpose(1, 2)  # (B, H, L, d)


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    with torch.device("meta"):
        layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    layer.weight = nn.Parameter(weight.clone())
    if bias is not None:
        layer.bias = nn.Parameter(bias.clone())
    return layer


def blocking_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of :class:`torch.nn.MultiheadAttention`, where True blocks, as something to add."""
    return additive_mask(mask.logical_not() if mask.dtype == torch.bool else mask, dtype)


def additive_mask(mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A mask of attention as something to add: minus infinity where a boolean one is False; others as they are."""
    if mask.dtype == torch.bool:
        return torch.zeros_like(mask, dtype=dtype).masked_fill(mask.logical_not(), -math.inf)
    return mask.to(dtype)


def causal_mask(scores: Tensor) -> Tensor:
    """Minus infinity above the diagonal, zero elsewhere; (L, S) for scores (..., L, S)."""
    return scores.new_full(scores.shape[-2:], -math.inf).triu(1)


def masked_softmax(scores: Tensor, dim: int) -> Tensor:
    """Softmax of scores that a mask may have set to minus infinity everywhere along ``dim``: zeros there, no NaN."""
    answer: Tensor = torch._safe_softmax(scores, dim)  # what torch's own attention calls
    return answer
