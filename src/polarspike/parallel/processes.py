"""Start to work together: join the processes of a launcher, and prepare a network for them, by the package accelerate.

    accelerate launch --num_processes 8 -m polarspike train imagenet_vit_s
    torchrun --nproc_per_node 8 -m -- polarspike train imagenet_vit_s

Torchrun needs the two dashes: else it takes ``--run`` for the beginning of one of its own options.

``polarspike demo``, ``train`` and ``evaluate`` share their work; other commands do not.

What the processes then do together is in :mod:`polarspike.parallel.distributed`.
"""

from __future__ import annotations

import atexit
import datetime
import os

import torch
from torch import distributed as group
from torch import nn

from polarspike.errors import MissingExtraError, SpecError
from polarspike.parallel.distributed import world_size

# One process makes the frames of a data set while the others wait for it; torch's own patience is ten minutes with NCCL.
_PATIENCE = datetime.timedelta(hours=6)

_SHARDED = "TrainSpec(sharded=True), or --ann.sharded True and --qann.sharded True"
_PRECISION = "TrainSpec(precision=...), or --ann.precision and --qann.precision"

# Switches of accelerate's launcher that would change the training under us, and what says the same here.
_SAID_HERE = {
    "ACCELERATE_USE_FSDP": ("--use_fsdp", _SHARDED),
    "ACCELERATE_USE_DEEPSPEED": ("--use_deepspeed", _SHARDED),
    "ACCELERATE_USE_MEGATRON_LM": ("--use_megatron_lm", _SHARDED),
    "ACCELERATE_MIXED_PRECISION": ("--mixed_precision", _PRECISION),
    "ACCELERATE_DYNAMO_BACKEND": ("--dynamo_backend", "torch.compile on the model that you give"),
}


def launched() -> int:
    """How many processes the launcher of this one has started; 1 without a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def join(device: str = "cpu") -> str:
    """Join the group that a launcher has prepared, if there is one; the device of this process.

    Args:
        device: ``"cpu"``, ``"cuda"`` for one GPU for each process, or ``"auto"``: GPUs where there are any.

    Raises:
        MissingExtraError: there are several processes, and accelerate is not installed.
        SpecError: a device with a number, which all processes would share; or a switch of accelerate's launcher that
            would change the training.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if launched() < 2:
        return device
    if ":" in device:
        raise SpecError(f"device: expected 'cuda' or 'cpu' for several processes, got {device!r}; each takes its own")
    _refuse_switches()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtraError("accelerate", "scale") from error
    state = PartialState(cpu=device == "cpu", timeout=_PATIENCE)
    atexit.register(_leave)
    return str(state.device)


def _refuse_switches() -> None:
    for name, (switch, repair) in _SAID_HERE.items():
        value = os.environ.get(name, "").lower()
        if value not in ("", "no", "none", "0", "false", "off", "n", "f"):
            raise SpecError(
                f"accelerate launch {switch}: expected a launch without it, got {name}={value}; it would change the "
                f"training without its spec: {repair} says it here ('accelerate config' may have set it)"
            )


def _leave() -> None:
    """End the group before the interpreter goes: a thread of it that is still awake would abort the process."""
    if group.is_initialized():
        group.destroy_process_group()


def wrapped(model: nn.Module) -> nn.Module:
    """The model as accelerate prepares it for several processes (DDP): its forward pass ends in shared gradients."""
    if world_size() < 2:
        return model
    try:
        from accelerate import Accelerator
    except ImportError as error:
        raise MissingExtraError("accelerate", "scale") from error
    on_cpu = next(model.parameters()).device.type == "cpu"
    # Said, so that nothing of the environment is asked: accelerate would replace the model's own forward for good.
    prepared: nn.Module = Accelerator(cpu=on_cpu, mixed_precision="no", dynamo_backend="no").prepare_model(model)
    return prepared
