"""The reading that knows the order of its frames: its neuron, its stream, its gradients, and what only it can learn."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import polarspike as ps
from polarspike import checkpoint, cli
from polarspike.errors import CalibrationError, CheckpointError, InputError, OperatorError, SpecError
from polarspike.specs import SiteSpec
from polarspike.spiking.through_time import LeakyPolarityNeuron
from tests.networks import calibrated, network, signal

SPEC = ps.QuantSpec(2, 4, gain=0.3, signed="all")


def unrolled(
    name: str = "branched", frames: int = 5, **options: float | bool
) -> tuple[ps.QuantizedNetwork, ps.TemporalNetwork, Tensor]:
    qann = calibrated(network(name), SPEC, signal(name, 16))
    return qann, ps.unroll(qann, **options), signal(name, frames=frames)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["branched", "group", "squeeze", "attention"])
def test_one_frame_is_the_quantized_network(name: str) -> None:
    qann, net, frames = unrolled(name, frames=1, leak=0.5, learned=False)
    with torch.no_grad():
        assert torch.allclose(net(frames), qann(frames[:, 0]), atol=1e-5)


def test_the_neuron_is_the_recurrence() -> None:
    neuron = LeakyPolarityNeuron(SiteSpec(2, 3, gain=1.0), "site", leak=0.5)
    neuron.set_step(1.0)
    currents = torch.tensor([2.4, 0.0, 0.6, 9.0, -1.0, -9.0]).view(6, 1, 1)
    values, spikes, membrane = neuron.run(currents, None)
    v, expected = 0.0, []
    for current in currents.flatten().tolist():
        v = 0.5 * v + current
        fired = max(-2, min(3, int((v + 0.5) // 1)))
        v -= fired
        expected.append(fired)
    assert spikes.flatten().tolist() == expected == [2, 0, 1, 3, 2, -2]
    assert float(membrane) == pytest.approx(v)
    assert torch.equal(values, spikes)


def test_without_leak_or_clipping_an_affine_network_is_our_spiking_network() -> None:
    x = torch.randn(16, 6, generator=torch.Generator().manual_seed(1))
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    affine = ps.quantize(model, ps.QuantSpec(4095, 4095, signed="all"), example=x)
    ps.calibrate(affine, [x])
    for site in affine.sites().values():
        site.set_step(1 / 64)
    frames = torch.randn(4, 7, 6, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours = ps.convert(affine)(frames, time_dim=1, every_step=True)
        theirs = ps.unroll(affine, leak=1.0, learned=False)(frames, every_step=True)
    assert torch.allclose(theirs, ours, atol=2e-3)


@pytest.mark.parametrize("name", ["branched", "attention"])
@pytest.mark.parametrize("leak", [1.0, 0.6])
def test_a_stream_gives_what_the_sequence_gives(name: str, leak: float) -> None:
    _, net, frames = unrolled(name, leak=leak)
    state = None
    with torch.no_grad():
        for t in range(frames.shape[1]):
            answer, state = net.step(frames[:, t], state)
            assert torch.allclose(answer, net(frames, timesteps=t + 1), atol=1e-5)
        assert torch.allclose(answer, net(frames, every_step=True)[-1], atol=1e-5)
    assert state is not None and state.timestep == frames.shape[1]
    assert set(state.membranes) == set(net.sites())


def test_memories_start_short_and_can_grow() -> None:
    _, net, frames = unrolled()
    assert all(leak == pytest.approx(0.2) for leak in net.leaks().values())
    net(frames).sum().backward()
    grown = [site.raw_leak.grad for site in net.sites().values() if isinstance(site, LeakyPolarityNeuron)]
    assert any(float(grad.abs()) > 0 for grad in grown if grad is not None)


def test_it_starts_from_the_converted_network_as_well() -> None:
    qann, net, frames = unrolled(leak=0.7)
    again = ps.unroll(ps.convert(qann), leak=0.7)
    with torch.no_grad():
        assert torch.equal(again(frames), net(frames))
    assert {n for n, p in again.named_parameters()} == {n for n, p in net.named_parameters()}


def test_a_state_is_a_value_and_can_be_taken_up_twice() -> None:
    _, net, frames = unrolled()
    with torch.no_grad():
        _, state = net.step(frames[:, 0])
        first, _ = net.step(frames[:, 1], state)
        second, _ = net.step(frames[:, 1], state)
    assert torch.equal(first, second)


def test_the_membrane_is_what_makes_the_order_matter() -> None:
    _, net, frames = unrolled(leak=0.8)
    _, reset, _ = unrolled(leak=1e-9, learned=False)
    with torch.no_grad():
        assert not torch.allclose(net(frames), net(frames.flip(1)), atol=1e-4)
        assert torch.allclose(reset(frames), reset(frames.flip(1)), atol=1e-4)


def test_gradients_reach_weights_steps_and_leaks() -> None:
    _, net, frames = unrolled(leak=0.9)
    net.train()
    net(frames).square().mean().backward()
    silent = [name for name, p in net.named_parameters() if p.grad is None or not bool(p.grad.abs().sum() > 0)]
    assert not [name for name in silent if "leak" in name or "step" in name or "weight" in name], silent


def test_the_gradient_of_the_leak_is_that_of_the_membrane() -> None:
    # Levels so fine that rounding is nothing: v[2] = b (x[1] - k[1] s) + x[2], and a coarse first step leaves a residue.
    neuron = LeakyPolarityNeuron(SiteSpec(1, 1, gain=1.0), "site", leak=0.5, learned=True)
    neuron.set_step(1.0)
    assert neuron.raw_leak is not None
    values, _, _ = neuron.run(torch.tensor([1.4, 0.1]).view(2, 1, 1), None)
    values[1].sum().backward()
    # d y[2] / d raw = d v[2] / d b * b (1 - b) = 0.4 * 0.25, straight through, where nothing clips.
    assert float(neuron.raw_leak.grad) == pytest.approx(0.1, rel=1e-4)  # type: ignore[arg-type]


def order_task(images: int, seed: int) -> tuple[Tensor, Tensor]:
    """Two pulses in two pixels: which came first? Every frame and the mean of the frames say nothing."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 2, (images,), generator=generator)
    frames = 0.05 * torch.randn(images, 4, 2, generator=generator)
    rows = torch.arange(images)
    frames[rows, 0, y] += 1
    frames[rows, 2, 1 - y] += 1
    return frames, y


@pytest.mark.slow
def test_it_learns_an_order_that_no_mean_over_frames_holds() -> None:
    torch.manual_seed(0)
    frames, y = order_task(512, 0)
    test, truth = order_task(256, 1)
    model = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 2))
    qann = ps.quantize(model, ps.QuantSpec(3, 3, signed="all"), example=frames[:, 0])
    ps.calibrate(qann, [frames.flatten(0, 1)])
    batches = [(frames[i : i + 32], y[i : i + 32]) for i in range(0, 512, 32)]
    reached = {}
    for name, leak, learned in (("carried", 0.5, True), ("forgotten", 1e-9, False)):
        net = ps.unroll(qann, leak=leak, learned=learned)
        ps.fit(net, batches, ps.TrainSpec(epochs=20, learning_rate=0.05))
        reached[name] = ps.evaluate(net, [(test, truth)], timesteps=(1, 4)).accuracy[4]
    assert reached["carried"] > 0.95 and reached["forgotten"] < 0.65, reached


def test_what_cannot_be_unrolled_is_refused() -> None:
    qann, net, frames = unrolled()
    with pytest.raises(SpecError, match="unroll: expected a quantized or a spiking network, got Linear"):
        ps.unroll(nn.Linear(2, 2))  # type: ignore[arg-type]
    for leak in (0.0, -1.0, 1.5, float("nan")):
        with pytest.raises(SpecError, match=r"expected a leak in \(0, 1\]"):
            ps.unroll(qann, leak=leak)
    with pytest.raises(CalibrationError):
        ps.unroll(ps.quantize(network("branched"), SPEC, example=signal("branched")))
    with pytest.raises(InputError, match="expected 1 to 5, the frames given, got 6"):
        net(frames, timesteps=6)
    with pytest.raises(SpecError, match="timesteps: expected an integer, got 'a'"):
        net(frames, timesteps="a")
    with pytest.raises(InputError, match="time_dim=9: input 'x' of shape"):
        net(frames, timesteps=1, time_dim=9)
    with pytest.raises(SpecError, match=r"expected a leak in \(0, 1\]"):
        ps.unroll(qann, leak="a")  # type: ignore[arg-type]


def test_a_stream_is_observed_and_checked_and_its_state_is_its_own() -> None:
    _, net, frames = unrolled()
    seen: list[tuple[str, int]] = []
    with torch.no_grad(), net.observe(lambda site, t, spikes: seen.append((site, t))):
        answer, state = net.step(frames[:, 0])
        kept = answer.clone()
        answer.add_(5.0)
        again, _ = net.step(frames[:, 1], state)
    assert seen == [(name, t) for t in (1, 2) for name in net.sites()]
    assert torch.allclose(again, net(frames, timesteps=2).detach(), atol=1e-5)
    assert torch.equal(state.mean, kept)
    with pytest.raises(InputError, match="expected the streams of the state, got 2 others"):
        net.step(frames[:2, 1], state)
    with pytest.raises(SpecError, match="expected the state of the step before or None, got str"):
        net.step(frames[:, 1], "x")  # type: ignore[arg-type]


def test_a_fixed_leak_is_part_of_the_state_and_notes_go_along() -> None:
    qann, _, frames = unrolled()
    qann.notes = {"data": "toy"}
    one, other = (ps.unroll(qann, leak=leak, learned=False) for leak in (0.5, 0.9))
    other.load_state_dict(one.state_dict())
    with torch.no_grad():
        assert torch.equal(one(frames), other(frames)) and one.notes == {"data": "toy"}
    double = ps.unroll(qann.double())
    assert all(p.dtype == torch.float64 for p in double.parameters())


def test_validation_sees_all_frames() -> None:
    qann = ps.quantize(
        nn.Linear(2, 2, bias=False), ps.QuantSpec(7, 7, signed="all", inputs=True), example=torch.ones(4, 2)
    )
    ps.calibrate(qann, [torch.tensor([[1.0, -1.0], [-1.0, 1.0]])])
    net = ps.unroll(qann, leak=1.0, learned=False)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.dim() == 2:
                parameter.copy_(torch.eye(2))
    # The first frame speaks for class 0, the two after it for class 1.
    frames = torch.tensor([[1.0, -1.0], [-1.0, 1.0], [-1.0, 1.0]]).expand(4, 3, 2)
    labels = torch.ones(4, dtype=torch.int64)
    assert ps.evaluate(net, [(frames, labels)], timesteps=(1, 3)).accuracy == {1: 0.0, 3: 1.0}
    spec = ps.TrainSpec(epochs=1, learning_rate=1e-9, step_rate=0.0, warmup_epochs=0)
    assert ps.fit(net, [(frames, labels)], spec, validate=[(frames, labels)]).last.validation_accuracy == 1.0


def test_a_converted_network_is_trained_only_through_its_unrolling() -> None:
    qann, _, frames = unrolled()
    with pytest.raises(SpecError, match=r"or polarspike.unroll\(snn\) through time"):
        ps.fit(ps.convert(qann), [(frames[:, 0], torch.zeros(len(frames), dtype=torch.int64))])


# --- files --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("name", ["branched", "attention"])
def test_a_file_keeps_it(name: str, learned: bool, tmp_path: Path) -> None:
    _, net, frames = unrolled(name, leak=0.7, learned=learned)
    net.notes["model"] = name
    with torch.no_grad():  # as after training: every leak is another
        for index, neuron in enumerate(net.sites().values()):
            if neuron.raw_leak is not None:  # type: ignore[attr-defined]
                neuron.raw_leak += 0.1 * index  # type: ignore[attr-defined]
    ps.save(net, tmp_path / "net.safetensors")
    again = ps.load(tmp_path / "net.safetensors")
    assert isinstance(again, ps.TemporalNetwork) and not again.training and again.notes == net.notes
    net.eval()
    with torch.no_grad():
        assert torch.equal(again(frames, every_step=True), net(frames, every_step=True))
    state = other = None
    for frame in frames.unbind(1):
        mine, state = net.step(frame, state)
        its, other = again.step(frame, other)
        assert torch.equal(mine, its)
    trained = [{name for name, p in made.named_parameters() if p.requires_grad} for made in (again, net)]
    assert trained[0] == trained[1]  # and it can learn on
    ps.load(tmp_path / "net.safetensors", network(name))


def test_a_damaged_file_and_a_command_for_other_networks_are_one_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, net, _ = unrolled()
    path = tmp_path / "net.safetensors"
    ps.save(net, path)
    made, tensors = checkpoint.read(path)
    header = json.dumps(made)
    for wrong, message in (
        (header.replace('"learned": true', '"learned": 1'), "expected true or false for a learned leak, got 1"),
        (header.replace('"kind": "temporal"', '"kind": "spiking"'), "unknown type 'LeakyPolarityNeuron'"),
        (header.replace('"kind": "temporal"', '"kind": "hybrid"'), "unknown kind of network 'hybrid'"),
    ):
        save_file(tensors, path, metadata={"polarspike": wrong})
        with pytest.raises(CheckpointError, match=message):
            ps.load(path)
    ps.save(net, path)
    assert cli.main(["convert", str(path), str(tmp_path / "snn.safetensors")]) == 2
    assert "the file holds one that was trained through time" in capsys.readouterr().err


class Masked(nn.Module):
    """Attention with the mask of a sequence on itself, the same for all samples, which answers more than tensors."""

    def __init__(self, whole: bool = False) -> None:
        super().__init__()
        self.inner, self.head, self.whole = nn.Linear(6, 8), nn.Linear(8, 3), whole

    def forward(self, x: Tensor, mask: Tensor) -> dict[str, Any]:
        y = torch.relu(self.inner(x))
        answer = self.head(torch.relu(torch.softmax(y @ y.mT + mask, -1) @ y)).mean(1)
        return {"answer": answer, "scale": 2.0, "none": None, **({"mask": mask} if self.whole else {})}


def test_what_is_the_same_for_all_samples_stays_whole_and_what_is_no_tensor_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    frames, mask = torch.randn(4, 3, 5, 6), torch.full((5, 5), -math.inf).triu(1)
    masks = torch.stack([mask] * 3, 1)
    first = {"x": frames[:, 0], "mask": mask}
    qann = ps.quantize(Masked().eval(), SPEC, example=first)
    ps.calibrate(qann, [first])
    net = ps.unroll(qann).eval()
    with torch.no_grad():
        whole, state = net(frames, masks), None
        monkeypatch.setattr("polarspike.spiking.sequences._PIECE", 6)  # two samples at a time
        every = net(frames, masks, every_step=True)
        for t in range(3):
            reached, state = net.step({"x": frames[:, t], "mask": mask}, state)
            torch.testing.assert_close(every["answer"][t], reached["answer"])
    torch.testing.assert_close(whole["answer"], every["answer"][-1])
    torch.testing.assert_close(every["answer"][0], qann(**first)["answer"].detach())
    assert (whole["scale"], whole["none"]) == (every["scale"], every["none"]) == (2.0, None)
    many = torch.randn(12, 3, 5, 6)
    with torch.no_grad():
        expected = net(many, masks)["answer"]
        monkeypatch.setattr("polarspike.spiking.sequences._PIECE", 21)  # seven samples, then five: the rows of the mask
        torch.testing.assert_close(net(many, masks)["answer"], expected)
    masks[0, 1] = -1.0
    with pytest.raises(InputError, match=r"input 'mask': expected the same at every timestep, .* of shape"):
        net(frames, masks)
    returning = ps.unroll(calibrated(Masked(whole=True).eval(), SPEC, first))  # type: ignore[arg-type]
    with pytest.raises(OperatorError, match=r"the output: .* 4 images at 1 timesteps, got shape \(5, 5\)"):
        returning(frames[:, :1], masks[:, :1])


def test_a_mask_for_all_samples_is_not_dealt_out_with_a_batch() -> None:
    class Scored(Masked):
        def forward(self, x: Tensor, mask: Tensor) -> Tensor:  # type: ignore[override]
            answer: Tensor = super().forward(x, mask)["answer"]
            return answer

    torch.manual_seed(0)
    batch = {"x": torch.randn(6, 5, 6), "mask": torch.full((5, 5), -math.inf).triu(1)}, torch.arange(6) % 3
    model = Scored()
    whole, pieces = (
        ps.fit(copy.deepcopy(model), [batch], ps.TrainSpec(epochs=1, accumulation=count), progress=False).epochs[0]
        for count in (1, 3)
    )
    assert whole.loss == pytest.approx(pieces.loss, rel=1e-5)
