"""Which inputs hold samples is found by running the model, whatever the shapes suggest."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.capture import capture
from polarspike.capture.samples import other_batch, shared_inputs
from polarspike.errors import CaptureError
from polarspike.graph.editing import SHARED

X = torch.randn(4, 4, 6, generator=torch.Generator().manual_seed(0))
CAUSAL = torch.full((4, 4), -math.inf).triu(1)
BANK = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))


class Model(nn.Module):
    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor, y: Tensor) -> Any:
        return self.body(x, y)


def attend(x: Tensor, mask: Tensor) -> Tensor:
    return (torch.softmax(x @ x.mT + mask, -1) @ x).mean(1)


@pytest.mark.parametrize(
    ("body", "example", "expected"),
    [
        (attend, (X, CAUSAL), {"1"}),  # four samples of length four
        (attend, {"x": X, "y": CAUSAL}, {"y"}),
        (attend, (X[:3], CAUSAL), {"1"}),
        (lambda mask, x: attend(x, mask), (CAUSAL, X), {"0"}),
        (lambda mask, x: attend(x, mask), (CAUSAL, X[:3]), {"0"}),
        (lambda x, mask: attend(x, mask[:, None]), (X, torch.zeros(4, 4)), set()),  # of each sample
        (lambda x, bank: x @ bank.T, (X[:, 0], BANK), {"1"}),  # a row more of both is no row more of samples alone
        (lambda x, scale: x * scale, (X[:, 0, :4], torch.rand(4) + 0.5), {"1"}),
        (lambda x, y: x + y, (X, X.flip(0)), set()),
        (lambda x, y: {"score": (x + y).sum(1), "norm": y.norm()}, (X, X.flip(0)), set()),
        (lambda x, y: x + y, (X[:1], X[:1]), set()),  # one sample tells nothing
        (lambda x, y: (x + y).sum(), (X, CAUSAL[:, :1, None]), set()),  # nor does an answer without rows,
        (lambda x, y: x.sum() + y.sum(), (X[:3], CAUSAL), {"1"}),  # where the length of the first decides
    ],
)
def test_what_is_the_same_for_all_samples(body: Any, example: Any, expected: set[str]) -> None:
    assert shared_inputs(Model(body), example) == expected


def test_another_batch_has_one_more_sample_and_shared_inputs_of_other_content() -> None:
    x, mask = other_batch((X, BANK), {"1"})
    assert x.shape == (5, 4, 6) and mask.shape == BANK.shape
    assert not torch.equal(mask, BANK)
    assert [y.shape[0] for y in other_batch((X, BANK))] == [5, 5]


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return self.head(attend(torch.relu(self.inner(x)), mask))


@pytest.mark.parametrize("route", ["fx", "export"])
@pytest.mark.parametrize("samples", [3, 4])
def test_a_mask_of_as_many_rows_as_the_example_has_samples_is_captured(route: Any, samples: int) -> None:
    torch.manual_seed(0)
    model = Masked().eval()
    qann = ps.quantize(model, ps.QuantSpec(negative=2, positive=6), example=(X[:samples], CAUSAL), route=route)
    assert qann.signature.shared == {"1", "mask"}
    assert dict(qann.signature.shapes) == {"0": (4, 6), "1": (4, 4)}
    with qann.float_activations(), torch.no_grad():
        for count in (1, 4, 7):
            x = torch.randn(count, 4, 6)
            torch.testing.assert_close(qann(x, CAUSAL), model(x, CAUSAL))


class Towers(nn.Module):
    """Two kinds of inputs, each scored against the other."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Any]) -> None:
        super().__init__()
        self.image = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
        self.text = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 4))
        self.answer = answer

    def forward(self, image: Tensor, text: Tensor) -> Any:
        return self.answer(self.image(image), self.text(text))


@pytest.mark.parametrize("texts", [3, 4])
@pytest.mark.parametrize("answer", [lambda a, b: (a @ b.T, b @ a.T), lambda a, b: (a @ b.T, a, b)])
def test_two_towers_may_answer_a_row_for_each_input_of_either(answer: Any, texts: int) -> None:
    torch.manual_seed(0)
    model = Towers(answer).eval()
    example = {"image": torch.randn(4, 6), "text": torch.randn(texts, 5)}
    qann = ps.quantize(model, ps.QuantSpec(negative=2, positive=6), example=example)
    assert qann.signature.shared == {"1", "text"}
    with qann.float_activations(), torch.no_grad():
        other = {"image": torch.randn(7, 6), "text": torch.randn(5, 5)}
        torch.testing.assert_close(qann(**other), model(**other))


def test_mixed_samples_are_refused_with_the_inputs_taken_as_shared() -> None:
    model = Towers(lambda a, b: (a @ b.T, a.repeat(2, 1)[:4]))
    with pytest.raises(
        CaptureError, match=r"4 rows, .* \(taken as the same for all samples: input 'text'\), so samples"
    ):
        ps.quantize(
            model, ps.QuantSpec(negative=2, positive=6), example={"image": torch.randn(4, 6), "text": torch.randn(3, 5)}
        )


@pytest.mark.parametrize("by_name", [False, True])
def test_a_tensor_given_twice_may_be_shared_in_one_place_alone(by_name: bool) -> None:
    x = BANK.clone()
    model = Model(lambda x, bank: torch.relu(x) @ torch.relu(bank).T)
    example: Any = {"x": x, "y": x} if by_name else (x, x)
    graph = capture(model, example)
    assert graph.meta[SHARED] == {"1", "y"}


class Counted(nn.Module):
    """A body of many inputs that counts how often it runs."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.body, self.calls = body, [0]

    def __deepcopy__(self, memo: dict[int, Any]) -> Counted:
        return self

    def forward(self, *inputs: Tensor) -> Any:
        self.calls[0] += 1
        return self.body(*inputs)


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (lambda *inputs: sum(inputs).T, set()),  # the batch comes last, which tells nothing
        (lambda *inputs: sum(inputs), set()),
        (lambda *inputs: sum(inputs[1:]) @ inputs[0].T, {"0"}),
        (lambda *inputs: inputs[2] @ sum(value for index, value in enumerate(inputs) if index != 2).T, set("0134567")),
    ],
)
def test_of_many_inputs_few_parts_are_tried(body: Any, expected: set[str]) -> None:
    model = Counted(body)
    assert shared_inputs(model, tuple(torch.randn(4, 6) for _ in range(8))) == expected
    assert model.calls[0] <= 2 * (1 + 8 + 8)


def test_two_masks_among_six_inputs_are_found() -> None:
    def body(*inputs: Tensor) -> Tensor:
        x, y, ours, theirs = inputs[:4]
        return attend(x, ours) + attend(y, theirs) + inputs[4] + inputs[5]

    example = (X, X.flip(0), CAUSAL, CAUSAL, X[:, 0], X[:, 1])
    assert shared_inputs(Counted(body), example) == {"2", "3"}
