"""Cross-layer equalization: the float network computes the same, and its channels are of like size."""

import copy

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.capture import capture
from polarspike.common.modules import ranks_behind_linear
from polarspike.equalization import equalize, pairs_of
from polarspike.errors import CalibrationError
from polarspike.specs import QuantSpec


def normed(features: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(features)
    with torch.no_grad():
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.3, 2)
        norm.weight.normal_(0, 1)  # of both signs
        norm.bias.normal_(0, 0.5)
    return norm


def mobile() -> nn.Sequential:
    """Depthwise, grouped and transposed convolutions, a linear bottleneck, pooling, and a flattening that keeps places."""
    return nn.Sequential(
        nn.Conv2d(2, 8, 3, padding=1), normed(8), nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), normed(8), nn.ReLU(),
        nn.Conv2d(8, 4, 1),  # no activation behind it
        nn.Conv2d(4, 12, 1), nn.LeakyReLU(0.1),
        nn.Conv2d(12, 12, 3, groups=3, padding=1), nn.BatchNorm2d(12, affine=False), nn.ReLU(), nn.MaxPool2d(2),
        nn.ConvTranspose2d(12, 6, 2, groups=2), nn.ReLU(),
        nn.ConvTranspose2d(6, 6, 1, groups=3), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Dropout(0.2), nn.Linear(24, 10), nn.ReLU(), nn.Linear(10, 3),
    ).eval()  # fmt: skip


def found(model: nn.Module, x: Tensor) -> list[tuple[str, str]]:
    network = capture(model.eval(), x)
    return [(pair.first.name, pair.second.name) for pair in pairs_of(network, ranks_behind_linear(network, x))]


def unbalance(model: nn.Sequential) -> nn.Sequential:
    """Scale the channels between the first two layers apart, over four orders of magnitude."""
    scale = torch.logspace(-2, 2, 8)
    with torch.no_grad():
        model[1].weight.mul_(scale)
        model[1].bias.mul_(scale)
        model[3].weight.div_(scale.view(-1, 1, 1, 1))
    return model


@pytest.mark.parametrize("with_batches", [False, True])
def test_the_float_network_computes_the_same(with_batches: bool) -> None:
    model, x = unbalance(mobile()), torch.randn(7, 2, 8, 8)
    before = copy.deepcopy(model.state_dict())
    equalized = equalize(model, x[:2], [x] if with_batches else None)
    with torch.no_grad():
        wanted, got = model(x), equalized(x)
    assert (got - wanted).abs().max() <= 1e-5 * wanted.abs().max()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    changed = equalized.get_submodule("3").weight
    assert not torch.allclose(changed, model[3].weight, rtol=0.1)


def test_every_kind_of_pair_is_found() -> None:
    x = torch.randn(2, 2, 8, 8)
    assert found(mobile(), x) == [
        ("0", "3"), ("3", "6"), ("6", "7"), ("7", "9"), ("9", "13"), ("13", "15"), ("15", "20"), ("20", "22")
    ]  # fmt: skip


class Branched(nn.Module):
    """ReLU6, a residual sum, one layer at two places."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = (nn.Conv2d(4, 4, 1) for _ in range(4))
        self.twice, self.head = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 2, 1)
        self.six = nn.ReLU6()

    def forward(self, x: Tensor) -> Tensor:
        x = self.six(self.a(x))  # to b: a ceiling
        x = torch.relu(self.b(x))
        x = torch.relu(x + self.d(torch.relu(self.c(x))))  # b has two readers, d ends in a sum; c to d is a pair
        return self.head(torch.relu(self.twice(torch.relu(self.twice(x)))))  # a shared weight on either side


def test_ceilings_sums_and_shared_layers_are_left_alone() -> None:
    assert found(Branched(), torch.randn(2, 4, 5, 5)) == [("c", "d")]


@pytest.mark.parametrize(
    "model",
    [
        nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Flatten(2), nn.Linear(16, 3)),  # features are positions
        nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.Linear(4, 3)),  # features are columns
    ],
)
def test_a_layer_that_reads_along_another_dimension_makes_no_pair(model: nn.Sequential) -> None:
    assert found(model, torch.randn(2, 2, 4, 4)) == []


def test_without_data_the_ranges_of_weights_agree() -> None:
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 7), nn.ReLU(), nn.Linear(7, 3)).eval()
    with torch.no_grad():
        model[2].weight[2] *= 50
    equalized = equalize(model, torch.randn(2, 5))
    for first, second in ((0, 2), (2, 4)):
        made = equalized.get_submodule(str(first)).weight.abs().amax(1)
        read = equalized.get_submodule(str(second)).weight.abs().amax(0)
        torch.testing.assert_close(made, read, rtol=5e-3, atol=0)


def test_with_batches_the_sizes_of_signals_agree_and_dead_channels_stay() -> None:
    model, x = mobile(), torch.randn(16, 2, 8, 8)
    with torch.no_grad():
        model[1].weight[3], model[1].bias[3] = 0.0, -1.0  # never fires
    equalized = equalize(model, x[:2], x.split(5))
    seen: list[Tensor] = []
    equalized.get_submodule("3").register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.no_grad():
        equalized(x)
    sizes = seen[0].pow(4).mean((0, 2, 3)).pow(0.25)
    assert sizes[3] == 0.0
    alive = sizes[torch.arange(8) != 3]
    torch.testing.assert_close(alive, alive.mean().expand(7), rtol=1e-4, atol=0)


def test_sites_of_one_step_lose_less_afterwards() -> None:
    torch.manual_seed(0)
    model, x = unbalance(mobile()), torch.randn(64, 2, 8, 8)
    spec = QuantSpec(negative=2, positive=7, signed="by-nature", init="mse")
    names, errors = [], []
    for network in (model, equalize(model, x[:2], x)):
        qann = ps.quantize(network, spec, example=x[:2])
        ps.calibrate(qann, x)
        names.append(list(qann.sites()))
        with torch.no_grad():
            errors.append(float((qann(x) - model(x)).square().mean()))
    assert names[0] == names[1]
    assert errors[1] < 0.5 * errors[0]


def test_operators_that_it_does_not_know_are_no_obstacle() -> None:
    model = nn.Sequential(
        nn.Linear(6, 8), nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True), nn.Linear(8, 3)
    ).eval()
    x = torch.randn(3, 4, 6)
    names = [(first.removesuffix(".linear"), second.removesuffix(".linear")) for first, second in found(model, x)]
    assert names == [("1.linear1", "1.linear2")]
    with torch.no_grad():
        torch.testing.assert_close(equalize(model, x, x)(x), model(x), rtol=1e-5, atol=1e-5)


def test_an_empty_loader_is_refused() -> None:
    with pytest.raises(
        CalibrationError, match=r"equalize: expected at least one batch, got an empty loader; .* drop_last"
    ):
        equalize(mobile(), torch.randn(2, 2, 8, 8), [])
