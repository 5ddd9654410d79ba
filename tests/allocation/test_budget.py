"""Levels under a budget: it is kept as measured, spent where it helps, and a refusal changes nothing."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.allocation.candidates import Option, candidates
from polarspike.allocation.meter import Meter
from polarspike.errors import CalibrationError, SpecError
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec
from polarspike.statistics.laws import Law, NormalMixture, Samples

pytestmark = pytest.mark.slow


class Net(nn.Module):
    """A site that matters (``sharp``) beside one that hardly does (``dull``), and a signed one."""

    def __init__(self) -> None:
        super().__init__()
        self.sharp, self.dull = nn.Linear(8, 32), nn.Linear(8, 32)
        self.relu1, self.relu2, self.gelu = nn.ReLU(), nn.ReLU(), nn.GELU()
        self.mix, self.faint, self.head = nn.Linear(32, 16), nn.Linear(32, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.gelu(self.mix(self.relu1(self.sharp(x))) + 0.01 * self.faint(self.relu2(self.dull(x)))))


def network(**options: object) -> tuple[nn.Module, ps.QuantizedNetwork, Tensor]:
    torch.manual_seed(0)
    model, x = Net().eval(), torch.randn(400, 8)
    spec = ps.QuantSpec(**{"negative": 7, "positive": 7, "init": "mse", **options})  # type: ignore[arg-type]
    qann = ps.quantize(model, spec, example=x[:2])
    ps.calibrate(qann, [x])
    return model, qann, x


def error(qann: ps.QuantizedNetwork, model: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((qann(x) - model(x)).square().sum() / model(x).square().sum())


def fired(qann: ps.QuantizedNetwork, x: Tensor) -> dict[str, float]:
    counts = ps.count_operations(ps.convert(qann), x)
    joules = ps.estimate_energy(counts).row("b").joules
    return {
        "events": sum(site.events for site in counts.sites) / len(x),
        "spikes": sum(site.spikes for site in counts.sites) / len(x),
        "joules": joules / len(x),
    }


@pytest.mark.parametrize("resource", ["events", "spikes", "joules"])
@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_budget_is_kept_and_nearly_spent(resource: str, granularity: str) -> None:
    _, qann, x = network(granularity=granularity)
    need = fired(qann, x)[resource]
    fixed = 0.0
    if resource == "joules":
        row = ps.estimate_energy(ps.count_operations(ps.convert(qann), x)).row("b")
        fixed = (row.joules - row.spikes_pj * 1e-12) / len(x)
    budget = fixed + 0.5 * (need - fixed)
    allocation = ps.allocate(qann, [x[:200], x[200:]] if resource != "joules" else [x], budget, resource)  # type: ignore[arg-type]
    spent = fired(qann, x)[resource]
    assert spent == pytest.approx(allocation.spent) and allocation.before == pytest.approx(need)
    assert fixed + 0.9 * (budget - fixed) <= spent <= budget
    assert ps.verify(qann, ps.convert(qann), [x]).different == 0
    assert str(allocation).startswith(f"{resource} per image")


def test_bits_are_a_budget_too() -> None:
    _, qann, x = network()
    allocation = ps.allocate(qann, [x], 150.0, "bits")
    assert sum(site.bits for site in allocation.sites.values()) == pytest.approx(allocation.spent)
    assert 130 < allocation.spent <= 150


def test_levels_go_where_the_answer_depends_on_them() -> None:
    model, qann, x = network()
    uniform = {}
    for levels in (1, 2, 3, 4):
        _, rival, _ = network(negative=levels, positive=levels)
        uniform[levels] = fired(rival, x)["spikes"], error(rival, model, x)
    for spikes, loss in uniform.values():
        one = copy.deepcopy(qann)
        allocation = ps.allocate(one, x, spikes)
        assert error(one, model, x) < loss
        assert allocation.error == pytest.approx(error(one, model, x) ** 0.5, rel=1e-4)
        assert allocation.sites["relu1"].levels[1] > allocation.sites["relu2"].levels[1]
        assert allocation.sites["relu2"].loss < 0.1 * allocation.sites["relu1"].loss


def test_where_the_prediction_errs_the_same_levels_everywhere_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    model, qann, x = network()
    _, rival, _ = network(negative=3, positive=3)
    upside_down = {"relu1": 1e-6, "relu2": 1.0, "head_input": 1e-6}
    assert set(upside_down) == set(qann.sites())
    monkeypatch.setattr(
        "polarspike.allocation.budget.sensitivities",
        lambda *_: {name: torch.tensor([weight], dtype=torch.float64) for name, weight in upside_down.items()},
    )
    allocation = ps.allocate(qann, x, fired(rival, x)["spikes"])
    assert {site.levels[1] for site in allocation.sites.values()} == {3}
    assert error(qann, model, x) == pytest.approx(error(rival, model, x), rel=1e-3)


def test_more_budget_than_needed_leaves_every_level() -> None:
    model, qann, x = network()
    before = error(qann, model, x)
    allocation = ps.allocate(qann, x, 1e9)
    assert all(site.levels == site.former for site in allocation.sites.values())
    assert error(qann, model, x) <= 1.1 * before


def test_negative_levels_go_where_they_do_not_pay() -> None:
    _, qann, x = network(signed="all", gain=1.0)
    allocation = ps.allocate(qann, x, 100.0)
    assert allocation.sites["relu1"].levels[0] == 0  # a ReLU has nothing below zero to say
    assert allocation.sites["head_input"].levels[0] > 0  # a GELU does


def short_tailed(granularity: str = "tensor") -> tuple[ps.QuantizedNetwork, Tensor, float]:
    """One GELU, a signal, and a budget of spikes under which the step is about as long as the negative side."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 32), nn.GELU(), nn.Linear(32, 4)).eval(), 0.9 * torch.randn(300, 8)
    qann = ps.quantize(model, ps.QuantSpec(7, 7, granularity=granularity), example=x[:2])  # type: ignore[arg-type]
    ps.calibrate(qann, [x])
    return qann, x, 0.6 * fired(qann, x)["spikes"]


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_a_short_negative_side_gets_a_gain_below_one(granularity: str, tmp_path: Path) -> None:
    qann, x, budget = short_tailed(granularity)
    rival = copy.deepcopy(qann)
    allocation = ps.allocate(qann, x, budget, gains="dyadic")
    (site,), (row,) = qann.sites().values(), allocation.sites.values()
    assert site.gain == row.gain == 0.5 and site.levels[0] > 0 and "0.5" in str(allocation)
    assert fired(qann, x)["spikes"] == pytest.approx(allocation.spent) and allocation.spent <= budget
    # Fixed, and the site still stands for the same float function: training finds no new parameter.
    assert site.raw_gain is None and site.slope == 1.0
    assert [name for name, _ in qann.named_parameters()] == [name for name, _ in rival.named_parameters()]
    snn = ps.convert(qann)
    assert ps.verify(qann, snn, [x]).different == 0
    ps.save(qann, tmp_path / "q.safetensors")
    again = ps.load(tmp_path / "q.safetensors")
    assert [site.gain for site in again.sites().values()] == [0.5] and torch.equal(again(x), qann(x))
    assert ps.export(snn, tmp_path / "q.integer", "integer", example=x[:2], batches=[x]).codes_wrong == 0

    kept = ps.allocate(rival, x, budget)
    assert next(iter(rival.sites().values())).gain == 1.0 and kept.spent <= budget
    assert allocation.error < 0.95 * kept.error
    # More timesteps come nearer to the float network only with the gain that is its slope.
    with torch.no_grad():
        with qann.float_activations():
            y = qann(x)
        far, near = ([float((ps.convert(n)(x, timesteps=t) - y).norm()) for t in (1, 8)] for n in (qann, rival))
    assert far[0] < near[0] and near[1] < 0.5 * near[0] and near[1] < 0.5 * far[1]


def test_gains_are_put_back_where_the_prediction_errs(monkeypatch: pytest.MonkeyPatch) -> None:
    qann, x, budget = short_tailed()
    real = candidates

    def deceived(*given: object) -> list[Option]:
        return [
            option if option.kept else dataclasses.replace(option, spec=dataclasses.replace(option.spec, gain=2.0**-7))
            for option in real(*given)  # type: ignore[arg-type]
        ]

    monkeypatch.setattr("polarspike.allocation.budget.candidates", deceived)
    allocation = ps.allocate(qann, x, budget, gains="dyadic")
    assert [site.gain for site in qann.sites().values()] == [1.0]
    assert fired(qann, x)["spikes"] == pytest.approx(allocation.spent) and allocation.spent <= budget


def options(law: Law, second_scale: float = 0.0, **spec: object) -> list[Option]:
    site = PolarityQuantizer(SiteSpec(3, 3, **spec), "site")  # type: ignore[arg-type]
    site.set_step(0.3)
    return candidates(site, law, torch.ones(1, dtype=torch.float64), 1.0, "spikes", second_scale, "dyadic")


GELU = Samples(nn.functional.gelu(torch.linspace(-1.0, 1.0, 401)).view(1, -1), torch.ones(1, 401))


def test_gains_that_are_not_chosen() -> None:
    normal = NormalMixture(torch.zeros(1, 1), torch.ones(1, 1))
    # As much below zero as above: only where the step itself is far too coarse is a smaller value nearer.
    assert all(option.kept for option in options(normal, slope=1.0) if option.stretch <= 1.4)
    assert all(option.kept for option in options(GELU, slope=1.0, learned_gain=True))
    assert all(option.kept for option in options(normal, slope=0.0))  # a ReLU with negative levels: (0, P) does it
    assert {option.spec.gain for option in options(GELU, slope=1.0)} == {1.0, 0.5}
    # What a gain gave is taken back where another is better.
    assert {option.spec.gain for option in options(normal, slope=1.0, gain=0.5) if not option.kept} == {1.0}


def test_another_gain_changes_the_loss_and_only_joules() -> None:
    found = options(GELU, second_scale=5.0, slope=1.0)
    pairs = [
        (kept, other)
        for kept in found
        for other in found
        if kept.kept and not other.kept and (kept.spec.levels, kept.stretch) == (other.spec.levels, other.stretch)
    ]
    assert pairs
    for kept, other in pairs:
        assert torch.equal(kept.step, other.step) and other.loss < kept.loss
        assert other.cost == pytest.approx(kept.cost + 5.0)


def test_what_a_second_scale_costs_is_what_is_counted() -> None:
    qann, x, _ = short_tailed()
    meter = Meter(qann, [x], "joules", None)
    (name,) = qann.sites()
    qann.network.set_submodule(name, qann.sites()[name].with_fixed_gain(gain=0.5))
    assert meter.measure() == pytest.approx(meter.before + meter.second_scale(name), rel=1e-12)
    assert meter.second_scale(name) > 0.0
    assert Meter(qann, [x], "joules", None).fixed == pytest.approx(meter.fixed)


def test_levels_survive_the_file(tmp_path: object) -> None:
    _, qann, x = network()
    ps.allocate(qann, x, 60.0)
    path = f"{tmp_path}/q.safetensors"
    ps.save(qann, path)
    again = ps.load(path)
    assert {n: s.levels for n, s in again.sites().items()} == {n: s.levels for n, s in qann.sites().items()}
    assert torch.equal(again(x), qann(x))


def test_a_ceiling_bounds_the_step() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 16), nn.ReLU6(), nn.Linear(16, 3)).eval(), 9 * torch.randn(200, 4)
    qann = ps.quantize(model, ps.QuantSpec(0, 15, init="mse"), example=x)
    ps.calibrate(qann, [x])
    ps.allocate(qann, x, 12.0)
    (site,) = qann.sites().values()
    assert float(site.step.detach()) * site.levels[1] <= 6.0 + 1e-5


def test_an_impossible_budget_names_the_least_and_changes_nothing() -> None:
    _, qann, x = network(signed="all", gain="learned")
    for index, site in enumerate(qann.sites().values()):
        site.offset.data.fill_(0.01)
        site.raw_gain.data.fill_(0.7)
        site.offset.requires_grad_(index > 0)
    sites = qann.sites()
    state = {name: value.clone() for name, value in qann.state_dict().items()}
    with pytest.raises(SpecError, match=r"spikes=0\.001 cannot be kept.*[0-9.]+ per image were measured"):
        ps.allocate(qann, x, 1e-3)
    assert all(torch.equal(value, state[name]) for name, value in qann.state_dict().items())
    assert all(site is sites[name] for name, site in qann.sites().items())


@pytest.mark.filterwarnings("ignore:channels that never carry a signal")
def test_what_the_coarsest_levels_need_is_a_budget_that_is_kept() -> None:
    for seed in (1, 2):
        torch.manual_seed(seed)
        layers = [part for _ in range(3) for part in (nn.Linear(12, 12), nn.ReLU())]
        model, x = nn.Sequential(*layers, nn.Linear(12, 3)).eval(), torch.randn(64, 12)
        qann = ps.quantize(model, ps.QuantSpec(0, 7, granularity="channel"), example=x[:2])
        ps.calibrate(qann, [x])
        with pytest.raises(SpecError) as refusal:
            ps.allocate(copy.deepcopy(qann), x, 1e-3)
        least = float(str(refusal.value).partition("may get, ")[2].split()[0])
        for budget in (1.01 * least, 2.0 * least):
            one = copy.deepcopy(qann)
            allocation = ps.allocate(one, x, budget)
            # What is left in the network is what was measured, also where the last trial was not the best.
            assert fired(one, x)["spikes"] == pytest.approx(allocation.spent) and allocation.spent <= budget


def test_a_silent_start_costs_no_less() -> None:
    spent = []
    for step in (None, 50.0):
        _, qann, x = network()
        if step is not None:
            qann.sites()["relu1"].set_step(step)
        spent.append(ps.allocate(qann, [x], 4e-9, "joules").spent)
    assert spent[1] == pytest.approx(spent[0], rel=0.05)


def test_type_mode_and_gradients_stay() -> None:
    _, qann, x = network(signed="all", gain="learned")
    qann = qann.double().train()
    frozen, *_ = qann.sites().values()
    frozen.offset.requires_grad_(False)
    ps.allocate(qann, x.double(), 1e9)
    first, *_ = qann.sites().values()
    assert first is not frozen and first.training and not first.offset.requires_grad
    assert all(site.start.dtype == site.offset.dtype == torch.float64 for site in qann.sites().values())
    with torch.inference_mode(), pytest.raises(SpecError, match=r"outside of torch\.inference_mode"):
        ps.allocate(qann, x, 10.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0,), "budget: expected a positive number, got 0.0"),
        ((float("nan"),), "budget: expected a positive number"),
        ((1.0, "watts"), "resource: expected one of events, spikes, joules, bits, got 'watts'"),
    ],
)
def test_wrong_arguments(arguments: tuple[object, ...], message: str) -> None:
    _, qann, x = network()
    with pytest.raises(SpecError, match=message):
        ps.allocate(qann, x, *arguments)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="answers: expected 'values' or 'classes'"):
        ps.allocate(qann, x, 10.0, answers="logits")  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="gains: expected one of kept, dyadic, got 'learned'"):
        ps.allocate(qann, x, 10.0, gains="learned")  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="at least one batch"):
        ps.allocate(qann, [], 10.0)
