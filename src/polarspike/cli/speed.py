"""``polarspike bench speed``: a spiking network at T = 1 in integer kernels, beside the network it came from."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch

from polarspike import speed
from polarspike.cli.command import Command, show, tell
from polarspike.errors import PolarspikeError, SpecError


@dataclass(frozen=True, kw_only=True)
class Speed(Command):
    """Time runtimes against each other: the float network, plain 8-bit quantization of it, and its spiking network.

    The network has random weights, on which times do not depend; what it answers means nothing. All runtimes take turns in
    one process, and medians and ranges over the rounds are shown: by processor time with one thread, which other load
    disturbs least, by wall time with several.

    Args:
        model: a network of `polarspike models`.
        width: of its layers; the network's own if not given.
        image_size: side of the pictures in pixels.
        channels: of the pictures.
        batches: sizes.
        threads: numbers of threads.
        rounds: of each race, 5 at least.
        compile: torch.compile, too, which needs a compiler and a while.
        peers: SpikingJelly's rate coding of the same network, too, at T = 1, 4 and 8, where it is installed.
        files: show sizes of the files, memory, and the cold start of `polarspike run`.
    """

    model: str = "vgg16"
    width: int | None = None
    image_size: int = 32
    channels: int = 3
    batches: tuple[int, ...] = (1, 64)
    threads: tuple[int, ...] = (1,)
    rounds: int = 7
    compile: bool = False
    peers: bool = False
    files: bool = False

    def execute(self) -> int:
        course = speed.Course(self.batches, self.threads, self.rounds)
        for name, value in (("image-size", self.image_size), ("channels", self.channels)):
            if value < 1:
                raise SpecError(f"--{name}: expected at least 1, got {value}")
        torch.set_num_threads(max(self.threads))
        subject = speed.random_subject(self.model, width=self.width, image_size=self.image_size, channels=self.channels)
        show(f"{self.model}, random weights; {describe_machine()}")
        with tempfile.TemporaryDirectory() as folder:
            files = speed.write_files(subject, Path(folder))
            runtimes = speed.runtimes_of(subject, files, compiled=self.compile)
            if self.peers:
                speed.add_spikingjelly(runtimes, subject)
            for heat in speed.measure(runtimes, subject.images, course):
                show(f"\n{speed.speed_table(heat)}")
            if self.files:
                self._show_files(files)
        return 0

    def _show_files(self, files: speed.Files) -> None:
        try:
            batch = max(self.batches)
            shape = (self.channels, self.image_size, self.image_size)
            show(f"\n{speed.footprint_table(speed.footprint(files, (batch, *shape)), batch)}")
            if "snn" in files.paths:
                times, imported = speed.cold_start(files.paths["snn"], shape)
                wall = times.of("wall")
                show(
                    f"cold start of polarspike run: {wall.median:.2f} s ({wall.low:.2f}..{wall.high:.2f}), "
                    f"{times.of('cpu').median:.2f} s of processor time, {'with' if imported else 'without'} torch"
                )
        except PolarspikeError as error:
            tell(f"not measured: {error}")


def describe_machine() -> str:
    """The machine in one line."""
    about = speed.machine()
    extensions = " ".join(about.pop("extensions"))
    return ", ".join([f"{about.pop('processor')} ({extensions})", *(f"{key} {value}" for key, value in about.items())])
