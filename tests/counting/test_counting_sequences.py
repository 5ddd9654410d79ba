"""Counts of sequences: what every frame costs, on both sides of the comparison."""

import dataclasses

import pytest
import torch
from torch import nn

import polarspike as ps
from polarspike.counting import count_operations
from polarspike.energy import CostTable, estimate_energy
from polarspike.errors import SpecError

FRAMES = torch.randn((4, 3, 2, 6, 6), generator=torch.Generator().manual_seed(3))


def spiking(reading: str) -> ps.SpikingNetwork:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )  # fmt: skip
    qann = ps.quantize(model.eval(), ps.QuantSpec(2, 5, gain=0.5, signed="all"), example=FRAMES[:, 0])
    ps.calibrate(qann, [FRAMES.flatten(0, 1)])
    return ps.convert(qann, ps.ConvertSpec(reading=reading))  # type: ignore[arg-type]


def test_frames_that_are_first_timesteps_cost_what_they_cost_by_themselves() -> None:
    snn = spiking("frames")
    together = count_operations(snn, FRAMES, time_dim=1)
    each = [count_operations(snn, frame) for frame in FRAMES.unbind(1)]
    sums = {name: sum(counts.totals[name] for counts in each) for name in together.totals}
    # What is of one image, and pairs (neuron, sequence) that never fired, are no sums.
    assert {n for n, total in together.totals.items() if total != sums[n]} <= {"neurons", "silent", "second_scale_acs"}
    assert together.passes == 3 and together.totals["ann_macs"] == 3 * each[0].totals["ann_macs"] > 0
    assert max(site.bits for site in together.sites) == 3  # codes -2..5 of one step, not of three
    # Both sides of the comparison have seen every frame: the ratio is the mean of those of the frames, weighted.
    table = CostTable.cmos45()
    whole, parts = estimate_energy(together, table), [estimate_energy(counts, table) for counts in each]
    assert whole.code_bits == 3 and "3 passes, one for each frame" in str(whole) and "passes" not in str(parts[0])
    for number, row in enumerate(whole.rows):
        assert row.total_pj == pytest.approx(sum(part.rows[number].total_pj for part in parts), rel=1e-12)
        assert row.memory.words == sum(part.rows[number].memory.words for part in parts)


def test_integrated_frames_are_compared_with_one_pass_and_save_no_input() -> None:
    snn = spiking("integrate")
    counts = count_operations(snn, FRAMES, time_dim=1)
    once = count_operations(snn, FRAMES[:, 0])
    assert max(site.bits for site in counts.sites) == 5  # codes -6..15
    assert counts.passes == 1 and counts.totals["ann_macs"] == once.totals["ann_macs"]
    assert counts.totals["static_input_macs"] == counts.totals["input_macs"] == 3 * once.totals["input_macs"] > 0
    assert all(row.input_once_pj == 0 for row in estimate_energy(counts, CostTable.cmos45()).rows)
    spikes: list[int] = []
    with torch.no_grad(), snn.observe(lambda site, t, k: spikes.append(int(k.abs().sum()))):
        snn(FRAMES, time_dim=1)
    assert counts.totals["spikes"] == sum(spikes)
    assert (
        counts.totals["spikes"] != count_operations(snn, FRAMES[:, 0], 3).totals["spikes"]
    )  # not the first frame again
    # The same frame three times is what it was before there were sequences, but for the input that may be kept.
    still = FRAMES[:, :1].expand(-1, 3, -1, -1, -1)
    repeated = count_operations(snn, FRAMES[:, 0], 3)
    assert dataclasses.replace(count_operations(snn, still, time_dim=1), repeated=True) == repeated


def test_what_contradicts_a_sequence_is_refused() -> None:
    with pytest.raises(SpecError, match="timesteps=2 contradicts a sequence of 3 frames"):
        count_operations(spiking("frames"), FRAMES, 2, time_dim=1)
    with pytest.raises(SpecError, match="reading='channels' takes a sequence as one timestep"):
        count_operations(spiking("channels"), FRAMES, time_dim=1)
