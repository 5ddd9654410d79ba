"""Bins as timesteps, from recordings in their real format to a spiking network that is streamed through its frames."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor

import polarspike as ps
from polarspike import cli, data
from polarspike.data import Augmentation
from polarspike.data.events import FrameSpec, SequenceDataset
from polarspike.errors import DataError, SpecError
from polarspike.experiments import Recipe
from polarspike.experiments.experiment import fingerprint, prepare
from polarspike.readings import AtOnce, OverFrames

from .test_event_datasets import alone  # noqa: F401
from .test_formats import bin_bytes

BINS = 3
FLAGS = (
    f"--data n-mnist --model event_cnn --width 4 --frames.bins {BINS} --frames.height 17 "
    "--frames.width 17 --batch-size 10 --ann.epochs 2 --ann.warmup-epochs 0 --ann.learning-rate 0.05 --qann.epochs 1 "
    "--qann.warmup-epochs 0 --qann.learning-rate 0.01 --qann.distillation 0.5 --calibration-images 30 --proof-images 8 "
    "--timesteps 1 2 4 --device cpu"
).split()


def ordered(root: Path, bins: int = BINS) -> Path:
    """N-MNIST of recordings in which bin b holds b + 1 events at column b of the label's row, of sign b % 2."""
    for part, each in (("Train", 3), ("Test", 1)):
        for digit in range(10):
            folder = root / part / str(digit)
            folder.mkdir(parents=True)
            stream = [(2 * b, 2 * digit, 100 * b + n, b % 2) for b in range(bins) for n in range(b + 1)]
            # The last microsecond belongs to the last bin: a recording of 100 for each.
            stream.append((33, 33, 100 * bins - 1, 1))
            for index in range(each):
                (folder / f"{index:05}.bin").write_bytes(bin_bytes(stream))
    return root


def counts_of(frames: Tensor, dataset: SequenceDataset) -> Tensor:
    """The counts that frames (B, T, 2, H, W) were made from."""
    mean, std = (torch.tensor(values).view(2, 1, 1) for values in vars(dataset.normalization).values())
    return ((frames * std + mean) * 255).round().int()


@pytest.mark.parametrize("bins", [2, 3])  # with two bins and two signs a shape does not tell one axis from the other
@pytest.mark.parametrize("part", ["train", "test"])
def test_a_frame_is_its_bin_and_a_channel_its_sign(bins: int, part: str, tmp_path: Path) -> None:
    found = data.load("n-mnist", ordered(tmp_path, bins), frames=FrameSpec(bins=bins), sequences=True)
    assert isinstance(found, SequenceDataset) and (found.bins, found.in_channels, found.image_size) == (
        bins,
        2,
        (34, 34),
    )
    loader = found.training(10, augmented=False) if part == "train" else found.evaluation(4)
    for frames, labels in loader:
        seen = counts_of(frames, found)
        for sequence, label in zip(seen, labels, strict=True):
            for b in range(bins):
                assert int(sequence[b, b % 2, 2 * label, 2 * b]) == b + 1
                alien = int(sequence[b].sum()) - (b + 1)
                assert alien == (1 if b == bins - 1 else 0)  # the event that ends the recording


def test_sequences_are_the_merged_channels_in_another_form(tmp_path: Path) -> None:
    root, spec = ordered(tmp_path), FrameSpec(bins=BINS)
    found = data.load("n-mnist", root, frames=spec, sequences=True)
    merged = data.load("n-mnist", root, frames=spec)
    changes = Augmentation(shift=2, flip=True, cutout=5)
    batches = []
    for one in (found, merged):
        torch.manual_seed(5)
        batches.append(next(iter(dataclasses.replace(one, augmentation=changes).training(10))))
    assert torch.equal(batches[0][0].flatten(1, 2), batches[1][0]) and torch.equal(batches[0][1], batches[1][1])
    assert fingerprint(found)["train"]["images"] == fingerprint(merged)["train"]["images"]
    validated = found.split_validation(1 / 3)
    assert isinstance(validated, SequenceDataset) and next(iter(validated.evaluation(4, "validation")))[0].dim() == 5
    with pytest.raises(DataError, match="expected 4 frames side by side, got 6 channels"):
        dataclasses.replace(found, bins=4)
    with pytest.raises(SpecError, match="sequences: expected an event data set, got 'digits'"):
        data.load("digits", sequences=True)


def test_mixtures_keep_the_order_of_frames(tmp_path: Path) -> None:
    pytest.importorskip("torchvision")
    found = data.load("n-mnist", ordered(tmp_path), frames=FrameSpec(bins=BINS), sequences=True)
    frames, shares = next(iter(dataclasses.replace(found, augmentation=Augmentation(mixup=1.0)).training(10)))
    zero = -torch.tensor(found.normalization.mean) / torch.tensor(found.normalization.std)
    for sequence, share in zip(frames, shares, strict=True):
        for label in (
            share.nonzero().flatten().tolist()
        ):  # each of the two in its share, at its own place of every frame
            for b in range(BINS):
                above = (sequence[b, b % 2, 2 * label, 2 * b] - zero[b % 2]) * found.normalization.std[b % 2] * 255
                assert float(above) == pytest.approx(float(share[label]) * (b + 1), abs=1e-3)


@pytest.mark.parametrize("reading", ["frames", "integrate"])
def test_one_command_trains_verifies_and_evaluates_bins_as_timesteps(
    reading: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, run = ordered(tmp_path / "data"), tmp_path / "run"
    given = ["--root", str(root)]
    assert cli.main(["train", *FLAGS, "--reading", reading, "--run", str(run), *given]) == 0
    printed = capsys.readouterr()
    assert f"reading='{reading}': sequences of 3 frames, which have no T = 4" in printed.err
    assert "10 test sequences; events and spikes per neuron and sequence" in printed.out
    results = json.loads((run / "results.json").read_text())
    assert (
        [row["timesteps"] for row in results["snn"]["rows"]] == [1, 2, 3] == [p["timesteps"] for p in results["proofs"]]
    )
    assert results["counts"]["timesteps"] == 3 and not results["counts"]["repeated"]
    assert results["counts"]["passes"] == (3 if reading == "frames" else 1)

    # Streamed by hand, from the file and from the recordings, with the answers and spikes of the table.
    snn, qann = (ps.load(run / f"{name}.safetensors") for name in ("snn", "qann"))
    assert isinstance(snn, ps.SpikingNetwork) and isinstance(qann, ps.QuantizedNetwork) and snn.spec.reading == reading
    spec = FrameSpec.from_dict(snn.notes["frames"])
    found = data.load("n-mnist", root, frames=spec, sequences=True)
    frames, labels = next(iter(found.evaluation(10)))
    right, spikes, state = {}, 0, None
    with torch.no_grad(), snn.observe(lambda site, t, k: spiked.append(int(k.abs().sum()))):
        spiked: list[int] = []
        for t in range(BINS):
            answer, state = snn.step(frames[:, t], state)
            right[t + 1], spikes = int((answer.argmax(1) == labels).sum()), sum(spiked)
            assert results["snn"]["rows"][t]["spikes"] == spikes
    assert right == {row["timesteps"]: row["correct"] for row in results["snn"]["rows"]}
    fine = qann if reading == "frames" else ps.refine(qann, BINS)
    with torch.no_grad():
        torch.testing.assert_close(answer, AtOnce(fine, reading)(frames))  # type: ignore[arg-type]
        assert results["qann"]["rows"][0]["correct"] == int((AtOnce(qann, reading)(frames).argmax(1) == labels).sum())  # type: ignore[arg-type]

    file = str(run / "snn.safetensors")
    assert cli.main(["evaluate", file, *given]) == 0
    out = capsys.readouterr().out
    assert f"sequences of 3 frames, reading='{reading}'" in out
    for t, correct in right.items():
        assert re.search(rf"^ +{t} .* {correct}/10 ", out, re.MULTILINE)
    assert cli.main(["evaluate", str(run / "qann.safetensors"), *given]) == 0
    assert cli.main(["evaluate", file, "--timesteps", "4", *given]) == 2
    assert "expected at most 3, the frames of a sequence" in capsys.readouterr().err
    proofs = ["verify", str(run / "qann.safetensors"), file, "--images-count", "10", "--precision", "fp64", *given]
    assert cli.main(proofs) in (0, 4)
    assert "T=3 against" in capsys.readouterr().out
    assert cli.main([*proofs, "--varying"]) == 2
    # A converted file keeps the reading; one that lost it is refused.
    again = tmp_path / "again.safetensors"
    assert cli.main(["convert", str(run / "qann.safetensors"), str(again)]) == 0
    with torch.no_grad():
        assert torch.equal(OverFrames(ps.load(again))(frames), snn(frames, time_dim=1))
    other = ps.convert(qann, ps.ConvertSpec(reading="integrate" if reading == "frames" else "frames"))
    ps.save(other, again)
    assert cli.main(["evaluate", str(again), *given]) == 2
    assert "polarspike convert QANN" in capsys.readouterr().err
    snn.notes.pop("frames")
    ps.save(snn, again)
    assert cli.main(["evaluate", str(again), *given]) == 2
    assert "nothing says how many frames a sequence has" in capsys.readouterr().err
    snn.notes["reading"] = "backwards"
    ps.save(snn, again)
    assert cli.main(["evaluate", str(again), *given]) == 2
    assert "expected the note 'reading' to be one of integrate, frames, channels" in capsys.readouterr().err


def test_what_has_no_frames_has_no_reading(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SpecError, match=r"Recipe\.reading: expected 'channels' for digits, .* got 'frames'.*n-mnist"):
        Recipe(data="digits", reading="frames")
    assert cli.main(["train", "--data", "digits", "--reading", "frames"]) == 2
    assert "expected 'channels' for digits" in capsys.readouterr().err
    assert Recipe(data="n-mnist", augmentation=Augmentation(drop=0.5)).changes(Augmentation()).drop == 0.5
    with pytest.raises(SpecError, match=r"Recipe\.augmentation\.drop: expected 0 for digits, .* got 0\.5; .*n-mnist"):
        Recipe(data="digits", augmentation=Augmentation(drop=0.5))
    older = {name: value for name, value in Recipe(data="n-mnist").to_dict().items() if name != "reading"}
    assert Recipe.from_dict(older).reading == "channels"


def test_a_network_of_frames_is_built_for_two_channels(tmp_path: Path) -> None:
    recipe = Recipe(data="n-mnist", model="event_cnn", width=4, options={"stages": 1}, batch_size=8, proof_images=4)
    for reading, channels in (("frames", 2), ("integrate", 2), ("channels", 20)):
        chosen = dataclasses.replace(recipe, reading=reading)
        root = tmp_path if reading != "frames" else ordered(tmp_path)
        assert prepare(chosen, root=str(root)).dataset.in_channels == channels
