"""The networks that the tests of checkpoints save, and when two answer the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import polarspike as ps

X = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(6))


class Net(nn.Module):
    def __init__(self, width: int = 4, spare: bool = False) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width)
        self.two, self.three = nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, width, 3, padding=1)
        self.three.weight = self.two.weight  # tied
        self.leaky, self.head = nn.LeakyReLU(0.1), nn.Linear(width, 5)
        self.spare = nn.Linear(7, 7) if spare else None

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.norm(self.conv(x)))
        return self.head(nn.functional.max_pool2d(self.leaky(self.three(self.two(x)) + x), 2).mean([2, 3]))


SPECS = {
    "tensor": ps.QuantSpec(negative=2, positive=6),
    "channel": ps.QuantSpec(negative=2, positive=6, granularity="channel", init="mse"),
    "learned": ps.QuantSpec(negative=2, positive=6, gain="learned", signed="all"),
    "overrides": ps.QuantSpec(overrides={"leaky": ps.QuantSpec(negative=1, positive=1)}),
}


def made(model: nn.Module | None = None, spec: ps.QuantSpec = SPECS["tensor"]) -> ps.QuantizedNetwork:
    qann = ps.quantize(model or Net(), spec, example=X)
    ps.calibrate(qann, [X])
    with torch.no_grad():  # as after training: nothing is where it started
        for site in qann.sites().values():
            site.offset.sub_(0.1 * site.start)
            if site.raw_gain is not None:
                site.raw_gain.sub_(0.07)
    return qann.eval()


def same(left: nn.Module, right: nn.Module, x: Tensor = X) -> bool:
    with torch.no_grad():
        return torch.equal(left(x), right(x))
