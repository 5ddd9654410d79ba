"""What training a recipe on a server with GPUs would take, on paper: every factor is printed, with where it comes from.

    operations    counted: multiplications of an image in the float network (ps.count_operations), twice that in
                  floating-point operations; a training step costs three forward passes, and with a teacher one more
    arithmetic    assumed: --peak of a GPU and the part of it that training reaches, --utilization
    pictures      measured here: photographs of 500x375 pixels (scikit-learn's two), as JPEG, decoded, cut at random to
                  the network's size, and put into batches by the recipe's own loader, by one thread; assumed: --cores
    exchange      counted: gradients in float32, twice around a ring; assumed: --link of a GPU

    hours = images x epochs x max(arithmetic, pictures, exchange, per image)      steps overlap; start-up is left out

It is an estimate: nothing of it has been run on a GPU.

    OMP_NUM_THREADS=1 python benchmarks/estimate.py [--recipe imagenet_vit_s] [--gpus 8] [--peak 989.4] [--utilization 0.35]
                                                    [--cores 192] [--link 450]
"""

from __future__ import annotations

import argparse
import dataclasses
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from _common import conditions, keep

import polarspike as ps
from polarspike import models
from polarspike.data import Augmentation, Normalization
from polarspike.data.pictures import Files
from polarspike.data.streamed import StreamedDataset
from polarspike.experiments.recipes import RECIPES

SEED, SIDE, IMAGES = 0, 224, 1_281_167
PICTURES, ROUNDS = 64, 5
NORMALIZATION = Normalization((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
DONE = {"training": 3, "teacher": 1}  # forward passes


def pictures_per_second(recipe: Any) -> float:
    """How many pictures one thread makes ready for training, with the recipe's changes; median of five rounds."""
    from PIL import Image
    from sklearn.datasets import load_sample_images

    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{index}.JPEG" for index in range(2)]
        for path, photo in zip(paths, load_sample_images().images, strict=True):
            Image.fromarray(photo).resize((500, 375)).save(path, quality=92)
        photos = Files(paths * (PICTURES * ROUNDS // 2), [0, 1] * (PICTURES * ROUNDS // 2))
        dataset = StreamedDataset("photos", photos, photos, ("china", "flower"), "scikit-learn", "", NORMALIZATION,
                                  recipe.changes(Augmentation(flip=True)), SIDE)  # fmt: skip
        batches = iter(dataset.training(PICTURES))
        times = []
        for _ in range(ROUNDS):
            start = time.perf_counter()
            times.append(len(next(batches)[1]) / (time.perf_counter() - start))
    return median(times)


def counted(recipe: Any) -> tuple[int, int]:
    """Multiplications of an image in the float network, and its parameters."""
    model = models.create(recipe.model, num_classes=1000, in_channels=3, width=recipe.width, image_size=SIDE,
                          **recipe.options)  # fmt: skip
    x = torch.randn(1, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(SEED))
    qann = ps.quantize(model.eval(), dataclasses.replace(recipe.quant, init="mse"), example=x)
    ps.calibrate(qann, [x])
    counts = ps.count_operations(ps.convert(qann), x)
    return round(counts.per_image["ann_macs"]), sum(p.numel() for p in model.parameters())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipe", default="imagenet_vit_s", choices=RECIPES)
    parser.add_argument("--gpus", type=int, default=8)
    parser.add_argument(
        "--peak", type=float, default=989.4, help="TFLOP/s of a GPU; H100 SXM, bfloat16, its data sheet"
    )
    parser.add_argument("--utilization", type=float, default=0.35, help="part of the peak that training reaches")
    parser.add_argument("--cores", type=int, help="threads that decode; the recipe's workers on every GPU if not given")
    parser.add_argument("--link", type=float, default=450.0, help="GB/s of a GPU to the others, one way; NVLink 4")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    recipe = RECIPES[asked.recipe]
    if recipe.ann.precision != "bf16" or recipe.qann.precision != "bf16":
        raise SystemExit(f"{asked.recipe}: expected a recipe in bf16, which --peak is of, got {recipe.ann.precision}")
    asked.cores = asked.cores or max(1, recipe.workers) * asked.gpus
    macs, parameters = counted(recipe)
    rate = pictures_per_second(recipe)
    teachers = {"ann": False, "qann": bool(recipe.qann.distillation), "control": bool(recipe.qann.distillation)}
    epochs = {"ann": recipe.ann.epochs, "qann": recipe.qann.epochs, "control": recipe.qann.epochs}
    per_step = {"picture": 1 / (rate * asked.cores)}
    bytes_sent = 2 * (asked.gpus - 1) / asked.gpus * 4 * parameters
    per_step["exchange"] = bytes_sent / (asked.link * 1e9) / recipe.batch_size
    rows, total = [], 0.0
    print(f"{asked.recipe}: {macs / 1e9:.2f} G multiplications an image, {parameters / 1e6:.1f} M parameters")
    print(f"pictures: {rate:.0f} a second and thread here, {rate * asked.cores:.0f} by {asked.cores} threads")
    print(
        f"exchange: {bytes_sent / 1e6:.0f} MB a step and GPU, {1e6 * per_step['exchange'] * recipe.batch_size:.0f} us"
    )
    for stage, count in epochs.items():
        passes = DONE["training"] + DONE["teacher"] * teachers[stage]
        flops = 2 * macs * passes
        arithmetic = flops / (asked.peak * 1e12 * asked.utilization * asked.gpus)
        slowest = max(("arithmetic", arithmetic), *per_step.items(), key=lambda pair: pair[1])
        hours = IMAGES * count * slowest[1] / 3600
        total += hours
        rows.append({"stage": stage, "epochs": count, "flops_per_image": flops, "hours": hours, "by": slowest[0],
                     "hours_by_arithmetic": IMAGES * count * arithmetic / 3600})  # fmt: skip
        print(
            f"{stage:<8} {count:>4} epochs x {IMAGES} images x {flops / 1e9:.1f} GFLOP: "
            f"{rows[-1]['hours_by_arithmetic']:.1f} h of arithmetic; {hours:.1f} h, by {slowest[0]}"
        )
    print(f"together {total:.1f} h")
    assumed = {name: getattr(asked, name) for name in ("gpus", "peak", "utilization", "cores", "link")}
    keep("estimate", {"conditions": conditions(SEED), "recipe": asked.recipe, "assumed": assumed, "macs": macs,
                      "parameters": parameters, "pictures_per_second": rate, "rows": rows, "hours": total})  # fmt: skip


if __name__ == "__main__":
    main()
