"""Counts of operators that are not affine (gates, norms, maxima): one for each element, and means of it over time."""

import pytest
import torch
from torch import Tensor, nn

from polarspike.counting import count_operations
from polarspike.spiking import SpikingNetwork
from tests.counting.counted import integers
from tests.counting.counted_signed import element, spiking


class Squeeze(nn.Module):
    """Squeeze and excitation behind a site, in a channel-wise convolution's output."""

    def __init__(self) -> None:
        super().__init__()
        self.act, self.pool, self.fc, self.gate = (
            nn.ReLU(),
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(2, 2, 1),
            nn.Hardsigmoid(),
        )
        self.depthwise = nn.Conv2d(2, 2, 3, groups=2, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        return self.depthwise(x * self.gate(self.fc(self.pool(x))))


def test_squeeze_and_excitation() -> None:
    x = integers(2, 2, 3, 3)
    snn = spiking(Squeeze(), x)
    counts = count_operations(snn, x)
    events = int((x > 0).sum())
    # The spikes enter the average, and the product, one accumulate each; what leaves the average is graded.
    assert counts.synapse("pool").acs_by_event == counts.synapse("mul (input)").acs_by_event == events
    assert counts.synapse("fc").macs == 2 * 2 * 2
    assert element(counts, "mul", "product") == (36, 36)  # 2 * 2 * 9 elements
    assert element(counts, "gate", "function") == (4, 4)
    depthwise = counts.synapse("depthwise")
    site = depthwise.sources[0]
    assert depthwise.spiking and depthwise.acs_by_event == counts.site(site).events  # a 3x3 window over 3x3: one output
    assert "product of signals" in _reason_of(snn, x, "mul")
    later = count_operations(snn, x, 3)
    assert element(later, "mul", "product") == (36, 108)
    assert element(later, "mul", "mean") == (0, 2 * (36 + 4 + 36))
    assert element(later, "gate", "mean") == (0, 2 * (4 + 4))


def _reason_of(snn: SpikingNetwork, x: Tensor, name: str) -> str:
    from polarspike.counting.propagation import propagate
    from polarspike.counting.recording import Recording

    _, state = snn.step(x)
    recording = Recording(snn.network, [x])
    operands = propagate(recording, {}, state.neurons)
    return str(next(operand.reason for node, operand in operands.items() if node.name == name))


class Beside(nn.Module):
    """A site whose spikes go to a layer, and through an operator that is not affine to another one."""

    def __init__(self, function: nn.Module) -> None:
        super().__init__()
        self.act, self.function, self.one, self.two = nn.ReLU(), function, nn.Conv1d(2, 5, 1), nn.Conv1d(2, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(x)
        return self.one(x) + self.two(self.function(x))


@pytest.mark.parametrize(
    "function", [nn.LayerNorm([2, 3]), nn.GroupNorm(1, 2), nn.GELU(), nn.Softmax(-1), nn.Sigmoid()]
)
@pytest.mark.parametrize("timesteps", [1, 3])
def test_what_is_not_affine_multiplies_once_for_each_element(function: nn.Module, timesteps: int) -> None:
    x = integers(4, 2, 3)
    counts = count_operations(spiking(Beside(function), x, step=0.25), x, timesteps)
    # 24 elements; at every later step 24 means and 24 answers move.
    assert element(counts, "function", "function") == (24, 24 * timesteps)
    assert element(counts, "function", "mean") == (0, 48 * (timesteps - 1))
    # The spikes enter it at one accumulate each.
    assert counts.synapse("function (input)").acs_by_event == counts.site("act").events > 0
    assert counts.synapse("one").sources == ("act",) and counts.synapse("two").sources == ("two_input",)
    assert element(counts, "add", "add") == (4 * 5 * 3, 4 * 5 * 3 * timesteps)


def test_maximum_over_time_adds() -> None:
    x = integers(2, 2, 4)
    counts = count_operations(spiking(nn.Sequential(nn.ReLU(), nn.MaxPool1d(2), nn.Conv1d(2, 1, 1)), x), x, 3)
    # 16 sums and 8 answers at 2 later steps; 8 comparisons at all 3.
    assert element(counts, "1", "add") == (0, 2 * 24) and element(counts, "1", "comparison") == (8, 24)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table, self.places = nn.Embedding(10, 4), nn.Embedding(5, 4)
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 3)

    def forward(self, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        x = self.table(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.head(self.norm(x))
        return x * mask[..., None], x.mean(1)


def test_embedding_of_integers_and_two_outputs() -> None:
    torch.manual_seed(0)
    batch = {"ids": torch.randint(0, 10, (2, 5)), "mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 0, 0, 0]])}
    counts = count_operations(spiking(Words(), batch, step=0.5), batch, 2)
    assert counts.images == 2
    (site,) = counts.sites
    assert site.neurons == 5 * 4 and site.events > 0
    assert counts.synapse("head").acs_by_event == 3 * site.events
    # Nothing is multiplied for a table: the places are a constant, added to 40 elements at both steps.
    assert counts.totals["macs"] == 0 and element(counts, "add", "add") == (40, 80)
    assert element(counts, "norm", "function") == (40, 80)
    assert counts.totals["ann_scalings"] == 30  # the mask, on 2 * 5 * 3 elements
