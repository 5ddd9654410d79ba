"""What moves the weights of a training run: its schedule, its optimizers, and the running average of what they find.

Step ``i`` of ``n`` (counted over all epochs), with ``w`` warm-up steps and peak ``r``::

    rate_i = r (i + 1) / w                                 for i < w
    rate_i = r (1 + cos(pi (i - w) / (n - w))) / 2         for i >= w

The steps of sites have a peak of their own and no warm-up: ``step_rate (1 + cos(pi i / n)) / 2``. They lead: where they move
on their own, the weights wait for the first quarter of the warm-up (``rate_i = 0`` for ``i < w / 4``), or else they would
adapt to a wrong start before it is repaired.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

from polarspike.errors import SpecError
from polarspike.parallel.distributed import fill, local, whole
from polarspike.sites import Site
from polarspike.training_spec import TrainSpec

# The part of the warm-up in which steps move alone. On 14x14 images, 4 levels and a start four times too large, accuracy is
# 87.3 % without it and 87.9 % with it, where other starts reach 88.1 % (the setting of benchmarks/studies/sensitivity.py).
_LEAD = 0.25
# A gain has the range [0, 1], which it must not cross in a few updates.
_SHARE_OF_GAINS = 0.1


def learning_rate(spec: TrainSpec, step: int, steps_per_epoch: int) -> float:
    """The learning rate of optimizer step ``step`` (from 0, over all epochs)."""
    warmup = round(spec.warmup_epochs * steps_per_epoch)
    if step < warmup:
        return spec.learning_rate * (step + 1) / warmup
    total = spec.epochs * steps_per_epoch
    return spec.learning_rate * (1 + math.cos(math.pi * (step - warmup) / (total - warmup))) / 2


def trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that require a gradient, by name; shared ones once."""
    return {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}


def decayed_parameters(model: nn.Module) -> list[str]:
    """The names of the trainable parameters that weight decay may shrink.

    Those with two or more dimensions, unless a module that holds them says ``no_weight_decay = True``: a quantizer
    does, whose step per channel may have many dimensions of size 1.
    """
    exempt = {
        id(parameter)
        for module in model.modules()
        if getattr(module, "no_weight_decay", False) is True
        for parameter in module.parameters()
    }
    return [name for name, p in trainable(model).items() if p.ndim >= 2 and id(p) not in exempt]


class StepAdam(torch.optim.Adam):
    """Adam on the logarithm of the steps of sites, and at a tenth of the rate on their learned gains.

        ds = -rate s m / sqrt(v)     m, v: Adam's running moments of s dL/ds

    So one rate fits steps of every size, and a start that is wrong by a factor f can be repaired in ln(f) / rate updates,
    whatever the scale of the gradient.

    Args:
        sites: whose offsets and learned gains move; those that require no gradient stay.
        lr: the rate: the part of itself by which a step moves in one update, at most.
    """

    def __init__(self, sites: Iterable[Site], lr: float) -> None:
        sites = list(sites)
        self._moved = list({id(site.offset): site for site in sites if site.offset.requires_grad}.values())
        gains = learned_gains(sites)
        if half := [site.name for site in sites if site.offset.dtype in (torch.float16, torch.bfloat16)]:
            raise SpecError(
                f"TrainSpec.step_rate: expected steps in float32, got half precision at {half[0]!r}, which cannot hold "
                "small moves; train the network in float32 with precision='bf16', or set step_rate=0"
            )
        groups = [
            {"params": [site.offset for site in self._moved], "share": 1.0},
            {"params": gains, "share": _SHARE_OF_GAINS},
        ]
        # An epsilon below every gradient of a step, whose scale falls with the number of elements that share it.
        super().__init__([group for group in groups if group["params"]], lr=lr, eps=1e-12)
        keep_within(self, gains)

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        # Above its start a step is start + offset; below, offset / start is the logarithm of step / start.
        former = [(site, site.offset.clone(), torch.maximum(site.step, site.start)) for site in self._moved]
        for site, _, scale in former:
            if site.offset.grad is not None:
                site.offset.grad.mul_(scale)  # dL / d ln s
        loss = super().step(closure)
        for site, offset, scale in former:
            site.offset.copy_(offset + (site.offset - offset) * scale)
        return loss


def learned_gains(sites: Iterable[nn.Module]) -> list[nn.Parameter]:
    """The learned gains of the sites among these modules, each once; those that require no gradient left out."""
    gains = {id(gain): gain for site in sites if isinstance(site, Site) and (gain := site.raw_gain) is not None}
    return [gain for gain in gains.values() if isinstance(gain, nn.Parameter) and gain.requires_grad]


def keep_within(optimizer: torch.optim.Optimizer, gains: Sequence[Tensor]) -> None:
    """Let an optimizer move gains in [0, 1] alone.

    What would lead out of the range is left out of the gradient, which by then is that of the whole batch, of all processes
    and pieces: it must not gather in moments, and the way back would be as long as the way out.
    """

    def mask(*_: object) -> None:
        for gain in gains:
            if gain.grad is not None:
                outward = ((gain <= 0) & (gain.grad > 0)) | ((gain >= 1) & (gain.grad < 0))
                gain.grad.masked_fill_(outward, 0.0)

    @torch.no_grad()
    def clamp(*_: object) -> None:
        for gain in gains:
            gain.clamp_(0.0, 1.0)

    if gains:
        optimizer.register_step_pre_hook(mask)
        optimizer.register_step_post_hook(clamp)


def build_optimizers(model: nn.Module, spec: TrainSpec) -> list[torch.optim.Optimizer]:
    """SGD with Nesterov momentum or AdamW over the trainable parameters, and :class:`StepAdam` over those of sites.

    Weight decay shrinks :func:`decayed_parameters` alone. With ``spec.step_rate = 0`` the first moves the sites', too.
    """
    found: list[torch.optim.Optimizer] = []
    sites = [module for module in model.modules() if isinstance(module, Site)] if spec.step_rate else []
    apart = {id(p) for site in sites for p in (site.offset, site.raw_gain) if p is not None}
    decayed = decayed_parameters(model)
    rest = {name: p for name, p in trainable(model).items() if id(p) not in apart}
    # An update of many tensors at once takes none that are sharded beside others that are not.
    kinds = sorted({local(p) is p for p in rest.values()}, reverse=True) or [True]
    groups = [
        {
            "params": [p for name, p in rest.items() if (name in decayed) == decays and (local(p) is p) == alone],
            "weight_decay": spec.weight_decay if decays else 0.0,
        }
        for alone in kinds
        for decays in (True, False)
    ]
    if rest and spec.optimizer == "adamw":
        found.append(torch.optim.AdamW(groups, lr=spec.learning_rate))
    elif rest:
        found.append(torch.optim.SGD(groups, lr=spec.learning_rate, momentum=spec.momentum, nesterov=spec.momentum > 0))
    if rest and not spec.step_rate:
        keep_within(found[-1], learned_gains(model.modules()))
    if any(p.requires_grad for site in sites for p in (site.offset, site.raw_gain) if p is not None):
        found.append(StepAdam(sites, spec.step_rate))
    return found


def set_rates(optimizers: Sequence[torch.optim.Optimizer], spec: TrainSpec, step: int, steps_per_epoch: int) -> float:
    """Give every optimizer its rate for optimizer step ``step`` (from 0), and return that of the weights."""
    rate = learning_rate(spec, step, steps_per_epoch)
    if any(isinstance(optimizer, StepAdam) for optimizer in optimizers):
        rate *= step >= math.floor(spec.warmup_epochs * steps_per_epoch * _LEAD)
    of_steps = spec.step_rate * (1 + math.cos(math.pi * step / (spec.epochs * steps_per_epoch))) / 2
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = of_steps * group["share"] if isinstance(optimizer, StepAdam) else rate
    return rate


class Average:
    """The exponential running average of a model's parameters and buffers.

        a_i = d_i a_(i-1) + (1 - d_i) w_i,    d_i = min(d, (1 + i) / (10 + i))

    The decay grows to ``d``, so that the start is soon forgotten. What holds no floats (counters) is copied. A step is
    averaged through its offset.

    Args:
        model: what is averaged; its state now is where the average starts.
        decay: d, in [0, 1).
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        # Half precision would not move at all: a change by one part in a thousand is below its last digit.
        self.values = {name: _wide(value.detach().clone()) for name, value in tensors_of(model).items()}

    @torch.no_grad()
    def update(self, model: nn.Module, index: int) -> None:
        """Take in the model after optimizer step ``index`` (from 1)."""
        decay = min(self.decay, (1 + index) / (10 + index))
        for name, value in tensors_of(model).items():
            wide = _wide(value)
            if name not in self.values:
                self.values[name] = wide.clone()
                continue
            kept = self.values[name]
            if isinstance(value, nn.Parameter):
                kept.lerp_(wide, 1.0 - decay)
            elif value.is_floating_point():
                # What is infinite (a mask) is no number to average: inf - inf is none.
                kept.copy_(torch.where(kept.isfinite() & wide.isfinite(), kept.lerp(wide, 1.0 - decay), wide))
            else:
                kept.copy_(value)

    @contextlib.contextmanager
    def shown(self, model: nn.Module) -> Iterator[None]:
        """Within this context the model holds the average."""
        kept = {name: value.detach().clone() for name, value in tensors_of(model).items()}
        self.give(model)
        try:
            yield
        finally:
            _copy(kept, model)

    def give(self, model: nn.Module) -> None:
        """Leave the average in the model."""
        _copy(self.values, model)


def _wide(value: Tensor) -> Tensor:
    return value.float() if value.dtype in (torch.float16, torch.bfloat16) else value


@torch.no_grad()
def _copy(values: dict[str, Tensor], model: nn.Module) -> None:
    for name, value in tensors_of(model).items():
        fill(value, whole(values[name]))


def tensors_of(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, also those that a state_dict leaves out: they move in training, too."""
    return cast(dict[str, Tensor], {**dict(model.named_parameters()), **dict(model.named_buffers())})
