"""What the table of an experiment says beside its rows."""

from __future__ import annotations

import dataclasses

import torch
from torch import nn

import polarspike as ps
from polarspike.experiments.outcome import examine


def test_what_more_timesteps_cost_is_said_with_its_remedy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3))
    batches = [(torch.randn(32, 1, 4, 4), torch.arange(32) % 3)]
    qann = ps.quantize(model, ps.QuantSpec(negative=0, positive=3), example=batches[0][0][:2])
    ps.calibrate(qann, batches)
    outcome = examine(model, qann, ps.convert(qann), batches, batches, (1, 2, 8))

    def said(correct: dict[int, int], **other: object) -> str:
        snn = dataclasses.replace(outcome.snn, correct=correct, total=1000)
        return str(dataclasses.replace(outcome, snn=snn, **other))  # type: ignore[arg-type]

    hint = "(T=2 has 1.1 points fewer right than T=1:"
    losing = said({1: 766, 2: 755, 8: 760})
    assert hint in losing and "--qann.timesteps 1 2 4 8" in losing
    assert "fewer right" not in said({1: 766, 2: 765, 8: 790})  # a tenth of a point is noise
    # Frames that are averaged, or integrated one after another, are no finer grid of one image.
    assert "fewer right" not in said({1: 766, 2: 755, 8: 760}, reading="frames")
