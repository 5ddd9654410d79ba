"""Training on a CPU with its memory kept, as a multiple of the same steps without: CPU time and page faults.

torch gives the activations of a step back to the C library and asks for them again in the next one. glibc returns them to
the system in between, and every page of 4 KiB that comes back is a fault. ``polarspike train`` tells it to keep them
(``polarspike.cli.memory``); an environment variable can do the same, or ask for pages of 2 MiB. Nothing else changes,
nor may a bit of the weights.

One process for each setting; they take turns, so that what else the machine does meets all of them. ResNet-9 of 20 channels
with 16 levels on 28x28 images, batches of 128, SGD, one thread each.

    python benchmarks/kept_memory.py [--rounds 7] [--steps 12]      about five minutes
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from typing import Any

import torch
from _common import conditions, keep, ratios
from torch import nn

import polarspike as ps
from polarspike.cli.memory import keep_memory

HUGE = "glibc.malloc.hugetlb=1"
KEPT = "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=8589934592"
SETTINGS = {
    "default": {},
    "kept, as polarspike train does": {"KEPT_MEMORY": "1"},
    "kept, by a variable": {"GLIBC_TUNABLES": KEPT},
    "huge pages": {"GLIBC_TUNABLES": HUGE},
    "huge pages, kept": {"GLIBC_TUNABLES": f"{HUGE}:{KEPT}"},
    "torch's own huge pages": {"THP_MEM_ALLOC_ENABLE": "1"},
}
BATCH = 128


def work() -> None:
    """Answer every number on a line with what so many training steps took, and the digest of the weights behind them."""
    if os.environ.get("KEPT_MEMORY"):
        assert keep_memory()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 1, 28, 28), torch.randint(0, 10, (BATCH,))
    model = ps.models.create("resnet9", num_classes=10, in_channels=1, width=20)
    qann = ps.quantize(model, ps.QuantSpec(0, 15), example=images[:2])
    ps.calibrate(qann, [images[:32]])
    qann.to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(qann.parameters(), lr=0.01, momentum=0.9)
    qann.train()
    for line in sys.stdin:
        faults, wall, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_minflt, time.perf_counter(), time.process_time()
        for _ in range(int(line)):
            optimizer.zero_grad()
            nn.functional.cross_entropy(qann(images), labels).backward()
            optimizer.step()
        took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
        took["faults"] = resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults
        weights = hashlib.sha256(b"".join(value.detach().numpy().tobytes() for value in qann.parameters()))
        print(json.dumps({**took, "weights": weights.hexdigest()}), flush=True)


def ask(worker: Any, steps: int) -> dict[str, Any]:
    worker.stdin.write(f"{steps}\n")
    worker.stdin.flush()
    answer: dict[str, Any] = json.loads(worker.stdout.readline())
    return answer


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.worker:
        work()
        return
    torch.set_num_threads(1)  # what the conditions say is what the workers do
    command = [sys.executable, __file__, "--worker"]
    workers = {
        name: subprocess.Popen(
            command, env={**os.environ, **setting}, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        for name, setting in SETTINGS.items()
    }
    seen: dict[str, list[dict[str, Any]]] = {name: [] for name in workers}
    for index in range(given.rounds + 1):
        for name, worker in workers.items():
            answer = ask(worker, given.steps)
            if index:  # the first is a warm-up
                seen[name].append(answer)
    for worker in workers.values():
        worker.communicate()
    rows = {}
    for name, answers in seen.items():
        row = {kind: ratios(*([one[kind] for one in seen[of]] for of in (name, "default"))) for kind in ("cpu", "wall")}
        faults = sorted(one["faults"] for one in answers)[len(answers) // 2] / given.steps
        same = all(one["weights"] == first["weights"] for one, first in zip(answers, seen["default"], strict=True))
        rows[name] = {**row, "faults_per_step": faults, "same_weights": same}
        print(
            f"{name:<31} CPU time {row['cpu']['median']:.3f}x ({row['cpu']['low']:.3f}-{row['cpu']['high']:.3f}), "
            f"wall {row['wall']['median']:.3f}x, {faults:.0f} page faults a step, weights "
            f"{'the same' if same else 'DIFFERENT'}"
        )
    settings = {"settings": SETTINGS, "batch": BATCH, "rounds": given.rounds, "steps": given.steps}
    keep("kept_memory", {"conditions": conditions(0), **settings, "rows": rows})


if __name__ == "__main__":
    main()
