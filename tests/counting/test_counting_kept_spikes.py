"""Masks, shuffles, sums and joins keep spikes, which are counted where they arrive; capped ones are refused."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from polarspike.counting import count_operations
from polarspike.errors import SpecError
from tests.counting.counted import integers
from tests.counting.counted_signed import Net, element, spiking


def test_windows_in_the_batch_dimension_count_as_neurons_of_an_image() -> None:
    x = integers(2, 4, 6)
    model = nn.Sequential(nn.Unflatten(1, (2, 2)), nn.Flatten(0, 1), nn.ReLU(), nn.Linear(6, 1))
    counts = count_operations(spiking(model, x), x)
    assert counts.images == 2 and counts.sites[0].neurons == 24 and counts.totals["membrane_updates"] == 48
    assert counts.synapses[0].dense_macs == 48


def test_masks_keep_spikes() -> None:
    condition = torch.tensor([True, False, True])
    for function in (
        lambda a: torch.where(condition, a, torch.zeros(3)),
        lambda a: a.masked_fill(~condition, 7.0),
    ):
        model = Net(lambda net, a, b, f=function: net.last(f(net.one(a))) + b, one=nn.ReLU(), last=nn.Linear(3, 2))
        a, b = integers(4, 3), torch.ones(4, 2)
        row = count_operations(spiking(model, (a, b)), {"a": a, "b": b}).synapse("last")
        assert row.spiking and row.acs_by_event == 2 * int((a.clamp(0, 3) * condition != 0).sum())


def test_shuffled_channels_keep_spikes() -> None:
    def forward(net: Any, a: Tensor, b: Tensor) -> Tensor:
        a = net.one(a)
        groups = a.view(a.shape[0], 2, 2, 3).transpose(1, 2).contiguous()
        return net.last(groups.view_as(a)) + b

    model = Net(forward, one=nn.ReLU(), last=nn.Conv1d(4, 2, 1, groups=2))
    batch = {"a": integers(2, 4, 3), "b": torch.ones(2, 2, 3)}
    counts = count_operations(spiking(model, batch), batch, 2)
    assert counts.synapse("last").acs_by_event == counts.totals["events"] > 0


def test_running_sums_reach_what_comes_later() -> None:
    x = integers(2, 4)
    model = Net(lambda net, a, b: torch.cumsum(net.one(a), 1) + b, one=nn.ReLU())
    batch = {"a": x, "b": torch.ones(2, 4)}
    row = count_operations(spiking(model, batch), batch).synapse("cumsum")
    # Place i reaches 4 - i sums.
    assert row.acs_by_event == int(((x > 0) * torch.tensor([4, 3, 2, 1])).sum()) and row.connections == 2 * 10


def test_sums_with_a_factor() -> None:
    scale = torch.tensor([0.5, 2.0, 1.0])
    model = Net(lambda net, a, b: net.last(torch.addcmul(net.one(a), scale, net.two(b))), one=nn.ReLU(), two=nn.ReLU(),
                last=nn.Linear(3, 2))  # fmt: skip
    a, b = integers(4, 3), integers(4, 3, seed=1)
    counts = count_operations(spiking(model, (a, b)), {"a": a, "b": b})
    assert counts.synapse("last").acs_by_event == 2 * counts.totals["events"]
    assert element(counts, "addcmul", "scale") == (12, 0) and element(counts, "addcmul", "add") == (12, 0)


def test_enlarged_and_joined_spikes_of_a_decoder() -> None:
    class Decoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two, self.up = nn.ReLU(), nn.ReLU(), nn.Upsample(scale_factor=2, mode="bilinear")
            self.last = nn.Conv2d(2, 1, 1)

        def forward(self, small: Tensor, large: Tensor) -> dict[str, Tensor]:
            up = self.up(self.one(small))
            return {"mask": self.last(torch.cat([self.two(large), self.two(large)], 1)), "up": up}

    batch = {"small": integers(1, 1, 2, 2), "large": integers(1, 1, 4, 4, seed=2)}
    counts = count_operations(spiking(Decoder(), batch), batch)
    up = counts.synapse("up")
    assert up.kind == "interpolation" and up.acs_by_event == 9 * int((batch["small"] > 0).sum())
    assert counts.synapse("last").acs_by_event == 2 * int((batch["large"] > 0).sum())


def test_capped_neurons_are_refused() -> None:
    x = integers(2, 3)
    snn = spiking(nn.Sequential(nn.ReLU(), nn.Linear(3, 2)), x, max_spikes_per_step=1)
    with pytest.raises(SpecError, match="max_spikes_per_step=1"):
        count_operations(snn, x)
