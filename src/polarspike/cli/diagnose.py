"""``polarspike diagnose``: what each site loses by rounding, clipping and missing polarity, and what to do about it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from polarspike.calibration import calibrate
from polarspike.cli.command import refuse, show
from polarspike.cli.files import load_quantized, noted
from polarspike.cli.network import TRAINING_FREE, NetworkCommand
from polarspike.errors import SpecError
from polarspike.experiments.experiment import require_device
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
        from polarspike.analysis.diagnosis import diagnose

        if self.images is None:
            raise SpecError("diagnose: expected --images, on which the losses are measured")
        if self.names_a_file:
            require_device(self.device)
            path = Path(self.model)
            qann = load_quantized(path).to(self.device)
            asked = {
                "--weights": self.weights is not None,
                "--random-weights": self.random_weights,
                "--options": bool(self.options),
                "--quant": self.quant != TRAINING_FREE,
            }
            refuse(
                asked, f"{self.model} names the file of a quantized network, which has its weights, levels and steps"
            )
            batches, _ = self.batches(self.wanted(noted(path, qann.notes)))
        else:
            network = self.prepare()
            assert network.batches is not None
            batches = network.batches
            qann = quantize(network.model, self.quant, example=network.example)
            calibrate(qann, batches)
        show(diagnose(qann, batches, effects=self.effects))
        return 0
