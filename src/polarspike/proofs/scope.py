"""What a claim of equality does not cover: codes that change with batch size, number of threads and memory format.

No network is independent of these in floating point: they change the order of its sums.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from polarspike.common.inputs import Inputs, batch_size, map_inputs, rows_of, tensors_of
from polarspike.errors import InputError
from polarspike.proofs.recordings import run_spiking
from polarspike.spiking import SpikingNetwork

Changes = dict[str, tuple[int, int] | str]
_SAMPLES = 64


def changes(snn: SpikingNetwork, inputs: Inputs) -> Changes:
    """Codes of one spiking network at T = 1 that change with the conditions of the run.

    Args:
        snn: is run on the first samples of ``inputs``, again under each condition.
        inputs: one batch.

    Returns:
        By condition, the codes that changed and how many were compared; or why the network cannot run so, which takes
        nothing from a proof.
    """
    shared = snn.signature.shared
    length = batch_size(inputs, shared)
    size = min(length, _SAMPLES)

    whole = rows_of(inputs, slice(0, size), length, shared)
    reference = run_spiking(snn, [whole]).codes
    threads = torch.get_num_threads()
    other_threads = 1 if threads > 1 else 2

    def one_by_one() -> dict[str, Tensor]:
        single = [run_spiking(snn, [rows_of(inputs, slice(i, i + 1), length, shared)]).codes for i in range(size)]
        return {name: torch.cat([codes[name] for codes in single]) for name in reference}

    def threaded() -> dict[str, Tensor]:
        try:
            torch.set_num_threads(other_threads)
            return run_spiking(snn, [whole]).codes
        finally:
            torch.set_num_threads(threads)

    def reformatted() -> dict[str, Tensor]:
        return run_spiking(snn, [map_inputs(_other_memory_format, whole)]).codes

    conditions = {f"batch 1 against {size}": one_by_one, f"{threads} against {other_threads} threads": threaded}
    if any(tensor.dim() == 4 for _, tensor in tensors_of(inputs)):
        conditions["contiguous against channels_last"] = reformatted
    found: Changes = {}
    for condition, run in conditions.items():
        try:
            codes = run()
            found[condition] = (
                sum(int((expected != codes[name]).sum()) for name, expected in reference.items()),
                sum(expected.numel() for expected in reference.values()),
            )
        except (RuntimeError, InputError) as error:
            found[condition] = f"the network cannot run so ({str(error).splitlines()[0]})"
    return found


def _other_memory_format(value: Any) -> Any:
    if not isinstance(value, Tensor) or value.dim() != 4:
        return value
    return value.contiguous(memory_format=torch.channels_last if value.is_contiguous() else torch.contiguous_format)
