"""SpikingJelly among the runtimes: the same network as rate-coded spikes, the faster way of its two.

    steps    T calls, one timestep each (step mode "s")
    layers   one call with all T timesteps in every layer (step mode "m"): convolutions see T x N images at once

Both start from rest and give the mean output over T steps. Its kernels for neurons need a GPU; on a CPU they are torch's.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from polarspike.baselines.peers import spikingjelly
from polarspike.errors import PolarspikeError
from polarspike.speed.race import Action
from polarspike.speed.runtimes import Runtime, Runtimes
from polarspike.speed.subject import Subject

#: T of the races.
_TIMESTEPS = (1, 4, 8)
_ENGINE = "spikingjelly"


def add_spikingjelly(found: Runtimes, subject: Subject) -> None:
    """Add what SpikingJelly makes of a subject's float network, or why it makes nothing.

    Args:
        found: changed in place.
        subject: whose images calibrate its thresholds.
    """
    try:
        network = spikingjelly.rate_coding(subject.ann, [subject.images], mode="99.9%")
    except PolarspikeError as error:
        found.skipped[_ENGINE] = str(error)
        return
    except Exception as error:  # its errors have no common base
        found.skipped[_ENGINE] = f"its conversion failed: {str(error).strip().partition(chr(10))[0]}"
        return
    functional = importlib.import_module("spikingjelly.activation_based.functional")
    for total in _TIMESTEPS:
        for way in ("steps", "layers") if total > 1 else ("steps",):
            kind = f"T={total}" if total == 1 else f"T={total} {way}"
            found.ready.append(Runtime(_ENGINE, kind, _prepared(network.snn, functional, total, way), total))


def _prepared(snn: Any, functional: Any, total: int, way: str) -> Callable[[Tensor, int], Action]:
    def prepare(x: Tensor, threads: int) -> Action:
        del threads  # of the whole process: torch.set_num_threads
        mode = "m" if way == "layers" else "s"
        frames = x.expand(total, *x.shape).contiguous() if mode == "m" else None

        @torch.inference_mode()
        def answer() -> Tensor:
            functional.reset_net(snn)
            functional.set_step_mode(snn, mode)  # one network serves all ways
            if frames is not None:
                return snn(frames).mean(0)  # type: ignore[no-any-return]
            first = snn(x)
            for _ in range(total - 1):
                first = first + snn(x)
            return first / total  # type: ignore[no-any-return]

        return answer

    return prepare
