"""Write the golden files anew: ``python -m tests.golden.make``, from the root of the repository.

Each network is kept as ``NAME.safetensors`` (what :func:`polarspike.save` wrote) beside ``NAME.answers.safetensors`` (an
input, every code of every site and the answers) and ``NAME.counts.json``. Weights and inputs are small binary fractions and
steps are powers of two, so that every sum is exact in any order: another processor or another torch has to give the same
codes, to the last one. The attention is not of that kind; its input keeps every code away from its boundaries.

When a test of these files fails, the change behind it alters numbers or can no longer read what others have saved. Where
that is meant, raise ``FORMAT`` or enter the defect in BUGS.md, and write the files anew in the same commit.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

import polarspike as ps
from polarspike import integer
from tests.networks import SHAPES, calibrated, network, signal

FILES = Path(__file__).parent / "files"
SPEC = ps.QuantSpec(2, 4, gain=0.5)
EXACT = ("plain", "branched", "leaky", "bottleneck")
TIMESTEPS = 4


def binary(name: str) -> ps.QuantizedNetwork:
    """A quantized network without batch norms, whose weights are multiples of 1/64 and whose steps are powers of two."""
    folded = ps.fold_batch_norm(ps.quantize(network(name), SPEC, example=signal(name)))
    ps.calibrate(folded, [signal(name, 64)])
    with torch.no_grad():
        for site in folded.sites().values():
            site.set_step(2.0 ** site.step.log2().round())
        steps = {id(parameter) for site in folded.sites().values() for parameter in site.parameters()}
        for parameter in folded.parameters():
            if id(parameter) not in steps:
                parameter.copy_((64 * parameter).round() / 64)
    return folded.eval()


def binary_input(name: str) -> Tensor:
    """Multiples of 1/16, (2, ...)."""
    generator = torch.Generator().manual_seed(5)
    return torch.randint(-32, 33, (2, *SHAPES[name]), generator=generator) / 16


def seen(snn: ps.SpikingNetwork, x: Tensor) -> dict[str, Tensor]:
    """Codes after one step and after the last, the answers of every step."""
    kept, state, answers = {}, None, []
    with torch.no_grad():
        for timestep in range(1, TIMESTEPS + 1):
            answer, state = snn.step(x, state)
            answers.append(answer)
            if timestep in (1, TIMESTEPS):
                kept |= {f"codes/{timestep}/{site}": part.codes.short() for site, part in state.neurons.items()}
    return {**kept, "answers": torch.stack(answers)}


def counted(snn: ps.SpikingNetwork, x: Tensor) -> str:
    """Total operations and memory accesses of one timestep and of several, as text."""
    counts = {timesteps: ps.count_operations(snn, x, timesteps=timesteps).to_dict() for timesteps in (1, TIMESTEPS)}
    kept = {timesteps: {part: count[part] for part in ("totals", "memory")} for timesteps, count in counts.items()}
    return json.dumps(kept, indent=1) + "\n"


def keep(name: str, tensors: Mapping[str, Tensor]) -> None:
    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, FILES / f"{name}.answers.safetensors")


def write(name: str, snn: ps.SpikingNetwork, x: Tensor) -> None:
    ps.save(snn, FILES / f"{name}.safetensors")
    keep(name, {"x": x, **seen(snn, x)})
    (FILES / f"{name}.counts.json").write_text(counted(snn, x), encoding="utf-8")


def main() -> None:
    FILES.mkdir(exist_ok=True)
    for name in EXACT:
        write(name, ps.convert(binary(name)), binary_input(name))
    attention = ps.convert(calibrated(network("attention"), SPEC, signal("attention", 64)))
    write("attention", attention, signal("attention", 2))

    qann, x = binary("plain"), binary_input("plain")
    ps.save(qann, FILES / "quantized.safetensors")
    ps.export(ps.convert(qann), FILES / "whole_numbers.safetensors", format="integer", example=x)
    traced = dict(integer.trace(integer.load(FILES / "whole_numbers.safetensors"), {"x": x.numpy()}))
    keep("whole_numbers", {"x": x, **{name: torch.from_numpy(value) for name, value in traced.items()}})

    stream = signal("mlp", 2, frames=3)
    unrolled = ps.unroll(calibrated(network("mlp"), SPEC, signal("mlp", 64)), leak=0.75)
    ps.save(unrolled, FILES / "temporal.safetensors")
    with torch.no_grad():
        keep("temporal", {"x": stream, "answer": unrolled(stream)})


if __name__ == "__main__":
    main()
