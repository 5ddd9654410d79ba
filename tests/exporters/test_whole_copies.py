"""Codes that are only moved, or of which the largest is taken: exact in whole numbers, pixel for pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike import integer
from polarspike.errors import ExportError
from polarspike.exporters.description import KEY
from polarspike.exporters.rules import layouts
from tests.networks import calibrated

pytestmark = pytest.mark.filterwarnings("ignore:channels that never carry a signal")

pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from polarspike.exporters.onnx_int8 import model_of  # noqa: E402 (needs onnx)
from tests.exporters.test_whole_numbers import different, near, session, whole  # noqa: E402 (needs onnx)


class Copies(nn.Module):
    """Codes, moved; then a convolution, and a head that sees every place."""

    def __init__(self, what: Any) -> None:
        super().__init__()
        self.what, self.conv, self.last = what, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.last(self.what(torch.relu(self.conv(x))))).amax((2, 3))


@pytest.mark.parametrize("granularity", ["tensor", "channel"])
@pytest.mark.parametrize(
    "what",
    [
        lambda x: nn.functional.interpolate(x, scale_factor=2),
        lambda x: nn.functional.interpolate(x, scale_factor=(3, 1)),
        lambda x: nn.functional.interpolate(x, size=(11, 5)),
        lambda x: torch.roll(x, (1, -2), (2, 3)),
        lambda x: torch.roll(x, 1, 1),
        lambda x: nn.functional.pad(x, (2, 1, 0, 3), mode="reflect"),
        lambda x: nn.functional.pad(x, (2, 1, 0, 3), mode="replicate"),
        lambda x: x.amax(3, keepdim=True),
        lambda x: x.amax(1, keepdim=True) + x,
    ],
    ids=[
        "twice",
        "one side",
        "to a size",
        "roll",
        "roll of channels",
        "reflect",
        "replicate",
        "amax",
        "amax of channels",
    ],
)
def test_copies_and_the_largest_of_codes_are_exact(what: Any, granularity: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, 7, 9)
    snn = ps.convert(calibrated(Copies(what).eval(), ps.QuantSpec(0, 7, granularity=granularity), x))
    made = whole(snn, x)
    assert different(made, x.numpy(), session(model_of(made, KEY, codes=True))) == 0
    # Code for code: what the site fired, moved by torch, is what the last convolution reads.
    values = dict(integer.trace(made, {made.inputs[0][0]: x.numpy()}))
    if any(one.kind == "take" for one in made.instructions):
        _, read = (one.inputs[0] for one in made.instructions if one.kind == "synapse")
        fired = torch.from_numpy(values[made.sites["relu"]]).float()  # as the network computes
        assert np.array_equal(values[read], what(fired).numpy())
    integer.save(made, tmp_path / "net")
    given = {made.inputs[0][0]: x.numpy()}
    (answer,) = integer.run(made, given)
    assert np.array_equal(integer.run(integer.load(tmp_path / "net"), given)[0], answer)
    # What NumPy and ONNX Runtime agree on, they read from the same instructions: the network itself is not asked above.
    assert near(snn, answer, x)


class Enlarged(nn.Module):
    """Codes, enlarged, of lines or of images."""

    def __init__(self, line: bool, **options: Any) -> None:
        super().__init__()
        kind = nn.Conv1d if line else nn.Conv2d
        self.conv, self.last, self.options = kind(3, 4, 3, padding=1), kind(4, 4, 3, padding=1), options

    def forward(self, x: Tensor) -> Tensor:
        x = nn.functional.interpolate(torch.relu(self.conv(x)), **self.options)
        return torch.relu(self.last(x))


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 2), {"size": (82, 82)}),
        ((2, 14), {"size": (4, 46)}),
        ((14,), {"size": 46}),
        ((26,), {"size": 22}),
        ((42, 2), {"scale_factor": 3.3, "recompute_scale_factor": True}),
        ((42,), {"scale_factor": 3.3, "recompute_scale_factor": True}),
        ((42,), {"scale_factor": 3.3}),
    ],
    ids=["2 to 82", "14 to 46", "14 to 46 of a line", "26 to 22", "recomputed", "recomputed of a line", "by 3.3"],
)
def test_an_enlargement_takes_the_pixels_that_the_float32_network_takes(shape: Any, options: Any) -> None:
    torch.manual_seed(0)
    x = torch.randn(6, 3, *shape)
    snn = ps.convert(calibrated(Enlarged(len(shape) == 1, **options).eval(), ps.QuantSpec(0, 7), x))
    made = whole(snn, x)
    assert different(made, x.numpy(), session(model_of(made, KEY, codes=True))) == 0
    values = dict(integer.trace(made, {made.inputs[0][0]: x.numpy()}))
    _, read = (one.inputs[0] for one in made.instructions if one.kind == "synapse")
    # The spiking network's own enlargement is given the codes that the whole numbers fired.
    fired, seen = torch.from_numpy(values[made.sites["relu"]]).float(), []
    snn.network.relu.register_forward_hook(lambda *_: fired)
    snn.network.last.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        snn(x)
    assert seen[0].dtype == torch.float32 and np.array_equal(values[read], seen[0].numpy())


def test_an_enlargement_beyond_what_float32_counts_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layouts, "_COUNTED", 13)
    x = torch.randn(6, 3, 14)
    snn = ps.convert(calibrated(Enlarged(True, size=46).eval(), ps.QuantSpec(0, 7), x))
    with pytest.raises(ExportError, match="an enlargement of 14 pixels, of which float32 counts only 13"):
        whole(snn, x)
