"""Exported programs as models: what :func:`torch.export.export` answers, and the module that it makes of itself.

Such a module is a graph of ATen overloads, which only torch.export captures again. It refuses ``train()`` and ``eval()`` and
asks guards at every call; ours does neither. Evaluation mode is part of a program, so it changes nothing.
"""

from __future__ import annotations

import copy
from typing import Any, TypeGuard

from torch import Tensor, fx, nn
from torch.export import ExportedProgram

from polarspike.errors import CaptureError

_GUARDS = "_guards_fn"
_MADE_BY_TORCH = "_StatefulGraphModule"  # private; deep copies are of it, too, though these let train() and eval() pass


class _Program(fx.GraphModule):
    """The graph of an exported program as an ordinary module in evaluation mode."""


def model_of(model: nn.Module | ExportedProgram) -> nn.Module:
    """A model as it is; an exported program, or the module of one, as a module in evaluation mode over the same weights.

    Args:
        model: it is left untouched, and shares no module with the answer. What came from here is answered as it is.

    Raises:
        CaptureError: a program of a fixed batch size.
    """
    if isinstance(model, ExportedProgram):
        model = model.module(check_guards=False)
    if isinstance(model, _Program) or not is_program(model):
        return model
    _require_free_batch(model)
    weights: dict[int, Any] = {id(tensor): tensor for tensor in (*model.parameters(), *model.buffers())}
    own = copy.deepcopy(model, weights)
    for node in own.graph.find_nodes(op="call_module", target=_GUARDS):
        own.graph.erase_node(node)
    return _Program(own, own.graph).eval()


def is_program(model: object) -> TypeGuard[fx.GraphModule]:
    """Whether a model is the module of an exported program, and no other graph in which ATen overloads may be called."""
    return isinstance(model, fx.GraphModule) and any(
        base is _Program or base.__name__ == _MADE_BY_TORCH for base in type(model).__mro__
    )


def input_sizes(program: nn.Module) -> dict[str, list[Any]]:
    """The sizes of every tensor input of a program's module by name, as far as it knows them; a free size is no int."""
    inputs = program.graph.find_nodes(op="placeholder") if isinstance(program, fx.GraphModule) else ()
    return {str(node.target): list(value.shape) for node in inputs if isinstance(value := node.meta.get("val"), Tensor)}


def _require_free_batch(program: fx.GraphModule) -> None:
    """Refuse a program no input of which has a free first size; a mask that is the same for all samples has none."""
    sizes = {name: sizes for name, sizes in input_sizes(program).items() if sizes}
    if sizes and all(isinstance(own[0], int) for own in sizes.values()):
        name, own = next(iter(sizes.items()))
        raise CaptureError(
            f"input {name!r} has the fixed shape {tuple(own)}, expected a free batch size: export it again with "
            'dynamic_shapes, for instance dynamic_shapes=({0: torch.export.Dim("batch")},)'
        )
