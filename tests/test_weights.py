"""Weights of few bits: rounded while they train, kept when it ends, the same in the spiking network and in whole numbers."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import polarspike as ps
from polarspike.errors import SpecError
from polarspike.quantizers import WeightQuantizer
from tests.networks import calibrated, network, signal

SPEC = ps.QuantSpec(0, 3)


def quantized(name: str = "branched") -> ps.QuantizedNetwork:
    return calibrated(network(name), SPEC, signal(name, 16))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("output_dim", [0, 1])
def test_weights_are_whole_numbers_of_their_channels_step(bits: int, output_dim: int) -> None:
    weight = torch.randn(5, 4, 3, 3)
    weight.movedim(output_dim, 0)[2] = 0.0  # a silent channel
    rounded = WeightQuantizer(bits, output_dim)(weight)
    largest = 2 ** (bits - 1) - 1
    for row, exact in zip(rounded.movedim(output_dim, 0), weight.movedim(output_dim, 0), strict=True):
        step = float(exact.abs().max()) / largest or 1.0
        assert torch.allclose(row / step, (row / step).round(), atol=1e-5)
        assert float((row - exact).abs().max()) <= step / 2 * (1 + 1e-5)


def test_gradients_go_straight_through() -> None:
    weight = torch.randn(3, 7, requires_grad=True)
    factor = torch.randn(3, 7)
    (WeightQuantizer(3)(weight) * factor).sum().backward()
    assert weight.grad is not None and torch.equal(weight.grad, factor)


def test_training_moves_rounded_weights_and_conversion_keeps_them() -> None:
    qann = quantized()
    before = {name: value.clone() for name, value in qann.state_dict().items() if name.endswith("weight")}
    names = ps.quantize_weights(qann, 4)
    assert set(names) == {name for name in names if f"network.{name}.weight" in before} and names
    x, y = signal("branched", 16), torch.arange(16) % 4
    optimizer = torch.optim.SGD(qann.parameters(), 0.1)
    for _ in range(5):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(qann(x), y).backward()
        optimizer.step()
    qann.eval()
    snn = ps.convert(qann)
    assert ps.verify(qann, snn, [x], scope=False).exact
    answer = qann(x)
    assert ps.fix_weights(qann) == names and ps.fix_weights(qann) == ()
    assert torch.equal(qann(x), answer)
    for name in names:
        weight = qann.network.get_submodule(name).weight
        rows = weight.detach().flatten(1)
        assert all(len(row.unique()) <= 15 for row in rows)
        assert torch.equal(weight, snn.network.get_submodule(name).weight)
        assert not torch.equal(weight, before[f"network.{name}.weight"])


def test_what_was_frozen_stays_frozen_when_its_weights_are_fixed() -> None:
    qann = quantized()
    names = ps.quantize_weights(qann, 4)
    frozen, moving = (qann.network.get_submodule(name) for name in names[:2])
    frozen.requires_grad_(False)
    ps.fix_weights(qann)
    assert not frozen.weight.requires_grad and moving.weight.requires_grad


def test_eight_bits_are_the_integers_of_the_exported_network() -> None:
    from polarspike.exporters.integer import integer_network

    qann = quantized("mlp")
    ps.quantize_weights(qann)
    ps.fix_weights(qann)
    x = signal("mlp", 32)
    made = integer_network(ps.convert(qann), x, [x])
    layers = [part for part in qann.network.modules() if isinstance(part, torch.nn.Linear)]
    for layer, whole in zip(layers, made.weights, strict=True):
        step = layer.weight.detach().abs().amax(dim=1, keepdim=True) / 127
        assert torch.equal((layer.weight.detach() / step).round(), torch.from_numpy(whole).float())


def test_a_file_holds_no_training_of_weights(tmp_path: Path) -> None:
    qann = quantized()
    ps.quantize_weights(qann)
    with pytest.raises(SpecError, match="fix_weights"):
        ps.save(qann, tmp_path / "net.safetensors")
    assert not list(tmp_path.iterdir())
    ps.fix_weights(qann)
    ps.save(qann, tmp_path / "net.safetensors")
    x = signal("branched", 4)
    again = ps.load(tmp_path / "net.safetensors")
    assert isinstance(again, ps.QuantizedNetwork) and torch.equal(again(x), qann(x))


@pytest.mark.parametrize("bits", [1, 9, True, 4.0])
def test_wrong_bits(bits: int) -> None:
    with pytest.raises(SpecError, match="2 to 8"):
        ps.quantize_weights(quantized(), bits)


def test_refusals() -> None:
    with pytest.raises(SpecError, match="quantize returns"):
        ps.quantize_weights(torch.nn.Linear(2, 2))  # type: ignore[arg-type]
    qann = quantized()
    ps.quantize_weights(qann)
    with pytest.raises(SpecError, match="parametrized already"):
        ps.quantize_weights(qann)


@pytest.mark.parametrize("bits", [2, 4, 7])
@pytest.mark.parametrize("output_dim", [0, 1])
def test_dyadic_weights_are_whole_numbers_of_a_power_of_two(bits: int, output_dim: int) -> None:
    weight = torch.randn(5, 4, 3, 3)
    weight.movedim(output_dim, 0)[2] = 0.0
    weight.movedim(output_dim, 0)[1, 0, 0, 0] = 8 * (2 ** (bits - 1) - 1)  # whose step is 8 already
    rounding = WeightQuantizer(bits, output_dim, dyadic=True)
    rows, steps = rounding(weight).movedim(output_dim, 0), rounding.step_of(weight).flatten()
    for row, exact, step in zip(rows, weight.movedim(output_dim, 0), steps, strict=True):
        least = (float(exact.abs().max()) or 1.0) / (2 ** (bits - 1) - 1)
        assert float(torch.frexp(step).mantissa) == 0.5 and least <= float(step) <= 2 * least
        assert torch.equal((row / step).round(), row / step)
        assert float((row - exact).abs().max()) <= float(step) / 2
    assert float(steps[1]) == 8.0


def test_biases_of_dyadic_layers_end_on_the_grid_of_their_sums() -> None:
    qann = quantized("mlp")
    ps.snap_steps(qann)
    names = ps.quantize_weights(qann, 6, dyadic=True)
    before = {name: qann.network.get_submodule(name).bias.detach().clone() for name in names}
    ps.fix_weights(qann)
    first, second, head = (qann.network.get_submodule(name) for name in names)
    assert torch.equal(first.bias, before[names[0]])  # behind the network's input, which has no step
    for layer, name, site in zip((second, head), names[1:], qann.sites().values(), strict=True):
        grid = WeightQuantizer(6, dyadic=True).step_of(layer.weight).flatten() * site.step
        assert torch.equal((layer.bias / grid).round(), layer.bias / grid)
        assert bool(((layer.bias - before[name]).abs() <= grid / 2).all()) and not torch.equal(layer.bias, before[name])


def test_a_nearly_dead_channel_leaves_the_biases_of_the_others_on_their_grids() -> None:
    qann = quantized("mlp")
    ps.snap_steps(qann)
    name = ps.quantize_weights(qann, 6, dyadic=True)[1]
    layer = qann.network.get_submodule(name)
    with torch.no_grad():
        layer.parametrizations["weight"].original[0] *= 1e-9  # type: ignore[index]
        layer.bias[0] = 0.3  # type: ignore[index]
    before = layer.bias.detach().clone()  # type: ignore[operator]
    ps.fix_weights(qann)
    step = next(iter(qann.sites().values())).step
    grid = WeightQuantizer(6, dyadic=True).step_of(layer.weight).flatten() * step  # type: ignore[arg-type]
    assert torch.equal(layer.bias[0], before[0])  # type: ignore[index]
    assert torch.equal((layer.bias / grid).round()[1:], (layer.bias / grid)[1:])  # type: ignore[operator,index]
    assert not torch.equal(layer.bias, before)  # type: ignore[arg-type]


def test_dyadic_weights_of_eight_bits_are_refused() -> None:
    with pytest.raises(SpecError, match="from 2 to 7 with dyadic=True, got 8"):
        ps.quantize_weights(quantized("mlp"), dyadic=True)
