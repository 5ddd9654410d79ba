"""Rival quantizers: values and gradients by formula."""

from __future__ import annotations

import pytest
import torch

import polarspike as ps
from polarspike.baselines.quantizers import (
    ClippingQuantizer,
    OffsetNeuron,
    OffsetQuantizer,
    plain,
    with_offsets,
    with_offsets_everywhere,
)
from polarspike.errors import SpecError
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec
from polarspike.training.activity import counted
from tests.networks import calibrated, network, signal


def site(negative: int, positive: int, step: float) -> PolarityQuantizer:
    made = PolarityQuantizer(SiteSpec(negative, positive), "site")
    made.set_step(step)
    return made


def test_an_offset_stands_in_for_negative_levels() -> None:
    quantizer = OffsetQuantizer(site(1, 2, 0.5), start=-0.5)
    assert quantizer.levels == (0, 3)
    x = torch.tensor([[-3.0, -0.5, -0.2, 0.1, 0.4, 9.0]])
    assert quantizer(x).tolist() == [[-0.5, -0.5, 0.0, 0.0, 0.5, 1.0]]
    assert quantizer.encode(x).tolist() == [[0.0, 0.0, 1.0, 1.0, 2.0, 3.0]]
    neuron = OffsetNeuron(quantizer)
    assert torch.equal(neuron(x), quantizer(x))
    with counted(quantizer) as activity:  # what TrainSpec.activity lowers are these codes
        quantizer(x)
    assert activity.mean().item() == pytest.approx(7 / 6)
    with pytest.raises(SpecError, match="one timestep, got 2"):
        neuron.train_of(x.expand(2, 1, 6))


def test_the_offset_learns_from_what_is_clipped() -> None:
    quantizer = OffsetQuantizer(site(0, 2, 0.5), start=0.0)
    quantizer(torch.tensor([[-3.0, 0.3, 9.0]])).sum().backward()
    # dq/db = 1 - [inside]: the straight-through gradient of LSQ+.
    assert quantizer.shift.grad is not None and quantizer.shift.grad.item() == 2.0


def test_offsets_go_to_signed_sites_or_to_all() -> None:
    x = signal("leaky")
    qann = calibrated(network("leaky"), ps.QuantSpec(1, 2, signed="by-nature"), x)
    kinds = [bool(part.spec.negative) for part in qann.sites().values()]
    assert True in kinds and False in kinds
    with_offsets(qann)
    assert [isinstance(part, OffsetQuantizer) for part in qann.sites().values()] == kinds
    with_offsets_everywhere(qann)
    assert all(isinstance(part, OffsetQuantizer) for part in qann.sites().values())


def test_pact_learns_its_clip_from_what_is_clipped_alone() -> None:
    quantizer = ClippingQuantizer(site(0, 4, 0.5), penalty=0.0)
    x = torch.tensor([[-1.0, 0.3, 1.7, 2.5, 9.0]], requires_grad=True)
    y = quantizer(x)
    assert y.tolist() == [[0.0, 0.5, 1.5, 2.0, 2.0]]
    y.sum().backward()
    assert x.grad is not None and x.grad.tolist() == [[0.0, 1.0, 1.0, 0.0, 0.0]]
    assert quantizer.offset.grad is not None and quantizer.offset.grad.item() == 2 * 4  # da/ds = P

    quantizer.zero_grad()
    quantizer.spikes(x.detach()).backward()  # neither this gradient nor that one has a factor; both are of a = P s
    assert quantizer.offset.grad.item() == pytest.approx(-(0.3 + 1.7) / 0.5**2)

    penalized = ClippingQuantizer(site(0, 4, 0.5), penalty=0.1)
    penalized(x.detach()[:, :2]).sum().backward()
    assert penalized.offset.grad is not None and penalized.offset.grad.item() == pytest.approx(0.1 * 2.0 * 4)


def test_a_trained_clip_is_an_ordinary_step() -> None:
    quantizer = ClippingQuantizer(site(0, 4, 0.5))
    quantizer.offset.data.fill_(0.1)
    x = torch.randn(2, 50)
    assert torch.equal(plain(quantizer)(x), quantizer(x))
    assert type(plain(quantizer)) is PolarityQuantizer
