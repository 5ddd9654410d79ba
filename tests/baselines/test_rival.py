"""One interface for every rival: prepared, calibrated, trained, run, counted; and refused where it makes no sense."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.baselines import METHODS, Rival, RivalSpec, prepare
from polarspike.baselines.leaky import LeakyNeuron
from polarspike.baselines.thresholds import set_thresholds
from polarspike.errors import CalibrationError, OperatorError, SpecError
from tests.networks import network, signal


def made(method: str, name: str = "plain", **options: int) -> tuple[Rival, Tensor]:
    x = signal(name)
    rival = prepare(method, network(name), RivalSpec(**options), example=x)
    rival.calibrate([x])
    return rival, x


@pytest.mark.parametrize("method", METHODS)
def test_every_rival_does_everything(method: str) -> None:
    rival, x = made(method, levels=4, timesteps=2, rehearsal=2)
    labels = torch.randint(0, 5, (len(x),))
    before = [parameter.detach().clone() for parameter in network("plain").parameters()]
    spec = ps.TrainSpec(epochs=1, learning_rate=0.01, step_rate=0.0, warmup_epochs=0.0)
    if rival.method.trains:
        assert len(rival.fit([(x, labels)] * 2, spec).epochs) == 1
    else:
        with pytest.raises(SpecError, match="nothing to fit"):
            rival.fit([(x, labels)], spec)
    assert all(torch.equal(a, b) for a, b in zip(before, network("plain").parameters(), strict=True))
    latencies = [1] if rival.method.family == "quantization" else [3, 4]
    for latency in latencies:
        steps = rival.timesteps(latency)
        assert steps is not None and rival.latency(steps) == latency
        found = ps.evaluate(rival.network(), [(x, labels)], timesteps=steps)
        assert found.firing is not None
        counts = rival.count(x, steps)
        assert counts.timesteps == latency or (
            method == "cos" and steps < 2
        )  # runs on so that later sites can rehearse
        assert counts.totals["spikes"] == found.firing[steps].spikes
        largest = max(row.largest for row in counts.synapses)
        assert largest <= 1 or rival.method.spikes == "multi" or METHODS[method].family == "quantization"


def test_true_latency_leaves_no_step_to_a_rehearsal() -> None:
    rival, _ = made("srp", rehearsal=4)
    assert [rival.timesteps(latency) for latency in (1, 4, 5, 8)] == [None, None, 1, 4]
    quantizer, _ = made("lsq")
    assert [quantizer.timesteps(latency) for latency in (1, 2)] == [1, None]


@pytest.mark.parametrize("method", ["lsq", "pact"])
def test_a_trained_quantizer_is_its_spiking_network(method: str) -> None:
    rival, x = made(method, levels=4)
    rival.fit([(x, torch.randint(0, 5, (len(x),)))] * 3, ps.TrainSpec(epochs=1, learning_rate=0.05, step_rate=0.0))
    assert rival.qann is not None
    with torch.no_grad():
        assert torch.equal(rival.network()(x), rival.qann.eval()(x))


@pytest.mark.parametrize("method", ["polarspike+t", "scale-and-fire+t"])
def test_a_method_for_several_timesteps_is_trained_for_them(method: str) -> None:
    rival, x = made(method)
    seen: set[int] = set()
    assert rival.qann is not None
    next(iter(rival.qann.sites().values())).register_forward_pre_hook(lambda site, _: seen.add(site.timesteps))
    batches, spec = [(x, torch.zeros(len(x), dtype=torch.int64))] * 8, ps.TrainSpec(epochs=2, first_share=0.2)
    rival.fit(batches, spec)
    assert seen == {1, 2, 4, 8}
    seen.clear()
    rival.fit(batches, dataclasses.replace(spec, timesteps=(2,)))
    assert seen == {2}


def test_lsq_plus_is_its_network_too() -> None:
    rival, x = made("lsq+", levels=4)
    assert rival.qann is not None
    with torch.no_grad():
        assert torch.equal(rival.network()(x), rival.qann(x))


def test_an_offset_is_calibrated_anew_like_everything_else() -> None:
    rival, x = made("lsq+", "leaky", levels=4)
    assert rival.qann is not None
    with torch.no_grad():
        first = rival.network()(x)
        rival.calibrate([5 * x])
        assert not torch.equal(rival.network()(x), first)
        rival.calibrate([x])
        assert torch.equal(rival.network()(x), first)


@pytest.mark.parametrize("method", [name for name, method in METHODS.items() if method.family != "direct"])
def test_a_rival_without_thresholds_is_refused_by_name(method: str) -> None:
    rival = prepare(method, network("plain"), example=signal("plain"))
    with pytest.raises(CalibrationError, match="'conv2_input' has no step yet"):
        rival.network()


@pytest.mark.parametrize("method", ["qcfs", "cos", "st-bif"])
@pytest.mark.parametrize("timesteps", [0, 2.5, True])
def test_what_is_no_number_of_timesteps_is_refused(method: str, timesteps: int) -> None:
    rival, x = made(method)
    with pytest.raises(SpecError, match="expected a positive integer"):
        rival.network()(x, timesteps=timesteps)
    with pytest.raises(SpecError, match="expected a positive integer"):
        rival.count(x, timesteps)


def test_direct_training_learns_through_time() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 2))
    x = torch.randn(256, 8)
    labels = (x[:, 0] * x[:, 1] > 0).long()
    rival = prepare("plif", model, RivalSpec(timesteps=4), example=x)
    rival.calibrate([x])
    rival.fit([(x, labels)] * 20, ps.TrainSpec(epochs=8, learning_rate=0.1, step_rate=0.0))
    assert ps.evaluate(rival.network(), [(x, labels)], timesteps=4).accuracy[4] > 0.9
    (site,) = rival.network().sites().values()
    assert isinstance(site, LeakyNeuron) and site.raw_decay is not None and site.raw_decay.item() != 0.0


def test_the_step_optimizer_leaves_a_learned_leak_to_the_other() -> None:
    rival, x = made("plif", timesteps=2)
    rival.fit([(x, torch.randint(0, 5, (len(x),)))] * 3, ps.TrainSpec(epochs=1, learning_rate=0.05, step_rate=0.2))
    assert all(site.raw_decay.item() != 0.0 for site in rival.network().sites().values())


def test_thresholds_by_hand() -> None:
    model = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2)
    )
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.fill_(2.0)
    batches = [torch.tensor([[1.0], [3.0]]), torch.tensor([[5.0], [-1.0]])]
    qann = ps.quantize(model.eval(), ps.QuantSpec(0, 1), example=batches[0])

    def steps(strategy: str) -> list[float]:
        set_thresholds(qann, batches, strategy, passes=1)  # type: ignore[arg-type]
        return [site.step.item() for site in qann.sites().values()]

    assert steps("max") == [5.0, 10.0]
    assert steps("percentile") == pytest.approx([5.0, 10.0], rel=0.01)
    # First site: 0 + 2 * (1 + 3) / 2 = 4, then 4 + 2 * (1 + 0) / 2 = 5. The second one sees 2, 6, then 10, 0:
    # 0 + 2 * 4 = 8, then 8 + 2 * (2 + 0) / 2 = 10.
    assert steps("balanced") == [5.0, 10.0]
    with pytest.raises(SpecError, match="one of max, percentile, balanced"):
        set_thresholds(qann, batches, "entropy")  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="empty loader"):
        set_thresholds(qann, [], "balanced")


def test_later_sites_see_clipped_activations() -> None:
    model = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 2)
    )
    with torch.no_grad():
        model[0].weight.fill_(1.0)
        model[2].weight.fill_(1.0)
    batch = torch.tensor([[0.0], [0.0], [0.0], [8.0]])
    qann = ps.quantize(model.eval(), ps.QuantSpec(0, 1), example=batch)
    set_thresholds(qann, [batch], "balanced", passes=1)
    assert [site.step.item() for site in qann.sites().values()] == [4.0, 2.0]  # 2 * 8 / 4, then 2 * 4 / 4
    set_thresholds(qann, [batch], "balanced", passes=1, images=2)  # [0, 0] moves nothing, [0, 8] moves by 8
    assert [site.step.item() for site in qann.sites().values()] == [8.0, 8.0]
    set_thresholds(qann, [batch], "balanced", passes=60)
    assert [site.step.item() for site in qann.sites().values()] == pytest.approx([8.0, 8.0], rel=1e-3)  # has settled


def test_a_threshold_of_a_silent_channel_is_like_its_neighbours() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 1), nn.ReLU(), nn.Flatten(), nn.Linear(12, 2))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([1.0, 0.0, 4.0]).view(3, 1, 1, 1))
        model[0].bias.copy_(torch.tensor([0.0, -1.0, 0.0]))
    x = torch.ones(2, 1, 2, 2)
    qann = ps.quantize(model.eval(), ps.QuantSpec(0, 1, granularity="channel"), example=x)
    for strategy in ("max", "balanced"):
        set_thresholds(qann, [x], strategy, passes=1)  # type: ignore[arg-type]
        (site,) = qann.sites().values()
        factor = 2.0 if strategy == "balanced" else 1.0
        assert site.step.tolist() == [factor, factor, 4 * factor]


@pytest.mark.parametrize("strategy", ["max", "percentile", "balanced"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_a_batch_without_finite_values_sets_no_threshold(strategy: str, value: float) -> None:
    qann = ps.quantize(network("plain"), ps.QuantSpec(0, 1), example=signal("plain"))
    batches = [signal("plain"), signal("plain").index_fill(0, torch.tensor([1]), value)]
    with pytest.raises(CalibrationError, match=r"site 'conv2_input', batch 1: .*expected finite values"):
        set_thresholds(qann, batches, strategy)  # type: ignore[arg-type]


@pytest.mark.parametrize("strategy", ["max", "percentile", "balanced"])
def test_a_threshold_is_no_higher_than_what_its_activation_gives(strategy: str) -> None:
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU6(), nn.Linear(1, 2)).eval()
    with torch.no_grad():
        model[0].weight.fill_(1.0)
    x = torch.tensor([[3.0], [20.0]])
    rival = prepare("rate-max", model, example=x)
    assert rival.qann is not None
    set_thresholds(rival.qann, [x], strategy)  # type: ignore[arg-type]
    (site,) = rival.qann.sites().values()
    assert site.step.item() == pytest.approx(6.0, rel=0.01)
    with torch.no_grad():  # what is larger is cut off where the float network cuts it off
        assert torch.allclose(rival.network()(x[1:], timesteps=64), model(x[1:]), rtol=0.02)


def test_what_a_method_cannot_do_is_refused_by_name() -> None:
    x = signal("attention")
    with pytest.raises(
        OperatorError,
        match=r"qcfs: site .* is signed by nature.* one of polarspike, polarspike\+t, polarspike-free, st-bif",
    ):
        prepare("qcfs", network("attention"), example=x)
    with pytest.raises(SpecError, match=r"'resnet'; known: polarspike, polarspike\+t, polarspike-free, rate-max"):
        prepare("resnet", network("plain"), example=signal("plain"))
    with pytest.raises(SpecError, match=r"levels.*at least 2"):
        RivalSpec(levels=1)


class Averaged(nn.Module):
    """A rectifier in front of a pooling that a convolution reads, and of the answer, if asked for."""

    def __init__(self, pool: nn.Module, seen: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.relu1, self.relu2, self.pool, self.seen = nn.ReLU(), nn.ReLU(), pool, seen
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.pool(self.relu1(self.conv1(x)))
        answer = self.head(self.relu2(self.conv2(pooled)).flatten(1))
        return answer + torch.exp(-pooled).sum((1, 2, 3)).unsqueeze(1) if self.seen else answer


@pytest.mark.parametrize("pool", [nn.AvgPool2d(2), nn.MaxPool2d(2)])
def test_negative_spikes_see_both_signs_behind_an_average_too(pool: nn.Module) -> None:
    x = 4 * torch.rand(2, 1, 8, 8)
    for method, values in (("ternary", {-1, 0, 1}), ("lif", {0, 1})):
        made = prepare(method, Averaged(pool), RivalSpec(timesteps=2), example=x).network()
        fired: dict[str, set[float]] = {}

        def see(site: str, t: int, spikes: Tensor, fired: dict[str, set[float]] = fired) -> None:
            fired.setdefault(site, set()).update(spikes.unique().tolist())

        with torch.no_grad(), made.observe(see):
            made(x, timesteps=2)
        assert next(iter(fired.values())) == values


def test_a_rectifier_that_others_read_is_not_taken_away() -> None:
    x = torch.rand(2, 1, 8, 8)
    prepare("lif", Averaged(nn.AvgPool2d(2), seen=True), example=x)
    with pytest.raises(OperatorError, match=r"ternary: site 'conv2_input' would only see what 'relu1' has rectified"):
        prepare("ternary", Averaged(nn.AvgPool2d(2), seen=True), example=x)
