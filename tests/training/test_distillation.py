"""Distillation: nearer to the float network on images it has not seen, deterministic, and no trace of what failed."""

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import CalibrationError, SpecError
from polarspike.quantized import QuantizedNetwork
from polarspike.specs import QuantSpec

COARSE = QuantSpec(negative=1, positive=2, gain="learned", init="mse")


class Net(nn.Module):
    """A batch norm, dropout, a signed site, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Linear(6, 16), nn.BatchNorm1d(16)
        self.drop = nn.Dropout(0.5)
        self.two, self.three, self.four = nn.Linear(16, 16), nn.Linear(16, 3), nn.Linear(16, 2)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.two(self.drop(torch.relu(self.norm(self.one(x)))))
        return {"first": self.three(nn.functional.gelu(x)), "second": self.four(torch.relu(x))}


def batches(count: int, seed: int = 1) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(32, 6, generator=generator) for _ in range(count)]


def calibrated(model: nn.Module | None = None) -> QuantizedNetwork:
    torch.manual_seed(0)
    qann = ps.quantize((model or Net()).eval(), COARSE, example=batches(1)[0])
    ps.calibrate(qann, batches(4))
    return qann


def same(left: dict[str, Any], right: dict[str, Any]) -> bool:
    return all(torch.equal(value, right[name]) for name, value in left.items())


@torch.no_grad()
def distance(qann: QuantizedNetwork, goal: QuantizedNetwork, images: list[Tensor]) -> float:
    error, power = 0.0, 0.0
    for x in images:
        with goal.float_activations():
            wanted = goal(x)
        got = qann(x)
        error += sum(float((got[name] - wanted[name]).square().sum()) for name in wanted)
        power += sum(float(value.square().sum()) for value in wanted.values())
    return (error / power) ** 0.5


def test_unseen_images_are_answered_nearer_to_the_float_network() -> None:
    qann = calibrated()
    goal = copy.deepcopy(qann)
    found = ps.distill(qann, batches(16), steps=200, learning_rate=3e-3)
    assert found.kept and found.held_out and found.steps == 200
    assert found.before == pytest.approx(distance(goal, goal, batches(16)[3::4]), rel=1e-5)
    assert found.after == pytest.approx(distance(qann, goal, batches(16)[3::4]), rel=1e-5)
    unseen = batches(8, seed=9)
    assert distance(qann, goal, unseen) < 0.8 * distance(goal, goal, unseen)
    assert "200 steps: error of the output" in str(found) and "held-out" in str(found)


def test_classes_count_by_their_probabilities_alone() -> None:
    qann = calibrated()
    goal = copy.deepcopy(qann)

    @torch.no_grad()
    def divergence(network: QuantizedNetwork, images: list[Tensor]) -> float:
        total, count = 0.0, 0
        for x in images:
            with goal.float_activations():
                wanted = goal(x)
            for name, value in network(x).items():
                p, q = wanted[name].double().softmax(1), value.double().softmax(1)
                total, count = total + float((p * (p / q).log()).sum()), count + len(x)
        return total / count

    found = ps.distill(qann, batches(16), answers="classes", steps=200, learning_rate=3e-3)
    assert found.kept
    assert found.before == pytest.approx(divergence(goal, batches(16)[3::4]), rel=1e-3)
    assert found.after == pytest.approx(divergence(qann, batches(16)[3::4]), rel=1e-3)
    assert divergence(qann, batches(8, seed=9)) < 0.8 * divergence(goal, batches(8, seed=9))
    assert "divergence of the classes" in str(found)


def test_steps_gains_and_weights_move_but_no_statistics() -> None:
    qann = calibrated()
    before = copy.deepcopy(qann.state_dict())
    ps.distill(qann, batches(8), steps=20, learning_rate=1e-3)
    for name, value in qann.state_dict().items():
        moved = not torch.equal(value, before[name])
        assert moved == (not any(part in name for part in ("running", "tracked", "start", "bounds"))), name
    assert not any(value.grad is not None for value in qann.parameters())


def test_every_step_moves_by_parts_of_itself() -> None:
    spec = QuantSpec(negative=1, positive=2, granularity="channel", init="mse")
    torch.manual_seed(0)
    qann = ps.quantize(Net().eval(), spec, example=batches(1)[0])
    for site in qann.sites().values():
        site.set_step(torch.logspace(-3, 0, site.step.numel()))
    before = {name: site.step.detach().clone() for name, site in qann.sites().items()}
    assert ps.distill(qann, batches(1), steps=1, learning_rate=1e-2).kept
    moved = torch.cat([(site.step.detach() / before[name] - 1.0).abs() for name, site in qann.sites().items()])
    assert 0.009 < float(moved.max()) < 0.011  # Adam's first move is the rate, whatever the gradient


def test_it_depends_on_its_seed_alone_and_leaves_the_global_generator() -> None:
    found = []
    for noise, seed in ((3, 0), (4, 0), (5, 1)):
        qann = calibrated()
        torch.manual_seed(noise)
        state = torch.get_rng_state()
        ps.distill(qann, batches(8), steps=60, seed=seed)
        assert torch.equal(torch.get_rng_state(), state)
        found.append(qann.state_dict())
    assert same(found[0], found[1])
    assert not same(found[0], found[2])


def test_what_is_no_better_is_undone() -> None:
    qann = calibrated()
    before = copy.deepcopy(qann.state_dict())
    found = ps.distill(qann, batches(8), steps=3, learning_rate=30.0)
    assert not found.kept and found.after >= found.before
    assert same(qann.state_dict(), before)
    assert "left as it was" in str(found)
    ps.distill(qann, batches(8), steps=20)  # nothing was changed, so that it is still its own goal
    with pytest.raises(SpecError, match=r"distill has changed this network.*reference="):
        ps.reconstruct(qann, batches(8))


def test_a_broken_run_leaves_the_network_as_it_was() -> None:
    qann = calibrated()
    before = copy.deepcopy(qann.state_dict())
    with pytest.raises(CalibrationError, match=r"step \d+: the error became .*lower learning_rate"):
        ps.distill(qann, batches(8), steps=50, learning_rate=1e30)
    assert same(qann.state_dict(), before)
    assert not qann.notes
    assert all(value.grad is None for value in qann.parameters())


def test_a_buffer_that_is_filled_again_is_no_trap() -> None:
    def refilled() -> Iterator[Tensor]:
        buffer = torch.empty(32, 6)
        for batch in batches(8):
            yield buffer.copy_(batch)

    one, other = calibrated(), calibrated()
    assert ps.distill(one, refilled(), steps=20) == ps.distill(other, batches(8), steps=20)
    assert same(one.state_dict(), other.state_dict())


def test_after_a_reconstruction_the_goal_is_the_reference() -> None:
    qann = calibrated()
    goal = copy.deepcopy(qann)
    ps.reconstruct(qann, batches(8))
    with pytest.raises(SpecError, match="reference="):
        ps.distill(qann, batches(8))
    rebuilt = distance(qann, goal, batches(8, seed=9))
    assert ps.distill(qann, batches(16), reference=goal, steps=200, learning_rate=3e-3).kept
    assert distance(qann, goal, batches(8, seed=9)) < rebuilt
    assert goal.training == qann.training
    snn = ps.convert(qann)
    assert ps.verify(qann, snn, batches(2), scope=False).exact


def test_few_batches_are_fitted_and_measured_alike_and_modes_come_back() -> None:
    qann = calibrated().train()
    found = ps.distill(qann, batches(1)[0], steps=30)
    assert not found.held_out and "the batches themselves" in str(found)
    assert qann.training and all(site.training for site in qann.sites().values())


def test_what_cannot_be_distilled_is_refused() -> None:
    qann = calibrated()
    with pytest.raises(CalibrationError, match="empty loader"):
        ps.distill(qann, [])
    with pytest.raises(SpecError, match="answers: expected 'values' or 'classes', got 'logits'"):
        ps.distill(qann, batches(1), answers="logits")  # type: ignore[arg-type]
    single = nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 1))
    with pytest.raises(SpecError, match="two classes at least"):
        ps.distill(calibrated(single), batches(1), answers="classes")
    with torch.inference_mode(), pytest.raises(SpecError, match="outside of torch"):
        ps.distill(qann, batches(1))
    for wrong in (0, True, 1.5):
        with pytest.raises(SpecError, match="steps: expected a positive integer"):
            ps.distill(qann, batches(1), steps=wrong)  # type: ignore[arg-type]
    for rate in (0.0, -1.0, float("nan"), float("inf"), True):
        with pytest.raises(SpecError, match="learning_rate: expected a positive number"):
            ps.distill(qann, batches(1), learning_rate=rate)
    with pytest.raises(SpecError, match="quantize returns"):
        ps.distill(Net(), batches(1))  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="another network"):
        ps.distill(qann, batches(1), reference=calibrated(nn.Sequential(nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 2))))
    with pytest.raises(CalibrationError, match="no step yet"):
        ps.distill(ps.quantize(Net().eval(), COARSE, example=batches(1)[0]), batches(1))
    with pytest.raises(CalibrationError, match="batch 1: the float network answers NaN"):
        ps.distill(qann, [batches(1)[0], torch.full((2, 6), torch.nan)])
    with pytest.raises(SpecError, match="requires a gradient"):
        ps.distill(calibrated().requires_grad_(False), batches(1))
