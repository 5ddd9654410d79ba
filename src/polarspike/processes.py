"""Start to work together: join the processes of a launcher, and prepare a network for them, by the package accelerate.

    accelerate launch --num_processes 8 -m polarspike train imagenet_vit_s        (or torchrun --nproc_per_node 8 -m ...)

``polarspike demo``, ``train`` and ``evaluate`` share their work; other commands do not.

What the processes then do together is in :mod:`polarspike.distributed`.
"""

from __future__ import annotations

import atexit
import os

import torch
from torch import distributed as group
from torch import nn

from polarspike.distributed import world_size
from polarspike.errors import MissingExtraError, SpecError
from polarspike.sharding import refuse_launcher


def join(device: str = "cpu") -> str:
    """Join the group that a launcher has prepared, if there is one; the device of this process.

    Args:
        device: ``"cpu"``, ``"cuda"`` for one GPU for each process, or ``"auto"``: GPUs where there are any.

    Raises:
        MissingExtraError: there are several processes, and accelerate is not installed.
        SpecError: a device with a number, which all processes would share.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return device
    if ":" in device:
        raise SpecError(f"device: expected 'cuda' or 'cpu' for several processes, got {device!r}; each takes its own")
    refuse_launcher()
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise MissingExtraError("accelerate", "scale") from error
    state = PartialState(cpu=device == "cpu")
    atexit.register(_leave)
    return str(state.device)


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
    prepared: nn.Module = Accelerator(cpu=next(model.parameters()).device.type == "cpu").prepare_model(model)
    return prepared
