"""The spiking network as a module: every way to run it, that it remembers nothing, and what it refuses."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import polarspike as ps
from polarspike.errors import InputError, SpecError
from polarspike.inputs import running_means
from polarspike.quantized import QuantizedNetwork
from polarspike.spiking import SpikingNetwork, SpikingState
from tests.networks import NETWORKS, calibrated, network, signal, trained_like

SPEC = ps.QuantSpec(2, 4, gain=0.3, signed="all")
pytestmark = pytest.mark.usefixtures("no_grad")


@pytest.fixture
def no_grad() -> Any:
    with torch.no_grad():
        yield


def pair(name: str = "branched", spec: ps.ConvertSpec | None = None) -> tuple[QuantizedNetwork, SpikingNetwork]:
    qann = calibrated(network(name), SPEC, signal(name, 16))
    return qann, ps.convert(qann, spec)


class Answer(NamedTuple):
    scores: Tensor
    size: int


class Several(nn.Module):
    """Two inputs by name, one of them optional; outputs in a tree with leaves that are no float tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.act, self.head = nn.Linear(6, 8), nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 3)

    def forward(self, a: Tensor, b: Tensor, shift: Tensor | None = None) -> dict[str, Any]:
        hidden = self.act(self.left(a) + self.right(b))
        scores = self.head(hidden)
        if shift is not None:
            scores = scores + shift
        return {"scores": scores, "pair": (hidden, scores.mean(1)), "size": a.shape[0]}


def several(*, with_shift: bool = True) -> tuple[QuantizedNetwork, SpikingNetwork, dict[str, Tensor]]:
    batch = {"a": torch.randn(4, 6), "b": torch.randn(4, 5)}
    if with_shift:
        batch["shift"] = torch.randn(4, 3)
    qann = ps.quantize(trained_like(Several()), SPEC, example=batch)
    ps.calibrate(qann, [batch])
    return qann.eval(), ps.convert(qann.eval()), batch


class TestWaysToRun:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_every_step_is_a_prefix_property(self, name: str) -> None:
        _, snn = pair(name)
        x = signal(name, 3)
        curve = snn(x, timesteps=5, every_step=True)
        assert curve.shape[0] == 5
        for t in range(1, 6):
            assert torch.equal(curve[t - 1], snn(x, timesteps=t))
        assert torch.equal(curve[0], snn(x))

    def test_every_step_of_a_sequence_is_a_prefix_property(self) -> None:
        _, snn = pair()
        frames = signal("branched", 3, frames=4)
        curve = snn(frames, time_dim=1, every_step=True)
        for t in range(1, 5):
            assert torch.equal(curve[t - 1], snn(frames[:, :t], time_dim=1))
        means = snn(frames, time_dim=1, every_step=True, execution="mean")
        for t in range(1, 5):
            assert torch.equal(means[t - 1], snn(frames[:, :t], time_dim=1, execution="mean"))

    @pytest.mark.parametrize("position", [0, 1, 2, 4, -1, -3])
    def test_time_may_be_in_any_dimension(self, position: int) -> None:
        _, snn = pair()
        frames = [signal("branched", 3, seed=seed) for seed in (1, 2, 3)]
        sequence = torch.stack(frames, dim=position)
        state: SpikingState | None = None
        for frame in frames:
            y, state = snn.step(frame, state)
        assert torch.equal(snn(sequence, time_dim=position), y)
        assert torch.equal(snn(sequence, time_dim=position, timesteps=3), y)  # saying the length is allowed

    def test_a_sequence_of_one_frame_is_the_first_timestep(self) -> None:
        _, snn = pair()
        x = signal("branched", 3)
        assert torch.equal(snn(x.unsqueeze(1), time_dim=1), snn(x))

    def test_a_repeated_frame_is_the_repeated_input(self) -> None:
        _, snn = pair()
        x = signal("branched", 3)
        sequence = x.unsqueeze(1).expand(-1, 4, -1, -1, -1)
        assert torch.equal(snn(sequence, time_dim=1), snn(x, timesteps=4))
        assert torch.equal(
            snn(sequence, time_dim=1, execution="mean"), snn(x, timesteps=4, execution="mean")
        )  # the mean of equal frames is not rounded

    def test_streaming_equals_forward(self) -> None:
        _, snn = pair()
        x, state = signal("branched", 3), None
        for t in range(1, 6):
            y, state = snn.step(x, state)
            assert state.timestep == t
            assert torch.equal(y, snn(x, timesteps=t))

    def test_a_state_is_a_value_and_may_branch(self) -> None:
        _, snn = pair()
        a, b = signal("branched", 3, seed=1), signal("branched", 3, seed=2)
        _, state = snn.step(a)
        kept = copy.deepcopy(state)
        left, _ = snn.step(a, state)
        right, _ = snn.step(b, state)
        again, _ = snn.step(a, state)
        assert torch.equal(left, again)
        assert not torch.equal(left, right)
        assert state.timestep == kept.timestep == 1
        assert len(state.neurons) == len(snn.sites())
        for now, before in zip(pytree.tree_leaves(vars(state.walk)), pytree.tree_leaves(vars(kept.walk)), strict=True):
            assert torch.equal(now, before)
        assert torch.equal(state.mean, kept.mean)

    def test_frames_reading_averages_first_timesteps(self) -> None:
        qann, snn = pair(spec=ps.ConvertSpec(reading="frames"))
        frames = signal("branched", 3, frames=4)
        single = torch.stack([qann(frames[:, t]) for t in range(4)])
        curve = snn(frames, time_dim=1, every_step=True)
        for t in range(4):
            torch.testing.assert_close(curve[t], single[: t + 1].mean(0))
        assert torch.equal(snn(frames, time_dim=1), curve[-1])
        integrating = ps.convert(qann)
        assert not torch.allclose(integrating(frames, time_dim=1), curve[-1])  # another network altogether
        # One image again and again: every step is its first timestep.
        torch.testing.assert_close(snn(frames[:, 0], timesteps=3), qann(frames[:, 0]))
        with pytest.raises(SpecError, match="takes every frame as a first timestep"):
            ps.verify(qann, snn, [frames[:, 0]], timesteps=2)

    def test_the_mean_domain_keeps_half_precision_means_wide(self) -> None:
        frames = [torch.full((1, 2), value, dtype=torch.bfloat16) for value in (256.0, 1.0, 1.0, 1.0)]
        *_, mean = running_means(frames)
        assert isinstance(mean, Tensor)
        assert mean.dtype == torch.bfloat16
        assert torch.equal(mean, torch.full((1, 2), 64.75).bfloat16())

    def test_an_empty_batch_passes(self) -> None:
        qann, snn = pair()
        x = signal("branched", 2)[:0]
        assert qann(x).shape == snn(x).shape == snn(x, timesteps=3).shape == (0, 4)

    def test_other_spatial_sizes_pass_where_the_network_takes_them(self) -> None:
        qann, snn = pair("leaky")
        x = torch.randn(2, 2, 19, 17)
        assert torch.equal(snn(x), qann(x))
        _, plain = pair("plain")
        for timesteps in (1, 2):
            with pytest.raises(
                InputError, match=r"has shape \(2, 2, 19, 17\) where the example had \(batch, 2, 8, 8\)"
            ):
                plain(x, timesteps=timesteps)


class TestMemory:
    def test_it_remembers_nothing_between_calls(self) -> None:
        _, snn = pair()
        x, other = signal("branched", 3), signal("branched", 5, seed=9)
        first = {t: snn(x, timesteps=t) for t in (1, 3)}
        snn(other, timesteps=7)
        snn.step(other)
        with pytest.raises(InputError):
            snn(torch.randn(1, 7, 8, 8), timesteps=3)
        with pytest.raises(RuntimeError), snn.observe(_interrupt):
            snn(x, timesteps=3)
        assert not snn._observers
        for t, y in first.items():
            assert torch.equal(snn(x, timesteps=t), y)

    def test_it_stays_in_evaluation_mode(self) -> None:
        _, snn = pair()
        x = signal("branched", 3)
        expected = snn(x, timesteps=2)
        assert snn.train() is snn
        nn.Sequential(snn).train()
        assert not any(module.training for module in snn.modules())
        assert torch.equal(snn(x, timesteps=2), expected)

    def test_its_buffers_do_not_move(self) -> None:
        _, snn = pair()
        before = copy.deepcopy(snn.state_dict())
        snn(signal("branched", 3), timesteps=4)
        for name, value in snn.state_dict().items():
            assert torch.equal(value, before[name]), name

    def test_input_and_output_are_the_callers(self) -> None:
        _, snn = pair()
        x = signal("branched", 3)
        before = x.clone()
        y, state = snn.step(x)
        kept = snn.step(x, state)[0].clone()
        y.add_(100.0)  # the caller may do what it likes with an answer
        assert torch.equal(x, before)
        assert torch.equal(snn.step(x, state)[0], kept)

    def test_a_buffer_for_frames_may_be_used_again(self) -> None:
        model = nn.Sequential(nn.MaxPool2d(2), nn.Conv2d(2, 3, 3), nn.ReLU())  # its first state is a sum of inputs
        frames = [torch.randn(2, 2, 8, 8) for _ in range(3)]
        qann = calibrated(model, SPEC, frames[0])
        snn = ps.convert(qann)
        buffer, state = torch.empty(2, 2, 8, 8), None
        for frame in frames:
            y, state = snn.step(buffer.copy_(frame), state)
        assert torch.equal(y, snn(torch.stack(frames), time_dim=0))

    def test_the_two_networks_share_no_tensor(self) -> None:
        qann, snn = pair()
        x = signal("branched", 3)
        expected = snn(x)
        for value in qann.parameters():
            value.zero_()
        assert torch.equal(snn(x), expected)


def _interrupt(site: str, timestep: int, spikes: Tensor) -> None:
    raise RuntimeError(f"{site} at {timestep}")


class TestCopies:
    @pytest.mark.parametrize("name", NETWORKS)
    def test_a_deep_copy_and_a_state_dict_give_the_same_answers(self, name: str) -> None:
        qann, snn = pair(name)
        x = signal(name, 3)
        expected = snn(x, timesteps=3)
        assert torch.equal(copy.deepcopy(snn)(x, timesteps=3), expected)
        other = ps.convert(calibrated(network(name, seed=5), SPEC, signal(name, 16, seed=7)))
        assert not torch.equal(other(x, timesteps=3), expected)
        other.load_state_dict(snn.state_dict())
        assert torch.equal(other(x, timesteps=3), expected)
        fresh = ps.quantize(network(name, seed=5), SPEC, example=x)  # never calibrated: its state dict brings the steps
        fresh.load_state_dict(qann.state_dict())
        assert torch.equal(fresh.eval()(x), qann(x))

    def test_double_and_back_agrees_with_the_quantized_network(self) -> None:
        qann, snn = pair()
        x = signal("branched", 3)
        assert torch.equal(copy.deepcopy(snn).double()(x.double()), copy.deepcopy(qann).double()(x.double()))
        assert torch.equal(copy.deepcopy(snn).double().float()(x), snn(x))


class TestInputsAndOutputs:
    def test_inputs_by_position_and_by_name_are_one(self) -> None:
        qann, snn, batch = several()
        a, b, shift = batch.values()
        expected = qann(**batch)
        for timesteps in (1, 2):
            for args, named in (((a, b, shift), {}), ((a, b), {"shift": shift}), ((a,), {"shift": shift, "b": b})):
                got = snn(*args, **named, timesteps=timesteps)
                torch.testing.assert_close(got["scores"], snn(**batch, timesteps=timesteps)["scores"], rtol=0, atol=0)
        assert torch.equal(snn(**batch)["scores"], expected["scores"])
        y, _ = snn.step((a, b, shift))
        assert torch.equal(y["scores"], expected["scores"])
        y, _ = snn.step(batch)
        assert torch.equal(y["scores"], expected["scores"])

    def test_outputs_keep_their_tree(self) -> None:
        qann, snn, batch = several(with_shift=False)
        one, three = snn(**batch), snn(**batch, timesteps=3)
        assert one.keys() == three.keys() == {"scores", "pair", "size"}
        assert one["size"] == three["size"] == 4
        curve = snn(**batch, timesteps=3, every_step=True)
        assert curve["scores"].shape == (3, 4, 3)
        assert curve["size"] == 4
        assert torch.equal(curve["pair"][1][2], three["pair"][1])
        fine = ps.refine(qann, 3)(**batch)
        torch.testing.assert_close(three["pair"][0], fine["pair"][0])

    def test_sequences_of_several_inputs(self) -> None:
        qann, snn, batch = several()
        frames = {name: torch.stack([value, 2 * value, -value], dim=1) for name, value in batch.items()}
        proof = ps.verify(qann.double(), snn.double(), [{k: v.double() for k, v in frames.items()}], time_dim=1)
        assert proof.exact, str(proof)
        frames["b"] = frames["b"][:, :2]
        with pytest.raises(InputError, match=r"expected inputs of one common length, at least 1, got \[2, 3\]"):
            snn(**frames, time_dim=1)

    @pytest.mark.parametrize("timesteps", [1, 2])
    @pytest.mark.parametrize("kind", ["qann", "snn"])
    def test_what_does_not_bind_is_refused_the_same_way_everywhere(self, kind: str, timesteps: int) -> None:
        qann, snn = pair()
        x = signal("branched", 2)
        if kind == "qann" and timesteps > 1:
            run: Any = ps.refine(qann, timesteps)
        elif kind == "qann":
            run = qann
        else:

            def run(*args: Any, **named: Any) -> Any:
                return snn(*args, **named, timesteps=timesteps)

        cases: list[tuple[tuple[Any, ...], dict[str, Any], str]] = [
            ((x, x), {}, r"expected at most 1 positional inputs, got 2; the network takes \['x'\]"),
            ((x,), {"y": x}, r"unknown inputs \['y'\]; the network takes \['x'\]"),
            ((x,), {"x": x}, r"inputs \['x'\] are given twice"),
            ((), {}, r"inputs \['x'\] are missing"),
            ((x.numpy(),), {}, "input 'x': expected a tensor, got ndarray"),
            (({"x": x},), {}, r"expected a tensor, got dict; pass a dict of inputs by keyword"),
            ((torch.randn(2, 3, 8, 8),), {}, r"input 'x': expected shape \(batch, 2, \*\(8\), \*\(8\)\)"),
            ((), {"x": torch.randn(2, 3, 8, 8)}, r"input 'x': expected shape \(batch, 2, .*got \(2, 3, 8, 8\)"),
            ((x[0],), {}, r"input 'x': expected shape .*got \(2, 8, 8\)"),
        ]
        for args, named, message in cases:
            with pytest.raises(InputError, match=message):
                run(*args, **named)

    def test_a_network_with_any_number_of_inputs(self) -> None:
        class Sum(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.one, self.act, self.head = nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2)

            def forward(self, *signals: Tensor) -> Tensor:
                return self.head(self.act(self.one(signals[0]) + self.one(signals[1])))

        x, y = torch.randn(5, 4), torch.randn(5, 4)
        qann = ps.quantize(Sum(), SPEC, example=(x, y))
        qann.sites()["act"].set_step(0.3)  # inputs without names cannot be told from (input, target) in a batch
        snn = ps.convert(qann)
        assert torch.equal(snn(x, y), qann(x, y))
        torch.testing.assert_close(snn(x, y, timesteps=3), ps.refine(qann, 3)(x, y))


class TestRefusals:
    @pytest.mark.parametrize("timesteps", [0, -1, True, 2.0, "3"])
    def test_timesteps(self, timesteps: Any) -> None:
        _, snn = pair()
        with pytest.raises(SpecError, match=f"timesteps: expected a positive integer, got {timesteps!r}"):
            snn(signal("branched", 2), timesteps=timesteps)

    def test_timesteps_against_the_sequence(self) -> None:
        _, snn = pair()
        with pytest.raises(SpecError, match="timesteps=3 contradicts a sequence of 4 frames; leave timesteps out"):
            snn(signal("branched", 2, frames=4), time_dim=1, timesteps=3)

    @pytest.mark.parametrize("time_dim", [5, -6])
    def test_no_such_dimension(self, time_dim: int) -> None:
        _, snn = pair()
        with pytest.raises(InputError, match=rf"time_dim={time_dim}: input 'x' of shape \(2, 4, 2, 8, 8\) has no such"):
            snn(signal("branched", 2, frames=4), time_dim=time_dim)

    @pytest.mark.parametrize("time_dim", [0.5, True, "1"])
    def test_no_dimension_at_all(self, time_dim: Any) -> None:
        _, snn = pair()
        with pytest.raises(SpecError, match="time_dim: expected an integer or None"):
            snn(signal("branched", 2, frames=4), time_dim=time_dim)

    def test_an_empty_sequence(self) -> None:
        _, snn = pair()
        with pytest.raises(InputError, match=r"expected inputs of one common length, at least 1, got \[0\]"):
            snn(signal("branched", 2, frames=4)[:, :0], time_dim=1)

    def test_execution(self) -> None:
        _, snn = pair()
        with pytest.raises(SpecError, match="execution: expected 'steps' or 'mean', got 'fast'"):
            snn(signal("branched", 2), execution="fast")  # type: ignore[arg-type]

    def test_frames_of_the_wrong_shape(self) -> None:
        _, snn = pair()
        frames = torch.randn(2, 3, 5, 8, 8)  # five channels
        for options in ({}, {"execution": "mean"}, {"every_step": True}):
            with pytest.raises(InputError, match="input 'x': expected shape"):
                snn(frames, time_dim=1, **options)

    def test_step_checks_its_frame_and_its_state(self) -> None:
        _, snn = pair()
        _, state = snn.step(signal("branched", 1))
        with pytest.raises(InputError, match="expected shape"):
            snn.step(torch.randn(1, 5, 8, 8), state)
        with pytest.raises(InputError, match="a state belongs to its batch: start a new stream with state=None"):
            snn.step(signal("branched", 4), state)

    def test_integers_that_vary_over_time_have_no_mean(self) -> None:
        frames = [torch.tensor([[1, 2]]), torch.tensor([[1, 2]]), torch.tensor([[1, 3]])]
        means = running_means(frames)
        assert next(means) is frames[0]
        assert torch.equal(next(means), frames[1])  # type: ignore[arg-type]
        with pytest.raises(InputError, match="integers that vary over time have no mean of their own type"):
            next(means)


class TestObserving:
    @pytest.mark.parametrize("execution", ["steps", "mean"])
    @pytest.mark.parametrize("total", [1, 4])
    def test_spikes_sum_to_codes(self, total: int, execution: Any) -> None:
        qann, snn = pair()
        x = signal("branched", 3)
        sums: dict[str, Tensor] = {}
        calls: list[tuple[str, int]] = []

        def observer(site: str, timestep: int, spikes: Tensor) -> None:
            calls.append((site, timestep))
            sums[site] = sums.get(site, torch.zeros(())) + spikes

        expected = snn(x, timesteps=total)
        with snn.observe(observer):
            assert torch.equal(snn(x, timesteps=total, execution=execution), expected)
        assert calls == [(site, t) for t in range(1, total + 1) for site in snn.sites()]
        state: SpikingState | None = None
        for _ in range(total):
            _, state = snn.step(x, state)
        assert state is not None
        for site, codes in sums.items():
            assert torch.equal(codes, state.neurons[site].codes)
        snn(x, timesteps=total)
        assert len(calls) == total * len(qann.sites())  # nothing is observed outside the context

    def test_frames_are_observed_each_as_a_first_timestep(self) -> None:
        qann, snn = pair(spec=ps.ConvertSpec(reading="frames"))
        frames = signal("branched", 3, frames=3)
        seen: dict[tuple[str, int], Tensor] = {}
        expected = snn(frames, time_dim=1)
        with snn.observe(lambda site, t, spikes: seen.__setitem__((site, t), spikes)):
            assert torch.equal(snn(frames, time_dim=1), expected)
        assert list(seen) == [(site, t) for t in (1, 2, 3) for site in qann.sites()]
        first = next(iter(qann.sites()))
        with snn.observe(lambda site, t, spikes: site == first and torch.testing.assert_close(spikes, seen[site, 2])):
            snn.step(frames[:, 1])

    def test_observers_may_nest(self) -> None:
        _, snn = pair()
        x = signal("branched", 2)
        outer: list[str] = []
        inner: list[str] = []
        with snn.observe(lambda site, t, spikes: outer.append(site)):
            with snn.observe(lambda site, t, spikes: inner.append(site)):
                snn(x)
            snn(x)
        assert len(outer) == 2 * len(inner) == 2 * len(snn.sites())


def test_refine_refuses_what_is_no_factor() -> None:
    qann, _ = pair()
    for factor in (0, -2, True, 1.5):
        with pytest.raises(SpecError, match=f"refine: expected a positive integer factor, got {factor!r}"):
            ps.refine(qann, factor)  # type: ignore[arg-type]


def test_refine_is_a_copy_and_composes() -> None:
    qann, _ = pair()
    x = signal("branched", 3)
    expected = qann(x)
    six = ps.refine(qann, 6)
    assert torch.equal(qann(x), expected)
    twice = ps.refine(ps.refine(qann, 2), 3)
    for name, site in six.sites().items():
        assert site.levels == twice.sites()[name].levels
        torch.testing.assert_close(site.step, twice.sites()[name].step)
    assert not six.training
    assert ps.refine(copy.deepcopy(qann).train(), 2).training


def test_the_report_says_what_became_what() -> None:
    _, snn = pair()
    assert "relu: quantizer -> neuron, levels (2, 4)" in snn.report
    assert "pool: MaxPool2d -> difference on sums" in snn.report
    assert "drop: dropout -> removed" in snn.report
    assert "head: Linear -> as it is" in snn.report


def test_convert_refuses_what_is_not_ready() -> None:
    with pytest.raises(SpecError, match=r"convert: expected what polarspike.quantize returns, got Linear"):
        ps.convert(nn.Linear(2, 2))  # type: ignore[arg-type]
    bare = ps.quantize(network("mlp"), SPEC, example=signal("mlp", 4))
    with pytest.raises(ps.errors.CalibrationError, match="site 'act1' has no step yet"):
        ps.convert(bare)


def test_streaming_frames_averages_first_timesteps() -> None:
    model = network("plain", 0)
    x = signal("plain", batch=3, frames=4, seed=5)
    snn = ps.convert(calibrated(model, ps.QuantSpec(2, 5, signed="all"), x[:, 0]), ps.ConvertSpec(reading="frames"))
    state = None
    with torch.no_grad():
        for t in range(4):
            y, state = snn.step(x[:, t], state)
        expected = torch.stack([snn(x[:, t]) for t in range(4)]).mean(0)
        assert torch.allclose(y, expected, atol=1e-6)
        assert torch.allclose(snn(x, time_dim=1), expected, atol=1e-6)
