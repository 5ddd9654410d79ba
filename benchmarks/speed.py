"""How fast the spiking network is at T = 1 in integer kernels, beside the float network and plain int8 of that network.

Four networks with random weights, whose batch norms have seen the (random) pictures: times do not depend on the weights, and
answers mean nothing. ResNet-50 gets 64x64 pixels and ViT-S 32x32 in patches of 4, which one core can afford. Per network:

times      median and range over the rounds, all runtimes in turn in one process; processor time with one thread, wall time
           with several
footprint  bytes of the files; peak memory of a process that loads one and runs a batch in ONNX Runtime; cold start of
           ``polarspike run``
codes      (--codes) of every site, NumPy reference against ONNX Runtime with batches of 1, 3 and 8 and with 1 and 2 threads,
           and against OpenVINO, until 10^7 different codes of the reference have been compared with each
peers      (--peers) torch.compile, and SpikingJelly's rate coding of the same network at T = 1, 4 and 8, in the race with
           torch and ONNX Runtime; where SpikingJelly is installed (pip install 'polarspike[baselines]')

OMP_NUM_THREADS=1 python benchmarks/speed.py [--networks vgg16 ...] [--threads 1 2] [--rounds 7]    times and footprint
OMP_NUM_THREADS=1 python benchmarks/speed.py --codes [--networks ...]                               codes
OMP_NUM_THREADS=1 python benchmarks/speed.py --peers --networks vgg16 resnet18                       peers
"""

from __future__ import annotations

import argparse
import json
import tempfile
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import RESULTS, conditions, keep
from torch import nn

from polarspike import speed
from polarspike.errors import PolarspikeError
from polarspike.speed.agreement import meaning, onnxruntime_codes, openvino_codes
from polarspike.speed.subject import settled

SEED = 0  # of random_subject, too
CODES = 10_000_000
SPLITS = (1, 3, 8)
PORTION = 8


@dataclass(frozen=True)
class Network:
    """One row of the study."""

    build: Callable[[], speed.Subject]
    size: int
    batches: tuple[int, int]


def resnet50() -> nn.Module:
    from torchvision import models

    torch.manual_seed(SEED)
    network: nn.Module = models.resnet50(num_classes=1000)
    return network


def _resnet50() -> speed.Subject:
    images = speed.pictures(16, 3, 64)
    return speed.subject_of(settled(resnet50(), images), images)


NETWORKS = {
    "vgg16": Network(lambda: speed.random_subject("vgg16", width=64), 32, (1, 64)),
    "resnet18": Network(lambda: speed.random_subject("resnet18", width=64), 32, (1, 64)),
    "resnet50": Network(_resnet50, 64, (1, 16)),
    "vit_s": Network(lambda: speed.random_subject("vit", width=384, depth=12, heads=6, ratio=4, patch=4), 32, (1, 16)),
}


def timed(name: str, options: argparse.Namespace) -> dict[str, Any]:
    known = NETWORKS[name]
    subject = known.build()
    course = speed.Course(known.batches, tuple(options.threads), options.rounds)
    result: dict[str, Any] = {
        "size": known.size,
        "parameters": sum(p.numel() for p in subject.ann.parameters()),
        "float_operators": subject.network.float_operators(),
        "times": [],
        "skipped": {},
    }
    shape = tuple(subject.images.shape[1:])
    with tempfile.TemporaryDirectory() as folder:
        files = speed.write_files(subject, Path(folder))
        for heat in speed.measure(speed.runtimes_of(subject, files), subject.images, course):
            print(f"\n{name}, {known.size}x{known.size}: {speed.speed_table(heat)}", flush=True)
            result["times"] += heat.rows()
            result["skipped"] |= {f"{key}, batch {heat.batch}": reason for key, reason in heat.skipped.items()}
        result["footprint"] = {}
        for batch in known.batches:
            found = speed.footprint(files, (batch, *shape))
            base = next((each for each in found if each.kind == "fp32"), None)
            result["footprint"][batch] = [each.row(base) for each in found]
            print(f"\n{name}: {speed.footprint_table(found, batch)}", flush=True)
        try:
            times, imported = speed.cold_start(files.paths["snn"], shape)
        except (PolarspikeError, KeyError) as error:
            result["cold_start"] = f"not measured: {error}"
        else:
            result["cold_start"] = {
                "wall_s": [round(value, 3) for value in times.of("wall")],
                "cpu_s": [round(value, 3) for value in times.of("cpu")],
                "imports_torch": bool(imported),
            }
        print(f"{name}: cold start {result['cold_start']}", flush=True)
    return result


def raced(name: str, options: argparse.Namespace) -> dict[str, Any]:
    known = NETWORKS[name]
    subject = known.build()
    course = speed.Course(known.batches, tuple(options.threads), options.rounds)
    result: dict[str, Any] = {"size": known.size, "times": [], "skipped": {}}
    with tempfile.TemporaryDirectory() as folder:
        runtimes = speed.runtimes_of(subject, speed.write_files(subject, Path(folder)), compiled=True)
        kinds = ("fp32", "compiled", "int8", "snn")
        runtimes.ready[:] = [each for each in runtimes.ready if each.engine != "openvino" and each.kind in kinds]
        speed.add_spikingjelly(runtimes, subject)
        for heat in speed.measure(runtimes, subject.images, course):
            print(f"\n{name}, {known.size}x{known.size}: {speed.speed_table(heat)}", flush=True)
            result["times"] += heat.rows()
            result["skipped"] |= {f"{key}, batch {heat.batch}": reason for key, reason in heat.skipped.items()}
    return result


def codes(name: str) -> dict[str, Any]:
    known = NETWORKS[name]
    network = known.build().network
    readers = {f"onnxruntime, {threads} threads": onnxruntime_codes(network, threads) for threads in (1, 2)}
    splits: dict[str, tuple[int, ...]] = dict.fromkeys(readers, SPLITS)
    try:
        readers["openvino, 1 threads"] = openvino_codes(network, 1)
        splits["openvino, 1 threads"] = (PORTION,)
    except ImportError as error:
        print(f"{name}: openvino left out: {error}", flush=True)
    totals = {f"{key}, batches of {size}": speed.Agreement() for key in readers for size in splits[key]}
    compared, seed = 0, 1
    while compared < CODES:
        x = speed.pictures(PORTION, 3, known.size, seed)
        if seed % 2 == 0:  # values between the pixels, too
            x = x + 0.05 * torch.randn(x.shape, generator=torch.Generator().manual_seed(seed))
        meant = meaning(network, x.numpy())
        compared += sum(value.size for value in meant.codes.values())
        for key, reader in readers.items():
            for size in splits[key]:
                parts = [reader(part.contiguous().numpy()) for part in x.split(size)]
                found = {site: np.concatenate([part[site] for part in parts]) for site in meant.codes}
                speed.agreement(meant, found, totals[f"{key}, batches of {size}"])
        seed += 1
    rows = {key: total.row() for key, total in totals.items()}
    for key, row in rows.items():
        print(f"{name}: {key}: {row}", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--threads", type=int, nargs="+", default=[1])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--codes", action="store_true")
    parser.add_argument("--peers", action="store_true")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(max(options.threads))
    path = RESULTS / "speed.json"
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    part = "codes" if options.codes else "peers" if options.peers else "speed"
    if options.threads != [1]:
        part += f", threads {' '.join(map(str, options.threads))}"
    for name in options.networks:
        made = codes(name) if options.codes else raced(name, options) if options.peers else timed(name, options)
        about = {**conditions(SEED), "machine": speed.machine()}
        kept.setdefault(part, {})[name] = {"conditions": about, "results": made}
        keep("speed", kept)  # each network as soon as it is there


if __name__ == "__main__":
    main()
