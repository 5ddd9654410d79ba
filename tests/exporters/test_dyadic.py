"""With steps and weights on powers of two a trained network in whole numbers is the spiking network, ties and all."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import integer
from polarspike.exporters.integer import integer_network
from polarspike.integer import lattice, rounding

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from polarspike.exporters import onnx_int8, runtime


class Net(nn.Module):
    """Convolutions with batch norm, either kind of pooling, a signed site, and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6)
        self.two, self.norm2 = nn.Conv2d(6, 8, 3), nn.BatchNorm2d(8)
        self.leaky, self.three, self.four = nn.LeakyReLU(0.25), nn.Linear(8 * 4, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.avg_pool2d(torch.relu(self.norm1(self.one(x))), 2)
        x = nn.functional.max_pool2d(self.leaky(self.norm2(self.two(x))), 2)
        return self.four(torch.relu(self.three(x.flatten(1))))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def trained() -> tuple[ps.QuantizedNetwork, Tensor]:
    torch.manual_seed(0)
    model = Net().train()
    y = torch.arange(96) % 3
    # Halves of the input's step: many a pixel lies on a threshold of the first site.
    x = (torch.randint(-16, 17, (96, 1, 12, 12)) / 8 + (y.view(-1, 1, 1, 1) - 1) / 2).clamp(-2, 2)
    model(x)
    qann = ps.quantize(model.eval(), ps.QuantSpec(7, 7, inputs=True), example=x)
    qann = ps.fold_batch_norm(qann)
    ps.calibrate(qann, [x])
    next(iter(qann.sites().values())).set_step(0.25)
    ps.snap_steps(qann, [x])
    ps.quantize_weights(qann, 5, dyadic=True)
    steps = {name: site.step.clone() for name, site in qann.sites().items()}
    former = qann.network.get_submodule("two").weight.detach().clone()
    batches = [(part, labels) for part, labels in zip(x.split(32), y.split(32), strict=True)]
    ps.fit(qann, batches, ps.TrainSpec(epochs=3, learning_rate=0.01))
    assert all(torch.equal(site.step, steps[name]) for name, site in qann.sites().items())
    assert not torch.equal(qann.network.get_submodule("two").weight, former)
    ps.fix_weights(qann)
    return qann.eval(), x


def fired(snn: ps.SpikingNetwork, x: Tensor) -> dict[str, Any]:
    seen: dict[str, Any] = {}
    with torch.no_grad(), snn.observe(lambda site, t, spikes: seen.update({site: spikes.numpy()})):
        snn(x)
    return seen


def test_the_exported_network_fires_the_codes_of_the_spiking_network(
    trained: tuple[ps.QuantizedNetwork, Tensor],
) -> None:
    qann, x = trained
    snn = ps.convert(qann)
    assert ps.verify(qann, snn, [x], scope=False).exact and snn.report.count("step a power of two") == 4
    made = integer_network(snn, x, [x])
    given = {made.inputs[0][0]: x.numpy()}
    values, codes = dict(integer.trace(made, given)), fired(snn, x)
    session = runtime.session(onnx_int8.model_of(made, "polarspike", codes=True), 2)
    found = dict(zip(made.sites, session.run([f"{site}/bytes" for site in made.sites], given), strict=True))
    points = onnx_int8.zero_points(made)
    for site, value in made.sites.items():
        assert len(np.unique(codes[site])) > 4
        assert np.array_equal(values[value], codes[site]), site
        assert np.array_equal(found[site].astype(np.int64) - points[value], codes[site]), site
    with torch.no_grad():
        answer = snn(x).numpy()
    assert np.array_equal(values[made.outputs[0][0]], answer)
    assert np.array_equal(session.run([made.outputs[0][0]], given)[0], answer)


def test_there_are_ties_at_every_site(trained: tuple[ps.QuantizedNetwork, Tensor]) -> None:
    """Without them the law above would say nothing of rounding."""
    qann, x = trained
    ties: dict[str, int] = {}

    def count(name: str, membrane: Tensor, step: Tensor) -> None:
        ties[name] = int(((2 * membrane / step) % 2 == 1).sum())

    for name, site in qann.sites().items():
        site.register_forward_pre_hook(lambda part, given, name=name: count(name, given[0], part.step))
    with torch.no_grad():
        qann(x)
    assert len(ties) == 4 and min(ties.values()) > 3, ties


def test_biases_off_the_grid_are_kept_too() -> None:
    """Biases of any size fall between two sums, so that a floor keeps them; ties go up where they meet one."""
    generator = np.random.default_rng(0)
    units = generator.integers(-63, 64, (400, 9)) / 16.0
    bias = np.concatenate([generator.normal(size=300) * 5, generator.integers(-80, 80, 100) / 32.0])
    made = rounding.firing(units, bias, 15, 2**16 - 1, wide=False)
    codes = generator.integers(-8, 16, (300, 9))
    sums = codes @ made.weight.T.astype(np.int64) + made.bias.astype(np.int64)
    assert np.array_equal(lattice.fire(sums, made.divisor, -(10**6), 10**6), np.floor(codes @ units.T + bias + 0.5))
