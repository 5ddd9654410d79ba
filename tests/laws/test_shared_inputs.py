"""An input that is the same for all samples stays whole everywhere, also where it has as many rows as the batch."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import polarspike as ps
from polarspike.errors import ExportError, InputError
from polarspike.proofs import scope

LENGTH = 4  # of sequences, and samples of a batch
X = torch.randn(LENGTH, LENGTH, 6, generator=torch.Generator().manual_seed(0))
BATCH = {"x": X, "mask": torch.full((LENGTH, LENGTH), -math.inf).triu(1)}
SPEC = ps.QuantSpec(negative=2, positive=6)


class Masked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        y = torch.relu(self.inner(x))
        return self.head((torch.softmax(y @ y.mT + mask, -1) @ y).mean(1))


class MaskFirst(Masked):
    def forward(self, mask: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(x, mask)


@pytest.fixture(params=[Masked, MaskFirst])
def qann(request: pytest.FixtureRequest) -> ps.QuantizedNetwork:
    torch.manual_seed(0)
    made = ps.quantize(request.param().eval(), SPEC, example=BATCH)
    ps.calibrate(made, [BATCH])
    return made


def test_samples_one_by_one_have_the_codes_of_their_batch(qann: ps.QuantizedNetwork) -> None:
    snn = ps.convert(qann)
    found = scope.changes(snn, BATCH)
    assert found["batch 1 against 4"][0] == 0
    assert scope.changes(snn, tuple(BATCH[name] for name in snn._arguments)) == found  # by position, too


def test_the_simulator_agrees(qann: ps.QuantizedNetwork) -> None:
    assert ps.verify(qann, ps.convert(qann), [BATCH], timesteps=2, against="events").exact


def test_counts_are_of_the_samples(qann: ps.QuantizedNetwork) -> None:
    snn = ps.convert(qann)
    counts = ps.count_operations(snn, {**BATCH, "x": X[:3]}, timesteps=2)
    whole, last = (
        ps.count_operations(snn, BATCH, timesteps=2),
        ps.count_operations(snn, {**BATCH, "x": X[3:]}, timesteps=2),
    )
    assert [c.images for c in (counts, last, whole)] == [3, 1, 4]
    for name in ("spikes", "acs_by_event"):
        assert whole.totals[name] == counts.totals[name] + last.totals[name]


@pytest.mark.parametrize("piece", [512, 6])  # all samples at once, and two at a time
def test_through_time(qann: ps.QuantizedNetwork, piece: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polarspike.spiking.sequences._PIECE", piece)
    net = ps.unroll(qann).eval()
    frames = {name: torch.stack([value] * 3, 1) for name, value in BATCH.items()}
    with torch.no_grad():
        whole, state = net(**frames), None
        for _ in range(3):
            reached, state = net.step(BATCH, state)
    torch.testing.assert_close(whole, reached)


def test_a_batch_in_pieces_trains_as_a_whole(qann: ps.QuantizedNetwork) -> None:
    target = torch.arange(LENGTH) % 3
    losses = [
        ps.fit(copy.deepcopy(qann), [(BATCH, target)], ps.TrainSpec(epochs=1, accumulation=count), progress=False)
        .epochs[0]
        .loss
        for count in (1, 2, 4)
    ]
    assert losses == pytest.approx([losses[0]] * 3, rel=1e-5)


def test_a_file_keeps_it(qann: ps.QuantizedNetwork, tmp_path: Path) -> None:
    ps.save(qann, tmp_path / "net.safetensors")
    assert ps.load(tmp_path / "net.safetensors").signature == qann.signature


def test_folding_runs_on_inputs_of_the_example_s_shapes() -> None:
    folded = ps.fold_batch_norm(ps.quantize(Masked().eval(), SPEC, example=BATCH))
    assert folded.signature.shared == {"1", "mask"}


def test_exports_keep_its_size(qann: ps.QuantizedNetwork, tmp_path: Path) -> None:
    snn = ps.convert(qann)
    batches = [{**BATCH, "x": torch.randn(count, LENGTH, 6)} for count in (1, LENGTH, 7)]
    report = ps.export(snn, tmp_path / "net.pt2", format="torch-export", example=BATCH, batches=batches)
    assert report.samples == 12 and report.largest == 0
    with pytest.raises(ExportError, match=r"input 'mask' is the same for all samples; .* keep it in a buffer"):
        ps.export(snn, tmp_path / "net.int", format="integer", example=BATCH)


def test_its_shape_is_told_whole(qann: ps.QuantizedNetwork) -> None:
    with pytest.raises(InputError, match=r"input 'mask': expected shape \(\*\(4\), 4\)"):
        qann(x=X, mask=BATCH["mask"][None])
