"""What sites see in the float network: counted by step and by channel, and what is said about bad batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.analysis.observation import channel_dim, observe
from polarspike.errors import CalibrationError

X = torch.randn(12, 3, 8, 8, generator=torch.Generator().manual_seed(4))


def qann(granularity: str = "tensor") -> ps.QuantizedNetwork:
    model = nn.Sequential(nn.ReLU(), nn.Conv2d(3, 5, 3, bias=False), nn.ReLU())
    return ps.quantize(model, ps.QuantSpec(granularity=granularity), example=X[:2])  # type: ignore[arg-type]


def test_one_pass_counts_every_input_by_step_and_by_channel() -> None:
    network = qann()
    seen = observe(network, [X[:5], (X[5:], None)], by_channel=True)
    first, second = seen.values()
    assert (first.batches, first.by_step.elements) == (2, X.numel())
    assert first.by_step.mean.item() == pytest.approx(X.double().mean().item())
    assert first.by_channel is not None and second.by_channel is not None
    assert torch.allclose(first.by_channel.mean, X.double().mean((0, 2, 3)))
    expected = network.network.get_submodule("1")(X.relu()).double()
    assert torch.allclose(second.by_channel.variance, expected.transpose(0, 1).flatten(1).var(1, unbiased=False))


def test_channels_are_kept_only_if_asked_for_and_are_those_of_the_steps_where_each_has_one() -> None:
    assert all(site.by_channel is None for site in observe(qann(), [X]).values())
    for site in observe(qann("channel"), [X], by_channel=True).values():
        assert site.by_channel is site.by_step
        assert site.by_step.groups > 1


def test_memory_of_the_channels_is_bounded() -> None:
    wide = nn.Sequential(nn.Linear(4, 5000), nn.ReLU())
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    (site,) = observe(ps.quantize(wide, ps.QuantSpec(), example=x), [x], by_channel=True).values()
    assert site.by_channel is not None
    assert (site.by_channel.groups, site.by_channel.bins) == (5000, 256)


def test_a_number_of_channels_that_varies_is_no_error_for_a_site_with_one_step() -> None:
    network = ps.quantize(nn.Sequential(nn.ReLU(), nn.Flatten()), ps.QuantSpec(), example=torch.ones(2, 3, 6))
    (site,) = network.sites().values()
    wider = torch.ones(2, 9, 6)
    site.register_forward_pre_hook(lambda module, inputs: (wider,) if inputs[0].shape[0] == 4 else inputs)
    (seen,) = observe(network, [torch.ones(2, 3, 6), torch.ones(4, 3, 6)], by_channel=True).values()
    assert seen.by_channel is None
    assert seen.by_step.elements == 2 * 3 * 6 + 2 * 9 * 6


class Tokens(nn.Module):
    """A linear layer on tokens, and a product of two signals."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.mix = nn.LayerNorm(4), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = self.mix(self.norm(x))
        return y @ y.transpose(1, 2)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_channels_of_tokens_are_the_last_dimension_and_products_have_none(granularity: Any) -> None:
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1.0, 2.0, 3.0, 4.0])
    network = ps.quantize(Tokens(), ps.QuantSpec(granularity=granularity), example=x)
    seen = observe(network, [x, x[:1]], by_channel=True)
    assert [channel_dim(network, name) for name in seen] == [-1, None, None]
    linear, *products = seen.values()
    assert linear.by_channel is not None
    expected = torch.cat([nn.LayerNorm(4)(part).detach().flatten(0, 1) for part in (x, x[:1])]).double()
    assert torch.allclose(linear.by_channel.mean, expected.mean(0))
    assert all(site.by_channel is None and site.by_step.groups == 1 for site in products)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_dropout_hides_no_linear_layer(granularity: Any) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Dropout(), nn.Linear(5, 3)).eval()
    x = torch.randn(16, 6, 4)  # (batch, tokens, channels)
    network = ps.quantize(model, ps.QuantSpec(granularity=granularity), example=x)
    assert channel_dim(network, "1") == -1
    ps.calibrate(network, [x])
    assert ps.diagnose(network, [x]).sites["1"].channels == 5


class ByConstant(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x) @ self.weight


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_product_with_a_constant_is_a_linear_layer(granularity: Any) -> None:
    network = ps.quantize(nn.Sequential(nn.Linear(4, 5), ByConstant()), ps.QuantSpec(granularity=granularity),
                          example=torch.randn(2, 6, 4))  # fmt: skip
    (name, site), *_ = network.sites().items()
    assert channel_dim(network, name) == -1 and site.spec.channels == (5 if granularity == "channel" else 0)


class Product(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(x)
        return y @ y.transpose(1, 2)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_an_activation_in_front_of_a_product_has_no_channels_either(granularity: Any) -> None:
    spec = ps.QuantSpec(granularity=granularity)
    network = ps.quantize(nn.Sequential(nn.Linear(4, 5), Product()), spec, example=torch.randn(2, 6, 4))
    for name, site in network.sites().items():
        assert (channel_dim(network, name), site.spec.channels) == (None, 0), name


def test_the_network_is_left_as_it_was() -> None:
    network = qann().train()
    observe(network, [X])
    assert network.training
    assert all(site.enabled and not site._forward_pre_hooks for site in network.sites().values())


def test_bad_batches_are_named_and_the_network_is_restored() -> None:
    network = qann()
    with pytest.raises(CalibrationError, match=r"site '0', batch 1: .*NaN"):
        observe(network, [X, X * float("nan")])
    with pytest.raises(CalibrationError, match="expected at least one batch, got an empty loader"):
        observe(network, [])
    assert all(site.enabled and not site._forward_pre_hooks for site in network.sites().values())
