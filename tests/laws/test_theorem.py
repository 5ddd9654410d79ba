"""The theorem: after T steps a spiking network equals its quantized network refined T-fold, on the mean input.

Shown on every network of tests/networks.py, in float64: 0 differing codes at every site, repeated and varying input,
with steps and learned gains that have left their start; at T = 1 in every bit, also in float32 and under autocast.
"""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

import polarspike as ps
from polarspike.quantized import QuantizedNetwork
from polarspike.spiking import SpikingNetwork, SpikingState
from tests.networks import NETWORKS, calibrated, learned_like, network, signal

SPECS = {
    "rectified": ps.QuantSpec(2, 4),  # by nature: (0, 4) but for LeakyReLU
    "gain 1": ps.QuantSpec(2, 5, gain=1.0, signed="all"),
    "gain .3, channels": ps.QuantSpec(2, 5, gain=0.3, signed="all", granularity="channel"),
    "gain 0": ps.QuantSpec(1, 3, gain=0.0, signed="all"),
    "learned, channels": ps.QuantSpec(3, 3, gain="learned", signed="all", granularity="channel"),
    "binary": ps.QuantSpec(1, 1),
}


def pair(name: str, spec: str, dtype: torch.dtype = torch.float64) -> tuple[QuantizedNetwork, SpikingNetwork]:
    """A quantized network whose steps and gains have moved, and its spiking network."""
    qann = learned_like(calibrated(network(name), SPECS[spec], signal(name, 16))).to(dtype)
    return qann, ps.convert(qann)


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", NETWORKS)
def test_codes_equal_those_of_the_refined_network(name: str, spec: str) -> None:
    qann, snn = pair(name, spec)
    still, moving = signal(name, 4).double(), signal(name, 4, frames=8).double()
    for total in (1, 2, 3, 4, 8):
        repeated = ps.verify(qann, snn, [still], timesteps=total, scope=False)
        varying = ps.verify(qann, snn, [moving[:, :total]], time_dim=1, scope=False)
        for proof in (repeated, varying):
            assert proof.timesteps == total
            assert proof.exact, str(proof)
            assert (proof.different, proof.diverged) == (0, 0)
            assert proof.compared > 100


@torch.no_grad()
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", NETWORKS)
def test_codes_equal_those_of_the_refined_network_without_verify(name: str, spec: str) -> None:
    """The same by hand: the step-by-step states against hooks on the refined network."""
    qann, snn = pair(name, spec)
    moving = signal(name, 3, frames=3).double()
    state: SpikingState | None = None
    for t in range(3):
        mean, state = snn.step(moving[:, t], state)
    fine = ps.refine(qann, 3)
    seen: dict[str, Tensor] = {}
    for site, quantizer in fine.sites().items():
        quantizer.register_forward_hook(
            lambda module, inputs, output, site=site: seen.__setitem__(site, module.encode(inputs[0]))
        )
    expected = fine(moving.mean(1))
    assert state is not None
    assert list(seen) == list(snn.sites())
    for site, codes in seen.items():
        assert torch.equal(codes, state.neurons[site].codes), site
    torch.testing.assert_close(mean, expected, rtol=1e-10, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_walking_the_steps_and_the_mean_domain_agree(name: str) -> None:
    _, snn = pair(name, "gain .3, channels")
    still, moving = signal(name, 3).double(), signal(name, 3, frames=4).double()
    for timesteps in (1, 2, 4, 8):
        one, other = (snn(still, timesteps=timesteps, execution=execution) for execution in ("steps", "mean"))
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)
    by_steps, by_mean = (
        snn(moving, time_dim=1, every_step=True, execution=execution) for execution in ("steps", "mean")
    )
    assert by_steps.shape[0] == 4
    torch.testing.assert_close(by_steps, by_mean, rtol=1e-10, atol=1e-12)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_first_timestep_is_the_quantized_network_in_every_bit(name: str, spec: str, dtype: torch.dtype) -> None:
    qann, snn = pair(name, spec, torch.float32)
    x = signal(name, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        expected = qann(x)
        assert expected.dtype == dtype
        assert torch.equal(snn(x), expected)
        assert torch.equal(snn.step(x)[0], expected)
        assert torch.equal(snn(x, timesteps=1, every_step=True)[0], expected)
        assert torch.equal(snn(x, execution="mean"), expected)
        proof = ps.verify(qann, snn, [x], scope=False)
    assert proof.exact, str(proof)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_in_half_precision_agree_at_the_first_timestep(name: str, dtype: torch.dtype) -> None:
    qann, _ = pair(name, "learned, channels", torch.float32)
    half = copy.deepcopy(qann).to(dtype)
    x = signal(name, 4).to(dtype)
    assert torch.equal(ps.convert(half)(x), half(x))
    assert torch.equal(ps.convert(qann).to(dtype)(x), half(x))


@torch.no_grad()
@pytest.mark.parametrize("name", [name for name in NETWORKS if name != "leaky"])  # LeakyReLU keeps its slope
def test_without_learned_motion_gain_zero_is_the_rectified_network_at_the_first_timestep(name: str) -> None:
    x = signal(name, 8)
    signed = calibrated(network(name), ps.QuantSpec(2, 4, gain=0.0, signed="all"), x)
    plain = calibrated(network(name), ps.QuantSpec(2, 4), x)
    for site, twin in zip(signed.sites().values(), plain.sites().values(), strict=True):
        site.set_step(twin.step)
    assert torch.equal(ps.convert(signed)(x), ps.convert(plain)(x))


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_more_steps_approach_the_clipped_network(name: str) -> None:
    """T to infinity is the network whose activations are leaky clips; the gap falls about as 1 / T."""
    qann, snn = pair(name, "gain .3, channels")
    x = signal(name, 4).double()
    limit = copy.deepcopy(qann)
    for site in limit.sites().values():
        negative, positive = site.levels

        def clip(module: torch.nn.Module, inputs: tuple[Tensor], output: Tensor, n: int = negative, p: int = positive) -> Tensor:  # fmt: skip  # noqa: E501
            step = module.broadcast_step(inputs[0])  # type: ignore[operator]
            y = torch.minimum(torch.maximum(inputs[0], -n * step), p * step)
            return torch.where(y < 0, module.gain * y, y)  # type: ignore[operator]

        site.register_forward_hook(clip)
    expected = limit(x)
    gaps = [float((snn(x, timesteps=t, execution="mean") - expected).abs().max()) for t in (1, 16, 256)]
    assert gaps[2] < gaps[0] / 50
    assert gaps[1] < gaps[0] / 3
