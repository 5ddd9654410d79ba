"""What the example's shapes say of every later input."""

from __future__ import annotations

import pytest
import torch

from polarspike.common.signatures import Signature
from polarspike.errors import InputError


def test_a_signature_fixes_dimensions_and_channels_but_not_sizes() -> None:
    signature = Signature.of({"x": torch.zeros(2, 3, 8, 8), "scale": torch.zeros(2), "flag": True})
    signature.check({"x": torch.zeros(5, 3, 9, 7), "scale": torch.zeros(5)})
    for wrong in (torch.zeros(2, 1, 8, 8), torch.zeros(3, 8, 8), torch.zeros(2, 3, 8, 8, 8)):
        with pytest.raises(InputError, match=r"input 'x': expected shape \(batch, 3, \*\(8\), \*\(8\)\)"):
            signature.check({"x": wrong})
    with pytest.raises(InputError, match="input 'x': expected a tensor, got list"):
        signature.check({"x": [1.0]})
    assert signature.explain({"x": torch.zeros(2, 3, 8, 8)}) == ""
    assert "(2, 3, 4, 8)" in signature.explain({"x": torch.zeros(2, 3, 4, 8)})


def test_a_signature_by_position_holds_by_name() -> None:
    named = Signature.of((torch.zeros(2, 3), True, torch.zeros(2, 5))).named(["a", "flag", "b"])
    assert named.shapes == (("a", (3,)), ("b", (5,)))
