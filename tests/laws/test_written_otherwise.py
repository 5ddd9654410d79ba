"""The same operators written in other ways mean the same: keywords, attributes, clipping, writes, masks of infinity."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarspike as ps
from polarspike.errors import InputError

WIDE = ps.QuantSpec(6, 9)
Form = Callable[[nn.Module, Tensor], Tensor]


class Around(nn.Module):
    """A linear layer, the form in question on (batch, 7, 8), and layers that read it."""

    def __init__(self, form: Form, **held: Any) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 5)
        self.form = form
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.form(self, self.first(x)))).mean(1))


def converted(
    model: nn.Module, example: Any, spec: ps.QuantSpec = WIDE, batch: Any = None
) -> tuple[ps.QuantizedNetwork, ps.SpikingNetwork]:
    qann = ps.quantize(model.eval(), spec, example=example)
    ps.calibrate(qann, [example if batch is None else batch])
    return qann, ps.convert(qann)


def holds_over_time(model: nn.Module, x: Tensor, spec: ps.QuantSpec = WIDE) -> None:
    """Exact at the first timestep; the theorem for varying input; the float activations are the model."""
    qann, snn = converted(model, x, spec)
    with torch.no_grad(), qann.float_activations():
        assert torch.allclose(qann(x), model(x), atol=1e-5)
    assert ps.verify(qann, snn, [x], scope=False).exact
    qann, snn = qann.double(), snn.double()
    frames = torch.randn(3, 4, *x.shape[1:], generator=torch.Generator().manual_seed(3)).double()
    proof = ps.verify(qann, snn, [frames], timesteps=4, time_dim=1)
    assert proof.exact and proof.different == 0, proof


def weights(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.rand(*shape, generator=torch.Generator().manual_seed(1)))


def rows(batch: int = 4) -> Tensor:
    return torch.randn(batch, 7, 6, generator=torch.Generator().manual_seed(2))


PRODUCTS: dict[str, tuple[Form, dict[str, Any]]] = {
    "einsum over lists": (lambda s, y: torch.einsum(y, [0, 1, 2], y.relu(), [0, 3, 2], [0, 1, 3]) @ y, {}),
    "outer": (lambda s, y: y + torch.outer(y.mean((0, 1)), y.amax((0, 1))).mean(0), {}),
    "addcmul": (lambda s, y: torch.addcmul(y, value=0.5, tensor1=y.tanh(), tensor2=y.relu()), {}),
    "division by keyword": (lambda s, y: torch.div(other=y.relu() + 1, input=s.w), {"w": weights(8)}),
    "lerp by keyword": (lambda s, y: torch.lerp(weight=y.sigmoid(), input=y, end=s.w), {"w": weights(8)}),
    "baddbmm": (
        lambda s, y: torch.baddbmm(y, alpha=0.3, batch1=torch.softmax(y @ y.transpose(1, 2), -1), batch2=y),
        {},
    ),
    "linear to one number": (lambda s, y: y + F.linear(y, s.w).unsqueeze(-1), {"w": weights(8)}),
    "T": (lambda s, y: y @ s.w.T, {"w": weights(8, 8)}),
    "mT": (lambda s, y: (y @ y.mT) @ y, {}),
    "batch norm of rows": (
        lambda s, y: F.batch_norm(y.transpose(1, 2), s.mean, s.var).transpose(1, 2),
        {"mean": torch.zeros(8), "var": torch.ones(8)},
    ),
    "RReLU": (lambda s, y: s.act(y), {"act": nn.RReLU()}),
}


@pytest.mark.parametrize("name", PRODUCTS)
def test_products_are_seen_however_they_are_called(name: str) -> None:
    form, held = PRODUCTS[name]
    torch.manual_seed(0)
    holds_over_time(Around(form, **held), rows())


# --- writes -------------------------------------------------------------------------------------------------------------


def _banded(_: nn.Module, y: Tensor) -> Tensor:
    mask = torch.zeros(y.shape[0], 1, 8, device=y.device, dtype=y.dtype)
    mask[:, :, 2:6] = 1
    return y * mask


def _shifted(_: nn.Module, y: Tensor) -> Tensor:
    moved = torch.zeros_like(y)
    moved[:, 1:] = y[:, :-1]
    return moved + y


def _filled(_: nn.Module, y: Tensor) -> Tensor:
    constant = torch.zeros_like(y)
    constant.fill_(2.0)
    return y + constant


@pytest.mark.parametrize("form", [_banded, _shifted, _filled])
def test_writes_into_a_part_are_captured(form: Form) -> None:
    torch.manual_seed(0)
    holds_over_time(Around(form), rows())


class BehindNorm(nn.Module):
    """A form on images, behind a batch norm and in front of a convolution."""

    def __init__(self, form: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.norm, self.second = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Conv2d(6, 6, 3)
        self.head, self.form = nn.Linear(6, 3), form

    def forward(self, x: Tensor) -> Tensor:
        y = self.form(F.relu(self.norm(self.first(x))))
        return self.head(F.relu(self.second(y)).mean((2, 3)))


def _scaled_view(y: Tensor) -> Tensor:
    flat = y.view(y.shape[0], 6, -1)
    flat.mul_(2.0)
    return flat.view(y.shape)


def _moved_down(y: Tensor) -> Tensor:
    moved = torch.zeros_like(y)
    moved[:, :, 1:] = y[:, :, :-1]
    return moved


def _without_first_channel(y: Tensor) -> Tensor:
    other = y.clone()
    other[:, 0].zero_()
    return other


@pytest.mark.parametrize("form", [_scaled_view, _moved_down, _without_first_channel])
def test_writes_behind_a_batch_norm_are_captured_and_counted(form: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    model, x = BehindNorm(form), torch.randn(4, 3, 8, 8)
    holds_over_time(model, x, ps.QuantSpec(0, 7))
    _, snn = converted(model, x, ps.QuantSpec(0, 7))
    counts = ps.count_operations(snn, x)
    assert 0 < counts.totals["acs_by_event"] < counts.totals["ann_macs"]


def test_a_written_part_brings_its_own_spikes() -> None:
    """One row of ones in a zero image: the events of the part, and no others, reach the convolution."""

    class Row(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(4, 4, bias=False), nn.Linear(4, 2)
            nn.init.eye_(self.first.weight)

        def forward(self, x: Tensor) -> Tensor:
            y = F.relu(self.first(x))
            return self.second(torch.select_scatter(y, y[:, 0] * 0.0 + y[:, 1], 1, 0))

    x = torch.tensor([[[0.0, 0, 0, 0], [1.0, 1, 1, 0], [0.0, 0, 0, 1]]])
    qann, snn = converted(Row(), x, ps.QuantSpec(0, 1), x)
    for site in [*qann.sites().values(), *snn.sites().values()]:
        site.set_step(1.0)
    counts = ps.count_operations(snn, x)
    # rows 0 (a copy of row 1), 1 and 2 of the written signal: 3 + 3 + 1 events, each to two outputs
    assert counts.totals["acs_by_event"] == 7 * 2


# --- rectifiers ---------------------------------------------------------------------------------------------------------

RECTIFIERS: dict[str, Callable[[Tensor], Tensor]] = {
    "clamp": lambda y: y.clamp(min=0),
    "clamp in place": lambda y: y.clamp_(min=0),
    "clamp_min": lambda y: y.clamp_min(0),
    "clamp to 6": lambda y: y.clamp(0, 6),
    "clip to 1": lambda y: torch.clip(y, 0.0, 1.0),
    "clamp to infinity": lambda y: y.clamp(0, math.inf),
    "hardtanh": lambda y: F.hardtanh(y, 0, 1),
    "hardtanh to infinity": lambda y: F.hardtanh(y, 0, math.inf),
    "Hardtanh": nn.Hardtanh(0, 2),
    "threshold": lambda y: F.threshold(y, 0, 0),
    "Threshold": nn.Threshold(0, 0),
}


class Rectified(nn.Module):
    def __init__(self, rectifier: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 3), nn.Linear(6, 3)
        self.rectifier = rectifier

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.second(self.rectifier(self.first(x)))).mean((2, 3)))


@pytest.mark.parametrize("name", RECTIFIERS)
def test_clipping_at_zero_becomes_a_site(name: str) -> None:
    torch.manual_seed(0)
    model, x = Rectified(RECTIFIERS[name]), torch.randn(4, 3, 8, 8)
    plan = ps.inspect(model, ps.QuantSpec(0, 7), x)
    assert len(plan.sites) == 2 and "rectified" in str(plan)
    holds_over_time(model, x, ps.QuantSpec(0, 7))


@pytest.mark.parametrize(
    "form",
    [
        lambda y: F.relu(y).pow(exponent=2),
        lambda y: y.sigmoid().amax(1, keepdim=True) + F.relu(y),
        lambda y: F.softplus(y) + 1,
    ],
)
def test_what_is_never_negative_gets_no_negative_levels(form: Callable[[Tensor], Tensor]) -> None:
    torch.manual_seed(0)
    qann, _ = converted(Rectified(form), torch.randn(4, 3, 8, 8), ps.QuantSpec(0, 7))
    assert all(site.levels == (0, 7) for site in qann.sites().values())


# --- infinity -----------------------------------------------------------------------------------------------------------


def _own_softmax(_: nn.Module, y: Tensor) -> Tensor:
    later = torch.ones(7, 7, dtype=torch.bool).triu(1)
    scores = (y @ y.transpose(1, 2)).masked_fill(later, -math.inf)
    raised = (scores - scores.amax(-1, keepdim=True)).exp()
    return raised / raised.sum(-1, keepdim=True) @ y


class Padded(nn.Module):
    """Max pooling that keeps the size, its border filled with minus infinity."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.head = nn.Conv2d(3, 6, 3), nn.Conv2d(6, 6, 2), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.max_pool2d(F.pad(F.gelu(self.first(x)), (0, 1, 0, 1), value=-math.inf), 3, 2)
        return self.head(F.relu(self.second(y)).mean((2, 3)))


def test_minus_infinity_stays_through_time() -> None:
    torch.manual_seed(0)
    holds_over_time(Around(_own_softmax), rows())
    holds_over_time(Padded(), torch.randn(4, 3, 10, 10))


@pytest.mark.parametrize("cap", [1, 2])
def test_capped_neurons_drain_behind_minus_infinity(cap: int) -> None:
    torch.manual_seed(0)
    for model, x in ((Around(_own_softmax), rows()), (Padded(), torch.randn(4, 3, 10, 10))):
        qann = ps.quantize(model.eval(), WIDE, example=x)
        ps.calibrate(qann, [x])
        snn = ps.convert(qann, ps.ConvertSpec(max_spikes_per_step=cap)).double()
        assert ps.verify(qann.double(), snn, [x.double()], timesteps=3).exact
        assert snn.latency(x.double(), timesteps=2).drained > 0


class Rooted(nn.Module):
    """A square root, whose slope at zero has no end, behind a rectifier that stays an operator."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 32), nn.Linear(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x)).sqrt())


def test_rounding_makes_nothing_negative_behind_a_rectifier() -> None:
    torch.manual_seed(0)
    x, frames = torch.randn(64, 6), torch.randn(64, 4, 6)
    qann, snn = converted(Rooted(), x, ps.QuantSpec(0, 9))
    assert not snn(frames, time_dim=1).isnan().any()
    assert ps.verify(qann.double(), snn.double(), [frames.double()], timesteps=4, time_dim=1).exact


class Masked(nn.Module):
    """Answers with minus infinity for a class that is not allowed."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 4)
        self.register_buffer("allowed", torch.tensor([True, True, False, True]))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x))).masked_fill(~self.allowed, -math.inf)  # type: ignore[operator]


def test_an_answer_of_minus_infinity_is_equal_to_itself() -> None:
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    qann, snn = converted(Masked(), x, ps.QuantSpec(0, 9))
    assert ps.verify(qann, snn, [x]).exact and ps.verify(qann, snn, [x]).output_difference == 0.0
    with torch.no_grad():
        answers = [snn(x, timesteps=3, execution=way) for way in ("steps", "mean")]
    for answer in answers:
        assert torch.equal(answer.isneginf(), qann(x).isneginf()) and not answer.isnan().any()
    assert torch.allclose(answers[0], answers[1], atol=1e-5)


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(F.scaled_dot_product_attention(y, y, y, attn_mask=mask[:, None, :]))


def test_fused_attention_that_may_attend_to_nothing_answers_zeros() -> None:
    torch.manual_seed(0)
    model, x, mask = Attending(), torch.randn(2, 5, 6), torch.ones(2, 5, dtype=torch.bool)
    nothing = mask.clone()
    nothing[1] = False
    for example in (mask, nothing):  # also where the example itself has such a row
        qann, snn = converted(model, (x, example), batch={"x": x, "mask": example})
        with torch.no_grad(), qann.float_activations():
            assert torch.allclose(qann(x, nothing), model(x, nothing), atol=1e-6)
        assert not snn(x, nothing).isnan().any() and not snn(x, nothing, timesteps=3).isnan().any()
        assert ps.verify(qann, snn, [{"x": x, "mask": nothing}], scope=False).exact


def test_attention_of_torch_that_may_attend_to_nothing_answers_zeros_without_weights() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, x: Tensor, mask: Tensor) -> Tensor:
            return self.head(self.attention(x, x, x, key_padding_mask=mask, need_weights=False)[0])

    torch.manual_seed(0)
    model, x, mask = Encoder(), torch.randn(2, 5, 8), torch.zeros(2, 5, dtype=torch.bool)
    mask[1, 3:] = True
    qann, snn = converted(model, (x, mask), batch={"x": x, "mask": mask})
    assert str(qann.network.meta["route"]).startswith("fx")
    assert ps.verify(qann, snn, [{"x": x, "mask": mask}], scope=False).exact
    longer, other = torch.randn(3, 9, 8), torch.zeros(3, 9, dtype=torch.bool)
    other[0, 4:] = True
    with torch.no_grad(), qann.float_activations():
        assert torch.allclose(qann(longer, other), model(longer, other), atol=1e-6)
    mask[1] = True
    assert not snn(x, mask).isnan().any()


# --- inputs -------------------------------------------------------------------------------------------------------------


class Branching(nn.Module):
    """Another network for large images, decided by their size."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1)
        self.head = nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.first(x))
        if y.shape[2] > 16:
            y = F.max_pool2d(y, 2)
        return self.head(F.relu(self.second(y)).mean((2, 3)))


def test_an_exported_network_takes_the_size_of_its_example_alone(tmp_path: Any) -> None:
    torch.manual_seed(0)
    qann, snn = converted(Branching(), torch.randn(4, 3, 32, 32), ps.QuantSpec(0, 15))
    assert str(qann.network.meta["route"]).startswith("export")
    ps.save(snn, tmp_path / "snn.safetensors")
    for network in (qann, snn, ps.load(tmp_path / "snn.safetensors"), ps.refine(qann, 2)):
        with pytest.raises(
            InputError, match=r"expected shape \(batch, 3, 32, 32\), got \(4, 3, 12, 12\).*torch.export"
        ):
            network(torch.randn(4, 3, 12, 12))
        network(torch.randn(2, 3, 32, 32))


def test_sequences_may_be_longer_than_the_example() -> None:
    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.token, self.place = nn.Embedding(20, 8), nn.Embedding(32, 8)
            self.attention, self.head = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, 3)

        def forward(self, ids: Tensor) -> Tensor:
            y = self.token(ids) + self.place(torch.arange(ids.shape[1]))
            return self.head(self.attention(y, y, y)[0].mean(1))

    torch.manual_seed(0)
    model, longer = Tokens(), torch.randint(0, 20, (3, 9))
    qann, snn = converted(model, torch.randint(0, 20, (4, 6)))
    with torch.no_grad(), qann.float_activations():
        assert torch.allclose(qann(longer), model(longer), atol=1e-6)
    assert ps.verify(qann, snn, [longer]).exact
    model = Around(lambda s, y: y.relu())
    qann, snn = converted(model, rows(), ps.QuantSpec(0, 7))
    more = torch.randn(2, 11, 6)
    assert ps.verify(qann, snn, [more]).exact
    with pytest.raises(InputError, match="expected shape"):
        qann(torch.randn(2, 11, 5))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x)) * mask.unsqueeze(-1))


def test_masks_must_stay_the_same_over_time() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(4, 6), torch.tensor([True, False, True, True])
    _, snn = converted(Gated(), (x, mask), ps.QuantSpec(0, 9), {"x": x, "mask": mask})
    twice = torch.stack([x, 2 * x], 1)
    same = torch.stack([mask, mask], 1)
    for execution in ("steps", "mean"):
        with pytest.raises(InputError, match="input 'mask': integers"):
            snn(twice, torch.stack([mask, ~mask], 1), time_dim=1, execution=execution)
        assert snn(twice, same, time_dim=1, execution=execution).shape == (4, 4)
    _, state = snn.step((x, mask))
    snn.step((x, mask.clone()), state)
    with pytest.raises(InputError, match="input 'mask': integers"):
        snn.step((x, ~mask), state)
    with pytest.raises(InputError, match="input 'mask': integers"):
        snn.step((x, torch.ones(1, dtype=torch.bool)), state)
    with pytest.raises(InputError) as refused:
        snn.step((x[:2], mask[:2]), state)
    assert "\n" not in str(refused.value)  # one line, without the graph's own traceback


def test_integers_of_other_libraries_count_timesteps() -> None:
    numpy = pytest.importorskip("numpy")
    x = torch.randn(4, 7, 6)
    _, snn = converted(Around(lambda s, y: y.relu()), x, ps.QuantSpec(0, 7))
    assert torch.equal(snn(x, timesteps=numpy.int64(2)), snn(x, timesteps=2))


class Added(nn.Module):
    """Attention with a mask to add, as torch's own generators make it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = self.first(x)
        return self.head(torch.softmax(y @ y.mT + mask[:, None], -1) @ y)


def test_a_mask_to_add_may_be_an_input() -> None:
    torch.manual_seed(0)
    x, mask = torch.randn(3, 5, 6), torch.zeros(3, 5)
    mask[1, 3:] = -math.inf
    qann, snn = converted(Added(), (x, mask), batch={"x": x, "mask": mask})
    assert ps.verify(qann, snn, [{"x": x, "mask": mask}], scope=False).exact
    qann, snn = qann.double(), snn.double()
    given = {"x": x.double(), "mask": mask.double()}
    assert ps.verify(qann, snn, [given], timesteps=3).exact
    moving = {"x": torch.randn(3, 4, 5, 6).double(), "mask": torch.stack([given["mask"]] * 4, 1)}
    assert ps.verify(qann, snn, [moving], timesteps=4, time_dim=1).exact
    with pytest.raises(InputError, match="input 'x': expected finite values"):
        ps.verify(qann, snn, [{"x": x.double() * math.nan, "mask": given["mask"]}])
    with pytest.raises(InputError, match="expected finite values"):  # alone it is no mask
        ps.quantize(Around(lambda s, y: y), WIDE, example=torch.full((2, 7, 6), -math.inf))
