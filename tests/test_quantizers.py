"""The quantizer that trains: its scaled gradients, its float reference, and that training cannot break its step."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import ops
from polarspike.neurons import PolarityNeuron
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec
from tests.networks import MLP, LeakyNet, calibrated, trained_like


def quantizer(spec: SiteSpec, step: float | Tensor = 0.4) -> PolarityQuantizer:
    site = PolarityQuantizer(spec, "act")
    site.set_step(step)
    return site


@pytest.mark.parametrize(
    ("channels", "shape", "shared"),
    [
        (0, (5, 4, 3, 2), 24),  # one step: every element of a sample shares it
        (4, (5, 4, 3, 2), 6),  # one step per channel: a plane shares it
        (4, (5, 4), 1),
        (0, (9, 4, 3, 2), 24),  # the batch does not count
    ],
)
def test_step_and_gain_gradients_are_scaled_per_sample(channels: int, shape: tuple[int, ...], shared: int) -> None:
    site = quantizer(SiteSpec(2, 3, gain=0.4, learned_gain=True, channels=channels))
    x, upstream = torch.randn(shape), torch.randn(shape)
    site(x).backward(upstream)
    step = site.broadcast_step(x).detach().requires_grad_()
    gain = torch.tensor(0.4, requires_grad=True)
    ops.quantize(x, step, gain, (2, 3)).backward(upstream)
    scale = 1 / math.sqrt(shared * 3)
    assert site.offset.grad is not None
    assert site.raw_gain is not None
    assert site.raw_gain.grad is not None
    assert step.grad is not None
    assert gain.grad is not None
    torch.testing.assert_close(site.offset.grad, step.grad.view(site.offset.shape) * scale)  # slope 1 at the start
    torch.testing.assert_close(site.raw_gain.grad, gain.grad * scale)


@pytest.mark.parametrize("shape", [(0, 4), (0, 4, 3, 3), (3, 4, 0, 0), (1, 4), ()])
def test_odd_shapes_pass(shape: tuple[int, ...]) -> None:
    site = quantizer(SiteSpec(1, 3))
    y = site(torch.randn(shape))
    assert y.shape == shape
    y.sum().backward()
    assert site.offset.grad is not None
    assert bool(site.offset.grad.isfinite())


@pytest.mark.parametrize(
    ("spec", "activation"),
    [
        (SiteSpec(0, 3), torch.relu),
        (SiteSpec(0, 3, ceiling=6.0), nn.functional.relu6),
        (SiteSpec(2, 3, slope=0.1), lambda x: nn.functional.leaky_relu(x, 0.1)),
        (SiteSpec(2, 3, slope=1.0), lambda x: x),
    ],
)
def test_disabled_it_is_the_float_activation(spec: SiteSpec, activation: Callable[[Tensor], Tensor]) -> None:
    site = PolarityQuantizer(spec)  # no step is needed
    site.enabled = False
    x = torch.randn(3, 5) * 6
    assert torch.equal(site(x), activation(x))


@pytest.mark.parametrize("factor", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("channels", [0, 64])
def test_the_refined_quantizer_is_what_a_neuron_settles_to_in_every_bit(factor: int, channels: int) -> None:
    spec = SiteSpec(2, 3, gain=0.3, channels=channels)
    site = PolarityQuantizer(spec)
    site.set_step(torch.rand(site.start.shape) + 0.1)
    with torch.no_grad():
        site.offset.copy_(torch.rand(site.offset.shape) - 0.5)
    fine = site.refined(factor)
    assert fine.levels == (2 * factor, 3 * factor)
    assert torch.equal(fine.step, site.step / factor)
    x = torch.randn(20, 64)
    assert torch.equal(fine(x), PolarityNeuron(spec).adopt(site).settle(x, factor))
    assert torch.equal(fine.refined(1).step, fine.step)
    assert fine.training == site.training


def gain_of(site: PolarityQuantizer) -> float:
    return torch.as_tensor(site.gain).detach().item()


def train(qann: ps.QuantizedNetwork, optimizer: torch.optim.Optimizer, shape: tuple[int, ...], seed: int) -> None:
    """One optimizer step on random inputs, whose class is the sign of their mean."""
    x = torch.randn(16, *shape, generator=torch.Generator().manual_seed(seed))
    target = (x.flatten(1).mean(1) > 0).long()
    optimizer.zero_grad()
    nn.functional.cross_entropy(qann(x), target).backward()
    optimizer.step()


def learning(model: nn.Module, shape: tuple[int, ...], granularity: str) -> ps.QuantizedNetwork:
    spec = ps.QuantSpec(2, 3, gain="learned", signed="all", granularity=granularity)  # type: ignore[arg-type]
    return calibrated(trained_like(model), spec, torch.randn(32, *shape)).train()


def optimizer_of(kind: str, qann: nn.Module, rate: float) -> torch.optim.Optimizer:
    if kind == "sgd":
        return torch.optim.SGD(qann.parameters(), lr=rate, momentum=0.9)
    return torch.optim.AdamW(qann.parameters(), lr=rate)


@pytest.mark.parametrize(("kind", "rate", "granularity"), [("sgd", 0.05, "tensor"), ("adamw", 3e-3, "channel")])
def test_forty_optimizer_steps_move_every_step_and_gain(kind: str, rate: float, granularity: str) -> None:
    shape = (2, 6, 6)
    qann = learning(LeakyNet(), shape, granularity)
    starts = {name: (site.step.detach().clone(), gain_of(site)) for name, site in qann.sites().items()}
    optimizer = optimizer_of(kind, qann, rate)
    for number in range(40):
        train(qann, optimizer, shape, number)
    for name, site in qann.sites().items():
        step, gain = starts[name]
        assert bool((site.step != step).all()), name
        assert gain_of(site) != gain, name
        assert bool((site.step > 0).all())
    proof = ps.verify(qann, ps.convert(qann), [torch.randn(24, *shape)])
    assert proof.exact, str(proof)


@pytest.mark.parametrize("rate", [30.0, 1e4, 1e12])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_absurd_learning_rates_leave_steps_positive_and_finite(kind: str, rate: float) -> None:
    qann = learning(MLP(), (12,), "tensor")
    optimizer = optimizer_of(kind, qann, rate)
    moved = 0.0
    for number in range(40):
        train(qann, optimizer, (12,), number)
        if not all(bool(value.isfinite().all()) for value in qann.parameters()):
            break
        for name, site in qann.sites().items():
            assert 0 < site.step.item() < math.inf, name
            assert 0 <= gain_of(site) <= 1, name
            moved = max(moved, float((site.offset.detach().abs() / site.start).max()))
    assert moved > 10  # the rate was absurd indeed: a raw step would have been negative


def test_an_offset_far_below_zero_is_a_tiny_positive_step_that_still_quantizes() -> None:
    site = quantizer(SiteSpec(2, 3), 0.5)
    with torch.no_grad():
        site.offset.fill_(-1e30)
    x = torch.tensor([-1.0, 0.0, 1.0])
    assert site.step.item() == 0.5 * 2.0**-20
    assert torch.equal(site.encode(x), torch.tensor([-2.0, 0.0, 3.0]))
    assert bool(site(x).isfinite().all())
