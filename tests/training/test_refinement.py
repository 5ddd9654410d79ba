"""Training for several timesteps: what a step computes, which T it takes, and what that is good for."""

from __future__ import annotations

import collections
import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.baselines.quantizers import ClippingQuantizer
from polarspike.data.events import FrameSpec
from polarspike.errors import SpecError
from polarspike.experiments.recipe import Recipe
from polarspike.runs import RunDirectory
from polarspike.training.activity import counted
from polarspike.training.refinement import Refinement, drawn

Batches = list[tuple[Tensor, Tensor]]


def network(levels: tuple[int, int] = (1, 2)) -> tuple[ps.QuantizedNetwork, Batches]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 16), nn.LayerNorm(16), nn.GELU(), nn.Linear(16, 3))
    target = torch.arange(96) % 3
    x = 0.7 * torch.randn(96, 6) + nn.functional.one_hot(target, 6)
    batches = [(x[i::4], target[i::4]) for i in range(4)]
    qann = ps.quantize(model, ps.QuantSpec(*levels, gain="learned"), example=x[:2])
    ps.calibrate(qann, batches)
    return qann, batches


@pytest.mark.parametrize("timesteps", [1, 2, 3, 8])
def test_a_step_computes_the_refined_network_and_its_gradients(timesteps: int) -> None:
    qann, ((x, target), *_) = network()
    fine = ps.refine(qann, timesteps)
    turning = Refinement(qann, ps.TrainSpec(timesteps=(timesteps,)))
    with turning.lasting():
        assert turning.turn(1) == timesteps
        answer = qann.train()(x)
        assert torch.equal(answer, fine.train()(x))
        nn.functional.cross_entropy(answer, target).backward()
        nn.functional.cross_entropy(fine(x), target).backward()
        assert torch.equal(qann.eval()(x), ps.convert(qann)(x))  # the refined grid is for training alone
        assert torch.equal(ps.convert(qann)(x, timesteps=timesteps, execution="mean"), answer)
    assert torch.equal(qann.train()(x), ps.refine(qann, 1).train()(x))
    for (name, mine), (_, other) in zip(qann.named_parameters(), fine.named_parameters(), strict=True):
        assert mine.grad is not None and other.grad is not None
        scale = timesteps if name.endswith("offset") else 1  # of s, where the other has s / T
        torch.testing.assert_close(scale * mine.grad, other.grad, msg=name)


def test_activity_is_that_of_the_first_timestep_whatever_a_step_computes() -> None:
    site = next(iter(network()[0].sites().values())).train()
    x = torch.linspace(-1, 2, 100).view(10, 10)
    found = []
    for site.timesteps in (1, 8):
        with counted(site) as activity:
            site(x)
        found.append(activity.mean().item())
    assert found[0] == found[1] == site.encode(x).abs().mean().item()


def test_a_clip_of_pact_refines_alike() -> None:
    qann, _ = network()
    site = ClippingQuantizer(next(iter(qann.sites().values()))).train()
    value = torch.linspace(-1, 2, 101)
    fine = site.refined(4).train()(value)
    site.timesteps = 4
    torch.testing.assert_close(site(value), fine)
    assert not torch.equal(site.eval()(value), fine)


def test_draws_follow_their_shares_and_nothing_else() -> None:
    spec = ps.TrainSpec(timesteps=(1, 2, 4, 8), seed=3)
    found = [drawn(spec, index) for index in range(1, 6001)]
    counts = collections.Counter(found)
    assert counts[1] == pytest.approx(4020, abs=150)
    for timesteps in (2, 4, 8):
        assert counts[timesteps] == pytest.approx(660, abs=100)
    torch.manual_seed(1)  # no generator has a part in it
    assert found == [drawn(spec, index) for index in range(1, 6001)]
    assert found[:50] != [drawn(ps.TrainSpec(timesteps=(1, 2, 4, 8), seed=4), index) for index in range(1, 51)]
    assert {drawn(ps.TrainSpec(timesteps=(2, 4)), index) for index in range(1, 50)} == {2, 4}
    assert {drawn(ps.TrainSpec(timesteps=(1, 4), first_share=0.0), index) for index in range(1, 50)} == {4}
    assert {drawn(ps.TrainSpec(timesteps=(1, 4), first_share=1.0), index) for index in range(1, 50)} == {1}


def test_fit_takes_turns_and_leaves_none(monkeypatch: pytest.MonkeyPatch) -> None:
    qann, batches = network()
    spec = ps.TrainSpec(epochs=3, learning_rate=0.05, timesteps=(1, 2, 4), first_share=0.4)
    site = next(iter(qann.sites().values()))
    seen: list[int] = []
    site.register_forward_pre_hook(lambda module, _: seen.append(module.timesteps))
    ps.fit(qann, batches, spec, progress=False)
    assert seen == [drawn(spec, index) for index in range(1, 13)]
    assert set(seen) == {1, 2, 4} and site.timesteps == 1
    with pytest.raises(ps.PolarspikeError):
        ps.fit(qann, [(x * torch.nan, target) for x, target in batches], spec, progress=False)
    assert {one.timesteps for one in qann.sites().values()} == {1}


def test_a_resumed_run_draws_the_same(tmp_path: Path) -> None:
    qann, batches = network()
    spec = ps.TrainSpec(epochs=3, learning_rate=0.05, timesteps=(1, 2, 4), first_share=0.4)
    whole, parts = copy.deepcopy(qann), copy.deepcopy(qann)
    ps.fit(whole, batches, spec, progress=False)
    run = RunDirectory(tmp_path / "run")
    stop = {"after": 10}

    def failing(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        stop["after"] -= 1
        if stop["after"] < 0:
            raise KeyboardInterrupt

    handle = parts.register_forward_pre_hook(failing)
    with pytest.raises(KeyboardInterrupt):
        ps.fit(parts, batches, spec, run=run, progress=False)
    handle.remove()
    again = copy.deepcopy(qann)
    ps.fit(again, batches, spec, run=RunDirectory(tmp_path / "run", resume=True), resume=True, progress=False)
    for mine, other in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(mine, other)


def test_what_is_trained_for_more_timesteps_answers_better_after_them() -> None:
    qann, batches = network()
    losses: dict[tuple[int, ...], float] = {}
    for timesteps in ((1,), (1, 4)):
        student = copy.deepcopy(qann)
        spec = ps.TrainSpec(epochs=60, learning_rate=0.02, timesteps=timesteps, first_share=0.5)
        ps.fit(student, batches, spec, progress=False)
        snn = ps.convert(student)
        with torch.no_grad():
            found = [nn.functional.cross_entropy(snn(x, timesteps=4), target) for x, target in batches]
        losses[timesteps] = float(torch.stack(found).mean())
    assert losses[1, 4] < 0.8 * losses[(1,)]


@pytest.mark.parametrize("timesteps", [(), (0, 1), (2, 1), (1, 1), (1, 2.0), (True,), (1, 2000), [1, 2]])
def test_timesteps_are_increasing_integers(timesteps: object) -> None:
    with pytest.raises(SpecError, match=r"TrainSpec.timesteps: expected increasing integers in 1..1024, got"):
        ps.TrainSpec(timesteps=timesteps)  # type: ignore[arg-type]


def test_a_spec_comes_back_from_plain_data() -> None:
    spec = ps.TrainSpec(timesteps=(1, 2, 4), first_share=0.5)
    plain = spec.to_dict()
    assert ps.TrainSpec.from_dict({**plain, "timesteps": [1, 2, 4]}) == spec  # what JSON makes of it
    del plain["timesteps"], plain["first_share"]  # of an older release
    assert ps.TrainSpec.completed(plain)["timesteps"] == (1,)


def test_only_quantized_networks_have_a_grid_to_refine() -> None:
    _, batches = network()
    with pytest.raises(SpecError, match=r"timesteps: expected a quantized network.*\(1, 2\) refine.*got a Linear"):
        ps.fit(nn.Linear(6, 3), batches, ps.TrainSpec(epochs=1, timesteps=(1, 2)), progress=False)


def test_recipes_refuse_them_where_nothing_is_refined() -> None:
    several = ps.TrainSpec(timesteps=(1, 2))
    with pytest.raises(SpecError, match=r"ann.timesteps: the float network"):
        Recipe(ann=several)
    for reading in ("frames", "through-time"):
        with pytest.raises(SpecError, match=r"qann.timesteps: expected \(1,\) with reading"):
            Recipe(data="dvs128-gesture", reading=reading, qann=several)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match=r"through_time.timesteps: a network through time"):
        Recipe(data="dvs128-gesture", reading="through-time", frames=FrameSpec(bins=4), through_time=several)
    assert Recipe(data="dvs128-gesture", reading="integrate", qann=several).qann.timesteps == (1, 2)
