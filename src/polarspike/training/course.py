"""What moves while a network is trained: its weights, alone or in shares, their optimizers and their average."""

from __future__ import annotations

import contextlib

import torch
from torch import nn

from polarspike.common.modules import device_of
from polarspike.errors import RunError
from polarspike.parallel import distributed
from polarspike.parallel.processes import wrapped
from polarspike.parallel.sharding import kept_whole, sharded
from polarspike.training.optimization import Average, build_optimizers, tensors_of
from polarspike.training.refinement import Refinement
from polarspike.training_spec import TrainSpec

# Below it, what is infinite is so by itself, and no scale would repair it.
_LEAST_SCALE = 2.0**-8


class Course:
    """One training.

    Args:
        model: what is trained. In shares, it is what they were at the last :meth:`gather`.
        spec: how.

    Attributes:
        trained: what the optimizers move: the model, or a copy of it in shares.
        forward: what computes: ``trained``, or what wraps it to average gradients.
        optimizers: of ``trained``.
        average: of ``trained``, or None.
        refinement: of the sites of ``trained``: which timestep is computed.
        scaler: of the loss.
    """

    def __init__(self, model: nn.Module, spec: TrainSpec) -> None:
        self.model = model
        distributed.require_same_start(model)
        self.in_shares = spec.sharded and distributed.world_size() > 1
        self.trained = sharded(model) if self.in_shares else model
        whole = kept_whole(self.trained) if self.in_shares else set()
        self._whole = [parameter for parameter in self.trained.parameters() if parameter in whole]  # in one order
        self.forward = self.trained if self.in_shares else wrapped(model)  # the model where one process works alone
        self.optimizers = build_optimizers(self.trained, spec)
        self.average = Average(self.trained, spec.averaging) if spec.averaging else None
        self.refinement = Refinement(self.trained, spec)
        self.scaler = torch.amp.GradScaler(device_of(model).type, enabled=spec.precision == "fp16")

    def move(self, index: int) -> None:
        """Optimizer step ``index`` (from 1, over all epochs) down the gradient that has gathered."""
        if self.in_shares:
            distributed.share_gradients(self._whole)
        # At a rate of zero nothing may gather in moments, either, that would move the weights later.
        moving = [one for one in self.optimizers if one.param_groups[0]["lr"] and _has_gradients(one)]
        for optimizer in moving:
            self.scaler.step(optimizer)
        if moving:
            self.scaler.update()
        if self.scaler.is_enabled() and self.scaler.get_scale() < _LEAST_SCALE:
            raise RunError(
                f"fit, optimizer step {index}: gradients stay infinite or NaN however little the loss is scaled (by "
                f"{self.scaler.get_scale():.2g}); train with precision='fp32' to see where, or 'bf16'"
            )
        if self.average is not None:
            self.average.update(self.trained, index)

    def share_buffers(self) -> None:
        """Give every process the same buffers, also of the average: each has seen other samples."""
        own = dict(self.trained.named_buffers())
        distributed.share_buffers(own)
        if self.average is not None:
            distributed.share_buffers({name: self.average.values[name] for name in own if name in self.average.values})

    def shown(self) -> contextlib.AbstractContextManager[None]:
        """Within this context the model is what training would leave if it ended now."""
        return contextlib.nullcontext() if self.average is None else self.average.shown(self.model)

    def gather(self) -> None:
        """Put the shares of all processes together in the model, in every process."""
        if self.in_shares:
            there = tensors_of(self.trained)
            for name, value in tensors_of(self.model).items():
                distributed.fill(value, distributed.whole(there[name]))

    def deal_out(self) -> None:
        """The other way: the model's values into the shares."""
        if self.in_shares:
            there = tensors_of(self.model)
            for name, value in tensors_of(self.trained).items():
                distributed.fill(value, there[name])


def _has_gradients(optimizer: torch.optim.Optimizer) -> bool:
    return any(p.grad is not None for group in optimizer.param_groups for p in group["params"])
