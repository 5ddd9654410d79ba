"""``polarspike diagnose``: what each site loses by rounding, clipping and missing polarity, and what to do about it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path

from polarspike.calibration import calibrate
from polarspike.cli.command import show
from polarspike.cli.files import load_quantized
from polarspike.cli.network import NetworkCommand
from polarspike.data import Normalization
from polarspike.errors import SpecError
from polarspike.experiment import require_device
from polarspike.quantization import quantize


@dataclass(frozen=True, kw_only=True)
class Diagnose(NetworkCommand):
    """Calibrate a network on images, and print the loss of each site with one line of advice; nothing is written.

    The file of a quantized network keeps the steps that it has.

    Args:
        effects: also measure each site's effect on the output (one pass of the first batch for each site).
    """

    effects: bool = False

    def execute(self) -> int:
        from polarspike.diagnosis import diagnose

        if self.images is None:
            raise SpecError("diagnose: expected --images, on which the losses are measured")
        if self.names_a_file:
            require_device(self.device)
            qann = load_quantized(Path(self.model)).to(self.device)
            known = self.preprocessing({})
            if known.shape is None and "shape" in qann.notes:
                known = dataclasses.replace(known, shape=tuple(qann.notes["shape"]))
            if self.crop is None and "crop" in qann.notes:
                known = dataclasses.replace(known, crop=qann.notes["crop"])
            if "normalization" in qann.notes:
                known = dataclasses.replace(known, normalization=Normalization.from_dict(qann.notes["normalization"]))
            batches, _ = self.batches(known)
        else:
            network = self.prepare()
            assert network.batches is not None
            batches = network.batches
            qann = quantize(network.model, self.quant, example=network.example)
            calibrate(qann, batches)
        show(diagnose(qann, batches, effects=self.effects))
        return 0
