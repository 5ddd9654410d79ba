"""Layer-wise reconstruction: the regression is exact, sees what the layer sees, and never makes a layer worse."""

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import reconstruction
from polarspike.errors import CalibrationError, SpecError
from polarspike.quantized import QuantizedNetwork
from polarspike.reconstruction import _rows, reconstruct
from polarspike.specs import QuantSpec
from polarspike.statistics.regression import Sums, regress

COARSE = QuantSpec(negative=1, positive=2, signed="by-nature", init="mse")


class Net(nn.Module):
    """Grouped, depthwise and transposed convolutions, one layer twice, a flattening."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.norm = nn.Conv2d(2, 8, 3, padding=1), nn.BatchNorm2d(8)
        self.deep = nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False)
        self.grouped = nn.Conv2d(8, 6, 3, stride=2, padding=1, groups=2)
        self.twice = nn.Conv2d(6, 6, 1)
        self.up = nn.ConvTranspose2d(6, 4, 2)
        self.head = nn.Linear(4 * 16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.one(x)))
        x = torch.relu(self.grouped(torch.relu(self.deep(x))))
        x = torch.relu(self.twice(torch.relu(self.twice(x))))
        return self.head(torch.relu(self.up(x)).flatten(1))


def structured(count: int) -> Tensor:
    """Images with few degrees of freedom, so that channels depend on each other as in real ones."""
    basis = torch.randn(6, 2, 6, 6, generator=torch.Generator().manual_seed(7))
    return torch.einsum("nk,kchw->nchw", torch.randn(count, 6), basis)


def calibrated(model: nn.Module, batches: list[Tensor]) -> QuantizedNetwork:
    qann = ps.quantize(model.eval(), COARSE, example=batches[0][:2])
    ps.calibrate(qann, batches)
    return qann


@torch.no_grad()
def outputs(qann: QuantizedNetwork, path: str, batches: list[Tensor], *, floating: bool = False) -> Tensor:
    seen: list[Tensor] = []
    handle = qann.network.get_submodule(path).register_forward_hook(lambda _, __, y: seen.append(y.double()))
    for batch in batches:
        if floating:
            with qann.float_activations():
                qann(batch)
        else:
            qann(batch)
    handle.remove()
    return torch.cat(seen)


@torch.no_grad()
def distance(qann: QuantizedNetwork, reference: QuantizedNetwork, path: str, batches: list[Tensor]) -> float:
    wanted = outputs(reference, path, batches, floating=True)
    return float((outputs(qann, path, batches) - wanted).norm() / wanted.norm())


def test_no_layer_gets_worse_and_the_network_gets_better_on_images_it_has_not_seen() -> None:
    model, batches, others = Net(), list(structured(192).split(48)), [structured(64)]
    qann = calibrated(model, batches)
    before = copy.deepcopy(qann)
    rows = {row.name: row for row in reconstruct(qann, batches)}
    for name in ("deep", "grouped", "head"):
        assert rows[name].note == ""
        assert rows[name].after < rows[name].before
        assert distance(qann, before, name, batches) == pytest.approx(rows[name].after, rel=1e-3)  # all rows were used
    assert distance(qann, before, "head", others) < 0.7 * distance(before, before, "head", others)
    assert "error" in str(rows["head"])


def test_what_is_not_to_be_changed_keeps_every_bit() -> None:
    batches = list(structured(64).split(32))
    qann = calibrated(Net(), batches)
    before = {name: value.clone() for name, value in qann.state_dict().items()}
    rows = [(row.name, row.note) for row in reconstruct(qann, batches)]
    assert [name for name, _ in rows] == ["one", "deep", "grouped", "twice", "twice", "up", "head"]
    notes = dict(rows)
    assert "not quantized" in notes["one"] and "several places" in notes["twice"] and "transposed" in notes["up"]
    for name, value in qann.state_dict().items():
        changed = name.removeprefix("network.").partition(".")[0] in ("deep", "grouped", "head")
        assert changed or torch.equal(value, before[name]), name


def test_memory_bounds_the_batches_that_are_used() -> None:
    batches = list(structured(96).split(32))
    start = calibrated(Net(), batches)
    states = []
    for given, memory in ((batches, 1), (batches[:1], 2**30), (batches, 2**30)):
        qann = copy.deepcopy(start)
        reconstruct(qann, given, memory=memory)
        states.append(qann.network.get_submodule("head").weight)
    assert torch.equal(states[0], states[1])
    assert not torch.equal(states[1], states[2])


def test_single_images_are_held_out_by_turns() -> None:
    qann = calibrated(Net(), list(structured(64).split(32)))
    before = copy.deepcopy(qann)
    singles = list(structured(64).split(1))
    rows = reconstruct(qann, singles)
    assert all(row.after <= row.before for row in rows)
    assert not torch.equal(qann.network.get_submodule("head").weight, before.network.get_submodule("head").weight)
    few = copy.deepcopy(before)  # nothing to choose on: the bias alone
    reconstruct(few, singles[:2])
    assert torch.equal(few.network.get_submodule("head").weight, before.network.get_submodule("head").weight)
    assert not torch.equal(few.network.get_submodule("head").bias, before.network.get_submodule("head").bias)


def test_a_reference_is_the_goal_where_the_weights_were_changed_since() -> None:
    batches = list(structured(128).split(32))
    reference = calibrated(Net(), batches)
    qann = copy.deepcopy(reference)
    with torch.no_grad():
        qann.network.get_submodule("head").weight.mul_(1.5)
    spoiled = distance(qann, reference, "head", batches)
    reconstruct(qann, batches, reference=reference)
    assert distance(qann, reference, "head", batches) < 0.5 * spoiled


def test_operators_that_it_does_not_know_are_no_obstacle(tmp_path) -> None:
    model = nn.Sequential(
        nn.Linear(6, 8),
        nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, activation="gelu", batch_first=True),
        nn.Linear(8, 3),
    )
    batches = [torch.randn(48, 5, 6), torch.randn(48, 5, 6)]
    qann = calibrated(model, batches)
    before = copy.deepcopy(qann)
    rows = reconstruct(qann, batches)
    assert len(rows) >= 6 and all(row.after <= row.before for row in rows)
    head = rows[-1].name
    assert distance(qann, before, head, batches) < distance(before, before, head, batches)
    ps.save(qann, tmp_path / "net.safetensors")
    with torch.no_grad():
        assert torch.equal(ps.load(tmp_path / "net.safetensors")(batches[0]), qann(batches[0]))
    assert ps.verify(qann, ps.convert(qann), batches, timesteps=1).exact


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(4, 6, 3, stride=2, padding=1, dilation=2), (4, 9, 8)),
        (nn.Conv2d(4, 8, (3, 5), padding="same", groups=4, bias=False), (4, 5, 6)),
        (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect", groups=2), (4, 5, 5)),
        (nn.Conv1d(4, 6, 3, stride=2, groups=2), (4, 11)),
        (nn.Conv3d(2, 4, (1, 2, 3), padding=(0, 1, 1)), (2, 3, 4, 5)),
        (nn.Linear(4, 6), (4,)),
        (nn.Linear(4, 6), (3, 5, 4)),
    ],
    ids=str,
)
@pytest.mark.parametrize("most", [1000, 3])
def test_rows_are_what_the_layer_multiplies(layer: nn.Module, shape: tuple[int, ...], most: int) -> None:
    layer, x = layer.double(), torch.randn(5, *shape, dtype=torch.float64)
    with torch.no_grad():
        y = layer(x)
        rows, wanted = _rows(layer, x, y, most, torch.Generator().manual_seed(3))
        groups = getattr(layer, "groups", 1)
        weight = layer.weight.view(groups, layer.weight.shape[0] // groups, -1)
        got = rows @ weight.transpose(1, 2)
        if layer.bias is not None:
            got = got + layer.bias.view(groups, 1, -1)
    torch.testing.assert_close(got, wanted)
    positions = y[0].numel() // layer.weight.shape[0]
    assert rows.shape[1] == 5 * min(most, positions)


def parts(x: Tensor, e: Tensor, cut: int) -> tuple[Sums, Sums]:
    fitting, held = (Sums.zeros(x.shape[0], x.shape[2], e.shape[2], x.device) for _ in range(2))
    for begin in range(0, cut, 50):  # streamed
        fitting.update(x[:, begin : min(cut, begin + 50)], e[:, begin : min(cut, begin + 50)])
    held.update(x[:, cut:], e[:, cut:])
    return fitting, held


def test_the_regression_finds_what_is_there_and_nothing_else() -> None:
    x = torch.randn(2, 400, 5, dtype=torch.float64) + 3.0  # far from zero: sums must be centered
    true, constant = torch.randn(2, 5, 4, dtype=torch.float64), torch.randn(2, 1, 4, dtype=torch.float64)
    true[:, :, 3] = 0.0
    e = x @ true + constant
    e[:, :, 3] += torch.randn(2, 400, dtype=torch.float64)  # noise alone
    slope, shift, before, after = regress(*parts(x, e, 300))
    torch.testing.assert_close(slope[:, :, :3], true[:, :, :3], rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(before, e.square().sum(1))
    brute = (e - x @ slope - shift.unsqueeze(1)).square().sum(1)
    torch.testing.assert_close(after, brute, rtol=1e-8, atol=1e-6)
    assert (after <= before).all()
    assert slope[:, :, 3].norm() < 0.15


def test_more_inputs_than_rows_do_not_overfit() -> None:
    x, e = torch.randn(1, 80, 60, dtype=torch.float64), torch.randn(1, 80, 3, dtype=torch.float64)
    slope, shift, _, _ = regress(*parts(x, e, 60))
    fresh, noise = torch.randn(1, 5000, 60, dtype=torch.float64), torch.randn(1, 5000, 3, dtype=torch.float64)
    grown = (noise - fresh @ slope - shift).square().mean() / noise.square().mean()
    assert grown < 1.15  # plain least squares on these rows makes it 4


def test_inputs_that_never_vary_fit_the_shift_alone() -> None:
    x, e = torch.zeros(1, 40, 3), torch.full((1, 40, 2), 0.5)
    slope, shift, before, after = regress(*parts(x, e, 30))
    assert not slope.any()
    torch.testing.assert_close(shift, torch.full((1, 2), 0.5, dtype=torch.float64))
    assert math.isclose(float(before.sum()), 20.0) and float(after.sum()) < 1e-9


def test_an_error_on_the_way_leaves_the_network_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    batches = list(structured(64).split(32))
    qann = calibrated(Net(), batches)
    before = {name: value.clone() for name, value in qann.state_dict().items()}

    def killed(walk: Any, layer: Any) -> Any:
        if layer.name == "head":
            assert not torch.equal(qann.state_dict()["network.grouped.weight"], before["network.grouped.weight"])
            raise KeyboardInterrupt
        return refit(walk, layer)

    refit = reconstruction._refit
    with monkeypatch.context() as patch:
        patch.setattr(reconstruction, "_refit", killed)
        with pytest.raises(KeyboardInterrupt):
            reconstruct(qann, batches)
    after = qann.state_dict()
    assert list(after) == list(before)  # the bias that "deep" got is gone
    assert all(torch.equal(value, before[name]) for name, value in after.items())
    reconstruct(qann, batches)  # it needs no reference: nothing was changed


def test_what_cannot_be_rebuilt_is_refused() -> None:
    batches = [structured(8)]
    qann = calibrated(Net(), batches)
    with pytest.raises(CalibrationError, match="empty loader"):
        reconstruct(qann, [])
    with pytest.raises(SpecError, match="positive number of bytes"):
        reconstruct(qann, batches, memory=0)
    with pytest.raises(SpecError, match="quantize returns"):
        reconstruct(Net(), batches)  # type: ignore[arg-type]
    with pytest.raises(SpecError, match="another network"):
        reconstruct(
            qann,
            batches,
            reference=calibrated(nn.Sequential(nn.Conv2d(2, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 1)), batches),
        )
    with pytest.raises(CalibrationError, match="no step yet"):
        reconstruct(ps.quantize(Net().eval(), COARSE, example=batches[0]), batches)
    spoiled = batches[0].clone()
    spoiled[0] = torch.nan
    with pytest.raises(CalibrationError, match=r"'one'.*NaN"):
        reconstruct(qann, [spoiled])
