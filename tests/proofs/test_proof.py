"""A proof as plain data, and what verify refuses before it compares anything."""

from __future__ import annotations

import dataclasses
import json
import math

import pytest
import torch

import polarspike as ps
from polarspike.errors import SpecError
from polarspike.proofs.proof import Proof, SiteComparison
from tests.networks import calibrated, network, signal


@pytest.mark.parametrize("against", ["network", "events"])
def test_a_proof_comes_back_from_a_file_as_it_was(against: str) -> None:
    x = signal("attention", 4)
    qann = calibrated(network("attention"), ps.QuantSpec(1, 3), x)
    proof = ps.verify(qann, ps.convert(qann), [x], timesteps=2, against=against)  # type: ignore[arg-type]
    again = Proof.from_dict(json.loads(json.dumps(proof.to_dict())))
    assert bool(proof) is proof.exact and bool(dataclasses.replace(proof, output_equal=False)) is False
    assert again == proof and (again.exact, again.against, again.margin) == (proof.exact, against, proof.margin)
    older = {
        key: value for key, value in proof.to_dict().items() if key not in ("against", "margin", "note", "output_equal")
    }
    assert Proof.from_dict(older).output_equal == proof.exact


def test_what_is_infinite_comes_back_from_a_file_that_has_no_infinity() -> None:
    site = SiteComparison(1000, 1, 7, 0, math.inf, 4, 0.4, binary=False)
    proof = Proof(4, "stream", {"relu": site}, output_difference=math.inf, output_equal=False)
    text = json.dumps(proof.to_dict(), allow_nan=False)
    assert Proof.from_dict(json.loads(text)) == proof


def test_more_than_a_window_is_refused_whoever_is_asked() -> None:
    x = signal("branched", 4)
    qann = calibrated(network("branched"), ps.QuantSpec(1, 3), x)
    snn = ps.convert(qann, ps.ConvertSpec(window=3))
    frames = torch.stack([x] * 4, dim=1)
    for asked in ({"timesteps": 4}, {"time_dim": 1}):
        given = frames if "time_dim" in asked else x
        with pytest.raises(
            SpecError, match=r"^verify: .* after 3 steps .* got 4 timesteps; ask for at most one window"
        ):
            ps.verify(qann, snn, [given], **asked)
        # Its answer would be another than that of the stream, whose operations are counted.
        with pytest.raises(SpecError, match=r"^SpikingNetwork: .* after 3 steps"):
            snn(given, **asked)
    with pytest.raises(SpecError, match=r"^evaluate: .* got 4 timesteps"):
        ps.evaluate(snn, [(x, torch.zeros(len(x), dtype=torch.int64))], timesteps=(1, 4))
    assert torch.equal(snn(x, timesteps=3), ps.convert(qann)(x, timesteps=3))
    assert ps.verify(qann, snn, [frames[:, :3]], time_dim=1).within_rounding


def test_what_rounding_explains_is_told_from_what_it_does_not() -> None:
    site = SiteComparison(1000, 1, 7, 0, 2e-7, 4, 0.4, binary=False)
    near = Proof(4, "network", {"relu": site}, output_difference=0.2, output_equal=False)
    assert near.within_rounding and "NOT EXACT in this precision, but within the rounding of its sums" in str(near)
    far = dataclasses.replace(near, sites={"relu": dataclasses.replace(site, worst_margin=0.3)})
    assert not far.within_rounding and str(far).endswith("NOT EXACT")
    # A head of other weights: every code agrees, and nothing excuses the outputs.
    head = dataclasses.replace(
        near, sites={"relu": dataclasses.replace(site, different=0, diverged=0, worst_margin=0.0)}
    )
    assert not head.within_rounding and head.first_difference == "output" and str(head).endswith("NOT EXACT")
    assert str(dataclasses.replace(near, timesteps=1)).endswith("NOT EXACT")
