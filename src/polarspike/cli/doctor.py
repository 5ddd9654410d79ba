"""``polarspike doctor``: what this machine has, what is installed, and whether the theorem holds here."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

import polarspike as ps
from polarspike.cli.command import Command, show
from polarspike.data.local import cache
from polarspike.data.registry import FOLDER_VARIABLE

# What integer and half-precision arithmetic is fast with.
_FEATURES = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm", "sve")
_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True, kw_only=True)
class Doctor(Command):
    """Say what a report of a defect should hold: versions, processor, optional packages, folders, and a proof made now.

    The exit code is 1 where the proof fails.
    """

    def execute(self) -> int:
        exact, proof = _proof()
        lines = {
            "polarspike": f"{ps.__version__}, Python {platform.python_version()}, {platform.system()} {platform.machine()}",
            "torch": f"{torch.__version__}, {torch.backends.cpu.get_cpu_capability()} kernels, "
            f"{torch.get_num_threads()} threads on {os.cpu_count()} cores",
            "processor": _processor(),
            "GPU": _gpus(),
            "data": f"{os.environ.get(FOLDER_VARIABLE) or f'${FOLDER_VARIABLE} is not set'}; cache {_cache()}",
            "proof": proof,
        }
        width = max(map(len, lines)) + 2
        show("\n".join([*(f"{name:<{width}}{text}" for name, text in lines.items()), "", *_extras()]))
        return 0 if exact else 1


def _processor() -> str:
    try:
        flags = set(re.split(r"\s+", _CPU_INFO.read_text(encoding="utf-8", errors="replace")))
    except OSError:
        return "its features cannot be read on this system"
    found = [name for name in _FEATURES if name in flags]
    missing = [] if {"avx512_bf16", "amx_bf16", "bf16"} & flags else ["no bf16 units: precision='bf16' is slower here"]
    return "; ".join([", ".join(found) or "none of the features that matter", *missing])


def _gpus() -> str:
    if not torch.cuda.is_available():
        return "none that torch can use"
    return ", ".join(torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count()))


def _cache() -> str:
    place = cache("")
    existing = next(folder for folder in (place, *place.parents) if folder.exists())
    return f"{place} ({'writable' if os.access(existing, os.W_OK) else 'not writable: set XDG_CACHE_HOME'})"


def _extras() -> list[str]:
    """Every optional package by extra, with its version."""
    try:
        wanted = importlib.metadata.requires("polarspike") or []
    except importlib.metadata.PackageNotFoundError:
        return ["optional packages: polarspike itself is not installed, so they cannot be listed"]
    rows = []
    for line in wanted:
        if (found := re.match(r"([A-Za-z0-9._-]+).*;\s*extra == ['\"]([a-z]+)['\"]", line)) is None:
            continue
        package, extra = found.groups()
        if extra in ("all", "dev") or package.startswith("polarspike"):
            continue
        try:
            state = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            state = f"not installed: pip install 'polarspike[{extra}]'"
        rows.append(f"{extra:<11}{package:<14}{state}")
    return ["optional packages", *rows]


def _proof() -> tuple[bool, str]:
    """Convert a small network and compare all codes, at T = 1 and 4."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3)
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    model, images = model.double(), torch.randn(16, 1, 10, 10, generator=generator).double()  # rounding is no defect
    qann = ps.quantize(model, ps.QuantSpec(2, 6), example=images)
    ps.calibrate(qann, [images])
    proofs = [ps.verify(qann, ps.convert(qann), images, timesteps=T) for T in (1, 4)]
    codes = sum(proof.compared for proof in proofs)
    different = sum(proof.different for proof in proofs)
    exact = all(proof.exact for proof in proofs)
    return exact, f"{different} of {codes} codes differ at T = 1 and 4" + ("" if exact else ": please report this")
