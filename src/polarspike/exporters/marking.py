"""The first timestep as an ATen program in which every site is one named operator, for what has to recognize them."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, fx, nn

from polarspike.common.inputs import Inputs, as_call, bind
from polarspike.exporters.first_timestep import FixedSite, first_timestep, value_of
from polarspike.exporters.programs import program_of
from polarspike.graph.editing import modules_of
from polarspike.quantized import parameters_of
from polarspike.spiking import SpikingNetwork


@torch.library.custom_op("polarspike::site", mutates_args=())
def site(x: Tensor, step: Tensor, negative: int, positive: int, gain: float, name: str) -> Tensor:
    """:func:`~polarspike.exporters.first_timestep.value_of`, with a name."""
    del name
    return value_of(x, step, negative, positive, gain)


@site.register_fake
def _(x: Tensor, step: Tensor, negative: int, positive: int, gain: float, name: str) -> Tensor:
    del step, negative, positive, gain, name
    return torch.empty_like(x)


class _MarkedSite(nn.Module):
    def __init__(self, fixed: FixedSite, name: str) -> None:
        super().__init__()
        self.fixed, self.name = fixed, name

    def forward(self, x: Tensor) -> Any:
        fixed = self.fixed
        return torch.ops.polarspike.site(x, fixed.step, fixed.negative, fixed.positive, fixed.gain, self.name)


def marked_program(snn: SpikingNetwork, example: Inputs) -> tuple[fx.GraphModule, dict[str, Any]]:
    """The program with its parameters as attributes, and the example's arguments by the names of its inputs.

    Raises:
        ExportError: as :func:`~polarspike.exporters.first_timestep.first_timestep`, or torch cannot export it.
    """
    plain = copy.copy(first_timestep(snn, example))
    for name, fixed in modules_of(plain, FixedSite).items():
        plain.set_submodule(name, _MarkedSite(fixed, name))
    arguments = bind(parameters_of(plain), *as_call(example))
    module = program_of(plain, arguments, snn.signature.shared).module()
    assert isinstance(module, fx.GraphModule)
    return module, arguments
