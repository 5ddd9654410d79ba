"""What a neuron hands on when its code moves."""

import pytest
import torch
from torch import Tensor

from polarspike import ops
from polarspike.firing import emit


@pytest.mark.parametrize("watched", [False, True])
@pytest.mark.parametrize("gain", [1.0, 0.3, torch.tensor(0.7)])
def test_a_code_that_moves_by_the_same_hands_on_the_same(gain: float | Tensor, watched: bool) -> None:
    codes = torch.arange(-5.0, 6.0)
    step = torch.tensor(0.1, requires_grad=watched)
    for t in range(1, 40):
        assert torch.equal(emit((t - 1) * codes, t * codes, step, gain), ops.decode(codes, step, gain))
    crossing = emit(torch.tensor([-2.0, 3.0]), torch.tensor([1.0, -1.0]), step, gain)
    torch.testing.assert_close(crossing, 0.1 * torch.tensor([1 + 2 * float(gain), -3 - float(gain)]), check_dtype=False)
