"""Make a model ready to be captured: check it and its example, copy it, fix what is computed anew at every call."""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize, prune
from torch.nn.utils.spectral_norm import SpectralNorm, remove_spectral_norm
from torch.nn.utils.weight_norm import WeightNorm, remove_weight_norm
from torch.utils import _pytree as pytree

from polarspike.common.inputs import Inputs, as_call, batch_size, plain_output, require_finite, tensors_of
from polarspike.errors import CaptureError, InputError, PolarspikeWarning
from polarspike.graph.editing import SETTLED

# What an answer may hold beside tensors: a graph keeps it as it is.
_CONSTANTS = (bool, int, float, complex, str, type(None), torch.dtype, torch.device, torch.layout, torch.memory_format)


def check_model(model: nn.Module) -> None:
    """Refuse what is no module, or a compiled one, has no values yet, or holds NaN or Inf."""
    if not isinstance(model, nn.Module):
        raise CaptureError(f"expected a torch.nn.Module or an exported program, got {type(model).__name__}")
    scripted = next((name for name, part in model.named_modules() if isinstance(part, torch.jit.ScriptModule)), None)
    if scripted is not None:
        raise CaptureError(
            f"{f'module {scripted!r}' if scripted else 'the model'} is a TorchScript module, which has no forward in Python "
            "to capture; expected the nn.Module that it was made from: build that, and load its weights with "
            "load_state_dict(scripted.state_dict())"
        )
    buffers = {name for name, _ in model.named_buffers()}
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(value):
            raise CaptureError(f"{name!r} has no values yet (a lazy module); call the model once on an example first")
        if value.is_meta:
            raise CaptureError(
                f"{name!r} has no values (device 'meta'); load its weights first: "
                "model.load_state_dict(weights, assign=True)"
            )
        if name in buffers and value.is_floating_point() and not bool(torch.isnan(value).any()):
            continue  # a mask of attention holds minus infinity
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            kind = "buffer" if name in buffers else "parameter"
            count = int((~torch.isfinite(value)).sum())
            raise CaptureError(
                f"{kind} {name!r}: expected finite values, got {count} NaN or Inf of {value.numel()}; "
                "load a sound checkpoint or train again with a lower learning rate"
            )


def check_example(model: nn.Module, example: Inputs) -> Any:
    """Refuse an example that the model cannot take, or answers in containers of its own; return the answer in plain ones."""
    if batch_size(example) == 0:
        raise InputError(
            "expected an example of at least one sample, got an empty batch; nothing could be checked on it"
        )
    for name, tensor in tensors_of(example):
        if tensor.is_complex():
            raise InputError(f"example input {name!r}: expected real numbers, got {tensor.dtype}")
        if tensor.layout is not torch.strided:
            raise InputError(f"example input {name!r}: expected a dense tensor, got {tensor.layout}; call x.to_dense()")
    require_finite(example, "example")
    args, kwargs = as_call(clone_tensors(example))
    reference = copy_model(model).eval()
    try:
        with torch.no_grad():
            answer = reference(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(f"{name!r}: {tuple(tensor.shape)}" for name, tensor in tensors_of(example))
        raise InputError(f"{type(model).__name__} itself fails on the example input ({shapes}): {error}") from error

    def checked(leaf: Any) -> Any:
        if not isinstance(leaf, (Tensor, *_CONSTANTS)):
            raise CaptureError(
                f"{type(model).__name__} answers with an object of {type(leaf).__name__}, expected tensors in tuples, "
                "named tuples, lists and dicts: wrap it in a module whose forward returns the fields that you need as a dict"
            )
        return leaf

    return plain_output(answer, checked)


def clone_tensors(value: Any) -> Any:
    """Copies of all tensors, so that in-place operators of a model cannot alter its caller's inputs."""
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, value)


def copy_model(model: nn.Module) -> nn.Module:
    """A deep copy, also of modules that hold a computed tensor (old weight norm, pruning), which torch refuses to copy."""
    computed = {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }
    try:
        return copy.deepcopy(model, dict(computed))
    except Exception as error:
        raise CaptureError(
            f"{type(model).__name__} cannot be copied: {error}. Keep open files, locks and computed tensors out of its "
            "attributes"
        ) from error


@torch.no_grad()
def freeze(model: nn.Module, hooks: bool = False) -> nn.Module:
    """Computed weights (weight norm, spectral norm, pruning) replaced by their present values, and hooks removed.

    Hooks are no part of a traced graph; if one changes an output, the capture check finds it. torch.export sees through
    them, so there they stay (``hooks=True``). The model is altered in place.
    """
    for module in model.modules():
        if parametrize.is_parametrized(module):
            _fix_parametrized(module)
        for hook in list(module._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(module, hook.name)
            elif isinstance(hook, SpectralNorm):
                remove_spectral_norm(module, hook.name)
            elif isinstance(hook, prune.BasePruningMethod):
                prune.remove(module, hook._tensor_name)
        if not hooks:
            module._forward_hooks.clear()
            module._forward_pre_hooks.clear()
    return model


def _fix_parametrized(module: nn.Module) -> None:
    # Not parametrize.remove_parametrizations: it edits the module's class, which a deep copy shares with its original.
    parametrizations = dict(cast(nn.ModuleDict, module.parametrizations))
    values = {name: getattr(module, name).detach().clone() for name in parametrizations}
    module.__class__ = parametrize.type_before_parametrizations(module)
    del module.parametrizations
    for name, value in values.items():
        if any(True for _ in parametrizations[name].parameters(recurse=False)):
            module.register_parameter(name, nn.Parameter(value))
        else:
            module.register_buffer(name, value)


def tell_of_pruned(model: nn.Module) -> None:
    """Warn of pruned layers.

    Warns:
        PolarspikeWarning: there are some.
    """
    pruned = [
        name
        for name, module in model.named_modules()
        if any(isinstance(hook, prune.BasePruningMethod) for hook in module._forward_pre_hooks.values())
    ]
    if pruned:
        warnings.warn(
            f"quantize: {pruned[0]!r} is pruned{f' ({len(pruned)} modules are)' if len(pruned) > 1 else ''}: its zeros are "
            "plain weights of the quantized network, which fit, distill and reconstruct move again",
            PolarspikeWarning,
            stacklevel=3,
        )


def frozen_in(model: nn.Module, network: fx.GraphModule) -> tuple[str, ...]:
    """Modules of a graph that the model's own ``train()`` leaves in evaluation mode.

    Also norms that became modules, which would else begin to count: of constants (``F.batch_norm`` whose weight is a
    buffer, as detectors have it), and those whose call says ``training=False`` itself.
    """
    modes = {module: module.training for module in model.modules()}
    try:
        model.train()
        kept = [name for name, module in model.named_modules() if not module.training]
    finally:
        for module, mode in modes.items():
            module.training = mode
    there = dict(network.named_modules())
    constants = dict(model.named_buffers())
    norms = (name for name, module in there.items() if isinstance(module, nn.modules.batchnorm._BatchNorm))
    settled = {str(node.target) for node in network.graph.nodes if node.meta.get(SETTLED)}
    kept += [name for name in norms if (f"{name}.weight" in constants or name in settled) and name not in kept]
    return tuple(name for name in kept if name in there)
