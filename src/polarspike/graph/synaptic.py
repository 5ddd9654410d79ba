"""The layers of a captured graph whose weights may be changed: convolutions and linear layers, each with what follows it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from polarspike import ops
from polarspike.errors import SpecError
from polarspike.graph.editing import signals
from polarspike.graph.operator_table import Meaning
from polarspike.graph.operators import meaning_of

# Key in a quantized network's notes, and so in its file: what changed its weights after it was calibrated.
_CHANGED = "weights_changed_by"


@dataclass(frozen=True)
class SynapticLayer:
    """One convolution or linear layer at one place of the graph.

    Attributes:
        node: the call.
        norm: the call of the batch norm that alone reads the layer's output; None where there is none.
        alone: whether nothing else uses the layer or its weight, so that changing it changes this place only.
        norm_alone: the same for the batch norm.
    """

    node: fx.Node
    norm: fx.Node | None
    alone: bool
    norm_alone: bool

    @property
    def name(self) -> str:
        """The path of the layer's module."""
        return str(self.node.target)


def synaptic_layers(network: fx.GraphModule) -> list[SynapticLayer]:
    """The modules that are convolutions or linear layers of a signal, in the order of the graph.

    Layers whose weight is computed in the graph are functions, no modules, and not among them.
    """
    dependent = signals(network)
    owners = _owners(network)
    found = []
    for node in network.graph.nodes:
        if node.op != "call_module" or node not in dependent:
            continue
        if meaning_of(network, node) not in (Meaning.CONVOLUTION, Meaning.LINEAR):
            continue
        norm = _norm_behind(network, node)
        found.append(
            SynapticLayer(node, norm, _alone(network, node, owners), norm is not None and _alone(network, norm, owners))
        )
    return found


def require_goal(verb: str, notes: dict[str, Any], *, given: bool) -> None:
    """Refuse to take a network as its own float goal after its weights were changed.

    Args:
        verb: who asks.
        notes: of the quantized network.
        given: whether another network is the goal.

    Raises:
        SpecError: the network was changed, and no other goal is given.
    """
    if _CHANGED in notes and not given:
        raise SpecError(
            f"{verb}: {notes[_CHANGED]} has changed this network, so its float activations no longer compute the float "
            "model; copy the network before the first change, and give the copy as reference="
        )


def mark_changed(verb: str, notes: dict[str, Any]) -> None:
    """Note that the weights of a network are no longer those of the float model."""
    notes[_CHANGED] = verb


def channel_dim(module: nn.Module) -> int:
    """The dimension of a layer's or batch norm's output that holds its channels: the last of a linear layer, else 1."""
    return -1 if isinstance(module, nn.Linear) else 1


def channel_sums(y: Tensor, dim: int) -> tuple[Tensor, int]:
    """Sums over all but the channels, in float64 where the device has it, and how many values each one holds."""
    rest = [d for d in range(y.dim()) if d != dim % y.dim()]
    wide = ops.sum_dtype(y)
    return (y.sum(rest, dtype=wide) if rest else y.to(wide)), y.numel() // max(1, y.shape[dim])


def along_channels(values: Tensor, y: Tensor, dim: int) -> Tensor:
    """A vector over channels, in the type of ``y`` and shaped so that it broadcasts against it."""
    shape = [1] * y.dim()
    shape[dim] = -1
    return values.to(y).view(shape)


@torch.no_grad()
def add_bias(module: nn.Module, shift: Tensor) -> None:
    """Add a vector over channels to the bias of a layer or batch norm, which is created where there is none.

    A batch norm without learned scale gets one of ones, because torch has no bias without it.
    """
    if isinstance(module.bias, Tensor):
        module.bias.add_(shift.to(module.bias))
        return
    like = module.weight if isinstance(module.weight, Tensor) else module.running_mean
    assert isinstance(like, Tensor)  # a layer has a weight; a batch norm without statistics is refused by the contract
    module.bias = nn.Parameter(shift.to(like).clone())
    if getattr(module, "affine", None) is False:
        module.weight = nn.Parameter(torch.ones_like(module.bias))
        module.affine = True  # type: ignore[assignment]  # nn.Module types every attribute as a module or tensor


def _norm_behind(network: fx.GraphModule, node: fx.Node) -> fx.Node | None:
    readers = list(node.users)
    if len(readers) != 1 or readers[0].op != "call_module" or meaning_of(network, readers[0]) is not Meaning.NORM:
        return None
    layer, norm = (network.get_submodule(str(part.target)) for part in (node, readers[0]))
    # Behind a linear layer the channels of a norm are its features only for vectors, which only BatchNorm1d can take;
    # for sequences they are the positions, which the norm's length tells unless both agree.
    features = getattr(layer, "out_channels", None) or getattr(layer, "out_features", None)
    return readers[0] if getattr(norm, "num_features", None) == features else None


def _owners(network: fx.GraphModule) -> Counter[int]:
    """For every parameter, by identity, how many calls and constants of the graph use it."""
    count: Counter[int] = Counter()
    for node in network.graph.nodes:
        if node.op == "call_module":
            count.update(id(value) for value in network.get_submodule(str(node.target)).parameters(recurse=False))
        elif node.op == "get_attr":
            owner, _, name = str(node.target).rpartition(".")
            count.update([id(getattr(network.get_submodule(owner), name))])
    return count


def _alone(network: fx.GraphModule, node: fx.Node, owners: Counter[int]) -> bool:
    calls = sum(other.op == "call_module" and other.target == node.target for other in network.graph.nodes)
    module = network.get_submodule(str(node.target))
    return calls == 1 and all(owners[id(value)] == 1 for value in module.parameters(recurse=False))
