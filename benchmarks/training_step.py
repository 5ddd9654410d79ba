"""Cost of a training step of the quantized network, as a multiple of the same step of the float network.

ResNet-18 with a CIFAR stem, batch 128, SGD, one thread, both in one process and interleaved; the float network uses
in-place ReLU, the fastest there is. CPU time is the figure to read on a machine with neighbours.

    python benchmarks/training_step.py [--rounds 5] [--batch 128]
"""

from __future__ import annotations

import argparse
from typing import Any

import torch
from _common import conditions, interleaved, keep, ratios
from torch import nn

import polarspike as ps

CASES = {
    "(0, 7), one step": ps.QuantSpec(0, 7),
    "(0, 7), step per channel": ps.QuantSpec(0, 7, granularity="channel"),
    "(2, 6), learned gain": ps.QuantSpec(2, 6, signed="all", gain="learned"),
}


def trainer(model: nn.Module, images: torch.Tensor, labels: torch.Tensor, bf16: bool) -> Any:
    """One step of training as a function without arguments."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    model.train()

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = nn.functional.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch", type=int, default=128)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images, labels = torch.randn(options.batch, 3, 32, 32), torch.randint(0, 10, (options.batch,))
    model = ps.models.create("resnet18", num_classes=10)
    networks: dict[str, ps.QuantizedNetwork] = {}
    for name, spec in CASES.items():
        networks[name] = ps.quantize(model, spec, example=images[:2])
        ps.calibrate(networks[name], [images[:32]])
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = True
    results: dict[str, Any] = {}
    for precision in ("fp32", "bf16"):
        bf16 = precision == "bf16"
        actions = {"float": trainer(model, images, labels, bf16)}
        actions |= {name: trainer(network, images, labels, bf16) for name, network in networks.items()}
        times = interleaved(actions, options.rounds)
        results[precision] = {}
        for name in CASES:
            row = {kind: ratios(times[name][kind], times["float"][kind]) for kind in ("wall", "cpu")}
            results[precision][name] = row
            print(
                f"{precision} {name:<26} CPU time {row['cpu']['median']:.3f}x "
                f"({row['cpu']['low']:.3f}-{row['cpu']['high']:.3f}), wall {row['wall']['median']:.3f}x",
                flush=True,
            )
    keep("training_step", {"conditions": conditions(0), "batch": options.batch, "rounds": options.rounds, **results})


if __name__ == "__main__":
    main()
