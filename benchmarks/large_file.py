"""Files beyond 2 GiB, where a protobuf message ends: written, opened again, run, and compared.

    onnx-int8     nine linear layers of 16,384 x 16,384 random weights of one byte (2.4 GB) as an integer network; codes of
                  ONNX Runtime against those that NumPy defines, at every layer
    onnx-float    nine linear layers of 8,192 x 8,192 float32 weights (2.4 GB), a ReLU behind each; answers against torch

Weights lie in ``<file>.data`` beside the model, which stays small. The integer format needs no second file.

    OMP_NUM_THREADS=1 python benchmarks/large_file.py    5 GB of disk, 13 GB of memory, three minutes
"""

from __future__ import annotations

import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from _common import conditions, keep
from torch import nn

from polarspike import integer
from polarspike.exporters import onnx_float, onnx_int8, programs, runtime
from polarspike.integer import Instruction, IntegerNetwork
from polarspike.integer.network import Array

SEED, LAYERS, LEVELS = 0, 9, 15
WIDE, WIDE_FLOAT = 16_384, 8_192
LIMIT = 2**31
DIVISOR = 37_501


def integer_network() -> IntegerNetwork:
    """Linear layers of random bytes, each in front of a neuron."""
    generator = np.random.default_rng(SEED)
    made = [Instruction("quantize", ("x",), "site0", {}, {"step": np.array(0.25, np.float32)}, (0, LEVELS))]
    attributes = {"operator": "linear", "axis": 1, "shape": [WIDE]}
    for layer in range(1, LAYERS + 1):
        tensors: dict[str, Array] = {
            "weight": generator.integers(-127, 128, (WIDE, WIDE), dtype=np.int8),
            "bias": np.full(WIDE, 2 * DIVISOR, np.int32),
            "divisor": np.full(WIDE, DIVISOR, np.int32),
        }
        made.append(Instruction("synapse", (f"site{layer - 1}",), f"site{layer}", attributes, tensors, (0, LEVELS)))
    made.append(Instruction("decode", (f"site{LAYERS}",), "y", {}, {"step": np.array(1.0, np.float32)}))
    sites = {f"site{layer}": f"site{layer}" for layer in range(LAYERS + 1)}
    return IntegerNetwork((("x", (WIDE,)),), (("y", (WIDE,)),), tuple(made), {}, sites, "{}")


def of_bytes(folder: Path) -> dict[str, Any]:
    """The integer network as ONNX: sizes, and how many codes differ."""
    network, path = integer_network(), folder / "bytes.onnx"
    runtime.save(onnx_int8.model_of(network, "polarspike", codes=True), path)
    opened = runtime.session(path)
    x = np.random.default_rng(SEED + 1).uniform(-1, 5, (4, WIDE)).astype(np.float32)
    found = dict(zip(network.sites, opened.run([f"{site}/bytes" for site in network.sites], {"x": x}), strict=True))
    del opened
    points, compared, different, kinds = onnx_int8.zero_points(network), 0, 0, set()
    for name, codes in integer.trace(network, {"x": x}):
        if name in found:
            compared += codes.size
            different += int((found[name].astype(np.int64) - points[name] != codes).sum())
            kinds |= set(np.unique(codes).tolist())
    path.with_name("bytes.integer").unlink(missing_ok=True)
    integer.save(network, path.with_name("bytes.integer"))
    whole = path.with_name("bytes.integer").stat().st_size
    return {**sizes(path), "integer_bytes": whole, "codes": compared, "different": different, "kinds": len(kinds)}


def of_floats(folder: Path) -> dict[str, Any]:
    """A float network as ONNX: sizes, and the largest difference of its answers."""
    torch.manual_seed(SEED)
    with torch.no_grad():
        layers = [part for _ in range(LAYERS) for part in (nn.Linear(WIDE_FLOAT, WIDE_FLOAT), nn.ReLU())]
    model, path, x = nn.Sequential(*layers).eval(), folder / "floats.onnx", torch.randn(4, WIDE_FLOAT)
    module = torch.fx.symbolic_trace(model)
    program = programs.program_of(module, {"input": x})
    onnx_float.save(program, path, "{}", ["input"])
    with torch.no_grad():
        meant = model(x)
    del program
    (answer,) = onnx_float.runner(path)(x)
    return {**sizes(path), "largest": float((answer - meant).abs().max()), "scale": float(meant.abs().max())}


def sizes(path: Path) -> dict[str, int]:
    """Of a model and of the weights beside it."""
    return {"model_bytes": path.stat().st_size, "data_bytes": path.with_name(f"{path.name}.data").stat().st_size}


def main() -> None:
    """Write, read, compare and keep."""
    results: dict[str, Any] = {}
    for name, part in {"onnx-int8": of_bytes, "onnx-float": of_floats}.items():
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            results[name] = part(Path(folder))
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
        results[name] |= {"seconds": round(time.perf_counter() - start), "peak_gb": round(peak, 1)}
        print(name, results[name], flush=True)
        assert results[name]["data_bytes"] > LIMIT > 1000 * results[name]["model_bytes"]
    assert results["onnx-int8"]["different"] == 0 and results["onnx-int8"]["kinds"] == LEVELS + 1
    assert results["onnx-float"]["largest"] <= 1e-5 * results["onnx-float"]["scale"]
    keep("large_file", {"conditions": conditions(SEED), **results})


if __name__ == "__main__":
    main()
