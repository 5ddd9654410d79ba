"""Gains become zero or powers of two, steps powers of two, the nearest ones, and stay there."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import polarspike as ps
from polarspike.errors import CalibrationError, SpecError
from tests.networks import calibrated, network, signal


def with_gain(gain: float, positive: int = 3) -> ps.QuantizedNetwork:
    spec = ps.QuantSpec(2, positive, gain="learned", signed="all")
    qann = calibrated(network("mlp"), spec, signal("mlp", 16))
    with torch.no_grad():
        for site in qann.sites().values():
            assert site.raw_gain is not None
            site.raw_gain.fill_(gain)
    return qann


@pytest.mark.parametrize(
    ("gain", "snapped"), [(0.3, 0.25), (0.8, 1.0), (0.74, 0.5), (0.5, 0.5), (1.0, 1.0), (0.01, 1 / 64), (0.001, 0.0)]
)
def test_the_nearest_power(gain: float, snapped: float) -> None:
    qann = with_gain(gain)
    moved = ps.snap_gains(qann)
    assert list(moved) == list(qann.sites())
    for before, after in moved.values():
        assert before == pytest.approx(gain) and after == snapped
    for site in qann.sites().values():
        assert site.raw_gain is None and not site.spec.learned_gain
        assert site.levels == ((0, 3) if snapped == 0 else (2, 3)) and (snapped == 0 or site.spec.gain == snapped)
    assert ps.snap_gains(qann) == {}
    snn = ps.convert(qann)
    assert ps.verify(qann, snn, [signal("mlp", 8)], scope=False).exact


def test_powers_end_where_a_byte_does() -> None:
    qann = with_gain(0.02, positive=100)  # 1/2 is the least: 2 + 2 * 100 <= 255
    assert {after for _, after in ps.snap_gains(qann).values()} == {0.0}
    qann = with_gain(0.4, positive=100)
    assert {after for _, after in ps.snap_gains(qann).values()} == {0.5}


def test_a_powers_answer_is_the_same_before_and_after() -> None:
    qann, x = with_gain(0.25), signal("mlp", 8)
    before = qann(x)
    assert ps.snap_gains(qann) and torch.equal(qann(x), before)


def test_refusals() -> None:
    with pytest.raises(SpecError, match="snap_gains"):
        ps.snap_gains(network("mlp"))  # type: ignore[arg-type]
    with pytest.raises(CalibrationError):
        ps.snap_gains(ps.quantize(network("mlp"), ps.QuantSpec(1, 2, signed="all"), example=signal("mlp")))


@pytest.mark.parametrize("gain", [1.0, 0.5])
def test_a_gain_that_is_a_power_of_two_stays(gain: float) -> None:
    qann = calibrated(network("mlp"), ps.QuantSpec(200, 200, gain=gain, signed="all"), signal("mlp", 16))
    assert ps.snap_gains(qann) == {}
    assert all(site.levels == (200, 200) for site in qann.sites().values())


def stepped(step: float) -> ps.QuantizedNetwork:
    qann = calibrated(network("mlp"), ps.QuantSpec(0, 3), signal("mlp", 16))
    for site in qann.sites().values():
        site.set_step(step)
    return qann


@pytest.mark.parametrize(
    ("step", "power"), [(0.3, 0.25), (0.35, 0.25), (0.36, 0.5), (0.5, 0.5), (3.0, 4.0), (1e-20, 2.0**-66)]
)
def test_the_nearest_power_of_a_step(step: float, power: float) -> None:
    qann = stepped(step)
    moved = ps.snap_steps(qann)
    assert list(moved) == list(qann.sites())
    for before, after in moved.values():
        assert float(before) == pytest.approx(step) and float(after) == power
    assert all(site.dyadic and float(site.step) == power for site in qann.sites().values())
    assert ps.snap_steps(qann) == {}
    snn = ps.convert(qann)
    assert "levels (0, 3), step a power of two" in snn.report and "fixed" in repr(snn)
    assert "power of two" not in ps.convert(stepped(0.3)).report


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_with_batches_it_is_the_power_of_least_square_error(granularity: str) -> None:
    x = signal("mlp", 256)
    qann = calibrated(network("mlp"), ps.QuantSpec(0, 3, granularity=granularity), x)  # type: ignore[arg-type]
    best = {name: site.step.detach().clone() for name, site in qann.sites().items()}
    seen: dict[str, torch.Tensor] = {}
    for name, site in qann.sites().items():
        site.register_forward_pre_hook(lambda part, given, name=name: seen.update({name: given[0]}))
        site.set_step(best[name] * 1.9)  # the nearest power is not the best one
    with torch.no_grad(), qann.float_activations():
        qann(x)
    ps.snap_steps(qann, [x[:100], x[100:]])
    for name, site in qann.sites().items():
        errors = []
        powers = [2.0**e for e in range(-8, 5)]
        for power in powers:
            values = ps.ops.quantize(seen[name], torch.tensor(power), 1.0, site.levels)
            errors.append((values - torch.relu(seen[name])).square().mean(0))
        error = torch.stack(errors) if granularity == "channel" else torch.stack(errors).mean(1, keepdim=True)
        found = site.step.reshape(-1)
        alive = (seen[name] > 0).any(0) if granularity == "channel" else torch.tensor([True])
        assert torch.equal(found[alive], torch.tensor(powers)[error.argmin(0)][alive])


def test_snapped_steps_stay_through_training_and_files(tmp_path: Path) -> None:
    qann, x = stepped(0.3), signal("mlp", 32)
    ps.snap_steps(qann)
    qann.requires_grad_(True)
    labels = torch.arange(32) % 5
    ps.fit(qann, [(x, labels)], ps.TrainSpec(epochs=2))
    optimizer = torch.optim.SGD(qann.parameters(), 0.1)
    torch.nn.functional.cross_entropy(qann(x), labels).backward()
    optimizer.step()
    ps.distill(qann, [x], answers="classes", steps=2)
    assert all(float(site.step) == 0.25 for site in qann.sites().values())
    ps.save(qann, tmp_path / "qann.safetensors")
    snn = ps.convert(qann)
    ps.save(snn, tmp_path / "snn.safetensors")
    for name in ("qann", "snn"):
        again = ps.load(tmp_path / f"{name}.safetensors")
        assert all(float(site.step) == 0.25 and not site.spec.learned_step for site in again.sites().values())
    again = ps.load(tmp_path / "qann.safetensors")
    assert isinstance(again, ps.QuantizedNetwork)
    assert not any(name.endswith("offset") for name, _ in again.named_parameters())
    assert torch.equal(again.eval()(x), qann.eval()(x))
    fine = ps.refine(qann, 3)
    assert all(float(site.step) == pytest.approx(0.25 / 3) for site in fine.sites().values())


def test_a_ceiling_bounds_the_power() -> None:
    x = signal("leaky", 16)
    for batches in (None, [x]):
        qann = calibrated(network("leaky"), ps.QuantSpec(0, 7, overrides={"act[13]": ps.QuantSpec(3, 7)}), x)
        site = qann.sites()["act2"]
        assert site.spec.ceiling == 6.0
        site.set_step(6 / 7)  # one is nearer
        ps.snap_steps(qann, batches)
        assert float(qann.sites()["act2"].step) <= 0.5


def test_refusals_of_steps() -> None:
    with pytest.raises(SpecError, match="snap_steps"):
        ps.snap_steps(network("mlp"))  # type: ignore[arg-type]
    fresh = ps.quantize(network("mlp"), ps.QuantSpec(0, 3), example=signal("mlp"))
    with pytest.raises(CalibrationError, match="snap_steps: site"):
        ps.snap_steps(fresh)
    with pytest.raises(CalibrationError, match="expected at least one batch"):
        ps.snap_steps(stepped(0.3), [])
    with pytest.raises(CalibrationError, match="NaN"):
        ps.snap_steps(stepped(0.3), [signal("mlp", 4) * torch.nan])
