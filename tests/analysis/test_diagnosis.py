"""The diagnosis of whole networks: figures against direct measurement, advice that works when followed, the table."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.analysis.diagnosis import Diagnosis, diagnose
from polarspike.errors import CalibrationError, PolarspikeWarning, SpecError
from polarspike.quantizers import PolarityQuantizer
from polarspike.specs import SiteSpec
from tests.networks import network, signal

SPEC = ps.QuantSpec(negative=3, positive=7, init="entropy")  # a start that leaves something to advise


def quantized(name: str, spec: ps.QuantSpec = SPEC) -> ps.QuantizedNetwork:
    x = signal(name, batch=32)
    qann = ps.quantize(network(name), spec, example=x[:2])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PolarspikeWarning)  # dead channels, which some tests are about
        ps.calibrate(qann, [x])
    return qann


def inputs_of(qann: ps.QuantizedNetwork, x: Tensor) -> dict[str, Tensor]:
    """What every site sees in the float network."""
    seen: dict[str, Tensor] = {}
    handles = [
        site.register_forward_pre_hook(lambda module, inputs, name=name: seen.update({name: inputs[0].detach()}))
        for name, site in qann.sites().items()
    ]
    with torch.no_grad(), qann.float_activations():
        qann.eval()(x)
    for handle in handles:
        handle.remove()
    return seen


class Direct(nn.Module):
    """Its site sees the input itself, and is the output."""

    def __init__(self, activation: nn.Module) -> None:
        super().__init__()
        self.site = activation

    def forward(self, x: Tensor) -> Tensor:
        return self.site(x)


def direct(spec: ps.QuantSpec, x: Tensor, activation: nn.Module | None = None) -> ps.QuantizedNetwork:
    qann = ps.quantize(Direct(activation or nn.ReLU()), spec, example=x[:2])
    ps.calibrate(qann, [x])
    return qann


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# --- figures -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("name", ["plain", "branched", "mlp", "leaky"])
def test_figures_are_those_of_the_codes(name: str, granularity: Any) -> None:
    x = signal(name, batch=32)
    qann = quantized(name, ps.QuantSpec(negative=2, positive=5, granularity=granularity))
    diagnosis = diagnose(qann, [x[:20], x[20:]], effects=False)
    seen = inputs_of(qann, x)
    assert list(diagnosis.sites) == list(qann.sites())
    assert (diagnosis.batches, diagnosis.passes, diagnosis.combined) == (2, 0, None)
    for place, site in qann.sites().items():
        found, signal_in = diagnosis.sites[place], seen[place]
        with torch.no_grad():
            q, r, codes = site(signal_in).double(), site.reference(signal_in).double(), site.encode(signal_in)
        assert found.power == pytest.approx(r.square().mean().item(), rel=1e-3)
        assert found.error == pytest.approx((q - r).square().mean().item() / found.power, rel=0.02)
        assert found.error == pytest.approx(found.rounding + found.clipping + found.polarity)
        assert found.nonzero == pytest.approx((codes != 0).double().mean().item(), abs=0.01)
        assert found.used == len(codes.unique()) / sum(site.levels, 1)
        assert found.channels == signal_in.shape[1]
        assert (found.smallest, found.largest) == (site.step.min().item(), site.step.max().item())
        dims = [d for d in range(signal_in.dim()) if d != 1]
        ratio = (q - r).square().mean(dims) / r.square().mean(dims)
        dead = torch.nonzero(r.square().sum(dims) == 0).flatten().tolist()
        assert found.dead == tuple(dead)
        assert found.worst is not None
        assert found.worst_snr == pytest.approx(-10 * math.log10(ratio.nan_to_num(nan=0).max().item()), abs=0.3)
        assert found.worst_snr == pytest.approx(-10 * math.log10(ratio[found.worst].item()), abs=0.3)


def test_bits_are_those_that_calibration_reports() -> None:
    x = signal("plain", batch=32)
    qann = ps.quantize(network("plain"), SPEC, example=x[:2])
    rows = ps.calibrate(qann, [x])
    sites = diagnose(qann, [x], effects=False).sites
    for row in rows:
        assert sites[row.name].bits == pytest.approx(row.bits)


def test_dead_channels_are_listed_and_not_the_worst() -> None:
    x = normal(16, 4, 5, 5)
    x[:, 2] = -x[:, 2].abs()
    found = diagnose(direct(SPEC, x), [x], effects=False).sites["site"]
    assert found.power > 0.0
    assert found.dead == (2,)
    assert found.worst in (0, 1, 3)
    assert found.spread < 1.5


def test_a_site_without_channels_has_one() -> None:
    x = normal(64, 1)
    found = diagnose(direct(SPEC, x), [x]).sites["site"]
    assert (found.channels, found.worst, found.worst_snr, found.spread) == (1, None, found.snr, 1.0)


# --- effects -------------------------------------------------------------------------------------------------------------


def test_effects_are_those_of_one_site_quantized_at_a_time() -> None:
    x = signal("branched", batch=8)
    qann = quantized("branched").eval()
    diagnosis = diagnose(qann, [(x, None), x * 2.0])
    with torch.no_grad():
        with qann.float_activations():
            expected = qann(x).double()
        combined = qann(x).double()
        for name, site in qann.sites().items():
            with qann.float_activations():
                site.enabled = True
                error = (qann(x).double() - expected).square().sum() / expected.square().sum()
            assert diagnosis.sites[name].effect == pytest.approx(error.item())
    assert diagnosis.combined == pytest.approx(((combined - expected).square().sum() / expected.square().sum()).item())
    assert diagnosis.passes == len(qann.sites()) + 2
    effects = [site.effect for site in diagnosis.hurting]
    assert effects == sorted((site.effect for site in diagnosis.sites.values()), reverse=True)[:5]


def test_the_effect_of_an_only_site_is_its_error() -> None:
    x = normal(32, 3, 6, 6)
    diagnosis = diagnose(direct(SPEC, x), [x])
    found = diagnosis.sites["site"]
    assert found.effect == diagnosis.combined == pytest.approx(found.error, rel=0.02)


def test_the_network_is_left_as_it_was() -> None:
    qann = quantized("plain").train()
    before = {name: value.clone() for name, value in qann.state_dict().items()}
    diagnose(qann, [signal("plain")])
    assert qann.training
    assert all(site.enabled and not site._forward_pre_hooks for site in qann.sites().values())
    assert all(torch.equal(value, before[name]) for name, value in qann.state_dict().items())


def test_batches_may_be_a_generator_or_one_tensor() -> None:
    x, qann = signal("mlp", batch=32), quantized("mlp")

    def stream() -> Iterator[tuple[Tensor, None]]:
        yield x[:16], None
        yield x[16:], None

    assert diagnose(qann, stream()).batches == 2
    assert diagnose(qann, x).batches == 1


# --- advice, followed ----------------------------------------------------------------------------------------------------


def followed(diagnosis: Diagnosis, spec: ps.QuantSpec, x: Tensor, activation: nn.Module | None = None) -> Diagnosis:
    return diagnose(direct(diagnosis.follow(spec), x, activation), [x])


def keeps_its_promise(before: Diagnosis, after: Diagnosis) -> None:
    old, new = before.sites["site"], after.sites["site"]
    assert new.snr == pytest.approx(old.advice.expected, abs=0.1)
    assert new.snr >= old.snr + 1.0
    assert new.effect is not None and old.effect is not None
    assert new.effect < old.effect / 1.25


def test_advice_on_clipping_works() -> None:
    x, spec = normal(32, 3, 8, 8), ps.QuantSpec(positive=7, init="entropy")
    before = diagnose(direct(spec, x), [x])
    assert before.sites["site"].clipping > 0.9 * before.sites["site"].error
    assert before.sites["site"].advice.changes == {"init": "mse"}
    keeps_its_promise(before, followed(before, spec, x))


def test_advice_on_too_few_levels_works() -> None:
    x, spec = normal(32, 3, 8, 8), ps.QuantSpec(positive=2, init="mse")
    before = diagnose(direct(spec, x), [x])
    assert before.sites["site"].advice.changes == {"init": "mse", "positive": 5}
    keeps_its_promise(before, followed(before, spec, x))


def test_advice_on_uneven_channels_works() -> None:
    scale = torch.tensor([0.15] * 63 + [6.0]).view(64, 1, 1)
    x, spec = normal(16, 64, 8, 8) * scale, ps.QuantSpec(positive=7, init="mse")
    before = diagnose(direct(spec, x), [x])
    found = before.sites["site"]
    assert found.rounding > found.clipping
    assert found.spread == pytest.approx(40.0, rel=0.2)
    assert found.advice.changes == {"init": "mse", "granularity": "channel"}
    assert f"differ {found.spread:.0f}-fold" in found.advice.text
    keeps_its_promise(before, followed(before, spec, x))


def test_advice_on_missing_polarity_works() -> None:
    x, spec = normal(32, 3, 8, 8), ps.QuantSpec(negative=1, positive=7)
    qann = direct(spec, x, nn.LeakyReLU(1.0))
    rectified = PolarityQuantizer(SiteSpec(negative=0, positive=7, slope=1.0), "site")
    rectified.set_step(0.35)
    qann.network.add_submodule("site", rectified)
    before = diagnose(qann, [x])
    found = before.sites["site"]
    assert found.negative == pytest.approx(0.5, abs=0.03)
    assert found.polarity > 0.9 * found.error
    assert found.advice.changes["negative"] == 7
    keeps_its_promise(before, followed(before, spec, x, nn.LeakyReLU(1.0)))


def test_advice_on_a_gain_below_the_slope_works() -> None:
    x, spec = normal(32, 3, 8, 8), ps.QuantSpec(negative=7, positive=7, gain="learned", init="mse")
    qann = direct(spec, x, nn.LeakyReLU(1.0))
    raw = qann.sites()["site"].raw_gain
    assert raw is not None
    raw.data.fill_(0.2)
    before = diagnose(qann, [x])
    assert before.sites["site"].gain == pytest.approx(0.2)
    assert before.sites["site"].advice.changes == {"init": "mse", "gain": 1.0}
    keeps_its_promise(before, followed(before, spec, x, nn.LeakyReLU(1.0)))


def test_advice_on_unwanted_polarity_works() -> None:
    x, spec = normal(32, 3, 8, 8), ps.QuantSpec(negative=7, positive=7, signed="all")
    before = diagnose(direct(spec, x), [x])
    assert before.sites["site"].polarity > 0.5 * before.sites["site"].error
    assert before.sites["site"].advice.changes["signed"] == "by-nature"
    keeps_its_promise(before, followed(before, spec, x))


@pytest.mark.parametrize("name", ["plain", "branched", "leaky"])
def test_following_all_advice_repairs_a_whole_network(name: str) -> None:
    x = signal(name, batch=32)
    before = diagnose(quantized(name), [x])
    assert before.advised
    after = diagnose(quantized(name, before.follow(SPEC)), [x])
    assert after.combined is not None and before.combined is not None
    assert after.combined < before.combined / 1.5
    for place, advice in before.advised.items():
        assert after.sites[place].snr == pytest.approx(advice.expected, abs=0.1)


def test_following_keeps_the_overrides_that_still_own_a_site() -> None:
    x = signal("plain", batch=32)
    names = list(quantized("plain").sites())
    spec = ps.QuantSpec(
        init="entropy",
        overrides={
            names[0]: ps.QuantSpec(positive=255, init="mse"),
            names[1]: ps.QuantSpec(positive=3, init="entropy"),
        },
    )
    diagnosis = diagnose(quantized("plain", spec), [x], effects=False)
    assert list(diagnosis.advised) == names[1:]
    better = diagnosis.follow(spec)
    assert better.at(names[0]) == spec.at(names[0])
    assert (better.at(names[1]).positive, better.at(names[1]).init) == (3, "mse")
    assert set(better.overrides) == set(names)
    quantized("plain", better)


# --- the table -----------------------------------------------------------------------------------------------------------


def test_the_table_holds_every_site_in_order_within_120_columns() -> None:
    diagnosis = diagnose(quantized("branched"), [signal("branched", batch=32)])
    lines = str(diagnosis).splitlines()
    assert max(map(len, lines)) <= 120
    names = list(diagnosis.sites)
    assert [line.split()[0] for line in lines[2 : 2 + len(names)]] == names
    assert len({len(line) for line in lines[1 : 2 + len(names)]}) == 1  # aligned at the right end, too
    assert sum(line.startswith("largest effects: ") for line in lines) == 1
    for name, advice in diagnosis.advised.items():
        assert f"{name}: {advice.text}" in " ".join(str(diagnosis).split())
    assert lines[-1].startswith("network: ") or lines[-1].startswith("    ")
    assert "passes of the first batch" in str(diagnosis)


def test_without_effects_the_table_says_nothing_of_them() -> None:
    text = str(diagnose(quantized("mlp"), [signal("mlp", batch=32)], effects=False))
    assert "effect" not in text


def test_a_network_without_faults_is_told_so() -> None:
    x, spec = normal(32, 3, 8, 8), ps.QuantSpec(positive=31, init="mse")
    diagnosis = diagnose(direct(spec, x), [x])
    assert not diagnosis.advised
    assert diagnosis.sites["site"].advice.text.startswith("fine: SNR ")
    assert f"nothing to change: every site has {diagnosis.sites['site'].snr:.1f} dB or more" in diagnosis.advice
    assert "more levels" not in diagnosis.advice
    assert diagnosis.follow(spec) == spec


def test_where_only_levels_are_left_the_network_is_told_where_to_begin() -> None:
    diagnosis = diagnose(
        quantized("plain", ps.QuantSpec(positive=3, init="mse", granularity="channel")), [signal("plain", batch=32)]
    )
    assert not diagnosis.advised
    assert diagnosis.advice.endswith(f"what is left takes more levels, first at {diagnosis.hurting[0].name}")


def test_the_advice_for_the_network_names_the_worst_site_and_the_commonest_change() -> None:
    diagnosis = diagnose(quantized("plain"), [signal("plain", batch=32)])
    assert f"{diagnosis.hurting[0].name} alone by" in diagnosis.advice
    assert "3 of 3 sites need a change, 2 of them init='mse'" in diagnosis.advice


# --- errors --------------------------------------------------------------------------------------------------------------


def test_what_cannot_be_diagnosed_is_refused() -> None:
    x = signal("mlp", batch=32)
    with pytest.raises(SpecError, match=r"diagnose: expected what polarspike\.quantize returns, got MLP"):
        diagnose(network("mlp"), [x])  # type: ignore[arg-type]
    qann = ps.quantize(network("mlp"), SPEC, example=x[:2])
    with pytest.raises(CalibrationError, match="has no step yet"):
        diagnose(qann, [x])
    ps.calibrate(qann, [x])
    with pytest.raises(CalibrationError, match="at least one batch"):
        diagnose(qann, [])
    with pytest.raises(CalibrationError, match=r"site 'act1', batch 1: .*NaN"):
        diagnose(qann, [x, x * math.nan])
