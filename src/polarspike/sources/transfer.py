"""What may differ between a file of weights and a network that learns on from it: its last layer, its grid of patches."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from polarspike.errors import CheckpointError, SpecError
from polarspike.sources.weights import Say, Weights, fit_weights, misfits, renamed, silent

_POSITIONS = "pos_embed"  # as timm calls them
# As anybody does: pos_embed, positions, encoder.pos_embedding, relative_position_bias_table.
_POSITION = re.compile(r"(?:^|[._])pos(?:_|ition)")


def take_over(
    model: nn.Module,
    weights: Weights,
    reference: str,
    another: Callable[[], nn.Module],
    *,
    fresh_head: bool = False,
    say: Say = silent,
) -> nn.Module:
    """Load the weights into a network that learns on from them, in place; return it.

    Args:
        model: what takes them.
        weights: of a file.
        reference: what the model was built from.
        another: builds the same for another number of classes, from which :func:`head_of` tells the last layer.
        fresh_head: that layer keeps the model's own values, whether the file's would fit or not. Everything else has to fit.
        say: told what became of the weights: prefixes, the fresh layer, position embeddings that were resampled.

    Raises:
        CheckpointError: the weights do not fit; where a fresh head would be enough, the message says so.
        SpecError: a fresh head of a network without one last layer.
    """
    held = renamed(model, weights.tensors, say)
    if reference.startswith("timm:"):
        held = resample_positions(model, held, say)

    def head() -> tuple[str, ...]:
        with torch.random.fork_rng(devices=[]):  # what comes after it draws as if it had not been built
            return head_of(model, another(), reference)

    fresh = head() if fresh_head else ()
    try:
        fit_weights(model, held, weights.path, reference, fresh=fresh)
    except CheckpointError as error:
        if repair := _repair(misfits(model, held, fresh), head):
            raise CheckpointError(f"{error}; {repair}") from error
        raise
    if fresh:
        kinds = [kind for kind, names in misfits(model, held).items() if names]
        why = f"{' or '.join(kinds)} in the file" if kinds else "those of the file would fit, and are left out"
        names = ", ".join(fresh)
        say(f"weights: a fresh head, as asked for: {names} ({why}); all others are those of {weights.path.name}")
    return model


def _repair(faults: Mapping[str, list[str]], head: Callable[[], tuple[str, ...]]) -> str:
    """What there is beside the network of the file: a fresh head where it is all that is wrong; empty if nothing is."""
    positions = {name for name in faults["of another shape"] if _POSITION.search(name)}
    others = {name for names in faults.values() for name in names} - positions
    repairs = []
    if positions:
        repairs.append(
            "position embeddings of another image size are resampled for Vision Transformers of timm alone, from a square "
            "grid of patches"
        )
    if others:
        with contextlib.suppress(SpecError):  # which of several layers makes the scores cannot be told
            if others <= {*(layer := head())}:
                repairs.append(
                    f"or ask for a fresh head (--fresh-head True, Recipe.fresh_head): {', '.join(layer)} start afresh, all "
                    "other weights are taken, and the float network is trained from there"
                )
    return "; ".join(repairs)


def head_of(model: nn.Module, another: nn.Module, reference: str) -> tuple[str, ...]:
    """The names of the tensors of the layer that makes the scores.

    It is found by no name: it is the layer whose tensors have other shapes where the network has other classes.

    Args:
        model: the network.
        another: the same, built for another number of classes.
        reference: what both were built from, for the message.

    Returns:
        All tensors of that layer itself, its name in front of each: ``("head.weight", "head.bias")``.

    Raises:
        SpecError: there is no such layer, or more than one.
    """
    shapes = {name: value.shape for name, value in another.state_dict().items()}
    names = list(model.state_dict())
    following = [name for name, value in model.state_dict().items() if shapes.get(name) != value.shape]
    layers = list(dict.fromkeys(layer_of(name) for name in following))
    if len(layers) != 1:
        found = f"{len(layers)} ({', '.join(map(repr, layers))})" if layers else "none"
        raise SpecError(
            f"{reference}: expected one layer whose shape follows the number of classes, which a fresh head replaces, found "
            f"{found}; leave --fresh-head out and give weights that fit as they are, or take another network"
        )
    # What stands beside patches and tokens, at the root of a network, is no layer.
    return tuple(name for name in names if layer_of(name) == layers[0]) if layers[0] else tuple(following)


def layer_of(name: str) -> str:
    """The module that a tensor belongs to: "blocks.0.norm1" of "blocks.0.norm1.weight"."""
    return name.rpartition(".")[0]


def resample_positions(model: nn.Module, held: Mapping[str, Tensor], say: Say = silent) -> dict[str, Tensor]:
    """Weights whose position embeddings have the grid of the model's patches, if it is a Vision Transformer of timm.

    Of another grid, which has to be square, they are resampled by timm (bicubic, tokens in front of the patches stay).
    Everything else stays as it is.

    Args:
        model: what takes them, of timm.
        held: the weights by the names of the model.
        say: told that it was done.
    """
    from timm.layers.pos_embed import resample_abs_pos_embed
    from timm.models.vision_transformer import VisionTransformer

    found = held.get(_POSITIONS)
    if not isinstance(model, VisionTransformer) or model.pos_embed is None or found is None:
        return dict(held)
    wanted = model.pos_embed.shape  # (1, tokens, D)
    prefix = 0 if model.no_embed_class else model.num_prefix_tokens
    rows, columns = model.patch_embed.grid_size
    if found.shape == wanted:
        if rows != columns:  # a file does not say which grid it has
            say(f"weights: {_POSITIONS} is taken to be of the network's own grid, {rows}x{columns} patches")
        return dict(held)
    if found.dim() != 3 or (found.shape[0], found.shape[2]) != (wanted[0], wanted[2]):
        return dict(held)
    patches = found.shape[1] - prefix
    side = math.isqrt(max(patches, 0))
    if side == 0 or side * side != patches:
        return dict(held)
    say(f"weights: {_POSITIONS} is resampled by timm, from {side}x{side} patches to {rows}x{columns}")
    resampled = resample_abs_pos_embed(found, [rows, columns], [side, side], num_prefix_tokens=prefix)
    return {**held, _POSITIONS: resampled}
