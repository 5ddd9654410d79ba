"""What figures of speed depend on: the processor, what it multiplies bytes with, and the versions of the runtimes."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import polarspike

_PACKAGES = ("torch", "onnxruntime", "openvino", "onnx", "numpy")
_EXTENSIONS = ("avx2", "avx512f", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "asimddp", "i8mm")


def machine() -> dict[str, Any]:
    """Plain data; what cannot be known is left out."""
    about = _processor()
    versions = {}
    for package in _PACKAGES:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "processor": about.get("model name", platform.processor() or platform.machine()),
        "extensions": [name for name in _EXTENSIONS if name in about.get("flags", about.get("Features", "")).split()],
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "polarspike": polarspike.__version__,
        **versions,
    }


def _processor() -> dict[str, str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    except OSError:
        return {}
    pairs = (line.partition(":") for line in lines)
    return {key.strip(): value.strip() for key, _, value in pairs}
