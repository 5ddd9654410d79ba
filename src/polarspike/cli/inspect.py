"""``polarspike inspect``: what quantization would do to a network, without doing it."""

from __future__ import annotations

from dataclasses import dataclass

from polarspike.cli.command import show
from polarspike.cli.network import NetworkCommand
from polarspike.errors import SpecError
from polarspike.quantization import inspect


@dataclass(frozen=True, kw_only=True)
class Inspect(NetworkCommand):
    """Say what would spike, with which levels and why, and what would stay analog; nothing is written."""

    def execute(self) -> int:
        if self.names_a_file and self.model.endswith(".safetensors"):
            raise SpecError(
                f"{self.model}: expected a float network, this names a file; to look into a quantized network, use: "
                f"polarspike diagnose {self.model} --images IMAGES"
            )
        network = self.prepare()
        show(inspect(network.model, self.quant, network.example))
        return 0
