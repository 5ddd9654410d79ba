"""Where samples lie in a tensor, and differences that hold at minus infinity."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from polarspike.proofs.layouts import Layout, columns, less


@pytest.mark.parametrize(
    ("make", "dim", "shape"),
    [
        (lambda x: x, 0, (1, 4, 2)),
        (lambda x: x.transpose(0, 1), 1, (4, 1, 2)),  # (length, batch, features)
        (lambda x: x.reshape(-1, 2, 2), 0, (2, 2, 2)),  # windows side by side
        (lambda x: x.reshape(-1, 2, 2).transpose(0, 1), 1, (2, 2, 2)),
    ],
)
def test_samples_are_found_and_put_back(make, dim: int, shape: tuple[int, ...]) -> None:  # type: ignore[no-untyped-def]
    x = torch.arange(40.0).view(5, 4, 2)
    layout = Layout.of(make(x[:2]), make(x[:3]))
    assert layout == Layout(dim, torch.Size(shape))
    assert torch.equal(layout.flat(make(x)), x.view(5, 8))
    assert torch.equal(layout.shaped(x.view(5, 8)), make(x))
    assert layout.plain == (make(x) is x)


@pytest.mark.parametrize(
    ("two", "three"),
    [
        (torch.ones(4), torch.ones(4)),
        (torch.ones(2, 2), torch.ones(3, 3)),
        (torch.ones(3), torch.ones(4)),
        (torch.ones(2), torch.ones(3, 1)),
        (2, 3),
    ],
)
def test_what_has_no_batch_has_no_layout(two: Tensor | int, three: Tensor | int) -> None:
    assert Layout.of(two, three) is None


def test_minus_infinity_on_both_sides_differs_by_nothing() -> None:
    inf = torch.inf
    response = torch.tensor([[1.0, -inf, 5.0], [0.5, -inf, 5.0 + 1e-15], [0.5, -inf, 5.0]], dtype=torch.float64)
    assert less(response[0], response[2]).tolist() == [0.5, 0.0, 0.0]
    assert columns(response).tolist() == [[0.5, 0.0, 0.0], [0.0, 0.0, 0.0]]  # rounding of f(0) is no synapse
    assert less(torch.tensor([1.0]), torch.tensor([-inf])).tolist() == [inf]
