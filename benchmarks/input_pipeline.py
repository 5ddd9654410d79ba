"""What share of a training step is spent waiting for its batch, augmented as the recipe has it.

fashion-mnist          resnet20 (16 channels), batches of 128 with flips and shifts
events-fashion-mnist   event_cnn (32 channels), ten bins of 34x34 as channels, batches of 128 with shifts, mapped from disk;
                       the frames of 500 simulated samples, repeated to 10,000

A round is 12 steps after 2 that do not count; ``share`` is the waiting over the whole of them, the median of the rounds
with the least and the largest. With workers another process makes the batches meanwhile: on a machine whose
cores are all busy that moves the cost elsewhere, and here it is shown for what it is.

python benchmarks/input_pipeline.py [--threads 1] [--rounds 5] [--only NAME ...]
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from _common import conditions, keep, load_images
from torch import nn

from polarspike import data, models
from polarspike.data import Augmentation
from polarspike.data.events.frames import FrameSpec, to_frames
from polarspike.data.events.simulation import CameraSpec, simulate
from polarspike.data.splits import Split

SEED = 0
Case = tuple[nn.Module, Callable[[int], Any]]  # network, loader of so many workers
STEPS, BEFORE = 12, 2


def fashion(folder: Path) -> Case:
    del folder
    dataset = data.load("fashion-mnist")
    network = models.create("resnet20", num_classes=10, in_channels=1)
    return network, lambda workers: dataset.training(128, workers=workers)


def events(folder: Path) -> Case:
    images = load_images("fashion-mnist").test
    spec = FrameSpec()
    seen = [to_frames(simulate(images.images[i, 0].numpy(), CameraSpec(), seed=i), spec) for i in range(500)]
    place = folder / "frames.npy"
    np.save(place, np.concatenate([np.stack(seen)] * 20))
    frames = torch.from_numpy(np.load(place, mmap_mode="c")).view(10_000, 2 * spec.bins, 34, 34)
    split = Split(frames, images.labels[:500].repeat(20))
    normalization = data.Normalization.of(frames[:500])
    network = models.create("event_cnn", num_classes=10, in_channels=2 * spec.bins)

    def loader(workers: int) -> Any:
        return data.batches(
            split,
            128,
            normalization=normalization,
            shuffle=True,
            augment=Augmentation(shift=2),
            drop_last=True,
            workers=workers,
        )

    return network, loader


CASES: dict[str, Callable[[Path], Case]] = {"fashion-mnist": fashion, "events-fashion-mnist": events}


def share_of(case: Case, workers: int, rounds: int) -> dict[str, float]:
    """Share of waiting, and milliseconds of it and of the whole step: medians over the rounds."""
    network, loader = case
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9, nesterov=True)
    batches = _endless(loader(workers))
    shares, waits, wholes = [], [], []
    for _ in range(rounds):
        waited = whole = 0.0
        for step in range(BEFORE + STEPS):
            start = time.perf_counter()
            images, labels = next(batches)
            there = time.perf_counter()
            optimizer.zero_grad(set_to_none=True)
            nn.functional.cross_entropy(network(images), labels).backward()
            optimizer.step()
            if step >= BEFORE:
                waited += there - start
                whole += time.perf_counter() - start
        shares.append(waited / whole)
        waits.append(1e3 * waited / STEPS)
        wholes.append(1e3 * whole / STEPS)
    return {
        "share": median(shares),
        "least": min(shares),
        "largest": max(shares),
        "wait_ms": median(waits),
        "step_ms": median(wholes),
    }


def _endless(loader: Any) -> Iterator[Any]:
    while True:
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=list(CASES), default=list(CASES))
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    torch.manual_seed(SEED)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name in asked.only:
            case = CASES[name](Path(folder))
            for workers in (0, 1):
                found = share_of(case, workers, asked.rounds)
                rows.append({"data": name, "workers": workers, **found})
                print(
                    f"{name:<22} {workers} workers: {100 * found['share']:5.1f} % waiting ({100 * found['least']:.1f} to "
                    f"{100 * found['largest']:.1f}), {found['wait_ms']:.1f} of {found['step_ms']:.0f} ms",
                    flush=True,
                )
    keep("input_pipeline", {"conditions": conditions(SEED), "rows": rows})


if __name__ == "__main__":
    main()
