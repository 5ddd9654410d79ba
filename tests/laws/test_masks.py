"""Masks and inputs over time: minus infinity stays, integers stay the same, sizes are those that the graph can take."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import polarspike as ps
from polarspike.errors import InputError
from tests.forms import WIDE, Around, converted, holds_over_time, rows

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


class Words(Added):
    """The same on numbers of words: the mask is the one input of floats."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Embedding(7, 8), nn.Linear(8, 8)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = F.relu(self.inner(self.first(x)))
        return self.head(F.relu(torch.softmax(y @ y.mT + mask[:, None], -1) @ y))


def test_a_mask_beside_words_is_proved_simulated_and_counted() -> None:
    torch.manual_seed(0)
    x, mask = torch.randint(7, (3, 5)), torch.zeros(3, 5)
    mask[1, 3:] = -math.inf
    given = {"x": x, "mask": mask.double()}
    qann, snn = converted(Words(), (x, mask), batch={"x": x, "mask": mask})
    qann, snn = qann.double(), snn.double()
    for timesteps in (1, 3):
        assert ps.verify(qann, snn, [given], timesteps, scope=False).exact
        assert ps.verify(qann, snn, [given], timesteps, against="events").exact
        assert ps.count_operations(snn, given, timesteps).totals["spikes"] > 0
    given["mask"] = -given["mask"]
    for run in (lambda: ps.verify(qann, snn, [given]), lambda: ps.count_operations(snn, given)):
        with pytest.raises(InputError, match="input 'mask': expected finite values"):
            run()
