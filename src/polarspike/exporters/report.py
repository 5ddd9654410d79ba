"""What an export has written, and how far its answers are from the network's."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from polarspike.common.inputs import Inputs, batch_size
from polarspike.errors import ExportError

Runner = Callable[[Inputs], list[Tensor]]
#: On a batch: codes compared; those that differ between the spiking network and whole numbers; and those that differ
#: between whole numbers as they are defined and as the file's runtime computes them.
CodeCheck = Callable[[Inputs], tuple[int, int, int]]

#: Where the comparison of codes ends.
_ENOUGH_CODES = 10_000_000


@dataclass(frozen=True)
class ExportReport:
    """One file, read back and run.

    Args:
        path: of the file.
        format: of the file.
        bytes: of all its parts.
        compared: output values that were compared with the spiking network's at T = 1.
        different: of them, those that differ in any bit.
        largest: difference between two of them.
        samples: compared.
        decisions: how many samples have the largest output at another place; None where outputs are no class scores.
        codes: compared, in formats of whole numbers; None in others.
        codes_rounded: of them, those that differ between the spiking network and whole numbers, which round weights, inputs
            (to their grid of bytes) and branches of residual sums.
        codes_wrong: of them, those that the file's runtime places otherwise than whole numbers are defined.
    """

    path: Path
    format: str
    bytes: int
    compared: int
    different: int
    largest: float
    samples: int
    decisions: int | None
    codes: int | None = None
    codes_rounded: int = 0
    codes_wrong: int = 0

    @property
    def exact(self) -> bool:
        """All compared values agree in every bit."""
        return self.different == 0

    def __str__(self) -> str:
        decided = "" if self.decisions is None else f"; {self.decisions} of {self.samples} decisions differ"
        text = (
            f"{self.path}: {self.format}, {self.bytes / 1e6:.2f} MB; {self.different} of {self.compared} output values "
            f"differ from the spiking network at T = 1, by at most {self.largest:.2g}{decided}"
        )
        if self.codes is None:
            return text
        return (
            f"{text}\n{self.codes} codes: {self.codes_rounded} moved by writing in whole numbers, {self.codes_wrong} "
            "differ between the runtime and whole numbers"
        )


def compare(
    path: Path,
    format_name: str,
    size: int,
    batches: Iterable[Inputs],
    network: Runner,
    written: Runner,
    codes: CodeCheck | None = None,
    shared: Collection[str] = (),
) -> ExportReport:
    """Run both on every batch, and compare codes on as many as it takes for 10 million; ``shared`` inputs hold no samples.

    Raises:
        ExportError: another number of outputs, other shapes, a NaN that the network does not have, or nothing to compare.
    """
    compared = different = samples = wrong = 0
    largest = 0.0
    decides = True
    counts = [0, 0, 0]
    for batch in batches:
        if codes is not None and counts[0] < _ENOUGH_CODES:
            counts = [total + more for total, more in zip(counts, codes(batch), strict=True)]
        expected, got = network(batch), written(batch)
        if [tuple(y.shape) for y in got] != [tuple(y.shape) for y in expected]:
            raise ExportError(
                f"{path}: expected outputs of shapes {[tuple(y.shape) for y in expected]}, got "
                f"{[tuple(y.shape) for y in got]} from the written file"
            )
        for one, other in zip(expected, got, strict=True):
            same = (one == other) | (one.isnan() & other.isnan())
            compared += one.numel()
            different += int((~same).sum())
            distance = torch.where(same, 0.0, (one.double() - other.double()).abs())
            if distance.isnan().any():
                raise ExportError(f"{path}: the written file answers NaN where the network does not")
            largest = max(largest, float(distance.max()) if distance.numel() else 0.0)
        decides = decides and len(expected) == 1 and expected[0].dim() == 2
        samples += batch_size(batch, shared)
        if decides:
            wrong += int((expected[0].argmax(1) != got[0].argmax(1)).sum())
    if not compared:
        raise ExportError(f"{path}: no output value was compared; give batches that hold samples, or leave batches out")
    decisions = wrong if decides else None
    seen = (None, 0, 0) if codes is None else tuple(counts)
    return ExportReport(path, format_name, size, compared, different, largest, samples, decisions, *seen)
