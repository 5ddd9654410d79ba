"""The spikes that training can lower: their count, its gradient, and what a weight on it does."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import ops
from polarspike.errors import SpecError
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec
from polarspike.training.activity import counted


def network() -> tuple[nn.Module, ps.QuantizedNetwork, list[tuple[Tensor, Tensor]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 3))
    target = torch.arange(96) % 3
    x = 0.5 * torch.randn(96, 6) + 2 * nn.functional.one_hot(target, 6)
    batches = [(x[i::4], target[i::4]) for i in range(4)]
    ps.fit(model, batches, ps.TrainSpec(epochs=10, learning_rate=0.05), progress=False)
    qann = ps.quantize(model, ps.QuantSpec(negative=3, positive=7), example=x[:2])
    ps.calibrate(qann, batches)
    return model, qann, batches


@pytest.mark.parametrize("levels", [(0, 3), (2, 5)])
@pytest.mark.parametrize("size", [64, 40000])  # the larger one is walked in pieces
def test_the_count_and_its_gradient(levels: tuple[int, int], size: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(size // 4, 4, requires_grad=True)
    step = torch.tensor(0.3, requires_grad=True)
    count = ops.count_spikes(x, step, levels)
    codes = ops.encode(x, step, *levels)
    assert float(count.detach()) == float(codes.detach().abs().sum())
    (2.0 * count).backward()
    inside = (x >= -(levels[0] + 0.5) * step) & (x < (levels[1] + 0.5) * step)
    slope = torch.where(inside, codes.sign() / step, 0.0).detach()
    torch.testing.assert_close(x.grad, 2.0 * slope)
    torch.testing.assert_close(step.grad, (-2.0 * slope * x / step).sum().detach(), rtol=1e-4, atol=1e-4)


def test_a_step_per_channel_counts_alike() -> None:
    torch.manual_seed(0)
    x = torch.randn(8, 3, 5, 5, requires_grad=True)
    step = torch.tensor([0.2, 0.3, 0.5]).view(3, 1, 1).requires_grad_()
    ops.count_spikes(x, step, (1, 3)).backward()
    for channel in range(3):
        alone = x.detach()[:, channel].clone().requires_grad_()
        own = step.detach()[channel, 0, 0].clone().requires_grad_()
        ops.count_spikes(alone, own, (1, 3)).backward()
        torch.testing.assert_close(x.grad[:, channel], alone.grad)
        torch.testing.assert_close(step.grad[channel, 0, 0], own.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [0, 3])
@pytest.mark.parametrize("timesteps", [1, 8])
def test_a_weight_on_spikes_pulls_a_step_as_it_pulls_the_weights(channels: int, timesteps: int) -> None:
    """The gradients of a step by its values and by its spikes stand to each other as without any factor."""
    torch.manual_seed(0)
    site = PolarityQuantizer(SiteSpec(0, 3, channels=channels))
    site.set_step(torch.full((channels,), 0.3) if channels else 0.3)
    site.timesteps = timesteps  # the values' grid is finer, the spikes are still those of the first timestep
    x = torch.randn(8, 3, 5, 5, requires_grad=True)
    found = []
    for what in (lambda: site(x).sum(), lambda: site.spikes(x)):
        site.zero_grad()
        what().backward()
        found.append(site.offset.grad.clone())
    step, most = 0.3 / timesteps, 3 * timesteps
    fine = torch.where((x >= -step / 2) & (x < (most + 0.5) * step), x / step, 0.0)
    values = ((ops.encode(x, torch.tensor(step), 0, most) - fine) / timesteps).detach()
    inside = (x >= -0.15) & (x < 3.5 * 0.3)
    spikes = torch.where(site.encode(x) > 0, -torch.where(inside, x, 0.0) / 0.3**2, 0.0).detach()
    dims = (0, 2, 3) if channels else (0, 1, 2, 3)
    torch.testing.assert_close(found[1] / found[0], (spikes.sum(dims) / values.sum(dims)).reshape(found[0].shape))


def test_every_site_is_counted_as_evaluation_counts_it() -> None:
    _, qann, batches = network()
    with counted(qann) as activity:
        qann(batches[0][0])
        found = float(activity.mean().detach())
        activity.clear()
        with qann.float_activations():
            qann(batches[0][0])
        assert not activity._spikes  # what is no quantizer now fires nothing
    firing = ps.evaluate(ps.convert(qann), batches[:1]).firing
    assert firing is not None
    assert found == pytest.approx(firing[1].spikes_per_neuron)


def test_a_weight_on_it_lowers_the_spikes() -> None:
    _, qann, batches = network()
    rates = {}
    for weight in (0.0, 0.3):
        student = copy.deepcopy(qann)
        spec = ps.TrainSpec(epochs=30, learning_rate=0.02, activity=weight, step_rate=0.01, averaging=0.9)
        history = ps.fit(student, batches, spec, progress=False)
        assert (history.last.spikes_per_neuron is None) == (weight == 0.0)
        evaluation = ps.evaluate(ps.convert(student), batches)
        assert evaluation.firing is not None and evaluation.accuracy[1] > 0.9
        rates[weight] = evaluation.firing[1].spikes_per_neuron
    assert rates[0.3] < 0.5 * rates[0.0]


def test_a_float_network_has_no_spikes_to_lower() -> None:
    model, _, batches = network()
    with pytest.raises(SpecError, match=r"activity: expected a quantized network.*Sequential.*activity=0"):
        ps.fit(model, batches, ps.TrainSpec(epochs=1, activity=0.1))
