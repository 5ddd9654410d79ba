"""How fast the spiking network approaches the clipped ANN: slope of its distance over T = 8, 16, 32, 64 in log-log.

The clipped ANN has r(x) = clip(x, -N s, P s), below zero times the gain, at every site: the limit of infinitely many steps.
It is computed here as the quantized network refined 2^16-fold, which differs from it by 2^-17 steps at most. A residual
network with max pooling and a two-block ViT, random weights with calibrated batch norms, float64; gains 1 and 0.25 at every
site with negative levels; the same input repeated, and input that varies at every step (the distance is then to the clipped
ANN on the mean input).

    pip install torchvision
    python benchmarks/convergence.py
"""

from __future__ import annotations

import math
from typing import Any

import torch
from _common import conditions, keep
from torch import Tensor, nn

import polarspike as ps

SEED = 0
STEPS = (1, 2, 4, 8, 16, 32, 64)
FITTED = (8, 16, 32, 64)


def networks() -> dict[str, tuple[nn.Module, Tensor]]:
    """The networks and a batch for each."""
    from torchvision.models import ResNet, VisionTransformer
    from torchvision.models.resnet import BasicBlock

    torch.manual_seed(SEED)
    resnet = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10)
    vit = VisionTransformer(
        image_size=32, patch_size=8, num_layers=2, num_heads=4, hidden_dim=48, mlp_dim=96, num_classes=10
    )
    nn.init.normal_(vit.heads.head.weight, std=0.1)  # torchvision starts with a head of zeros
    with torch.no_grad():
        for block in vit.encoder.layers:
            block.self_attention.in_proj_weight[:96].mul_(3.0)  # attention that is not uniform
    return {"resnet": (resnet, torch.randn(8, 3, 64, 64)), "vit": (vit, torch.randn(8, 3, 32, 32))}


def quantized(model: nn.Module, x: Tensor, gain: float) -> Any:
    model.train()
    with torch.no_grad():
        for _ in range(20):
            model(x)
    spec = ps.QuantSpec(negative=4, positive=4, signed="all", gain="learned", init="mse")
    qann = ps.quantize(model.eval(), spec, example=x)
    for site in qann.sites().values():
        if site.raw_gain is not None:
            nn.init.constant_(site.raw_gain, gain)
    ps.calibrate(qann, [x])
    return qann.double()


@torch.no_grad()
def distances(qann: Any, x: Tensor, varying: bool) -> dict[int, float]:
    """Relative distance (root of mean squares) to the clipped ANN after T steps."""
    snn, limit = ps.convert(qann), ps.refine(qann, 2**16)
    generator = torch.Generator().manual_seed(SEED)
    noise = torch.randn(max(STEPS), *x.shape, generator=generator, dtype=x.dtype) * (0.5 if varying else 0.0)
    frames = [x + part for part in noise]
    found: dict[int, float] = {}
    state = None
    for t, frame in enumerate(frames, start=1):
        y, state = snn.step(frame, state)
        if t in STEPS:
            wanted = limit(torch.stack(frames[:t]).mean(0))
            found[t] = float((y - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())
    return found


def slope(found: dict[int, float]) -> float:
    """Of the least-squares line through log distance over log T."""
    xs, ys = [math.log(t) for t in FITTED], [math.log(found[t]) for t in FITTED]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    products = sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys, strict=True))
    return products / sum((x - mean_x) ** 2 for x in xs)


def main() -> None:
    results: dict[str, Any] = {}
    failures = 0
    for name, (model, x) in networks().items():
        for gain in (1.0, 0.25):
            qann = quantized(model, x, gain)
            for way in ("repeated", "varying"):
                found = distances(qann, x.double(), way == "varying")
                rate = slope(found)
                failures += rate > -0.8
                shown = ", ".join(f"T={t}: {value:.5f}" for t, value in found.items())
                print(f"{name}, gain {gain}, {way} input: slope {rate:.2f}; {shown}", flush=True)
                results[f"{name}, gain {gain}, {way}"] = {"slope": rate, "distance": found}
    keep("convergence", {"conditions": conditions(SEED), "results": results})
    raise SystemExit(failures)


if __name__ == "__main__":
    main()
