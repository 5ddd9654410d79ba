"""Which operators become sites, with which levels and why; what is refused, and how it is said."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import polarspike as ps
from polarspike.errors import OperatorError, SpecError

X = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(3))
SMALL = X[:, :, :8, :8]


def conv(*rest: nn.Module) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), *rest)


def site_of(activation: nn.Module, spec: ps.QuantSpec) -> Any:
    (site,) = ps.inspect(conv(activation), spec, SMALL).sites
    return site


@pytest.mark.parametrize(
    ("activation", "signed", "expected"),
    [
        (nn.ReLU(), "by-nature", (0, 6, 1.0, 0.0, None)),
        (nn.ReLU6(), "by-nature", (0, 6, 1.0, 0.0, 6.0)),
        (nn.LeakyReLU(0.2), "by-nature", (2, 6, 0.2, 0.2, None)),
        (nn.LeakyReLU(0.0), "by-nature", (0, 6, 1.0, 0.0, None)),
        (nn.LeakyReLU(1.0), "by-nature", (2, 6, 1.0, 1.0, None)),
        (nn.ReLU(), "all", (2, 6, 0.5, 0.0, None)),
        (nn.ReLU6(), "all", (2, 6, 0.5, 0.0, 6.0)),
        (nn.LeakyReLU(0.2), "all", (2, 6, 0.2, 0.2, None)),
        (nn.ReLU(), "none", (0, 6, 1.0, 0.0, None)),
        (nn.ReLU6(), "none", (0, 6, 1.0, 0.0, 6.0)),
    ],
)
def test_the_table_of_the_spec(activation: nn.Module, signed: Any, expected: tuple[Any, ...]) -> None:
    spec = site_of(activation, ps.QuantSpec(negative=2, positive=6, gain=0.5, signed=signed)).spec
    assert (spec.negative, spec.positive, spec.gain, spec.slope, spec.ceiling) == expected
    assert not spec.learned_gain


@pytest.mark.parametrize(("activation", "start"), [(nn.ReLU(), 0.25), (nn.LeakyReLU(0.1), 0.1)])
def test_a_learned_gain_starts_at_the_slope(activation: nn.Module, start: float) -> None:
    qann = ps.quantize(conv(activation), ps.QuantSpec(negative=2, gain="learned", signed="all"), example=SMALL)
    site = qann.sites()["1"]
    assert site.spec.learned_gain and isinstance(site.raw_gain, nn.Parameter)
    assert site.raw_gain.item() == pytest.approx(start)


def test_one_step_per_channel_or_feature() -> None:
    spec = ps.QuantSpec(granularity="channel")
    model = conv(nn.ReLU(), nn.Flatten(), nn.Linear(144, 7), nn.ReLU())
    sites = ps.quantize(model, spec, example=SMALL).sites()
    assert [site.spec.channels for site in sites.values()] == [4, 7]
    assert [tuple(site.start.shape) for site in sites.values()] == [(4,), (7,)]


def test_one_step_per_channel_needs_channels() -> None:
    class Vector(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x.flatten())

    with pytest.raises(SpecError, match=r"needs a channel dimension, got shape \(384,\)"):
        ps.inspect(Vector(), ps.QuantSpec(granularity="channel"), SMALL)


@pytest.mark.parametrize("spec", [ps.QuantSpec(signed="none"), ps.QuantSpec(negative=0)])
def test_a_leaky_activation_without_negative_levels_is_refused(spec: ps.QuantSpec) -> None:
    with pytest.raises(
        SpecError, match=r"site '1': LeakyReLU passes negative values, .* would lose; give negative >= 1"
    ):
        ps.quantize(conv(nn.LeakyReLU()), spec, example=SMALL)
    mixed = ps.QuantSpec(negative=0, overrides={"1": ps.QuantSpec(negative=1)})
    assert ps.quantize(conv(nn.LeakyReLU()), mixed, example=SMALL).sites()["1"].levels == (1, 7)


@pytest.mark.parametrize("slope", [-0.1, 2.0])
def test_a_slope_outside_of_the_unit_interval_stays_an_operator(slope: float) -> None:
    """Decoding with such a gain would not be monotone, so the site follows the activation."""
    plan = ps.inspect(conv(nn.LeakyReLU(slope), nn.Conv2d(4, 4, 3)), ps.QuantSpec(2, 6), SMALL)
    (site,) = plan.sites
    assert (site.name, site.replaces, site.spec.levels, site.spec.gain) == ("2_input", "after LeakyReLU", (2, 6), 1.0)


def test_overrides_by_pattern_the_first_that_matches_wins() -> None:
    fine, rough = ps.QuantSpec(positive=15), ps.QuantSpec(positive=1)
    model = conv(nn.ReLU()), nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU())
    net = nn.Sequential(*model)
    qann = ps.quantize(net, ps.QuantSpec(overrides={"1.3": fine, "1.*": rough}), example=SMALL)
    assert {name: site.levels for name, site in qann.sites().items()} == {"0.1": (0, 7), "1.1": (0, 1), "1.3": (0, 15)}


@pytest.mark.parametrize("patterns", [["layer9.*"], ["*", "1"], ["1", "1*"]])
def test_a_pattern_without_a_site_of_its_own_is_refused(patterns: list[str]) -> None:
    overrides = {pattern: ps.QuantSpec(positive=index + 1) for index, pattern in enumerate(patterns)}
    with pytest.raises(
        SpecError, match=rf"the pattern {re.escape(repr(patterns[-1]))} matches no site of its own; sites: 1"
    ):
        ps.quantize(conv(nn.ReLU()), ps.QuantSpec(overrides=overrides), example=SMALL)


@pytest.mark.parametrize("wrong", [None, {"negative": 2}, "default", ps.QuantSpec])
def test_what_is_no_spec_is_refused(wrong: Any) -> None:
    for verb in (
        lambda: ps.quantize(conv(nn.ReLU()), wrong, example=SMALL),
        lambda: ps.inspect(conv(nn.ReLU()), wrong, SMALL),
    ):
        with pytest.raises(SpecError, match="expected a QuantSpec, got"):
            verb()


def test_a_quantized_network_is_not_quantized_again() -> None:
    qann = ps.quantize(conv(nn.ReLU()), ps.QuantSpec(), example=SMALL)
    ps.calibrate(qann, [SMALL])
    for network in (qann, ps.convert(qann)):
        with pytest.raises(SpecError, match=r"expected a float model, got .* with sites already in it"):
            ps.quantize(network, ps.QuantSpec(), example=SMALL)


# --- refusals by name ----------------------------------------------------------------------------------------------------


class Inner(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function
        self.linear = nn.Bilinear(6, 6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Bilinear(Inner):
    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x, x)


@pytest.mark.parametrize(
    ("inner", "place", "called"),
    [
        (
            Inner(torch.special.i0),
            r"module '2.inner', node 'special_i0' \[File .*test_quantization.py.*return self.function\(x\)\]",
            "special_i0",
        ),
        (
            Inner(lambda x: x.cummax(1)[0]),
            r"module '2.inner', node 'cummax' \[File .*test_quantization.py",
            "Tensor.cummax",
        ),
        (
            Bilinear(torch.sin),
            r"module '2.inner.linear', node '_2_inner_linear' \[File .*test_quantization.py.*self.linear\(x, x\)\]",
            "Bilinear",
        ),
    ],
    ids=["function", "method", "module"],
)
def test_an_unknown_operator_is_refused_with_path_line_and_remedy(inner: nn.Module, place: str, called: str) -> None:
    outer = nn.Sequential()
    outer.add_module("inner", inner)
    model = conv(nn.ReLU(), outer)
    for verb in (
        lambda: ps.quantize(model, ps.QuantSpec(), example=SMALL),
        lambda: ps.inspect(model, ps.QuantSpec(), SMALL),
    ):
        with pytest.raises(
            OperatorError,
            match=rf"^{place}.*: no rule for {called}; the operator table holds .* Write it with operators",
        ):
            verb()


def test_a_model_in_which_nothing_would_spike_is_refused() -> None:
    with pytest.raises(
        OperatorError, match=r"no operand of a synapse that could become a site.*QuantSpec\(inputs=True\)"
    ):
        ps.quantize(conv(nn.Flatten()), ps.QuantSpec(), example=SMALL)
    plan = ps.inspect(conv(nn.Flatten()), ps.QuantSpec(inputs=True), SMALL)
    assert [site.name for site in plan.sites] == ["0_input"]


def test_the_plan_says_what_happens_and_why() -> None:
    model = conv(nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 1),
                 nn.LeakyReLU(0.1), nn.Flatten(), nn.Linear(36, 2))  # fmt: skip
    plan = ps.inspect(model, ps.QuantSpec(negative=2, positive=6, granularity="channel"), SMALL)
    assert [site.name for site in plan.sites] == ["2", "5"]
    text = str(plan)
    for line in ("2 sites become spiking:", r"2  ReLU       levels (0, 6), gain 1, 4 steps: rectified",
                 "signed by nature (slope 0.1)", "captured by torch.fx", "accumulate-only: ",
                 "1  BatchNorm2d        affine per channel",
                 "3  MaxPool2d          exact at T=1; over time on sums"):  # fmt: skip
        assert line in text, text
    qann = ps.quantize(model, ps.QuantSpec(negative=2, positive=6, granularity="channel"), example=SMALL)
    assert {name: site.spec for name, site in qann.sites().items()} == {site.name: site.spec for site in plan.sites}


# --- whole networks ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "vgg11_bn", "densenet121", "googlenet", "mobilenet_v2"])
def test_networks_of_torchvision(name: str, tmp_path: Any) -> None:
    models = pytest.importorskip("torchvision.models")
    options = {"init_weights": False} if name == "googlenet" else {}
    model = getattr(models, name)(weights=None, num_classes=10, **options).train()
    if name == "vgg11_bn":
        model.classifier = nn.Sequential(nn.Linear(512 * 49, 10))
    qann = ps.quantize(model, ps.QuantSpec(), example=X)
    expected = {"resnet18": 17, "vgg11_bn": 8, "densenet121": 120, "googlenet": 57, "mobilenet_v2": 52}[name]
    assert len(qann.sites()) == expected and qann.training
    model.eval()
    with qann.eval().float_activations(), torch.no_grad():
        torch.testing.assert_close(qann(X), model(X), atol=1e-4, rtol=1e-4)
    for site in qann.sites().values():
        site.set_step(0.3)
    snn = ps.convert(qann)
    with torch.no_grad():
        assert torch.equal(snn(X), qann(X))
    ps.save(snn, tmp_path / "net.safetensors")
    again = ps.load(tmp_path / "net.safetensors", model)  # googlenet: without its branches for training
    with torch.no_grad():
        assert torch.equal(again(X), snn(X))


class Frozen(nn.Module):
    """A backbone whose batch norm stays as it is, as fine-tuning often wants it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 3)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.eval()
        return self

    def forward(self, x: Tensor) -> Any:
        return self.head(torch.relu(self.norm(self.conv(x))).flatten(1))


@pytest.mark.parametrize("route", ["fx", "export"])
@pytest.mark.parametrize("training", [True, False])
def test_what_a_model_freezes_stays_frozen(tmp_path: Path, route: Any, training: bool) -> None:
    torch.manual_seed(0)
    model, batch = Frozen().train(training), (torch.randn(12, 1, 8, 8) + 3, torch.arange(12) % 3)
    modes = [module.training for module in model.modules()]
    qann = ps.quantize(model, ps.QuantSpec(0, 3), example=batch[0], route=route)
    assert modes == [module.training for module in model.modules()] and qann.frozen == ("norm",)
    ps.calibrate(qann, [batch[0]])
    ps.save(qann, tmp_path / "a.safetensors")
    for network in (qann, ps.load(tmp_path / "a.safetensors")):
        assert isinstance(network, ps.QuantizedNetwork)
        ps.fit(network, [batch] * 3, ps.TrainSpec(epochs=1, warmup_epochs=0.5), progress=False)
        assert network.train().training and not network.network.get_submodule("norm").training
        assert torch.equal(network.network.get_submodule("norm").running_mean, torch.zeros(4))  # type: ignore[arg-type]


def test_float_activations_within_float_activations_end_with_the_outer_ones() -> None:
    x, model = torch.randn(8, 4), nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)).eval()
    qann = ps.quantize(model, ps.QuantSpec(1, 3), example=x)
    ps.calibrate(qann, [x])
    with torch.no_grad():
        rounded = qann(x)
        with qann.float_activations():
            expected = qann(x)
            with qann.float_activations():
                assert torch.equal(qann(x), expected)
            assert torch.equal(qann(x), expected)
        assert torch.equal(qann(x), rounded) and not torch.equal(rounded, expected)


def test_pruned_layers_are_told_of() -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    prune.l1_unstructured(model[2], "weight", 0.5)  # type: ignore[no-untyped-call]
    with pytest.warns(ps.PolarspikeWarning, match="'2' is pruned: its zeros are plain weights"):
        qann = ps.quantize(model, ps.QuantSpec(0, 3), example=torch.randn(4, 8))
    assert float((qann.network.get_submodule("2").weight == 0).float().mean()) == 0.5  # type: ignore[operator]


def test_a_network_with_other_levels_is_not_equal() -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(40, 8)
    first, second = (ps.quantize(model, ps.QuantSpec(0, positive), example=x) for positive in (3, 15))
    for qann in (first, second):
        ps.calibrate(qann, [x])
    for one, other in ((first, second), (second, first)):
        proof = ps.verify(one, ps.convert(other), [x])
        assert not proof.exact and proof.different > 20


def test_equalization_and_training_say_what_they_cannot_take() -> None:
    model, x = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)), torch.randn(4, 8)
    qann = ps.quantize(model, ps.QuantSpec(0, 3), example=x)
    with pytest.raises(SpecError, match="equalize: expected a float model, got QuantizedNetwork with sites"):
        ps.equalize(qann, x)
    for off in (torch.no_grad, torch.inference_mode):
        with off(), pytest.raises(SpecError, match="fit: gradients are switched off here"):
            ps.fit(model, [(x, torch.arange(4))], ps.TrainSpec(epochs=1), progress=False)
