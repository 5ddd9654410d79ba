"""The calls that other people's scripts make, exactly as the contract writes them, end to end on a tiny network."""

from __future__ import annotations

import copy
import inspect
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import polarspike as ps


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.pool = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.MaxPool2d(2)
        self.two, self.head = nn.Conv2d(4, 6, 3, padding=1), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(torch.relu(self.norm(self.conv(x))))
        return self.head(torch.relu(self.two(x)).mean([2, 3]))


@pytest.fixture(scope="module")
def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(48) % 3
    x = 0.3 * torch.randn(48, 1, 6, 6, generator=generator)
    for row in range(48):
        x[row, 0, 2 * int(target[row])] += 1.0
    return TensorDataset(x, target)


def test_the_whole_path(images: TensorDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    train_loader = DataLoader(images, 16, shuffle=True, generator=torch.Generator().manual_seed(1))
    val_loader = loader = DataLoader(images, 16)
    batches = [(x, y) for x, y in loader]
    x, model = batches[0][0], Tiny()

    plan = ps.inspect(model, ps.QuantSpec(negative=2, positive=6), x)
    assert [site.name for site in plan.sites] == ["relu", "relu_1"] and "become spiking" in str(plan)

    qann = ps.quantize(model, ps.QuantSpec(negative=2, positive=6), example=x)
    assert isinstance(qann, nn.Module)
    rows = ps.calibrate(qann, batches)
    assert [row.name for row in rows] == list(qann.sites())
    start = {name: site.step.detach().clone() for name, site in qann.sites().items()}
    history = ps.fit(qann, train_loader, ps.TrainSpec(epochs=10, distillation=0.5), validate=val_loader, teacher=model)
    assert isinstance(history, ps.History)
    assert all(not torch.equal(site.step, start[name]) for name, site in qann.sites().items())
    qann.eval()

    snn = ps.convert(qann)
    assert isinstance(snn, ps.SpikingNetwork) and isinstance(snn, nn.Module) and "relu" in snn.report
    proof = ps.verify(qann, snn, batches, timesteps=1)
    assert isinstance(proof, ps.Proof) and proof.exact is True
    assert list(proof.sites) == list(qann.sites())
    assert all(site.compared > 0 and site.different == 0 for site in proof.sites.values())
    assert all(
        site.different == 0 for site in ps.verify(qann, snn, batches, timesteps=1, against="events").sites.values()
    )

    fine = ps.refine(qann, 4)
    assert {name: site.levels for name, site in fine.sites().items()} == {"relu": (0, 24), "relu_1": (0, 24)}
    with torch.no_grad():
        y = snn(x)
        assert y.shape == (16, 3) and torch.equal(y, qann(x))
        y = snn(x, timesteps=8)
        assert y.shape == (16, 3)
        for execution in ("steps", "mean"):
            torch.testing.assert_close(snn(x, timesteps=8, execution=execution), y, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(snn(x, timesteps=4), fine.eval()(x), rtol=1e-4, atol=1e-4)
        ys = snn(x, timesteps=8, every_step=True)
        assert ys.shape == (8, 16, 3) and torch.equal(ys[0], snn(x)) and torch.equal(ys[-1], y)
        frames = torch.stack([x, 0.5 * x, x - 0.1], dim=1)
        ys = snn(frames, time_dim=1)
        assert ys.shape == (16, 3)
        state = None
        for t in range(3):
            y, state = snn.step(frames[:, t], state)
        assert torch.equal(y, ys) and isinstance(state, ps.SpikingState) and state.timestep == 3
        by_frame = ps.convert(qann, ps.ConvertSpec(reading="frames"))
        torch.testing.assert_close(
            by_frame(frames, time_dim=1), torch.stack([snn(frames[:, t]) for t in range(3)]).mean(0)
        )

    table = ps.evaluate(snn, loader, timesteps=(1, 2, 4, 8))
    assert isinstance(table, ps.Evaluation)
    counts = ps.count_operations(snn, x, timesteps=1)
    joules = ps.estimate_energy(counts, ps.CostTable.cmos45())
    assert "pJ" in str(joules) or "nJ" in str(joules)

    ps.save(snn, "net.safetensors")
    net = ps.load("net.safetensors")
    with torch.no_grad():
        assert torch.equal(net(x, timesteps=2), snn(x, timesteps=2))
    ps.save(qann, "net.safetensors")
    net = ps.load("net.safetensors", model)
    with torch.no_grad():
        assert torch.equal(net(x), qann(x))


def test_fit_as_the_contract_writes_it(images: TensorDataset) -> None:
    train_loader = val_loader = DataLoader(images, 16)
    model = Tiny()
    qann = ps.quantize(model, ps.QuantSpec(), example=images.tensors[0])
    ps.calibrate(qann, train_loader)
    ps.fit(qann, train_loader, ps.TrainSpec(epochs=10), validate=val_loader, teacher=model)


def test_information() -> None:
    bits = ps.entropy(levels=(2, 6), step=0.4)
    assert isinstance(bits, float) and 0 < bits < math.log2(9)
    step = ps.best_step(levels=(2, 6), objective="entropy")
    assert isinstance(step, float) and ps.entropy(levels=(2, 6), step=step) >= bits


def test_both_networks_are_ordinary_modules(images: TensorDataset) -> None:
    x = images.tensors[0][:8]
    qann = ps.quantize(Tiny(), ps.QuantSpec(), example=x)
    ps.calibrate(qann, [x])
    qann.eval()
    snn = ps.convert(qann)
    with torch.no_grad():
        for network in (qann, snn):
            expected = network(x)
            assert torch.equal(copy.deepcopy(network)(x), expected)
            other = copy.deepcopy(network)
            for parameter in other.parameters():
                parameter.add_(0.01)
            for site in other.sites().values():
                site.set_step(9.0)
            other.load_state_dict(network.state_dict())
            assert torch.equal(other(x), expected)
            assert torch.equal(nn.Sequential(network)(x), expected)
            assert torch.equal(network.to("cpu")(x), expected)
            assert network.double()(x.double()).dtype == torch.float64
            assert network.float()(x).dtype == torch.float32
    loss = qann.train()(x).square().mean()
    loss.backward()
    assert all(parameter.grad is not None for parameter in qann.parameters())


SIGNATURES = {
    "quantize": ["model", "spec", "example"],
    "calibrate": ["qann", "batches"],
    "fit": ["model", "train_loader", "spec", "validate", "teacher"],
    "convert": ["qann", "spec"],
    "verify": ["qann", "snn", "batches", "timesteps", "against"],
    "refine": ["qann", "factor"],
    "evaluate": ["network", "loader", "timesteps"],
    "save": ["network", "path"],
    "load": ["path", "model"],
    "inspect": ["model", "spec", "example"],
    "count_operations": ["snn", "batch", "timesteps"],
    "estimate_energy": ["counts", "table"],
    "entropy": ["levels", "step"],
    "best_step": ["levels", "objective"],
}


@pytest.mark.parametrize("name", SIGNATURES)
def test_the_names_of_arguments_are_part_of_the_contract(name: str) -> None:
    assert name in ps.__all__
    taken = list(inspect.signature(getattr(ps, name)).parameters)
    wanted = SIGNATURES[name]
    assert [parameter for parameter in taken if parameter in wanted] == wanted


def test_the_specs_of_the_contract() -> None:
    everything = ps.QuantSpec(
        negative=2, positive=6, gain="learned", signed="all", granularity="channel", init="percentile",
        overrides={"layer1.*": ps.QuantSpec(gain=0.5)},
    )  # fmt: skip
    for spec in (everything, ps.TrainSpec(epochs=10), ps.ConvertSpec()):
        assert type(spec).from_dict(spec.to_dict()) == spec


def test_everything_that_is_exported_exists() -> None:
    assert sorted(ps.__all__) == sorted(set(ps.__all__))
    for name in ps.__all__:
        assert getattr(ps, name) is not None
