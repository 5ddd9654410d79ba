"""What a spiking network takes and answers: inputs by position and by name, outputs as trees, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.common.frames import running_means
from polarspike.errors import InputError, SpecError
from polarspike.quantized import QuantizedNetwork
from polarspike.spiking import SpikingNetwork
from tests.networks import network, signal, trained_like
from tests.spiking.pairs import SPEC, pair

pytestmark = pytest.mark.usefixtures("no_grad")


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
            (({"z": x},), {}, r"expected a tensor, got dict; pass a dict of inputs by keyword"),
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
        assert torch.equal(snn(x, y), qann(x, y)) and torch.equal(snn((x, y)), qann((x, y)))
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


def test_refine_refuses_what_is_no_factor() -> None:
    qann, _ = pair()
    for factor in (0, -2, True, 1.5):
        with pytest.raises(SpecError, match=f"refine: expected a positive integer factor, got {factor!r}"):
            ps.refine(qann, factor)  # type: ignore[arg-type]


def test_convert_refuses_what_is_not_ready() -> None:
    with pytest.raises(SpecError, match=r"convert: expected what polarspike.quantize returns, got Linear"):
        ps.convert(nn.Linear(2, 2))  # type: ignore[arg-type]
    bare = ps.quantize(network("mlp"), SPEC, example=signal("mlp", 4))
    with pytest.raises(ps.errors.CalibrationError, match="site 'act1' has no step yet"):
        ps.convert(bare)
