"""Memory that is written over is nobody else's: a network that nobody watches answers as one that keeps everything."""

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.quantized import QuantizedNetwork
from polarspike.spiking import SpikingNetwork


class Turned(nn.Module):
    """An einsum of one operand, which answers with a view."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(5, 4), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.a(x)
        return self.b(torch.einsum("bij->bji", y)).mean(1) + self.c(y).mean(1)


class Parted(nn.Module):
    """One part of a split, named from both of its ends."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.a(x).chunk(2, -1)
        return self.b(torch.relu(parts[0])) + self.c(parts[-2])


class Chain(nn.Module):
    """Sites whose input nobody else reads: behind a layer, a view, the parts of a split, and a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        one, two = self.b(torch.relu(self.a(x))).chunk(2, -1)
        return self.d(self.c(one) + torch.relu(two))


NETS = {"turned": (Turned, (5, 8)), "parted": (Parted, (8,)), "chain": (Chain, (8,))}


def converted(name: str) -> tuple[QuantizedNetwork, SpikingNetwork, Tensor]:
    torch.manual_seed(0)
    kind, shape = NETS[name]
    frames = torch.randn(4, 6, *shape)
    qann = ps.quantize(kind().eval(), ps.QuantSpec(negative=2, positive=3, init="mse"), example=frames[0])
    ps.calibrate(qann, [torch.randn(32, *shape)])
    for index, site in enumerate(qann.sites().values()):  # encoding again with the same step would change nothing
        site.set_step(site.step.detach() * (1.0 + 0.3 * index))
    return qann, ps.convert(qann), frames


@pytest.mark.parametrize("name", NETS)
@pytest.mark.parametrize("execution", ["steps", "mean"])
def test_the_answer_is_that_of_a_run_that_keeps_all_memory(name: str, execution: str) -> None:
    qann, snn, frames = converted(name)
    before = frames.clone()
    kept = snn(frames, time_dim=0, every_step=True, execution=execution)  # a run with gradients overwrites nothing
    assert kept.requires_grad
    with torch.no_grad():
        assert torch.equal(snn(frames, time_dim=0, every_step=True, execution=execution), kept)
        assert torch.equal(snn(frames[0]), qann(frames[0]))
        torch.testing.assert_close(snn(frames, time_dim=0), ps.refine(qann, 4)(frames.mean(0)))
    assert torch.equal(frames, before)


@pytest.mark.parametrize("timesteps", [1, 4])
@pytest.mark.parametrize("name", ["turned", "parted"])
def test_verify_sees_a_site_that_writes_over_what_others_read(name: str, timesteps: int) -> None:
    qann, snn, frames = converted(name)
    assert ps.verify(qann, snn, [frames[0]], timesteps, scope=False).exact
    for site in snn.sites().values():
        site.overwrites = True
    proof = ps.verify(qann, snn, [frames[0]], timesteps, scope=False)
    assert not proof.exact and proof.first_difference == "output"


@pytest.mark.parametrize("options", [{}, {"timesteps": 3}, {"timesteps": 3, "execution": "mean"}])
def test_what_a_hook_has_seen_is_left_alone(options: dict[str, object]) -> None:
    _, snn, frames = converted("chain")
    assert any(site.overwrites for site in snn.sites().values())
    seen: list[Tensor] = []
    copies: list[Tensor] = []

    def look(_module: nn.Module, _inputs: object, output: Tensor) -> None:
        seen.append(output)
        copies.append(output.clone())

    for name in ("a", "b"):
        snn.network.get_submodule(name).register_forward_hook(look)
    with torch.no_grad():
        snn(frames[0], **options)
    assert len(seen) >= 2
    assert all(torch.equal(old, new) for old, new in zip(seen, copies, strict=True))
