"""How the cost grows with images, parameters, timesteps and processes: ratios of runs interleaved in one process.

images      an epoch of training the quantized network on 1,024, 2,048 and 4,096 images, over the first
width       the same on 1,024 images at 8, 16 and 32 channels of the first stage, with the parameters and the
            multiplications of an image beside it, over the first
timesteps   the spiking network on 250 images at T = 1, 2, 4, 8, step by step, over T = 1
processes   an epoch of 4,096 images by one and by two processes of one thread each, started anew for each measurement

The network is the small CNN on Fashion-MNIST, levels (0, 7), batches of 128; a round does every case of a group once, and
the ratio is the median over the rounds, with the least and the largest. Ratios of process time stand beside those of wall
time, since a machine may be shared.

python benchmarks/scaling.py [--rounds 5] [--only GROUP ...]
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from _common import conditions, interleaved, keep, load_images, ratios

import polarspike as ps
from polarspike import data, models

SEED, IMAGES, CHANNELS = 0, 1024, 16
SPEC = ps.QuantSpec(0, 7)


def quantized(channels: int = CHANNELS) -> ps.QuantizedNetwork:
    torch.manual_seed(SEED)
    model = models.create("cnn", num_classes=10, in_channels=1, width=channels)
    images, _ = next(iter(batches(250)))
    qann = ps.quantize(model, SPEC, example=images[:2])
    ps.calibrate(qann, [images])
    return qann


def batches(images: int) -> Any:
    dataset = load_images("fashion-mnist")
    part = dataset.train.subset(torch.arange(images))
    size = min(128, images)
    return data.batches(part, size, normalization=dataset.normalization, shuffle=True, drop_last=True)


def epoch(qann: ps.QuantizedNetwork, images: int) -> Callable[[], object]:
    loader = batches(images)
    return lambda: ps.fit(qann, loader, ps.TrainSpec(epochs=1, learning_rate=1e-3), progress=False)


def by_images() -> dict[str, Callable[[], object]]:
    return {str(count * IMAGES): epoch(quantized(), count * IMAGES) for count in (1, 2, 4)}


def by_width() -> dict[str, Callable[[], object]]:
    return {str(channels): epoch(quantized(channels), IMAGES) for channels in (8, 16, 32)}


def by_timesteps() -> dict[str, Callable[[], object]]:
    snn = ps.convert(quantized())
    images, _ = next(iter(batches(250)))

    def run(timesteps: int) -> object:
        with torch.inference_mode():
            return snn(images, timesteps=timesteps)

    return {str(T): functools.partial(run, T) for T in (1, 2, 4, 8)}


def by_processes(rounds: int) -> dict[str, dict[str, list[float]]]:
    """Seconds of the second epoch, as each group of processes reports them."""
    found: dict[str, dict[str, list[float]]] = {"1": {"wall": []}, "2": {"wall": []}}
    for _ in range(rounds):
        for count, times in found.items():
            command = [sys.executable, __file__, "--worker"]
            if count != "1":
                start = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
                command = [*start, __file__, "--worker"]
            done = subprocess.run(
                command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
            )
            times["wall"].append(float(done.stdout.split()[-1]))
    return found


def work() -> None:
    """One of the processes of ``by_processes``."""
    from polarspike.parallel.distributed import is_main
    from polarspike.parallel.processes import join

    join()
    torch.set_num_threads(1)
    history = ps.fit(quantized(), batches(4 * IMAGES), ps.TrainSpec(epochs=2, learning_rate=1e-3), progress=False)
    if is_main():
        print(history.last.seconds)


def size_of(channels: int) -> dict[str, int]:
    """Parameters, and multiplications of an image in the float network."""
    qann = quantized(channels)
    counts = ps.count_operations(ps.convert(qann), next(iter(batches(2)))[0])
    parameters = sum(p.numel() for p in qann.parameters())
    return {"parameters": parameters, "macs_per_image": round(counts.per_image["ann_macs"])}


def main() -> None:
    groups: dict[str, Callable[[], dict[str, Callable[[], object]]]] = {
        "images": by_images, "width": by_width, "timesteps": by_timesteps,
    }  # fmt: skip
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--only", nargs="*", choices=[*groups, "processes"], default=[*groups, "processes"])
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        work()
        return
    torch.set_num_threads(1)
    rows = []
    for group in asked.only:
        times = by_processes(asked.rounds) if group == "processes" else interleaved(groups[group](), asked.rounds)
        first = next(iter(times))
        for name, measured in times.items():
            kinds = {kind: ratios(values, times[first][kind]) for kind, values in measured.items()}
            rows.append({"group": group, "case": name, "seconds": median(measured["wall"]), **kinds})
            size = size_of(int(name)) if group == "width" else {}
            rows[-1] |= size
            shown = ", ".join(
                f"{kind} x{r['median']:.2f} ({r['low']:.2f} to {r['high']:.2f})" for kind, r in kinds.items()
            )
            print(f"{group:<10} {name:>5}  {shown}  {size or ''}", flush=True)
    keep("scaling", {"conditions": conditions(SEED), "rows": rows})


if __name__ == "__main__":
    main()
