"""A program for a process of its own: load a file in ONNX Runtime, run one batch, say how much memory it took.

    python -P probe.py FILE BATCH C H W        prints JSON: peak of resident memory before the file, and in all, in bytes

It imports nothing but the runtime, so that what it measures is the runtime. The peak is read from /proc (Linux): what
``getrusage`` gives begins with the memory of the process that started this one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def peak() -> int:
    """Peak of resident memory until now, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))


def main(path: str, *sizes: str) -> None:
    """Run it and print."""
    import numpy as np
    import onnxruntime

    before = peak()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    loaded = peak()
    x = np.zeros([int(size) for size in sizes], dtype=np.float32)
    session.run(None, {session.get_inputs()[0].name: x})
    sys.stdout.write(json.dumps({"imports": before, "loaded": loaded, "peak": peak()}))


if __name__ == "__main__":
    main(*sys.argv[1:])
