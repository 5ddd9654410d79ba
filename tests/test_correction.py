"""Bias correction: the means of the float network come back, layer by layer, whatever stands between the layers."""

import copy
import math
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.correction import correct_bias
from polarspike.errors import CalibrationError, SpecError
from polarspike.graph.synaptic import add_bias
from polarspike.quantized import QuantizedNetwork
from polarspike.reconstruction import reconstruct
from polarspike.specs import QuantSpec

COARSE = QuantSpec(negative=1, positive=2, signed="by-nature", init="mse")


class Plain(nn.Module):
    """Batch norm with and without scale, a layer with no bias, a linear head."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm1 = nn.Conv2d(2, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.two, self.norm2 = nn.Conv2d(6, 8, 3, groups=2), nn.BatchNorm2d(8, affine=False)
        self.three = nn.Conv2d(8, 5, 1, bias=False)
        self.head = nn.Linear(5 * 16, 4)
        self.act = nn.ReLU()
        with torch.no_grad():  # as after training: shifted, and of a size at which quantization is felt
            self.norm1.weight.uniform_(0.5, 1.5)
            self.norm1.bias.uniform_(-0.4, 0.6)
            for norm in (self.norm1, self.norm2):
                norm.running_var.uniform_(0.05, 0.2)
            self.three.weight.mul_(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.norm2(self.two(self.act(self.norm1(self.one(x))))))
        return self.head(self.act(self.three(x)).flatten(1))


class Tokens(nn.Module):
    """Layer norm, attention, GELU and residual sums: operators that the correction knows nothing of."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(12, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.block(self.embed(x.flatten(2))).mean(1))


class Shared(nn.Module):
    """One layer at two places, where no single bias can center both."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.again, self.head = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.first(x))
        return self.head(torch.relu(self.again(torch.relu(self.again(x)))))


def images(*sizes: int, shape: tuple[int, ...] = (2, 6, 6)) -> list[Tensor]:
    return [torch.randn(size, *shape) for size in sizes]


def calibrated(model: nn.Module, batches: list[Tensor]) -> QuantizedNetwork:
    qann = ps.quantize(model.eval(), COARSE, example=batches[0][:2])
    ps.calibrate(qann, batches)
    return qann


@torch.no_grad()
def means(qann: QuantizedNetwork, path: str, dim: int, batches: list[Tensor], *, floating: bool) -> Tensor:
    """The mean output per channel of a module of the graph, measured apart from the code under test."""
    seen: list[Tensor] = []
    handle = qann.network.get_submodule(path).register_forward_hook(lambda _, __, y: seen.append(y.double()))
    for batch in batches:
        if floating:
            with qann.float_activations():
                qann(batch)
        else:
            qann(batch)
    handle.remove()
    return torch.cat([y.movedim(dim, -1).flatten(0, -2) for y in seen]).mean(0)


def test_means_of_every_layer_become_those_of_the_float_network() -> None:
    batches = images(16, 16, 5)  # of unequal length: the mean is over samples, not over batches
    qann = calibrated(Plain(), batches)
    before = copy.deepcopy(qann)
    rows = correct_bias(qann, batches)
    assert [(row.name, row.holder) for row in rows] == [
        ("one", "norm1"), ("two", "norm2"), ("three", "three"), ("head", "head")
    ]  # fmt: skip
    for row in rows:
        dim = -1 if row.holder == "head" else 1
        wanted = means(before, row.holder, dim, batches, floating=True)
        torch.testing.assert_close(means(qann, row.holder, dim, batches, floating=False), wanted, rtol=0, atol=2e-6)
        assert row.left < 2e-6
    uncorrected = means(before, "head", -1, batches, floating=False) - means(before, "head", -1, batches, floating=True)
    assert uncorrected.abs().max() > 1e-2  # else there was nothing to correct
    assert rows[0].shift == 0.0  # nothing quantized stands before the first layer
    assert all(row.shift > 1e-3 for row in rows[1:])


def test_one_pass_centers_better_than_all_shifts_at_once() -> None:
    centered, at_once = 0.0, 0.0
    for _ in range(3):
        batches = images(32, 32)
        before = calibrated(Plain(), batches)
        wanted = means(before, "head", -1, batches, floating=True)
        qann = copy.deepcopy(before)
        rows = correct_bias(qann, batches, passes=1)
        assert all(math.isnan(row.left) for row in rows)  # not measured
        centered += float((means(qann, "head", -1, batches, floating=False) - wanted).norm())
        naive = copy.deepcopy(before)
        for path, dim in (("norm1", 1), ("norm2", 1), ("three", 1), ("head", -1)):
            shift = means(before, path, dim, batches, floating=True) - means(before, path, dim, batches, floating=False)
            add_bias(naive.network.get_submodule(path), shift)
        at_once += float((means(naive, "head", -1, batches, floating=False) - wanted).norm())
    assert centered < 0.5 * at_once


def test_a_deep_network_settles_from_front_to_back() -> None:
    layers = [part for _ in range(14) for part in (nn.Linear(12, 12), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(12, 4))
    with torch.no_grad():
        for layer in model[::2]:
            layer.weight.normal_(0, (2 / 12) ** 0.5)
    batches = images(24, 24, shape=(12,))
    qann = calibrated(model, batches)
    before = copy.deepcopy(qann)
    rows = correct_bias(qann, batches)
    assert max(row.left for row in rows) < 5e-6
    wanted = means(before, "28", -1, batches, floating=True)
    torch.testing.assert_close(means(qann, "28", -1, batches, floating=False), wanted, rtol=1e-5, atol=1e-5)


def test_operators_that_it_does_not_know_are_no_obstacle() -> None:
    batches = images(12, 12, shape=(5, 12))
    qann = calibrated(Tokens(), batches)
    before = copy.deepcopy(qann)
    rows = correct_bias(qann, batches)
    assert len(rows) >= 6  # embed, q k v, output, two layers of the perceptron, head
    assert max(row.left for row in rows) < 1e-5
    with torch.no_grad(), before.float_activations():
        wanted = before(torch.cat(batches)).mean(0)
    with torch.no_grad():
        torch.testing.assert_close(qann(torch.cat(batches)).mean(0), wanted, rtol=0, atol=1e-5)


def test_a_layer_at_two_places_is_left_alone_and_named() -> None:
    batches = images(16, shape=(12,))
    qann = calibrated(Shared(), batches)
    bias = qann.network.get_submodule("again").bias.clone()
    rows = {row.name: row for row in correct_bias(qann, batches)}
    assert "left alone" in rows["again"].note and rows["again"].holder == ""
    assert torch.equal(qann.network.get_submodule("again").bias, bias)
    assert rows["head"].holder == "head" and rows["head"].left < 1e-5
    assert "left alone" in str(rows["again"]) and "head.bias" in str(rows["head"])


def test_the_result_is_saved_loaded_and_converted_like_any_other(tmp_path) -> None:
    batches = images(16)
    qann = calibrated(Plain(), batches)
    correct_bias(qann, batches)
    ps.save(qann, tmp_path / "net.safetensors")
    loaded = ps.load(tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(loaded(batches[0]), qann(batches[0]))
    assert ps.verify(qann, ps.convert(qann), batches, timesteps=1).exact


def test_a_reference_is_the_goal_where_the_weights_were_changed_since() -> None:
    batches = images(16)
    reference = calibrated(Plain(), batches)
    qann = copy.deepcopy(reference)
    with torch.no_grad():
        qann.network.get_submodule("two").weight.mul_(1.2)
    correct_bias(qann, batches, reference=reference)
    wanted = means(reference, "head", -1, batches, floating=True)
    torch.testing.assert_close(means(qann, "head", -1, batches, floating=False), wanted, rtol=0, atol=2e-6)


def test_mode_and_hooks_are_as_before() -> None:
    batches = images(8)
    qann = calibrated(Plain(), batches)
    qann.train()
    correct_bias(qann, [(batches[0], torch.zeros(8))])
    assert all(module.training for module in qann.modules())
    assert not any(module._forward_hooks for module in qann.modules())


def test_what_cannot_be_corrected_is_refused() -> None:
    batches = images(8)
    qann = calibrated(Plain(), batches)

    def stream() -> Iterator[Tensor]:
        yield from batches

    with pytest.raises(SpecError, match="got an iterator"):
        correct_bias(qann, stream())
    correct_bias(copy.deepcopy(qann), stream(), passes=1)  # one pass is all that an iterator has
    with pytest.raises(CalibrationError, match="empty loader"):
        correct_bias(qann, [])
    with pytest.raises(SpecError, match="positive integer"):
        correct_bias(qann, batches, passes=0)
    with pytest.raises(SpecError, match="another network"):
        correct_bias(qann, batches, reference=calibrated(Shared(), images(8, shape=(12,))))
    with pytest.raises(SpecError, match="quantize returns"):
        correct_bias(Plain(), batches)  # type: ignore[arg-type]
    with pytest.raises(CalibrationError, match="no step yet"):
        correct_bias(ps.quantize(Plain().eval(), COARSE, example=batches[0]), batches)
    spoiled = batches[0].clone()
    spoiled[0, 0, 0, 0] = torch.nan
    before = {name: value.clone() for name, value in qann.state_dict().items()}
    with pytest.raises(CalibrationError, match=r"'norm1'.*NaN"):
        correct_bias(qann, [spoiled])
    assert all(torch.equal(value, before[name]) for name, value in qann.state_dict().items())


def test_a_changed_network_is_not_taken_for_its_own_goal(tmp_path) -> None:
    batches = images(16)
    qann = calibrated(Plain(), batches)
    goal = copy.deepcopy(qann)
    reconstruct(qann, batches)
    with pytest.raises(SpecError, match="reconstruct has changed this network"):
        correct_bias(qann, batches)
    correct_bias(qann, batches, reference=goal)
    ps.save(qann, tmp_path / "net.safetensors")
    with pytest.raises(SpecError, match="correct_bias has changed this network"):
        reconstruct(ps.load(tmp_path / "net.safetensors"), batches)
    reconstruct(qann, batches, reference=goal)
