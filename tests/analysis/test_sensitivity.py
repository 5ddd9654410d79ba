"""The predicted loss of an error at a site, against the loss that such an error really causes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import polarspike as ps
from polarspike.analysis.sensitivity import sensitivities
from polarspike.errors import SpecError


def network(granularity: str = "tensor") -> tuple[ps.QuantizedNetwork, Tensor]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64, 5),
    ).eval()
    x = torch.randn(512, 1, 4, 4)
    qann = ps.quantize(model, ps.QuantSpec(0, 7, granularity=granularity), example=x[:2])  # type: ignore[arg-type]
    ps.calibrate(qann, [x])
    return qann, x


def answers_with_noise(qann: ps.QuantizedNetwork, x: Tensor, name: str, noise: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad(), qann.float_activations():
        expected = qann(x)
        handle = qann.sites()[name].register_forward_hook(lambda module, inputs, y: y + noise * torch.randn_like(y))
        found = qann(x)
        handle.remove()
    return found, expected


@pytest.mark.parametrize("answers", ["values", "classes"])
def test_it_predicts_the_loss_of_a_small_error(answers: str) -> None:
    qann, x = network()
    weights = sensitivities(qann, [x[:256], x[256:]], answers)  # type: ignore[arg-type]
    for name, weight in weights.items():
        size = 0.02
        losses = []
        for _ in range(8):
            found, expected = answers_with_noise(qann, x, name, torch.tensor(size))
            if answers == "values":
                losses.append((found - expected).square().sum() / expected.square().sum())
            else:
                logs = functional.log_softmax(found, 1), functional.log_softmax(expected, 1)
                losses.append(functional.kl_div(*logs, reduction="batchmean", log_target=True))
        assert float(weight) * size**2 == pytest.approx(float(torch.stack(losses).mean()), rel=0.25)


def test_a_channel_has_its_own() -> None:
    qann, x = network("channel")
    weights = sensitivities(qann, [x])
    name = next(iter(weights))
    assert weights[name].shape == (4,)
    for channel in range(4):
        noise = torch.zeros(4, 1, 1)
        noise[channel] = 0.02
        found, expected = answers_with_noise(qann, x, name, noise)
        loss = (found - expected).square().sum() / expected.square().sum()
        assert float(weights[name][channel]) * 0.02**2 == pytest.approx(float(loss), rel=0.35)


def test_nothing_is_left_behind() -> None:
    qann, x = network()
    qann.train()
    next(qann.parameters()).requires_grad_(False)
    wanted = [p.requires_grad for p in qann.parameters()]
    sensitivities(qann, [x])
    assert qann.training and all(p.grad is None for p in qann.parameters())
    assert [p.requires_grad for p in qann.parameters()] == wanted
    assert all(site.enabled and not site._forward_hooks for site in qann.sites().values())


def test_an_answer_of_zero_or_of_one_number_an_image() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 3)
    for last in (nn.Flatten(0), nn.ReLU()):
        model = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1), last).eval()
        qann = ps.quantize(model, ps.QuantSpec(0, 7), example=x)
        (weight, *_) = sensitivities(qann, [x]).values()
        assert 0 < float(weight) < 1e3
    model[2].bias.data.fill_(-100.0)
    qann = ps.quantize(model, ps.QuantSpec(0, 7), example=x)
    assert all(float(weight) == 0.0 for weight in sensitivities(qann, [x]).values())


def test_values_have_no_classes() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1)).eval()
    x = torch.randn(8, 3)
    qann = ps.quantize(model, ps.QuantSpec(0, 7), example=x)
    with pytest.raises(SpecError, match=r"answers='classes'.*\(8, 1\).*answers='values'"):
        sensitivities(qann, [x], "classes")
