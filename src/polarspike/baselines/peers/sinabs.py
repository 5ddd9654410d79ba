"""Sinabs' ``from_model``, with the scaling of weights or of inputs that its users choose."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.experimental import optimization

from polarspike.baselines.peers.network import PeerNetwork
from polarspike.baselines.peers.packages import imported, pairs
from polarspike.errors import SpecError


def from_model(
    model: nn.Module,
    batches: Iterable[Any],
    *,
    percentile: float | None = None,
    scale: float = 1.0,
    half_threshold: bool = False,
    multi_spike: bool = True,
) -> PeerNetwork:
    """Sinabs' ``from_model``, behind ``normalize_weights`` or with inputs and biases enlarged.

    Args:
        model: of nn.ReLU modules.
        batches: for the percentile.
        percentile: of the activations that becomes one spike; None for weights as they are.
        scale: inputs and biases are multiplied by it (``bias_rescaling``), so that every activation is: a spike is then
            worth 1 / scale.
        half_threshold: every membrane starts at half a threshold, so that the spikes of a step round its sum and do not cut
            it off. Sinabs has no word for it; its documentation of ``reset_states`` says how states are set.
        multi_spike: any number of spikes in a step, or one at most.

    Raises:
        SpecError: with a percentile, a model that is no chain of modules, which the normalization scales one by one.
    """
    package, utils, activation = (imported("sinabs", name) for name in ("sinabs", "sinabs.utils", "sinabs.activation"))
    ann: nn.Module = optimization.fuse(copy.deepcopy(model).eval())
    if percentile is not None:
        ann = _chain(ann)
        weighted = [name for name, part in ann.named_children() if isinstance(part, nn.Conv2d | nn.Linear)]
        rectified = [name for name, part in ann.named_children() if isinstance(part, nn.ReLU)]
        images = torch.cat([inputs for inputs, _ in pairs(batches)])
        utils.normalize_weights(ann, images, rectified, weighted, percentile)
    spike = activation.MultiSpike if multi_spike else activation.SingleSpike
    made = package.from_model(ann, num_timesteps=1, spike_fn=spike, bias_rescaling=1.0 / scale).spiking_model
    neurons = {name: part for name, part in made.named_modules() if isinstance(part, package.layers.StatefulLayer)}
    if not neurons:
        raise SpecError("sinabs: nothing was converted; from_model replaces nn.ReLU modules")
    return PeerNetwork(made, neurons, _at_half(neurons) if half_threshold else utils.reset_states, scale)


def _at_half(neurons: Mapping[str, Any]) -> Callable[[nn.Module], None]:
    """What brings a network to rest at half its thresholds: with its next input, whose shape the membranes have."""
    rested: set[str] = set()

    def begin(name: str, neuron: Any, x: Tensor) -> None:
        if name in rested:
            rested.remove(name)
            neuron.init_state_with_shape(x.shape)
            neuron.v_mem.fill_(0.5 * float(neuron.spike_threshold))

    for name, neuron in neurons.items():
        neuron.register_forward_pre_hook(lambda part, given, name=name: begin(name, part, given[0]))
    return lambda snn: rested.update(neurons)


def _chain(ann: nn.Module) -> nn.Sequential:
    """A traced network as one sequence of modules."""
    assert isinstance(ann, fx.GraphModule)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    for node in ann.graph.nodes:
        if len(node.users) > 1 or len(node.all_input_nodes) > 1:
            raise SpecError(
                f"sinabs: normalize_weights scales a chain of modules, and {node.name!r} is a branch of this model; "
                "give scale in place of percentile"
            )
        if node.op == "call_module":
            parts[node.name] = ann.get_submodule(str(node.target))
        elif node.op == "call_function" and node.target is torch.flatten:
            parts[node.name] = nn.Flatten(*node.args[1:])
        elif node.op not in ("placeholder", "output"):
            raise SpecError(f"sinabs: normalize_weights scales modules, got {node.format_node()}")
    return nn.Sequential(parts)
