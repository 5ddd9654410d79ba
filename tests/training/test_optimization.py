"""Schedule, optimizers and running average: the arithmetic that moves weights and steps."""

from __future__ import annotations

import copy
import itertools
import math

import pytest
import torch
from torch import nn

from polarspike import bounds
from polarspike.errors import SpecError
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec
from polarspike.training.optimization import (
    Average,
    StepAdam,
    build_optimizers,
    decayed_parameters,
    learning_rate,
    set_rates,
)
from polarspike.training_spec import TrainSpec


def site(step: float | torch.Tensor = 0.5, channels: int = 0, learned_gain: bool = False) -> PolarityQuantizer:
    quantizer = PolarityQuantizer(SiteSpec(1, 3, gain=0.5, learned_gain=learned_gain, channels=channels))
    quantizer.set_step(step)
    return quantizer


def test_the_rate_warms_up_and_falls_as_a_cosine() -> None:
    spec = TrainSpec(epochs=10, learning_rate=0.4, warmup_epochs=0.5)
    rates = [learning_rate(spec, step, 8) for step in range(80)]
    assert rates[:5] == pytest.approx([0.1, 0.2, 0.3, 0.4, 0.4])
    assert rates[42] == pytest.approx(0.2)  # half way between step 4 and step 80
    assert all(a >= b > 0 for a, b in itertools.pairwise(rates[3:]))
    assert rates[-1] == pytest.approx(0.4 * (1 - math.cos(math.pi / 76)) / 2)
    only_warmup = TrainSpec(epochs=1, learning_rate=0.4, warmup_epochs=1.0)
    assert [learning_rate(only_warmup, step, 4) for step in range(4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])


def test_only_weights_decay() -> None:
    class Step(nn.Module):
        no_weight_decay = True

        def __init__(self) -> None:
            super().__init__()
            self.step = nn.Parameter(torch.ones(1, 4, 1, 1))

    class HasMethod(nn.Linear):
        def no_weight_decay(self) -> set[str]:  # another library's convention, not ours
            return set()

    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Step(), nn.Conv2d(4, 4, 1), HasMethod(2, 2))
    model[3].weight.requires_grad_(False)
    assert decayed_parameters(model) == ["0.weight", "4.weight"]
    for kind in ("sgd", "adamw"):
        (optimizer,) = build_optimizers(model, TrainSpec(optimizer=kind, weight_decay=0.3))
        decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        assert decays[id(model[0].weight)] == 0.3 and decays[id(model[2].step)] == decays[id(model[0].bias)] == 0.0
        assert id(model[3].weight) not in decays


def test_a_step_moves_by_parts_of_itself_whatever_its_size_and_direction() -> None:
    for start in (1e-3, 7.0):
        for direction, factor in ((-1.0, 1.01**100), (1.0, math.exp(-1.0))):
            one = site(start)
            optimizer = StepAdam([one], lr=0.01)
            for _ in range(100):
                # Adam divides a constant gradient by its own size: every move is the rate itself.
                (direction * one.step.log()).backward()
                optimizer.step()
                optimizer.zero_grad()
            assert float(one.step.detach()) == pytest.approx(start * factor, rel=1e-4)


def test_a_channel_moves_by_parts_of_its_own_step() -> None:
    one = site(torch.tensor([0.1, 10.0]), channels=2)
    optimizer = StepAdam([one], lr=0.02)
    (-one.step).sum().backward()
    optimizer.step()
    torch.testing.assert_close(one.step.detach(), torch.tensor([0.102, 10.2]), rtol=1e-5, atol=0.0)


def test_a_wrong_start_is_repaired() -> None:
    torch.manual_seed(0)
    x = torch.randn(1024, 1).relu()
    found = []
    for factor in (0.25, 1.0, 4.0):
        one = site(0.6 * factor)
        optimizer = StepAdam([one], lr=0.02)
        for _ in range(150):
            (one(x) - x).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
        found.append(float((one(x) - x).square().mean().detach()))
    assert max(found) < 1.05 * min(found)


def test_steps_and_gains_leave_the_optimizer_of_the_weights() -> None:
    model = nn.Sequential(nn.Linear(2, 3), site(learned_gain=True), nn.Linear(3, 2))
    weights, steps = build_optimizers(model, TrainSpec(step_rate=0.01, learning_rate=0.5))
    ids = [{id(p) for group in one.param_groups for p in group["params"]} for one in (weights, steps)]
    assert ids[1] == {id(model[1].offset), id(model[1].raw_gain)} and not ids[0] & ids[1]
    assert len(ids[0]) == 4
    spec = TrainSpec(step_rate=0.01, learning_rate=0.5, epochs=4, warmup_epochs=1.0)
    for step in range(40):
        rate = set_rates([weights, steps], spec, step, 10)
        # The weights wait for the steps in the first quarter of the warm-up.
        assert rate == weights.param_groups[0]["lr"] == (0.0 if step < 2 else learning_rate(spec, step, 10))
        assert steps.param_groups[0]["lr"] == pytest.approx(0.01 * (1 + math.cos(math.pi * step / 40)) / 2)
        assert set_rates([weights], spec, step, 10) == learning_rate(spec, step, 10)
    (only,) = build_optimizers(model, TrainSpec(step_rate=0.0))
    assert len([p for group in only.param_groups for p in group["params"]]) == 6
    model[1].requires_grad_(False)
    assert len(build_optimizers(model, TrainSpec(step_rate=0.01))) == 1
    model.requires_grad_(False)
    model[1].requires_grad_(True)
    (only,) = build_optimizers(model, TrainSpec(step_rate=0.01))
    assert isinstance(only, StepAdam)


def test_the_average_is_what_the_formula_says() -> None:
    model = nn.Sequential(nn.Linear(1, 1), nn.BatchNorm1d(1))
    average = Average(model, 0.5)
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    for index in range(1, 20):
        with torch.no_grad():
            for value in model.state_dict().values():
                value.add_(1)
        decay = min(0.5, (1 + index) / (10 + index))
        for name, value in model.state_dict().items():
            expected[name] = (
                decay * expected[name] + (1 - decay) * value if value.is_floating_point() else value.clone()
            )
        average.update(model, index)
    last = copy.deepcopy(model.state_dict())
    with average.shown(model):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name])
    assert all(torch.equal(value, last[name]) for name, value in model.state_dict().items())
    average.give(model)
    torch.testing.assert_close(model.state_dict(), expected)
    assert int(model[1].num_batches_tracked) == 19 and not torch.equal(model[0].bias, last["0.bias"])


def test_infinite_buffers_and_half_precision_are_averaged_too() -> None:
    model = nn.Linear(1, 1).bfloat16()
    model.register_buffer("mask", torch.tensor([0.0, -torch.inf]))
    with torch.no_grad():
        model.weight.fill_(1.0)
    average = Average(model, 0.999)
    with torch.no_grad():
        model.weight.fill_(2.0)
    model.register_buffer("late", torch.zeros(1))
    for index in range(1, 5000):
        average.update(model, index)
    average.give(model)
    assert model.mask.tolist() == [0.0, -torch.inf] and float(model.weight.detach()) == pytest.approx(2.0, rel=0.01)


def test_half_precision_cannot_hold_the_moves_of_steps() -> None:
    with pytest.raises(SpecError, match=r"step_rate: expected steps in float32.*precision='bf16'"):
        build_optimizers(nn.Sequential(nn.Linear(2, 2), site()).bfloat16(), TrainSpec(step_rate=0.1))


def test_a_gain_does_not_leave_its_range() -> None:
    one = site(learned_gain=True)
    optimizer = StepAdam([one], lr=1.0)
    for _ in range(50):
        one.raw_gain.grad = torch.tensor(1.0)
        optimizer.step()
    assert float(one.raw_gain.detach()) == 0.0


def test_a_run_shorter_than_the_lead_still_moves_the_weights() -> None:
    optimizers = build_optimizers(nn.Sequential(nn.Linear(2, 2), site()), TrainSpec(epochs=1))
    assert set_rates(optimizers, TrainSpec(epochs=1), 0, 1) > 0


def test_an_averaged_step_is_a_step() -> None:
    model = nn.Sequential(site(0.5))
    average = Average(model, 0.9)
    with torch.no_grad():
        model[0].offset.fill_(-3.0)
    average.update(model, 1)
    average.give(model)
    assert 0.0 < float(model[0].step.detach()) < 0.5
    assert torch.equal(model[0].step, bounds.step_from_offset(model[0].start, model[0].offset))


@pytest.mark.parametrize("spec", [TrainSpec(), TrainSpec(step_rate=0.0), TrainSpec(step_rate=0.0, optimizer="adamw")])
def test_a_gain_at_its_bound_moves_by_the_sum_of_its_gradients_and_gathers_nothing_that_leads_out(
    spec: TrainSpec,
) -> None:
    one = site(learned_gain=True)
    gain = one.raw_gain
    assert gain is not None
    (optimizer,) = build_optimizers(one, spec)
    with torch.no_grad():
        gain.fill_(1.0)
    for _ in range(3):  # three updates that lead out
        gain.grad = torch.tensor(-1.0)
        optimizer.step()
        assert gain.item() == 1.0
    gain.grad = None
    for part in (-1.0, 3.0):  # of two pieces of a batch: together they lead inside
        torch.as_tensor(one.gain).backward(torch.tensor(part))
    assert gain.grad is not None and gain.grad.item() == 2.0
    optimizer.step()
    assert gain.item() < 1.0
