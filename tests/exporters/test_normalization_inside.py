"""What a network does to its input before the first layer is part of the grid of bytes: that layer is integer."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import integer
from polarspike.exporters.integer import integer_network

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from tests.exporters.test_integer import apart, spiking, wrong

MEAN, STD = torch.tensor([0.4, 0.5, 0.3]).view(3, 1, 1), torch.tensor([0.2, 0.25, 0.3]).view(3, 1, 1)


class Inside(nn.Module):
    def __init__(self, first: Callable[[Tensor], Tensor] | nn.Module) -> None:
        super().__init__()
        self.first, self.conv, self.head = first, nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.conv(self.first(x))).mean((2, 3)))  # type: ignore[no-any-return]


def norm() -> nn.Module:
    made = nn.BatchNorm2d(3)
    with torch.no_grad():
        made.running_mean.copy_(MEAN.flatten())  # type: ignore[union-attr]
        made.running_var.copy_(STD.flatten() ** 2)  # type: ignore[union-attr]
        made.bias.fill_(0.125)
    return made


FORMS: dict[str, Callable[[], Callable[[Tensor], Tensor] | nn.Module]] = {
    "one for all": lambda: lambda x: (x - 0.5) / 0.25,
    "per channel": lambda: lambda x: (x - MEAN) / STD,
    "factor first": lambda: lambda x: x * 2 - 1,
    "batch norm": norm,
}


@pytest.mark.parametrize("form", FORMS)
def test_the_first_layer_is_integer_on_the_grid_of_the_pixels(form: str) -> None:
    torch.manual_seed(0)
    pixels = torch.randint(0, 256, (16, 3, 8, 8))
    x = pixels / 255
    snn = spiking(Inside(FORMS[form]()), x, ps.QuantSpec(0, 7))
    snn.notes = {"normalization": {"mean": [0.0] * 3, "std": [1.0] * 3}}
    made = integer_network(snn, x, [x])
    assert "Conv" not in made.float_operators() and set(made.float_operators()) <= {"Sub", "Div", "Mul", "Add"}
    assert apart(snn, made, x) < 0.06 and wrong(made, {made.inputs[0][0]: x.numpy()}) == 0
    first = next(part for part in made.instructions if part.kind == "quantize")
    codes = dict(integer.trace(made, {made.inputs[0][0]: x.numpy()}))[first.output]
    if form in ("one for all", "factor first"):  # one mean: every byte of a pixel has its own code
        assert len(np.unique(codes - pixels.numpy())) == 1


@pytest.mark.parametrize(
    "first",
    [lambda x: (x - 0.5) * -2.0, lambda x: (x - 0.5).transpose(2, 3) / 0.25, lambda x: 1 - x],
    ids=["turned round", "another layout", "complement"],
)
def test_what_is_no_normalization_stays_float(first: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    x = torch.rand(16, 3, 8, 8)
    snn = spiking(Inside(first), x, ps.QuantSpec(0, 7))
    made = integer_network(snn, x, [x])
    assert "Conv" in made.float_operators()
    assert apart(snn, made, x) < 0.06 and wrong(made, {made.inputs[0][0]: x.numpy()}) == 0


def test_without_a_known_scaling_it_is_the_range_of_the_batches() -> None:
    torch.manual_seed(0)
    x = torch.randn(16, 3, 8, 8) * 40 + 100
    snn = spiking(Inside(lambda x: (x - 100.0) / 40.0), x, ps.QuantSpec(0, 7))
    made = integer_network(snn, x, [x])
    assert "Conv" not in made.float_operators()
    assert apart(snn, made, x) < 0.06 and wrong(made, {made.inputs[0][0]: x.numpy()}) == 0
