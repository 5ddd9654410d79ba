"""One network in shares: every process keeps a part of its weights, of their gradients and of the optimizers' states.

This is FSDP, the second version of it (``torch.distributed.fsdp.fully_shard``): a part of the network is gathered when it
computes, and let go when it has. Sites are whole everywhere: their steps and gains are few, and their optimizer reads steps,
not shares of them.
"""

from __future__ import annotations

import copy
from collections import Counter

import torch
from torch import fx, nn

from polarspike.common.modules import device_of
from polarspike.errors import SpecError
from polarspike.parallel.distributed import world_size
from polarspike.sites import Site

# Numbers that are worth a message of their own: what has fewer is gathered with the rest.
_LEAST = 1 << 16


def sharded(model: nn.Module) -> nn.Module:
    """A copy of the model whose weights are dealt out over the processes; the model is left as it is.

    Its parameters have the names and shapes of the model's. Those of sites, those without dimensions and those of a
    floating type that few others have are whole in every process (:func:`kept_whole`), and so are buffers.

    Raises:
        SpecError: torch cannot share this network out.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    twin = copy.deepcopy(model)
    for parameter in twin.parameters():
        parameter.data = parameter.data.contiguous()  # shares are runs of rows
    whole = kept_whole(twin)
    shared = {parameter for parameter in twin.parameters() if parameter not in whole}
    if not shared:
        return twin
    mesh = init_device_mesh(device_of(model).type, (world_size(),))
    try:
        for part in (*_parts(twin, shared), twin):
            fully_shard(part, mesh=mesh, ignored_params=whole)
    except (ValueError, NotImplementedError, AssertionError, RuntimeError) as error:
        raise SpecError(
            f"TrainSpec.sharded: torch cannot share a {type(model).__name__} out ({error}); train it with sharded=False"
        ) from error
    return twin


def kept_whole(model: nn.Module) -> set[nn.Parameter]:
    """The parameters that every process keeps whole."""
    sites = {id(p) for module in model.modules() if isinstance(module, Site) for p in module.parameters()}
    sizes: Counter[torch.dtype] = Counter()
    for parameter in model.parameters():
        sizes[parameter.dtype] += parameter.numel() * parameter.is_floating_point()
    usual = sizes.most_common(1)[0][0]  # one message has one type
    return {p for p in model.parameters() if id(p) in sites or p.dim() == 0 or p.dtype != usual}


def _parts(model: nn.Module, shared: set[nn.Parameter]) -> list[nn.Module]:
    """The large parts, gathered one by one, each with parameters that nothing else has; the rest goes together."""
    everywhere = Counter(id(p) for _, p in model.named_parameters(remove_duplicate=False))
    found = []
    for part in {id(part): part for part in _called(model)}.values():
        inside = Counter(id(p) for _, p in part.named_parameters(remove_duplicate=False))
        alone = all(everywhere[one] == count for one, count in inside.items())
        if alone and sum(p.numel() for p in part.parameters() if p in shared) >= _LEAST:
            found.append(part)
    return found


def _called(module: nn.Module) -> list[nn.Module]:
    """What computes as a whole when it is called: the members of sequences, the modules that a graph calls once."""
    if isinstance(module, fx.GraphModule):
        nodes = list(module.graph.nodes)
        called = Counter(str(node.target) for node in nodes if node.op == "call_module")
        read = [str(node.target) for node in nodes if node.op == "get_attr"]
        return [
            module.get_submodule(name)
            for name, times in called.items()
            if times == 1 and not any(place.startswith(f"{name}.") for place in read)
        ]
    if isinstance(module, nn.Sequential | nn.ModuleList):
        return list(module)
    return [part for child in module.children() for part in _called(child)]
