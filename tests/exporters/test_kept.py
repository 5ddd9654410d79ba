"""Weights that were trained on a grid keep their integers in the file, and the docs say which do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.exporters.integer import integer_network
from polarspike.quantizers import WeightQuantizer
from tests.networks import calibrated


class Net(nn.Module):
    """Two layers that fire alone, one that is a branch of a residual sum, and a head."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(channels, 16, 3, padding=1), nn.Conv2d(16, 16, 3, padding=1)
        self.branch, self.head = nn.Conv2d(16, 16, 3, padding=1), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.two(torch.relu(self.one(x))))
        return self.head(torch.relu(self.branch(x) + x).mean((2, 3)))  # type: ignore[no-any-return]


def network_of(bits: int, channels: int) -> dict[str, bool]:
    """For each layer, whether the file's integers are the trained ones, times a whole number for each output channel."""
    torch.manual_seed(0)
    scaling = {"mean": [0.5, 0.4, 0.3][:channels], "std": [0.25, 0.24, 0.27][:channels]}
    mean, std = (torch.tensor(scaling[key]).view(-1, 1, 1) for key in ("mean", "std"))
    x = (torch.randint(0, 256, (16, channels, 8, 8)) / 255 - mean) / std
    qann = calibrated(Net(channels).eval(), ps.QuantSpec(0, 15), x)
    names = ps.quantize_weights(qann, bits)
    ps.fix_weights(qann)
    snn = ps.convert(qann)
    snn.notes = {"normalization": scaling}
    made = integer_network(snn, x, [x])
    synapses = [part for part in made.instructions if part.kind == "synapse"]
    assert len(synapses) == len(names) == 4
    kept = {}
    for name, part in zip(names, synapses, strict=True):
        weight: Tensor = qann.network.get_submodule(name).weight.detach()  # type: ignore[assignment, union-attr]
        trained = torch.round(weight / WeightQuantizer(bits).step_of(weight)).numpy().reshape(len(weight), -1)
        found = part.tensors["weight"].astype(np.float64).reshape(len(weight), -1)
        factor = np.abs(found).max(1) / np.abs(trained).max(1)
        kept[name] = bool(np.array_equal(found, trained * factor[:, None]) and (factor == np.rint(factor)).all())
    return kept


@pytest.mark.parametrize(("bits", "channels"), [(8, 1), (8, 3), (6, 1), (5, 1), (4, 1), (3, 1), (2, 1)])
def test_layers_in_front_of_a_site_keep_the_integers_of_their_training(bits: int, channels: int) -> None:
    kept = network_of(bits, channels)
    assert kept["two"] and kept["one"] == (channels == 1)  # colours of different deviations are no grid
    assert kept["branch"] == (bits < 6)  # as docs/deployment.md says; a change there is welcome
    assert kept["head"] == (bits in (8, 2))
