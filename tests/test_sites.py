"""What quantizers and neurons share: a step that somebody must choose, and that both sides read to the same bits."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import ops
from polarspike.errors import CalibrationError, CheckpointError, SpecError
from polarspike.neurons import PolarityNeuron
from polarspike.quantizers import PolarityQuantizer
from polarspike.sites import Site
from polarspike.specs import SiteSpec

LEARNED = SiteSpec(2, 3, gain=0.4, learned_gain=True, channels=4)
KINDS = [PolarityQuantizer, PolarityNeuron]


def ready(spec: SiteSpec, kind: type[Site] = PolarityQuantizer) -> Site:
    """A site whose step, offset and gain have all left their start."""
    site = kind(spec, "body.act")
    site.set_step(torch.rand(site.start.shape) + 0.3)
    with torch.no_grad():
        site.offset.copy_(torch.rand(site.offset.shape) - 0.5)
        if site.raw_gain is not None:
            site.raw_gain.fill_(0.71)
    return site


@pytest.mark.parametrize("kind", KINDS)
def test_a_site_without_a_step_refuses_to_compute(kind: type[Site]) -> None:
    site = kind(SiteSpec(0, 3), "layer1.0.relu")
    with pytest.raises(CalibrationError, match=r"site 'layer1.0.relu' has no step yet; call polarspike.calibrate"):
        site(torch.randn(2, 3))
    for method in (site.encode, site.decode):
        with pytest.raises(CalibrationError, match="has no step yet"):
            method(torch.zeros(2, 3))
    assert "not calibrated" in repr(site)


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e-33, 1e-50])
def test_set_step_refuses_what_is_no_step(value: float) -> None:
    site = PolarityQuantizer(SiteSpec(0, 3), "act")
    with pytest.raises(SpecError, match="site 'act': expected positive finite steps of at least"):
        site.set_step(value)
    assert not site.calibrated


def test_set_step_names_the_shapes() -> None:
    site = PolarityQuantizer(SiteSpec(0, 3, channels=4), "act")
    with pytest.raises(SpecError, match=r"site 'act': expected a step of shape \(4,\), got \(3,\)"):
        site.set_step(torch.ones(3))
    with pytest.raises(SpecError, match="expected positive finite steps"):
        site.set_step(torch.tensor([0.1, 0.2, 0.0, 0.3]))
    with pytest.raises(SpecError, match=r"expected a step of shape \(\), got \(1,\)"):
        PolarityQuantizer(SiteSpec(0, 3), "act").set_step(torch.ones(1))


def test_set_step_starts_again() -> None:
    site = ready(LEARNED)
    site.set_step(0.25)  # a number goes to every channel
    assert torch.equal(site.step, torch.full((4,), 0.25))
    assert not bool(site.offset.any())
    assert site.calibrated


def test_set_step_takes_any_float_type() -> None:
    site = PolarityQuantizer(SiteSpec(0, 3), "act")
    site.set_step(torch.tensor(0.1, dtype=torch.float64))
    assert site.start.dtype == torch.float32
    assert site.step.item() == torch.tensor(0.1).item()


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_brings_the_step_along(kind: type[Site]) -> None:
    site, empty = ready(LEARNED, kind), kind(LEARNED)
    empty.load_state_dict(site.state_dict())
    assert empty.calibrated
    assert torch.equal(empty.step, site.step)
    assert torch.equal(torch.as_tensor(empty.gain), torch.as_tensor(site.gain))
    site.load_state_dict(kind(LEARNED).state_dict())
    assert not site.calibrated


def test_a_state_dict_is_plain_tensors() -> None:
    assert sorted(ready(LEARNED).state_dict()) == ["bounds", "offset", "raw_gain", "start"]
    assert sorted(ready(SiteSpec(0, 3)).state_dict()) == ["bounds", "offset", "start"]
    assert all(isinstance(value, Tensor) for value in ready(LEARNED).state_dict().values())


def test_a_state_of_other_levels_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"expected a state of levels \(0, 7\), got \(0, 3\)"):
        ready(SiteSpec(0, 7)).load_state_dict(ready(SiteSpec(0, 3)).state_dict())


def test_a_state_of_another_fixed_gain_is_refused() -> None:
    site = ready(SiteSpec(2, 7, gain=0.5)).bfloat16()  # which no change of the type hides
    with pytest.raises(CheckpointError, match=r"expected a state with a fixed gain of 1, got 0\.5"):
        ready(SiteSpec(2, 7)).load_state_dict(site.state_dict())
    ready(SiteSpec(2, 7, gain=0.5)).load_state_dict(site.state_dict())
    ready(SiteSpec(0, 7)).load_state_dict(ready(SiteSpec(0, 7, gain=0.5)).state_dict())  # where it plays no part
    site.spec = SiteSpec(2, 7, gain=0.25)  # as snapping does
    ready(SiteSpec(2, 7, gain=0.25)).load_state_dict(site.state_dict())


def test_saving_leaves_no_trace() -> None:
    site = ready(SiteSpec(2, 7))
    with torch.inference_mode():
        best = {name: value.clone() for name, value in site.state_dict().items()}
    site.load_state_dict(best)
    site.load_state_dict(site.state_dict())
    assert not site.bounds.is_inference()
    site.bounds = site.bounds[:2]  # of an older release
    site.load_state_dict(best)


def test_a_state_that_says_nothing_of_the_gain_is_taken() -> None:
    state = ready(SiteSpec(2, 7, gain=0.5)).state_dict()
    state["bounds"] = state["bounds"][:2]
    site = ready(SiteSpec(2, 7))
    site.load_state_dict(state)
    assert site.state_dict()["bounds"].tolist() == [2, 7, 2**30]


def test_adopt_copies_every_bit_and_shares_nothing() -> None:
    quantizer = ready(LEARNED)
    quantizer.offset.requires_grad_(False)
    neuron = PolarityNeuron(LEARNED).adopt(quantizer)
    assert torch.equal(neuron.step, quantizer.step)
    assert torch.equal(torch.as_tensor(neuron.gain), torch.as_tensor(quantizer.gain))
    assert not neuron.offset.requires_grad
    assert neuron.calibrated
    before = neuron.step.clone()
    with torch.no_grad():
        for value in (quantizer.start, quantizer.offset, quantizer.raw_gain):
            assert value is not None
            value.mul_(2)
    assert torch.equal(neuron.step, before)


@pytest.mark.parametrize(
    "spec", [SiteSpec(0, 3), SiteSpec(2, 3, gain=0.3), LEARNED], ids=["rectified", "signed", "all"]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_quantizer_and_neuron_agree_in_every_type(spec: SiteSpec, dtype: torch.dtype) -> None:
    quantizer = ready(spec)
    neuron = PolarityNeuron(spec).adopt(quantizer)
    quantizer, neuron = copy.deepcopy(quantizer).to(dtype), copy.deepcopy(neuron).to(dtype)
    x = (torch.randn(50, 4, 3) * 2).to(dtype)
    assert torch.equal(quantizer.step, neuron.step)
    expected = quantizer(x)
    assert expected.dtype == dtype
    assert torch.equal(neuron(x), expected)
    assert torch.equal(neuron.advance(x, None, 1)[0], expected)
    assert torch.equal(neuron.settle(x, 1), expected)
    assert torch.equal(neuron.decode(neuron.encode(x)).to(dtype), expected)
    twin = copy.deepcopy(neuron)
    assert twin.calibrated
    assert torch.equal(twin(x), expected)


def test_one_step_per_channel_meets_dimension_one() -> None:
    site = PolarityQuantizer(SiteSpec(0, 100, channels=3))
    site.set_step(torch.tensor([0.5, 1.0, 2.0]))
    for shape in ((2, 3), (2, 3, 4), (2, 3, 4, 5), (2, 3, 4, 5, 6)):
        x = torch.rand(shape) * 9
        expected = torch.stack([ops.encode(x[:, c], s, 0, 100) for c, s in enumerate((0.5, 1.0, 2.0))], dim=1)
        assert torch.equal(site.encode(x), expected)


def test_steps_and_gains_ask_not_to_be_decayed() -> None:
    assert ready(LEARNED).no_weight_decay is True
    assert {name for name, _ in ready(LEARNED).named_parameters()} == {"offset", "raw_gain"}


def test_the_learned_gain_stays_between_zero_and_one() -> None:
    site = ready(LEARNED)
    assert site.raw_gain is not None
    for raw, gain in ((-3.0, 0.0), (0.3, 0.3), (7.0, 1.0)):
        with torch.no_grad():
            site.raw_gain.fill_(raw)
        assert torch.as_tensor(site.gain).item() == pytest.approx(gain)
    assert PolarityQuantizer(SiteSpec(2, 3, gain=0.3)).gain == 0.3


def test_repr_says_levels_gain_and_step() -> None:
    site = PolarityQuantizer(SiteSpec(1, 3, gain=0.25))
    site.set_step(0.5)
    assert repr(site) == "PolarityQuantizer(levels=(1, 3), gain=0.25, step=0.5)"
    assert "gain=learned, step=per channel" in repr(ready(LEARNED))


def test_timesteps_beyond_exact_codes_are_refused() -> None:
    torch.manual_seed(0)
    x = torch.randn(4, 6)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    qann = ps.quantize(model, ps.QuantSpec(0, 32768), example=x)
    ps.calibrate(qann, [x])
    snn = ps.convert(qann)
    says = r"site '1': expected codes below 8388608, .*got 32768 levels x 256 timesteps = 8388608; take fewer"
    for verb, call in (
        ("refine", lambda: ps.refine(qann, 256)),
        ("verify", lambda: ps.verify(qann, snn, [x], 256)),
        ("SpikingNetwork", lambda: snn(x, timesteps=256)),
        ("SpikingNetwork", lambda: snn(x, timesteps=256, execution="mean")),
        ("latency", lambda: snn.latency(x, timesteps=256)),
    ):
        with pytest.raises(SpecError, match=f"{verb}: {says}"):
            call()
    fine = ps.refine(qann, 255)
    with torch.no_grad():
        torch.testing.assert_close(snn(x, timesteps=255, execution="mean"), fine(x))
        assert snn.double()(x.double(), timesteps=256, execution="mean").isfinite().all()
    assert ps.convert(qann, ps.ConvertSpec(reading="frames"))(x, timesteps=256).shape == (4, 3)  # each from rest
