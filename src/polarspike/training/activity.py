"""The spikes of a quantized network as a quantity that training can lower: a differentiable count at every site."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from polarspike.common.modules import hooked
from polarspike.errors import SpecError
from polarspike.quantizers import PolarityQuantizer


class Activity:
    """Mean number of unit spikes per neuron and image, over all sites of the last forward pass.

        a = sum_sites sum |k|  /  sum_sites (neurons x images)

    Its gradient lowers codes through the same straight-through estimate as training does
    (:func:`polarspike.ops.count_spikes`): inputs move towards zero and steps grow. Codes are those of the first timestep,
    also where the pass computes a finer grid (``TrainSpec.timesteps``): what is weighed does not grow with T.
    """

    def __init__(self) -> None:
        self._spikes: list[Tensor] = []
        self._neurons = 0

    def clear(self) -> None:
        """Forget the last forward pass."""
        self._spikes, self._neurons = [], 0

    def mean(self) -> Tensor:
        """Spikes per neuron and image, 0-d; differentiable."""
        if not self._spikes:
            raise SpecError(
                "TrainSpec.activity: no quantizer has seen a signal in this pass; leave float_activations() first, and do "
                "not exchange sites while they are counted"
            )
        return torch.stack(self._spikes).sum() / self._neurons

    def _see(self, site: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        if isinstance(site, PolarityQuantizer) and site.enabled:
            (x,) = inputs
            self._spikes.append(site.spikes(x))
            self._neurons += x.numel()


@contextlib.contextmanager
def counted(model: nn.Module) -> Iterator[Activity]:
    """Within this context every forward pass of ``model`` is counted; ``clear()`` between two of them.

    Raises:
        SpecError: the model has no quantizers.
    """
    sites = [module for module in model.modules() if isinstance(module, PolarityQuantizer)]
    if not sites:
        raise SpecError(
            f"TrainSpec.activity: expected a quantized network, whose spikes it lowers, got a {type(model).__name__} "
            "without quantizers; call polarspike.quantize first, or set activity=0"
        )
    activity = Activity()
    with hooked(site.register_forward_pre_hook(activity._see) for site in sites):
        yield activity
