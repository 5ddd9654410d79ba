"""How sequences are read: by networks without time, by spiking ones frame by frame, and what proves that both agree."""

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import InputError, SpecError
from polarspike.readings import AtOnce, OverFrames, Seen, seen, timesteps_of, verify_sequences
from polarspike.specs import Reading

FRAMES = torch.randn(
    (5, 4, 2, 6, 6), generator=torch.Generator().manual_seed(1)
)  # (batch, time, channels, height, width)


def networks(reading: Reading) -> tuple[ps.QuantizedNetwork, ps.SpikingNetwork]:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )  # fmt: skip
    qann = ps.quantize(model.eval(), ps.QuantSpec(1, 6), example=FRAMES[:, 0])
    ps.calibrate(qann, Seen([(FRAMES, None)], "frames"))
    return qann, ps.convert(qann, ps.ConvertSpec(reading=reading))


def test_what_is_seen_of_a_sequence() -> None:
    assert torch.equal(seen(FRAMES, "integrate"), FRAMES.mean(1))
    assert torch.equal(seen(FRAMES, "frames")[4 * 3 + 2], FRAMES[3, 2])  # sequence by sequence
    assert torch.equal(seen(FRAMES, "channels")[3, 2 * 2 + 1], FRAMES[3, 2, 1])

    class First(nn.Module):
        def forward(self, frames: Tensor) -> Tensor:
            return frames.flatten(1)[:, :1]

    assert torch.equal(AtOnce(First(), "frames")(FRAMES), FRAMES[:, :, 0, 0, :1].mean(1))
    with pytest.raises(SpecError, match="reading: expected one of integrate, frames, channels, got 'mean'"):
        seen(FRAMES, "mean")  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"expected sequences \(batch, frames, ...\) .* got the shape \(5,\)"):
        seen(torch.zeros(5), "frames")
    assert timesteps_of((1, 2, 4, 8), 4) == (1, 2, 4) and timesteps_of((1,), 1) == (1,)


@pytest.mark.parametrize("reading", ["integrate", "frames"])
def test_every_number_of_frames_is_proved(reading: Reading) -> None:
    qann, snn = networks(reading)
    qann.double()
    snn.double()
    for timesteps in (1, 3, 4):
        proof = verify_sequences(qann, snn, [FRAMES.double()[:3], FRAMES.double()[3:]], timesteps)
        assert proof.exact and proof.timesteps == timesteps
        neurons = 5 * 4 * (16 + 4)  # sequences, channels, and the pixels of either site
        assert proof.compared == (neurons * timesteps if reading == "frames" else neurons)
    table = ps.evaluate(OverFrames(snn), [(FRAMES.double(), torch.arange(5) % 3)], (1, 4))
    assert table.firing is not None and table.firing[1].events < table.firing[4].events
    with pytest.raises(InputError, match=r"at least 5 frames, got the shape \(5, 4"):
        verify_sequences(qann, snn, [FRAMES.double()], 5)
    with pytest.raises(InputError, match="expected shape"):  # time and channels exchanged
        verify_sequences(qann, snn, [FRAMES.double().transpose(1, 2)], 2)
    with pytest.raises(InputError, match="at least 5 frames"):
        ps.evaluate(OverFrames(snn), [(FRAMES.double(), torch.arange(5) % 3)], (5,))


@pytest.mark.parametrize("reading", ["integrate", "frames"])
def test_a_proof_of_sequences_can_fail(reading: Reading) -> None:
    qann, snn = networks(reading)
    site = list(snn.sites())[1]
    snn.sites()[site].start.mul_(1.02)
    for timesteps in (1, 4):
        proof = verify_sequences(qann, snn, [FRAMES], timesteps)
        assert not proof.exact and proof.first_difference == site
    qann, snn = networks(reading)
    with torch.no_grad():
        list(snn.network.parameters())[-1].add_(0.01)  # the head's bias: no code differs, but the answer does
    for timesteps in (1, 4):
        proof = verify_sequences(qann, snn, [FRAMES], timesteps)
        assert not proof.exact and proof.first_difference == "output" and proof.output_difference > 0.005


def test_an_answer_that_is_streamed_otherwise_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    qann, snn = networks("frames")
    step = snn.step
    # As if membranes were carried from frame to frame: each frame alone is right.
    monkeypatch.setattr(snn, "step", lambda frame, state=None: (step(frame)[0], state))
    assert verify_sequences(qann, snn, [FRAMES], 1).exact
    assert verify_sequences(qann, snn, [FRAMES], 4).first_difference == "output"


def test_one_timestep_is_no_sequence() -> None:
    qann, snn = networks("channels")
    with pytest.raises(SpecError, match="reading='channels' has one timestep"):
        verify_sequences(qann, snn, [FRAMES])


def test_a_network_over_frames_reads_the_first_ones() -> None:
    class Last(nn.Module):
        def forward(self, frames: Tensor, time_dim: int, every_step: bool) -> Tensor:
            assert time_dim == 1 and not every_step
            return frames[:, -1]

    assert OverFrames(Last())(torch.arange(6).view(1, 6), timesteps=4).item() == 3
