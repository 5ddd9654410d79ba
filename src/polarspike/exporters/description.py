"""What a reader of an exported file can know about the network in it, as JSON.

format      1
sites       by name: levels [N, P], step (a number, or a list by channel), gain
inputs      by name: shape without the batch
shared      the names of inputs that are the same for all samples, whose shape is whole; left out where there is none
outputs     in the order of the file's, where each stands in what the network answers ("logits", "aux.0"); left out where the
            answer is one tensor
notes       of the network: data, classes, normalization, ... where they are known
timesteps   1
polarspike  the version that wrote it
"""

from __future__ import annotations

import json
from importlib.metadata import version
from typing import Any

import torch
from torch import fx
from torch.utils import _pytree as pytree

from polarspike.integer.network import DESCRIPTION, DESCRIPTION_FORMAT
from polarspike.quantized import parameters_of
from polarspike.spiking import SpikingNetwork

#: Under what name files hold it.
KEY = DESCRIPTION


@torch.no_grad()
def describe(snn: SpikingNetwork) -> str:
    """The text of the block."""
    sites: dict[str, Any] = {
        name: {
            "levels": list(neuron.levels),
            "step": neuron.step.tolist(),
            "gain": float(neuron.gain) if neuron.spec.negative else 1.0,
        }
        for name, neuron in snn.sites().items()
    }
    inputs = snn.signature.named(parameters_of(snn.network)).shapes
    shared = [name for name, _ in inputs if name in snn.signature.shared]
    outputs = _places(snn.network)
    return json.dumps(
        {
            "format": DESCRIPTION_FORMAT,
            "polarspike": version("polarspike"),
            "timesteps": 1,
            "inputs": {name: list(shape) for name, shape in inputs},
            **({"shared": shared} if shared else {}),
            **({"outputs": outputs} if outputs != [""] else {}),
            "sites": sites,
            "notes": snn.notes,
        }
    )


def _places(network: fx.GraphModule) -> list[str]:
    """Where the tensors of an answer stand in its containers."""
    (answer,) = network.graph.output_node().args
    return [
        ".".join(str(getattr(part, "key", getattr(part, "idx", part))) for part in path)
        for path, leaf in pytree.tree_leaves_with_path(answer)
        if isinstance(leaf, fx.Node)
    ]
