"""``polarspike evaluate``: accuracy and firing of a file on a dataset, with operations and energy at T = 1."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from polarspike.checkpoint import load
from polarspike.cli.command import Command, ending_together, show
from polarspike.cli.files import Source, images_for
from polarspike.counting import count_operations
from polarspike.energy import CostTable, estimate_energy
from polarspike.errors import SpecError
from polarspike.evaluation import evaluate
from polarspike.parallel import distributed
from polarspike.parallel.processes import join
from polarspike.quantized import QuantizedNetwork
from polarspike.readings import timesteps_of
from polarspike.spiking import SpikingNetwork
from polarspike.spiking.through_time import TemporalNetwork

_TIMESTEPS = (1, 2, 4, 8)
#: Where a file names no test images.
_OTHERWISE = (
    "evaluate needs labels: call polarspike.evaluate(network, batches of (images, labels)) in Python, or write those notes "
    "(network.notes, polarspike.save) for a dataset; without labels, polarspike verify takes --images"
)


@dataclass(frozen=True, kw_only=True)
class Evaluate(Command):
    """Evaluate a spiking or quantized network on the test images of a dataset.

    Args:
        file: what `train`, `demo` or `convert` wrote.
        data: a dataset; the one that the file was made for, if not given.
        timesteps: increasing numbers T; 1 2 4 8 for a spiking network if not given, and of sequences the number of their
            frames as the last. A quantized network has no time.
        root: the folder of the dataset's files, where it is not the usual one.
        download: allow Fashion-MNIST, or what is made from it, to be downloaded; nothing is fetched otherwise.
        device: where to evaluate, a GPU if there is one; of several processes each takes its own.
        workers: processes that decode pictures in files; 0 for none.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="FILE")]
    data: str | None = None
    timesteps: tuple[int, ...] = ()
    root: Path | None = None
    download: bool = False
    device: str = "auto"
    workers: int = 0

    def execute(self) -> int:
        device = join(self.device)
        with ending_together():
            return self._evaluate(device)

    def _evaluate(self, device: str) -> int:
        with distributed.together():
            source = Source(self.data, self.root, self.download, device)
            source.check()
            if self.workers < 0:
                raise SpecError(f"--workers: expected at least 0, got {self.workers}")
            network = load(self.file)
            spiking = not isinstance(network, QuantizedNetwork)
            window = network.spec.window if isinstance(network, SpikingNetwork) else None
            within = tuple(T for T in _TIMESTEPS if window is None or window >= T)
            timesteps = self.timesteps or (within if spiking else (1,))
            if not spiking and timesteps != (1,):
                raise SpecError(
                    f"{self.file}: a quantized network has no time: expected --timesteps 1, got {list(timesteps)}; "
                    f"convert it first: polarspike convert {self.file} SNN.safetensors"
                )
            images = images_for(self.file, network, source, _OTHERWISE)
            if spiking and images.frames is not None:
                timesteps = self.timesteps or timesteps_of(within, min(images.frames, window or images.frames))
                if max(timesteps) > images.frames:
                    raise SpecError(
                        f"--timesteps: expected at most {images.frames}, the frames of a sequence that {self.file} reads, "
                        f"got {max(timesteps)}"
                    )
        network.to(device)
        batches = images.batches(workers=self.workers)
        table = evaluate(images.read_by(network), batches, timesteps, progress=True)
        if not distributed.is_main():
            return 0
        kind = "spiking network" if spiking else "quantized network"
        if isinstance(network, TemporalNetwork):
            kind += " trained through time"
        show(f"{self.file}: {kind} ({network.notes.get('model', 'model unknown')}) on {images.dataset.name}")
        if images.frames is not None:
            show(f"sequences of {images.frames} frames, reading={images.reading!r}; T: the first T frames")
        show(table)
        if isinstance(network, SpikingNetwork) and network.fires_late:
            show("\noperations: not counted for capped neurons, which also fire in steps without input")
        elif not isinstance(network, QuantizedNetwork):
            inputs, _ = next(iter(batches))
            counts = count_operations(network, inputs.to(device), time_dim=None if images.frames is None else 1)
            show(f"\n{counts}\n\n{estimate_energy(counts, CostTable.cmos45())}")
        return 0
