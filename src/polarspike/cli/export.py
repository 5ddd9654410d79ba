"""``polarspike export``: a file of a spiking network for another runtime, read back and compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from polarspike.cli.command import Command, refuse, show, tell
from polarspike.cli.files import Source, images_for, load_spiking, pictures_for
from polarspike.common.inputs import Inputs
from polarspike.errors import SpecError
from polarspike.exporters import export
from polarspike.exporters.writing import Format
from polarspike.quantized import inputs_like
from polarspike.spiking import SpikingNetwork

_RANDOM_SAMPLES = 8
_MOST_PICTURES = 1000
#: Where a file names no test images.
_OTHERWISE = "export needs no labels: give --images FOLDER, or a .npy file of inputs, in place of a number"
_ENDINGS: dict[Format, str] = {
    "onnx-int8": ".onnx",
    "onnx-float": ".onnx",
    "nir": ".nir",
    "integer": ".integer",
    "torch-export": ".pt2",
}


@dataclass(frozen=True, kw_only=True)
class Export(Command):
    """Write the first timestep of a spiking network to a file that runs without polarspike.

    Args:
        file: what `train`, `demo` or `convert` wrote.
        to: the format; onnx is onnx-int8, in whole numbers. All but integer and torch-export need the extra deploy.
        output: where; FILE with the ending of the format (.onnx, .nir, .integer, .pt2) if not given.
        images: on what answers are compared, which also shows whole numbers how large signals become: a number N, of test
            images of its dataset; or a folder of pictures or a .tar shard, scaled as the file says, or a .npy or
            .safetensors file of inputs as they are; at most 1,000 of them. Random inputs if 0.
        data: a dataset; the one that the file was made for, if not given.
        root: the folder of the dataset's files, where it is not the usual one.
    """

    file: Annotated[Path, tyro.conf.Positional, tyro.conf.arg(metavar="SNN.safetensors")]
    to: Literal[Format, "onnx"]
    output: Path | None = None
    images: str = "0"
    data: str | None = None
    root: Path | None = None

    def execute(self) -> int:
        count = int(self.images) if re.fullmatch(r"[+-]?\d+", self.images) else None
        if count is not None and count < 0:
            raise SpecError(f"--images: expected a number of at least 0, got {count}")
        refuse(
            {"--data": self.data is not None and not count, "--root": self.root is not None and not count},
            f"only a number of test images (--images N) reads a dataset, got --images {self.images}",
        )
        snn = load_spiking(self.file)
        chosen: Format = "onnx-int8" if self.to == "onnx" else self.to
        output = self.output or self.file.with_suffix(_ENDINGS[chosen])
        if output.resolve() == self.file.resolve():
            raise SpecError(f"--output {output}: this is the network itself; give another path")
        example = random_inputs(snn)
        batches: Any = None
        if count is None:
            batches = pictures_for(self.file, snn, self.images, _MOST_PICTURES, verb="export")
        elif count:
            found = images_for(self.file, snn, Source(self.data, self.root, False, "cpu"), _OTHERWISE)
            batches = found.at_one_timestep(count)
        elif chosen in ("onnx-int8", "integer"):
            tell(
                "note: --images N, or a folder, shows how large signals become; random inputs may be far from real ones"
            )
        show(export(snn, output, chosen, example, batches))
        return 0


def random_inputs(snn: SpikingNetwork) -> Inputs:
    """Normal numbers (ones where integers belong) in the shape of the captured example, the same every time."""
    generator = torch.Generator().manual_seed(0)
    dtype = next(iter(snn.sites().values())).start.dtype
    return inputs_like(
        snn.network,
        snn.signature,
        _RANDOM_SAMPLES,
        lambda shape: torch.randn(shape, generator=generator, dtype=dtype),
    )
