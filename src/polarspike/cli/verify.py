"""``polarspike verify``: prove that a spiking network equals its quantized network, on images, from their two files."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro
from torch import Tensor

from polarspike.checkpoint import load
from polarspike.cli.command import Command, refuse, show, tell
from polarspike.cli.files import Images, Source, as_spiking, images_for, load_quantized, pictures_for, reading_of
from polarspike.equivalence import require_timesteps, verify
from polarspike.errors import CheckpointError, SpecError
from polarspike.proofs.proof import Proof
from polarspike.proofs.temporal_equivalence import verify_temporal
from polarspike.quantized import QuantizedNetwork
from polarspike.readings import timesteps_of, verify_sequences
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.through_time import TemporalNetwork

_NOISE = 0.5
#: Where a file names no test images; a proof needs no labels.
_OTHERWISE = "verify needs no labels: give --images FOLDER, a .npy file of inputs, or a dataset"
#: What is proved on: test images, or sequences, of a dataset; or batches of images without labels.
_Inputs = Images | Sequence[Tensor]


@dataclass(frozen=True, kw_only=True)
class Verify(Command):
    """Compare the codes of a spiking network with those of its quantized network, site by site.

    Args:
        qann: the file of the quantized network.
        snn: the file of the spiking network. The weights of one that was trained through time have moved, so no code of it
            is compared with the quantized network, which must have the same sites and levels: compared are its own, of every
            frame, streamed one by one with the whole sequence at once, and of the first frame with the quantized network of
            the same weights; or, by --against events, of every frame with the simulator.
        images: without labels: a folder of pictures, a .tar shard, or the training images of a dataset, scaled as the files
            say, or a .npy or .safetensors file of inputs as they are. The test images of --data, if not given.
        images_count: at most this many of them, evenly spread; of test images the first so many.
        data: a dataset; the one that the files were made for, if not given.
        timesteps: the numbers T to prove, T = 1 always among them; of sequences, of which T means the first T frames, those
            below their number, and that number itself. The exit code is 1 if a proof fails, and 4 if all hold but some site
            fires too little for that to mean something.
        against: the quantized network, or the event-by-event simulator, which only adds (small networks, few images).
        precision: fp32, where codes at T > 1 may differ if a sum lies at a boundary to rounding (they are counted and
            shown); bf16 (autocast), which is judged at T = 1 alone; fp64, where every T must be exact.
        varying: give T different noisy versions of each image in place of one image T times.
        root: the folder of the dataset's files, where it is not the usual one.
        download: allow Fashion-MNIST, or what is made from it, to be downloaded; nothing is fetched otherwise.
        device: where to run.
    """

    qann: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="QANN.safetensors")]
    snn: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SNN.safetensors")]
    images: str | None = None
    images_count: int = 256
    data: str | None = None
    timesteps: tuple[int, ...] = (1, 2, 4, 8)
    against: Literal["network", "events"] = "network"
    precision: Literal["fp32", "bf16", "fp64"] = "fp32"
    varying: bool = False
    root: Path | None = None
    download: bool = False
    device: str = "cpu"

    def execute(self) -> int:
        if any(t < 1 for t in self.timesteps):
            raise SpecError(f"--timesteps: expected numbers of at least 1, got {' '.join(map(str, self.timesteps))}")
        if self.against == "events" and self.precision == "bf16":
            raise SpecError(
                "--against events: the simulator adds in float64; expected --precision fp32 or fp64, got bf16"
            )
        source = Source(self.data, self.root, self.download, self.device)
        source.check()
        self._require_one_source()
        found = load(self.snn)
        if isinstance(found, TemporalNetwork):
            return self._through_time(found, source)
        qann, snn = load_quantized(self.qann).to(self.device), as_spiking(self.snn, found)
        images = self._inputs(snn, source)
        snn.to(self.device)
        if self.precision == "fp64":
            qann.double()
            snn.double()
        wanted = self._wanted(images)
        # All of them, before hours are spent on the first.
        if _frames_of(images) is None or snn.spec.reading == "integrate":
            require_timesteps(snn, max(wanted))
        failed, void = [], False
        for t in wanted:
            with self._autocast():
                proof = self._prove(qann, snn, images, t)
            show(proof)
            if t > 1 and self.precision == "bf16":
                show("  not judged: in bfloat16 the sums over several steps are rounded to 8 bits")
            void |= bool(proof.void)
            if not self._holds(proof):
                failed.append(str(t))
        return _concluded(failed, void, f"{self.snn} does not equal {self.qann} there")

    def _through_time(self, net: TemporalNetwork, source: Source) -> int:
        """What can be proved where the weights have moved."""
        refuse(
            {
                "--images": self.images is not None,
                "--varying": self.varying,
                "--precision bf16": self.precision == "bf16",
            },
            f"{self.snn} was trained through time on sequences, whose frames vary by themselves, and is compared in float64",
        )
        self._require_parent(net)
        images = images_for(self.snn, net, source, _OTHERWISE)
        assert images.frames is not None  # of a network that reads sequences
        tell(
            f"{self.snn} was trained through time: its weights are not those of {self.qann} any more, and no code is "
            "compared with it; compared are its own codes, in float64"
        )
        net.to(self.device)
        against: Literal["stream", "events"] = "events" if self.against == "events" else "stream"
        failed, void = [], False
        for t in timesteps_of((1, *self.timesteps), images.frames):
            proof = verify_temporal(net, images.batches(self.images_count), t, against)
            show(proof)
            void |= bool(proof.void)
            if not proof.exact:
                failed.append(f"{t} (first at {proof.first_difference})")
        return _concluded(failed, void, f"the codes of {self.snn} differ there")

    def _require_parent(self, net: TemporalNetwork) -> None:
        """Refuse a quantized network that this one cannot have come from: training moves no site and no level."""
        first, here = (
            {name: site.levels for name, site in one.sites().items()} for one in (load_quantized(self.qann), net)
        )
        for name in [*first, *here]:
            if (wanted := first.get(name)) != (got := here.get(name)):
                raise CheckpointError(
                    f"{self.snn}: expected the sites and levels of {self.qann}, {_levels(wanted)} at {name!r}, got "
                    f"{_levels(got)}; it was not made from that network: give the qann.safetensors of its run"
                )

    def _require_one_source(self) -> None:
        """Refuse two places to take images from, and a number in the place of one."""
        if self.images_count < 1:
            raise SpecError(f"--images-count: expected at least 1, got {self.images_count}")
        if self.images is None:
            return
        if self.images.isdecimal() and not Path(self.images).exists():
            raise SpecError(
                f"--images: expected a folder of pictures, a file or a dataset, got {self.images}; how many of them is "
                f"--images-count {self.images}"
            )
        on_disk = Path(self.images).exists()  # else a dataset, which may lie in another folder
        refuse(
            {"--data": self.data is not None, "--root": self.root is not None and on_disk, "--download": self.download},
            f"--images {self.images} says where the images are from",
        )

    def _inputs(self, snn: SpikingNetwork, source: Source) -> _Inputs:
        if self.images is None:
            return images_for(self.snn, snn, source, _OTHERWISE)
        if (reading := reading_of(self.snn, snn)) != "channels":
            raise SpecError(
                f"--images {self.images}: expected a network of single images, {self.snn} reads sequences of frames "
                f"(reading={reading!r}); leave it out, or give --data"
            )
        return pictures_for(self.snn, snn, self.images, self.images_count, verb="verify", root=self.root)

    def _wanted(self, images: _Inputs) -> tuple[int, ...]:
        """The T to prove: of sequences those that they have."""
        if (count := _frames_of(images)) is None:
            return tuple(sorted({1, *self.timesteps}))
        refuse(
            {"--varying": self.varying, "--against events": self.against == "events"},
            f"expected a network of images, {self.snn} reads sequences, whose frames vary by themselves",
        )
        return timesteps_of((1, *self.timesteps), count)

    def _prove(self, qann: QuantizedNetwork, snn: SpikingNetwork, images: _Inputs, timesteps: int) -> Proof:
        if _frames_of(images) is not None:
            return verify_sequences(qann, snn, [self._cast(batch) for batch in self._batches(images)], timesteps)
        time_dim = 1 if self.varying and timesteps > 1 else None
        frames = self._frames(images, timesteps)
        return verify(qann, snn, frames, timesteps, against=self.against, time_dim=time_dim)

    def _cast(self, frames: Tensor) -> Tensor:
        return frames.double() if self.precision == "fp64" else frames

    def _batches(self, images: _Inputs) -> Iterator[Tensor]:
        """Without their labels."""
        if isinstance(images, Images):
            return (batch for batch, _ in images.batches(self.images_count))
        return iter(images)

    def _frames(self, images: _Inputs, timesteps: int) -> Iterator[Tensor]:
        """Batches of images (B, C, H, W), or of T > 1 noisy versions of each (B, T, C, H, W)."""
        generator = torch.Generator().manual_seed(0)
        for batch in self._batches(images):
            frames = batch
            if self.varying:
                shape = (batch.shape[0], timesteps, *batch.shape[1:])
                frames = batch.unsqueeze(1) + _NOISE * torch.randn(shape, generator=generator)
                frames = frames if timesteps > 1 else frames[:, 0]
            yield self._cast(frames)

    @contextlib.contextmanager
    def _autocast(self) -> Iterator[None]:
        with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.precision == "bf16"):
            yield

    def _holds(self, proof: Proof) -> bool:
        if proof.timesteps == 1 or self.precision == "fp64" or self.against == "events":
            return proof.exact
        # In bfloat16 sums over several steps are rounded to 8 bits: shown, never judged.
        return self.precision == "bf16" or proof.within_rounding


def _frames_of(images: _Inputs) -> int | None:
    """T of sequences; None for images."""
    return images.frames if isinstance(images, Images) else None


def _concluded(failed: list[str], void: bool, what: str) -> int:
    """Say at which T a proof failed and whether some were empty; the exit code."""
    if failed:
        tell(f"not exact at T = {', '.join(failed)}: {what}")
    if void:
        tell("not conclusive: some sites fire too few different codes, or hardly any, for equality to mean something")
    return 1 if failed else 4 if void else 0


def _levels(levels: tuple[int, int] | None) -> str:
    return "no site" if levels is None else f"levels {levels}"
