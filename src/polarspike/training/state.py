"""What of a training is kept in a checkpoint, and how it comes back: weights, buffers, optimizers, average, history."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from polarspike.errors import CheckpointError, RunError
from polarspike.parallel import distributed
from polarspike.runs import RunDirectory, differences
from polarspike.training.course import Course
from polarspike.training.optimization import decayed_parameters, trainable
from polarspike.training_spec import TrainSpec


def table_of(model: nn.Module) -> dict[str, str]:
    """What each tensor of the model is, as far as training depends on it."""
    trained, decayed = trainable(model), set(decayed_parameters(model))
    table = {}
    for name, value in model.state_dict().items():
        if not isinstance(value, Tensor):
            raise RunError(
                f"fit: the model keeps state that is not a tensor ({name}: {type(value).__name__}), which a checkpoint "
                "cannot hold; return a tensor from get_extra_state, or train without run"
            )
        role = "decayed" if name in decayed else "trained" if name in trained else "kept"
        table[name] = f"{value.dtype} {tuple(value.shape)} {role}"
    return table


def keep(run: RunDirectory, course: Course, metadata: Mapping[str, Any]) -> None:
    """Write the checkpoint of a run; every process calls it, and what is in shares is put together."""
    tensors = {f"model.{name}": tensor for name, tensor in course.model.state_dict().items()}
    for name, parameter in trainable(course.trained).items():
        for optimizer in course.optimizers:
            for key, value in optimizer.state.get(parameter, {}).items():
                if isinstance(value, Tensor):  # SGD without momentum keeps None
                    tensors[f"optimizer.{key}.{name}"] = distributed.whole(value)
    if course.average is not None:
        tensors |= {f"average.{name}": distributed.whole(value) for name, value in course.average.values.items()}
    run.write_checkpoint(tensors, {**metadata, "scaler": course.scaler.state_dict()})


def bring_back(run: RunDirectory, course: Course, expected: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Load the checkpoint of ``run`` if it is of the same training, and return the records of its epochs.

    Raises:
        RunError: it is of another training.
        CheckpointError: it is damaged.
    """
    tensors, metadata = run.read_checkpoint()
    metadata["spec"] = TrainSpec.completed(metadata.get("spec"))
    metadata.setdefault("processes", expected.get("processes"))  # older ones do not tell
    if changed := [line for key in expected for line in differences(metadata.get(key), expected[key], key)]:
        more = f" and {len(changed) - 5} more" if len(changed) > 5 else ""
        raise RunError(
            f"{run.checkpoint_path}: cannot resume, this is another training: {'; '.join(changed[:5])}{more}; "
            "resume with the same arguments, or give a new directory"
        )
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "optimizer": {}, "average": {}}
    try:
        history: list[dict[str, Any]] = list(metadata["history"])
        for place, value in tensors.items():
            part, name = place.split(".", 1)
            parts[part][name] = value
        course.model.load_state_dict(parts["model"])
        course.deal_out()
        _restore_optimizers(course, parts["optimizer"])
        if course.average is not None:
            for name, value in course.average.values.items():
                distributed.fill(value, parts["average"][name])
        if course.scaler.is_enabled():
            course.scaler.load_state_dict(metadata["scaler"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(
            f"{run.checkpoint_path}: its tensors and its description do not fit together ({error}); "
            "remove the file to train this stage from its start"
        ) from error
    return history


def _restore_optimizers(course: Course, states: Mapping[str, Tensor]) -> None:
    parameters = trainable(course.trained)
    owners = {id(p): one for one in course.optimizers for group in one.param_groups for p in group["params"]}
    for place, value in states.items():
        key, name = place.split(".", 1)
        parameter = parameters[name]
        if key != "step":  # the count of steps stays on the CPU, where the optimizer put it
            kept = torch.empty_like(parameter, requires_grad=False)  # the parameter's device, strides and shares
            distributed.fill(kept, value)
            value = kept
        owners[id(parameter)].state[parameter][key] = value
