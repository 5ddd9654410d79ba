"""What a spiking network costs beside its float network, as ratios of runs interleaved in one process.

first   snn(x) over the float network with the same weights
later   each later step of step-by-step over snn(x):  (time of T = 6 - time of T = 2) / 4
mean    the answer at T = 8 in mean-domain execution over snn(x)
memory  peak of resident memory of step-by-step at T = 32 over T = 4, in MB (Linux: the peak is reset after the first
        timestep, so that quantizing and calibrating, which take more, do not hide it)
build   quantize + convert without calibration, in seconds (ResNet-50 and ViT-S)

pip install timm
python benchmarks/simulation.py [--threads 2] [--rounds 7]
"""

from __future__ import annotations

import argparse
import multiprocessing
import time
import warnings
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _common import conditions, interleaved, keep, ratios
from torch import nn

import polarspike as ps

SEED = 0
SPEC = ps.QuantSpec(negative=7, positive=8, init="mse")


def build(name: str) -> nn.Module:
    torch.manual_seed(SEED)
    if name == "vit_s":
        import timm

        model: nn.Module = timm.create_model("vit_small_patch16_224")
    else:
        from torchvision import models

        model = models.get_model(name, weights=None)
    return model.eval()


def example(name: str, batch: int) -> torch.Tensor:
    size = 224 if name == "vit_s" else 96
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(SEED))


def spiking(name: str, x: torch.Tensor) -> tuple[nn.Module, ps.SpikingNetwork]:
    model = build(name)
    qann = ps.quantize(model, SPEC, example=x[:2])
    ps.calibrate(qann, [x[:8]])
    return model, ps.convert(qann)


@torch.inference_mode()
def cost(name: str, batch: int, rounds: int) -> dict[str, Any]:
    x = example(name, batch)
    model, snn = spiking(name, x)
    times = interleaved(
        {
            "ann": lambda: model(x),
            "first": lambda: snn(x),
            "two": lambda: snn(x, timesteps=2),
            "six": lambda: snn(x, timesteps=6),
            "mean": lambda: snn(x, timesteps=8, execution="mean"),
        },
        rounds,
    )
    row: dict[str, Any] = {"batch": batch}
    for clock in ("wall", "cpu"):
        part = {key: value[clock] for key, value in times.items()}
        later = [(six - two) / 4 for six, two in zip(part["six"], part["two"], strict=True)]
        row[clock] = {
            "first": ratios(part["first"], part["ann"]),
            "later": ratios(later, part["first"]),
            "mean": ratios(part["mean"], part["first"]),
        }
        shown = ", ".join(
            f"{key} {value['median']:.3f} ({value['low']:.3f}..{value['high']:.3f})"
            for key, value in row[clock].items()
        )
        print(f"{name}, batch {batch}, {clock} time: {shown}", flush=True)
    return row


def peak(name: str, batch: int, timesteps: int, answer: Any) -> None:
    """Resident memory before one run in a process of its own, and its peak during the run, in MB."""
    torch.set_num_threads(1)
    x = example(name, batch)
    _, snn = spiking(name, x)
    with torch.inference_mode():
        snn(x)
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew from what is resident now
        before = resident("VmRSS")
        snn(x, timesteps=timesteps)
    answer.put((before, resident("VmHWM")))


def resident(name: str) -> float:
    """A figure of the kernel about this process, in MB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 1024


def memory(name: str, batch: int) -> dict[str, Any]:
    found: dict[str, Any] = {}
    context = multiprocessing.get_context("spawn")
    for timesteps in (4, 32):
        answer = context.Queue()
        process = context.Process(target=peak, args=(name, batch, timesteps, answer))
        process.start()
        before, after = answer.get()
        process.join()
        found[f"T={timesteps}"] = {"before_mb": round(before), "peak_mb": round(after)}
    print(f"{name}, batch {batch}, peak of resident memory: {found}", flush=True)
    return found


def construction(name: str) -> list[float]:
    model, x = build(name), example(name, 2)
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        qann = ps.quantize(model, SPEC, example=x)
        for site in qann.sites().values():
            site.set_step(0.1)
        ps.convert(qann)
        seconds.append(time.perf_counter() - start)
    print(f"{name}: quantize + convert in {median(seconds):.1f} s (median of 5)", flush=True)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    results = {
        "resnet18": cost("resnet18", 64, options.rounds),
        "vit_s": cost("vit_s", 8, options.rounds),
        "memory": {"resnet18": memory("resnet18", 32), "vit_s": memory("vit_s", 4)},
        "build_s": {name: construction(name) for name in ("resnet50", "vit_s")},
    }
    keep("simulation", {"conditions": conditions(SEED), "results": results})


if __name__ == "__main__":
    main()
