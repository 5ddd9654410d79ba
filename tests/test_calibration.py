"""Steps from data: against direct formulas, streamed, and what is said about bad batches."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import polarspike as ps
from polarspike.errors import CalibrationError, InputError, PolarspikeWarning, SpecError
from polarspike.information import Samples, best_step, entropy
from tests.direct import Init, X, direct, normed, step


def deep(init: Init = "entropy", **more: Any) -> ps.QuantizedNetwork:
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 6, 3), nn.ReLU()
    )
    return ps.quantize(model, ps.QuantSpec(init=init, **more), example=X[:2])


def samples(x: Tensor, channels: bool) -> Samples:
    """The exact law of the values, without any histogram."""
    values = x.double().transpose(0, 1).flatten(1) if channels else x.double().flatten().unsqueeze(0)
    return Samples(values, torch.ones_like(values), torch.zeros_like(values))


# --- each strategy against its formula -----------------------------------------------------------------------------------


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_entropy_reaches_the_largest_entropy_of_the_values(granularity: Any) -> None:
    qann = direct("entropy", granularity=granularity)
    (row,) = ps.calibrate(qann, [X])
    law = samples(X, granularity == "channel")
    found = entropy((0, 4), step(qann).expand(law.groups), law)
    best = entropy((0, 4), best_step((0, 4), "entropy", law), law)
    assert bool((found >= best - 0.01).all())
    assert row.bits == pytest.approx(float(found.mean()), abs=0.01)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize("activation", [nn.ReLU(), nn.LeakyReLU(0.25)])
def test_mse_reaches_the_least_square_error(granularity: Any, activation: nn.Module) -> None:
    qann = direct("mse", activation, granularity=granularity)
    ps.calibrate(qann, [X])
    dims = (0, 2, 3) if granularity == "channel" else (0, 1, 2, 3)

    def error(factor: float) -> Tensor:
        changed = direct("mse", activation, granularity=granularity)
        changed.sites()["site"].set_step(step(qann) * factor)
        with torch.no_grad():
            return (changed(X) - activation(X)).square().mean(dims)

    least = error(1.0)
    for factor in (0.7, 0.85, 0.93, 1.07, 1.15, 1.3):
        assert bool((least <= error(factor) * 1.002).all())


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_lsq_is_twice_the_mean_over_the_root_of_p(granularity: Any) -> None:
    dims = (0, 2, 3) if granularity == "channel" else (0, 1, 2, 3)
    for activation, reference in ((nn.ReLU(), X.relu()), (nn.LeakyReLU(0.25), nn.functional.leaky_relu(X, 0.25))):
        qann = direct("lsq", activation, granularity=granularity)
        ps.calibrate(qann, [X])
        torch.testing.assert_close(step(qann), 2 * reference.double().abs().mean(dims) / 2.0, rtol=1e-6, atol=0)


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
def test_percentile_puts_the_quantile_at_the_last_level(granularity: Any) -> None:
    x = torch.randn(16, 3, 48, 48) * torch.tensor([0.5, 1.0, 3.0]).view(3, 1, 1)
    rows = x.transpose(0, 1).flatten(1).double() if granularity == "channel" else x.flatten().unsqueeze(0).double()
    high, low = torch.quantile(rows, 0.999, dim=1), torch.quantile(rows, 0.001, dim=1)
    for activation, expected in ((nn.ReLU(), high / 4), (nn.LeakyReLU(0.5), torch.maximum(high / 4, -low / 2))):
        qann = direct("percentile", activation, granularity=granularity)
        ps.calibrate(qann, [x])
        # The quantile is interpolated between other neighbours, and within bins.
        torch.testing.assert_close(step(qann).view(-1), expected, rtol=0.01, atol=0)


def test_a_signal_that_is_rarer_than_the_percentile_is_not_taken_for_a_dead_one() -> None:
    x = torch.full((8, 3, 32, 32), -1e-3)  # 8,192 values a channel
    x[0, 0, 0, :4] = 2e-3
    x[0, 2, 0, :4] = torch.tensor([5e-3, 1e-3, 1e-3, 1e-3])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ps.calibrate(whole := direct("percentile"), [x])
    assert float(step(whole)) == pytest.approx(5e-3 / 4)  # 1.0, which no value of this signal reaches, before
    with pytest.warns(PolarspikeWarning, match=r"site \[1\]"):
        ps.calibrate(apart := direct("percentile", granularity="channel"), [x])
    assert step(apart)[[0, 2]].tolist() == pytest.approx([2e-3 / 4, 5e-3 / 4])


def test_qcfs_is_eight_over_p_whatever_the_data() -> None:
    qann = direct("qcfs")
    for batches in ([X], [X * 100]):
        ps.calibrate(qann, batches)
        assert float(step(qann)) == 2.0
    free, _ = normed("qcfs", granularity="channel")
    ps.calibrate(free, None)
    assert step(free, "2").tolist() == [2.0] * 3


def test_the_last_level_of_a_relu6_stays_within_its_ceiling() -> None:
    for init in ("entropy", "mse", "lsq", "percentile", "qcfs"):
        qann = direct(init, nn.ReLU6())
        ps.calibrate(qann, [X * 100])
        assert float(step(qann)) == 1.5  # 6 / 4
        assert qann(X * 100).max().item() == 6.0
        small = direct(init, nn.ReLU6())
        ps.calibrate(small, [X * 0.1])
        assert init == "qcfs" or float(step(small)) < 0.5


# --- streaming -----------------------------------------------------------------------------------------------------------


def feeds() -> dict[str, Any]:
    pairs = TensorDataset(X, torch.arange(12))
    return {
        "tensor": X,
        "list": [X[:5], X[5:]],
        "uneven": [X[:1], X[1:4], X[4:]],
        "other order": [X[6:], X[:6]],
        "generator": (part for part in X.split(4)),
        "pairs": [(X[:6], torch.arange(6)), [X[6:], None]],
        "loader": DataLoader(pairs, 5),
        "one-element batches": DataLoader(TensorDataset(X), 4),
        "dicts": [{"x": X[:6]}, ({"x": X[6:]}, 0)],
    }


@pytest.mark.parametrize("init", ["entropy", "mse", "percentile"])
def test_streaming_gives_the_steps_of_one_batch(init: Init) -> None:
    expected = direct(init, granularity="channel")
    ps.calibrate(expected, [X])
    for name, batches in feeds().items():
        qann = direct(init, granularity="channel")
        ps.calibrate(qann, batches)
        assert torch.equal(step(qann), step(expected)), name


def test_a_mean_is_streamed_to_rounding() -> None:
    expected, qann = direct("lsq"), direct("lsq")
    ps.calibrate(expected, [X])
    ps.calibrate(qann, X.split(1))
    torch.testing.assert_close(step(qann), step(expected), rtol=1e-6, atol=0)


def test_an_endless_scale_does_not_need_memory() -> None:
    qann = direct("percentile")
    ps.calibrate(qann, [X * 1e-6, X, X * 1e6])
    assert 1e6 < float(step(qann)) < 3e6  # of 9e6, the largest of the values
    large = nn.Sequential(nn.Identity(), nn.ReLU())
    qann = ps.quantize(
        large, ps.QuantSpec(init="percentile", positive=4), example=torch.zeros(1, 64, 2, 2) + X[0, 0, 0, 0]
    )
    x = torch.rand(24, 64, 112, 112)  # torch.quantile refuses as many elements
    ps.calibrate(qann, [x])
    assert float(step(qann, "1")) == pytest.approx(0.999 / 4, rel=1e-3)


def test_the_statistics_are_those_of_the_float_network() -> None:
    qann = deep("lsq")
    ps.calibrate(qann, [X])
    network = qann.network
    with torch.no_grad(), qann.eval().float_activations():
        signal = network.get_submodule("4")(network.get_submodule("3")(torch.relu(
            network.get_submodule("1")(network.get_submodule("0")(X)))))  # fmt: skip
    expected = 2 * signal.double().relu().mean() / math.sqrt(7)
    torch.testing.assert_close(step(qann, "5"), expected, rtol=1e-5, atol=0)


def test_calibrating_again_starts_from_nothing() -> None:
    qann = direct("lsq")
    ps.calibrate(qann, [X])
    first = step(qann)
    qann.sites()["site"].offset.data.fill_(0.3)
    ps.calibrate(qann, [X * 2])
    torch.testing.assert_close(step(qann), 2 * first)
    assert float(qann.sites()["site"].offset.detach()) == 0.0


@pytest.mark.parametrize("init", ["mse", "lsq"])
def test_calibrating_again_takes_the_gain_that_was_learned(init: Init) -> None:
    learned, fixed = direct(init, signed="all", gain="learned"), direct(init, signed="all", gain=0.0)
    ps.calibrate(learned, [X])
    before = step(learned)
    learned.sites()["site"].raw_gain.data.zero_()  # type: ignore[union-attr]
    for qann in (learned, fixed):
        ps.calibrate(qann, [X])
    assert float(step(learned)) == float(step(fixed)) != float(before)


# --- what it leaves behind -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_modes_gradients_statistics_and_hooks_are_as_before(training: bool, fails: bool) -> None:
    qann = deep().train(training)
    qann.network.get_submodule("1").eval()  # a frozen batch norm
    modes = {name: part.training for name, part in qann.named_modules()}
    running = qann.network.get_buffer("1.running_mean").clone()
    batches = [X, X * float("nan")] if fails else [X]
    assert torch.is_grad_enabled()
    if fails:
        with pytest.raises(CalibrationError):
            ps.calibrate(qann, batches)
        assert not any(site.calibrated for site in qann.sites().values())
    else:
        ps.calibrate(qann, batches)
    assert torch.is_grad_enabled()
    assert {name: part.training for name, part in qann.named_modules()} == modes
    assert torch.equal(qann.network.get_buffer("1.running_mean"), running)
    assert all(not part._forward_pre_hooks and not part._forward_hooks for part in qann.modules())
    assert all(site.enabled for site in qann.sites().values())
    assert all(value.grad is None and value.requires_grad for value in qann.parameters())


# --- bad batches ---------------------------------------------------------------------------------------------------------


def broken() -> Iterator[Tensor]:
    yield X
    raise OSError("the disk is gone")


@pytest.mark.parametrize(
    ("batches", "error", "message"),
    [
        ([], CalibrationError, "expected at least one batch, got an empty loader; .*drop_last"),
        (DataLoader(TensorDataset(X), 99, drop_last=True), CalibrationError, "got an empty loader"),
        ([X, X * float("nan")], CalibrationError, r"site '2', batch 1: .* \d+ NaN and 0 Inf"),
        ([X, X, X / 0.0], CalibrationError, r"site '2', batch 2: "),
        ([X[:0]], CalibrationError, r"site '2', batch 0: .*empty tensor .*: the batch is empty; leave it out$"),
        ([X[:, :2]], InputError, r"input .*: expected shape \(batch, 3, .*got \(12, 2, 8, 8\)"),
        ([X[0]], InputError, "expected shape"),
        ([(X * 10).byte()], InputError, "has type torch.uint8"),
        (
            [X[:, :, :2, :2]],
            InputError,
            r"shape \(12, 3, 2, 2\) where the example had \(batch, 3, 8, 8\), and the network",
        ),
        (X.numpy(), InputError, "batch 0: expected inputs"),
        ((X, torch.arange(12)), InputError, "expected shape"),
        (7, InputError, "expected an iterable of batches"),
    ],
    ids=lambda value: "" if isinstance(value, type) else None,
)
def test_bad_batches_are_named(batches: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        ps.calibrate(deep(), batches)


def test_an_error_of_the_loader_comes_through() -> None:
    with pytest.raises(OSError, match="the disk is gone"):
        ps.calibrate(deep(), broken())


def test_an_overflow_names_the_site_where_it_begins() -> None:
    qann = deep()
    with torch.no_grad():
        qann.network.get_parameter("4.weight").fill_(1e38)
    with pytest.raises(CalibrationError, match=r"site '5', batch 0: .*the weights before this site"):
        ps.calibrate(qann, [X.abs() * 100])


def test_only_quantized_networks_are_calibrated() -> None:
    with pytest.raises(SpecError, match=r"expected what polarspike.quantize returns, got Sequential"):
        ps.calibrate(nn.Sequential(nn.ReLU()), [X])  # type: ignore[arg-type]


# --- dead channels -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["entropy", "mse", "lsq", "percentile"])
def test_a_dead_channel_gets_a_warning_and_a_step_and_stays_trainable(init: Init) -> None:
    qann = direct(init, granularity="channel")
    dead = X.clone()
    dead[:, 1] = 0.0
    with pytest.warns(PolarspikeWarning, match=r"never carry a signal, at 1 sites: site \[1\].*stay trainable"):
        (row,) = ps.calibrate(qann, [dead])
    assert row.dead == (1,)
    steps = step(qann)
    assert bool((steps > 0).all()) and float(steps[1]) == float(steps[[0, 2]].min())  # the median of two: the lower
    qann(X).sum().backward()
    assert float(qann.sites()["site"].offset.grad[1].abs()) > 0  # type: ignore[index]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ps.calibrate(qann, [X])


@pytest.mark.parametrize("value", [0.0, -1.0])
def test_a_dead_site_gets_a_warning_and_a_step(value: float) -> None:
    qann = direct("mse")
    with pytest.warns(PolarspikeWarning, match=r"site \[0\]"):
        ps.calibrate(qann, [torch.full_like(X, value)])
    assert float(step(qann)) == 1.0
    snn = ps.convert(qann)
    assert torch.equal(snn(X), qann(X))
