"""The runtimes: each makes ready to answer one batch with a number of threads.

fp32, bf16, int8 are the float network; snn is the spiking network at T = 1. Conversions of the input (memory layout,
bfloat16) are made before the clock runs. In OpenVINO float stays float32, in one stream, compiled for the batch; in ONNX
Runtime the batch is free.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from polarspike.exporters import runtime
from polarspike.speed.files import Files
from polarspike.speed.race import Action
from polarspike.speed.subject import Subject

Prepare = Callable[[Tensor, int], Action]
#: What all others are compared with.
BASE = "torch fp32"


@dataclass(frozen=True)
class Runtime:
    """One way to run a subject.

    Args:
        engine: torch, onnxruntime, openvino, or a peer's.
        kind: of the network: fp32, ..., int8, snn, or a peer's with its T.
        prepare: a batch and a number of threads -> what answers it.
        timesteps: T, which a peer may take T times as long for.
    """

    engine: str
    kind: str
    prepare: Prepare
    timesteps: int = 1

    @property
    def name(self) -> str:
        """Engine and kind."""
        return f"{self.engine} {self.kind}"


@dataclass(frozen=True)
class Runtimes:
    """All that can run here, and why others cannot.

    Args:
        ready: in the order of a table.
        skipped: reasons by name.
    """

    ready: list[Runtime] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


def runtimes_of(subject: Subject, files: Files, *, compiled: bool = False) -> Runtimes:
    """What there is for a subject and its files.

    Args:
        subject: in its three forms.
        files: of it.
        compiled: torch.compile, too, which takes a compiler and a while.
    """
    found = Runtimes(list(_of_torch(subject)))
    if compiled:
        found.ready.append(Runtime("torch", "compiled", _in_torch(torch.compile(subject.ann))))
    else:
        found.skipped["torch compiled"] = "not asked for"
    for engine, prepare in (("onnxruntime", _in_onnxruntime), ("openvino", _in_openvino)):
        absent = _absent(engine)
        for kind in ("fp32", "int8", "snn"):
            if absent or kind in files.missing:
                found.skipped[f"{engine} {kind}"] = absent or files.missing[kind]
            else:
                found.ready.append(Runtime(engine, kind, prepare(files.paths[kind])))
    return found


def _of_torch(subject: Subject) -> Iterator[Runtime]:
    last: dict[str, Any] = {"memory_format": torch.channels_last}
    half = copy.deepcopy(subject.ann).to(torch.bfloat16).to(**last)
    yield Runtime("torch", "fp32", _in_torch(subject.ann))
    yield Runtime("torch", "channels-last", _in_torch(copy.deepcopy(subject.ann).to(**last), **last))
    yield Runtime("torch", "bf16", _in_torch(half, dtype=torch.bfloat16, **last))
    yield Runtime("torch", "snn", _in_torch(subject.snn))


def _in_torch(model: nn.Module | Callable[..., Any], **form: Any) -> Prepare:
    def prepare(x: Tensor, threads: int) -> Action:
        del threads  # of the whole process: torch.set_num_threads
        given = x.to(**form) if form else x

        def answer() -> object:
            with torch.inference_mode():
                return model(given)

        return answer

    return prepare


def _in_onnxruntime(path: Path) -> Prepare:
    def prepare(x: Tensor, threads: int) -> Action:
        session = runtime.session(path, threads)
        given = {session.get_inputs()[0].name: x.numpy()}
        return lambda: session.run(None, given)

    return prepare


def _in_openvino(path: Path) -> Prepare:
    def prepare(x: Tensor, threads: int) -> Action:
        request = openvino_request(path, tuple(x.shape), threads)
        given = {0: x.numpy()}
        return lambda: request.infer(given)

    return prepare


def openvino_request(model: Path | bytes, shape: tuple[int, ...], threads: int) -> Any:
    """What OpenVINO answers a batch of this shape with, on the CPU, float as float32."""
    import openvino

    core = openvino.Core()
    read = core.read_model(model if isinstance(model, bytes) else str(model))
    read.reshape(list(shape))
    options = {
        "NUM_STREAMS": "1",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": "NO",  # to a core that another process may be using
        "ENABLE_HYPER_THREADING": "YES",
    }
    return core.compile_model(read, "CPU", options).create_infer_request()


def _absent(engine: str) -> str | None:
    """Why an engine cannot be used."""
    try:
        __import__(engine)
    except ImportError as error:
        return f"not installed ({error})"
    return None
