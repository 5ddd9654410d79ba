"""Is the spiking network its quantized network, code for code? Every model of the registry, on real digits.

For each model, with one step per site and with one per channel, training-free and after at least 200 optimizer steps (every
step and every learned gain must have left its start, or be held at the bound 1):

    T = 1        float32, and under bfloat16 autocast: every code, every site value and the output, in every bit
    T = 2, 4, 8  float64, repeated and varying input: every code
    T = 2, 4, 8  float32: how many codes differ, and how far from a boundary

A comparison counts only where every site fires at least 3 distinct codes, 5 to 95 % of them non-zero, over the timesteps.
In float32 at T > 1 at most 1 code in 10^5 may differ, each within 1e-5 steps of its boundary.

    python benchmarks/exactness.py [--models cnn mlp ...] [--steps 200]
"""

from __future__ import annotations

import argparse
import copy
import itertools
from typing import Any

import torch
from _common import conditions, keep, kept, load_images
from architectures import sharpened
from torch import nn

import polarspike as ps
from polarspike import data, models
from polarspike.proofs.proof import ROUNDING_MARGIN, ROUNDING_SHARE
from polarspike.quantized import QuantizedNetwork
from polarspike.specs import Granularity

SEED = 0
GRANULARITIES: tuple[Granularity, ...] = ("tensor", "channel")
TIMESTEPS = (2, 4, 8)


def trained(qann: QuantizedNetwork, loader: Any, steps: int) -> tuple[int, int]:
    """Train in place; how many steps and gains there are, and how many did not move."""
    optimizer = torch.optim.AdamW(qann.parameters(), lr=2e-3, weight_decay=0.0)
    qann.train()
    batches = itertools.chain.from_iterable(itertools.repeat(loader))
    for images, labels in itertools.islice(batches, steps):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(qann(images), labels).backward()
        optimizer.step()
    qann.eval()
    moved = [site.offset.detach() != 0 for site in qann.sites().values()]
    gains = [(site.raw_gain.detach(), site.spec.gain) for site in qann.sites().values() if site.raw_gain is not None]
    moved += [(gain != start) | (gain == 1.0) for gain, start in gains]  # 1 is a bound, to which training may press it
    return sum(flag.numel() for flag in moved), sum(int((~flag).sum()) for flag in moved)


def prove(qann: QuantizedNetwork, images: torch.Tensor) -> dict[str, Any]:
    """All comparisons for one network."""
    snn = ps.convert(qann)
    row: dict[str, Any] = {}
    proof = ps.verify(qann, snn, [images])
    with torch.autocast("cpu", torch.bfloat16):
        half = ps.verify(qann, snn, [images], scope=False)
    for name, found in (("fp32", proof), ("bf16", half)):
        row[f"T=1 {name}"] = {"exact": found.exact, "conclusive": found.conclusive, "compared": found.compared,
                              "different": found.diverged, "worst_margin": found.worst_margin}  # fmt: skip
    row["scope"] = dict(proof.scope)
    few = images[:16]
    noise = torch.randn(len(few), max(TIMESTEPS), *few.shape[1:], generator=torch.Generator().manual_seed(SEED))
    varying = few.unsqueeze(1) + 0.3 * noise  # (batch, time, C, H, W)
    wide, wide_snn = copy.deepcopy(qann).double(), copy.deepcopy(snn).double()
    for t in TIMESTEPS:
        for kind, precision in itertools.product(("repeated", "varying"), ("fp64", "fp32")):
            one, other = (wide, wide_snn) if precision == "fp64" else (qann, snn)
            if kind == "repeated":
                batch = few.to(next(one.parameters()).dtype)
                found = ps.verify(one, other, [batch], timesteps=t)
            else:
                found = ps.verify(one, other, [varying[:, :t].to(next(one.parameters()).dtype)], time_dim=1)
            row[f"T={t} {precision} {kind}"] = {
                "exact": found.exact,
                "conclusive": found.conclusive,
                "compared": found.compared,
                "different": found.different,
                "diverged": found.diverged,
                "worst_margin": found.worst_margin,
            }
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="*", default=models.names())
    parser.add_argument("--steps", type=int, default=200)
    options = parser.parse_args()
    digits = load_images("digits")
    loader = data.batches(digits.train, 32, normalization=digits.normalization, shuffle=True, drop_last=True)
    calibration = list(itertools.islice(loader, 8))
    images, _ = next(iter(data.batches(digits.test, 64, normalization=digits.normalization)))
    results = kept("exactness")  # of other models
    failures = 0
    for name, granularity in itertools.product(options.models, GRANULARITIES):
        torch.manual_seed(SEED)
        size = {"image_size": digits.image_size} if models.describe(name).needs_image_size else {}
        model = sharpened(models.create(name, num_classes=10, in_channels=1, **size)).train()
        for norm in (part for part in model.modules() if isinstance(part, nn.modules.batchnorm._BatchNorm)):
            norm.momentum = None  # the plain mean over these batches
        with torch.no_grad():
            for batch, _ in calibration:  # running statistics of the batch norms, without training
                model(batch)
        spec = ps.QuantSpec(1, 3, signed="all", gain="learned", granularity=granularity, init="mse")
        qann = ps.quantize(model.eval(), spec, example=images[:2])
        ps.calibrate(qann, calibration)
        for stage in ("training-free", "trained"):
            entry = f"{name}, step per {granularity}, {stage}"
            moved, unmoved = "", 0
            if stage == "trained":
                total, unmoved = trained(qann, loader, options.steps)
                moved = f"; {total - unmoved} of {total} steps and gains moved"
            row = results[entry] = {**prove(qann, images), "date": conditions(SEED)["date"]}
            exact = [value for key, value in row.items() if "T=1" in key or "fp64" in key]
            single = [value for key, value in row.items() if "fp32" in key and "T=1" not in key]
            compared, different = (sum(value[key] for value in single) for key in ("compared", "different"))
            margin = max(value["worst_margin"] for value in single)
            void = sum(not value["conclusive"] for value in exact + single)
            rounding = different <= max(1, compared * ROUNDING_SHARE) and margin <= ROUNDING_MARGIN
            good = all(value["exact"] for value in exact) and not void and not unmoved and rounding
            failures += not good
            print(
                f"{entry}: {sum(v['compared'] for v in exact)} codes compared, {sum(v['different'] for v in exact)} differ "
                f"(T=1 fp32/bf16, T>1 fp64){moved}; {void} comparisons void; {'EXACT' if good else 'FAILED'}\n"
                f"    fp32, T>1: {different} of {compared} differ, at most {margin:.1e} steps from a boundary; "
                f"{sum(v['diverged'] for v in single)} differ running freely",
                flush=True,
            )
    keep("exactness", {"conditions": conditions(SEED), "steps": options.steps, "results": results})
    raise SystemExit(failures)


if __name__ == "__main__":
    main()
