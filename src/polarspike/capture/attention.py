"""Write attention out: ``scaled_dot_product_attention`` becomes matrix products and a softmax that a graph shows.

    y = softmax(scale q k^T + mask) v,   scale = 1 / sqrt(d) by default

Inside the fused function nothing could spike. Written out, query, key, value and probabilities are signals of the graph.
Sums round otherwise than in the fused kernel: outputs agree to about 1e-7 relative.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import fx

from polarspike.errors import OperatorError
from polarspike.graph.layers import additive_mask, causal_mask, masked_softmax
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import argument, meaning_of, place_of


def expand_attention(graph_module: fx.GraphModule) -> fx.GraphModule:
    """Replace every fused attention by the operators that it computes.

    Raises:
        OperatorError: grouped-query attention, or dropout that stays on in evaluation mode.
    """
    for node in list(graph_module.graph.nodes):
        if meaning_of(graph_module, node) is Meaning.ATTENTION:
            _expand(graph_module.graph, node)
    return graph_module


def _expand(graph: fx.Graph, node: fx.Node) -> None:
    names = ("query", "key", "value", "attn_mask", "dropout_p", "is_causal")
    query, key, value, mask, dropout, causal = (argument(node, index, name) for index, name in enumerate(names))
    if node.kwargs.get("enable_gqa"):
        raise OperatorError(
            f"{place_of(node)}: grouped-query attention (enable_gqa=True) is not written out; repeat keys and values with "
            "repeat_interleave before the call"
        )
    if dropout not in (None, 0, 0.0):
        raise OperatorError(
            f"{place_of(node)}: attention with dropout_p={dropout} stays random in evaluation mode; "
            "pass dropout_p=self.p if self.training else 0.0"
        )

    def call(function: Any, *args: Any) -> fx.Node:
        new = graph.call_function(function, args)
        new.meta = {key: value for key, value in node.meta.items() if key != "dtype"}
        new.stack_trace = node.stack_trace
        return new

    with graph.inserting_before(node):
        scale: Any = node.kwargs.get("scale")
        if scale is None:
            scale = call(operator.pow, graph.call_method("size", (query, -1)), -0.5)
        scores = call(torch.matmul, call(torch.mul, query, scale), call(torch.transpose, key, -2, -1))
        if causal:
            scores = call(torch.add, scores, call(causal_mask, scores))
        if mask is not None:
            scores = call(torch.add, scores, call(additive_mask, mask, call(getattr, scores, "dtype")))
        # The fused function answers zeros where a mask leaves nothing to attend to.
        probabilities = call(torch.softmax if mask is None else masked_softmax, scores, -1)
        result = call(torch.matmul, probabilities, value)
    node.replace_all_uses_with(result)
    graph.erase_node(node)
