"""ST-BIF+ is our capped neuron: by its equation, by its theorem, and by its answers over time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import polarspike as ps
from polarspike.baselines import RivalSpec, prepare
from polarspike.baselines.settling import SettlingNetwork
from polarspike.errors import SpecError
from polarspike.neurons import CappedNeuron
from polarspike.specs import SiteSpec
from tests.networks import calibrated, network, signal


def bipolar(values: list[float], levels: tuple[int, int]) -> list[float]:
    """The authors' rule, step by step, at a threshold of 1."""
    potential, total, fired = 0.5, 0.0, []
    for value in values:
        potential += value
        spike = 1.0 if potential >= 1 and total < levels[1] else -1.0 if potential < 0 and total > -levels[0] else 0.0
        potential, total = potential - spike, total + spike
        fired.append(spike)
    return fired


@given(st.lists(st.integers(-12, 12), min_size=1, max_size=10), st.sampled_from([(0, 1), (0, 3), (2, 2), (3, 1)]))
@settings(max_examples=100, deadline=None)
def test_the_capped_neuron_fires_by_the_rule_of_st_bif(quarters: list[int], levels: tuple[int, int]) -> None:
    values = [quarter / 4 for quarter in quarters] + [0.0] * 20
    neuron = CappedNeuron(SiteSpec(*levels), "site")
    neuron.set_step(1.0)
    # One image in parts: what arrives later belongs to the first timestep, whose levels bound the sum.
    total, codes, fired = torch.zeros(1, 1), torch.zeros(1, 1), []
    for value in values:
        total = total + value
        goal = neuron.encode(total)
        spike = (goal - codes).clamp(-1, 1)
        codes = codes + spike
        fired.append(spike.item())
    assert fired == bipolar(values, levels)
    assert codes.item() == neuron.encode(total).item()


@pytest.mark.parametrize("name", ["plain", "branched", "attention"])
def test_it_settles_at_the_quantized_network(name: str) -> None:
    x = signal(name)
    rival = prepare("st-bif", network(name), RivalSpec(levels=5), example=x)
    rival.calibrate([x])
    made = rival.network()
    assert isinstance(made, SettlingNetwork) and rival.qann is not None
    with torch.no_grad():
        answers: Tensor = made(x, timesteps=80, every_step=True)
        truth = rival.qann.eval()(x)
    assert torch.allclose(answers[-1], truth, atol=1e-5)
    assert not torch.allclose(answers[0], truth, atol=1e-2)
    assert torch.equal(made(x, timesteps=3), answers[2])


def test_signed_sites_share_the_levels() -> None:
    x = signal("attention")
    rival = prepare("st-bif", network("attention"), RivalSpec(levels=6), example=x)
    rival.calibrate([x])
    assert rival.qann is not None
    assert {site.levels for site in rival.qann.sites().values()} == {(2, 3), (0, 5)}


def test_its_spikes_are_single_and_counted() -> None:
    x = signal("plain")
    rival = prepare("st-bif", network("plain"), RivalSpec(levels=4), example=x)
    rival.calibrate([x])
    labels = torch.zeros(len(x), dtype=torch.int64)
    found = ps.evaluate(rival.network(), [(x, labels)], timesteps=(1, 4)).firing
    counts = rival.count(x, 4)
    assert found is not None and found[4].spikes == found[4].events == counts.totals["spikes"] > found[1].spikes
    long = rival.count(x, 500)
    assert long.timesteps < 500


@pytest.mark.parametrize("name", ["plain", "branched", "attention"])
def test_what_is_not_ternary_alone_is_dense(name: str) -> None:
    x = signal(name)
    rival = prepare("st-bif", network(name), RivalSpec(levels=5), example=x)
    rival.calibrate([x])
    for timesteps in (1, 4):
        counts = rival.count(x, timesteps)
        assert all(site.ternary for site in counts.sites) and max(max(site.levels) for site in counts.sites) > 1
        energy = ps.estimate_energy(counts)
        # Every spike is in {-1, 0, 1}: to convention (c) they are accumulates, as to (a).
        assert energy.row("c").total_pj == energy.row("a").total_pj < energy.row("qann").total_pj * timesteps
    several = ps.count_operations(ps.convert(calibrated(network(name), ps.QuantSpec(2, 2), x)), x)
    priced = ps.estimate_energy(several)
    assert priced.row("c").total_pj > priced.row("a").total_pj


def test_bad_requests() -> None:
    made = SettlingNetwork(calibrated(network("plain"), ps.QuantSpec(0, 3), signal("plain")))
    with pytest.raises(SpecError, match="positive integer"):
        made(signal("plain"), timesteps=0)
