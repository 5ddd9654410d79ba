"""Train the networks of :mod:`peer_networks` on Fashion-MNIST: briefly, as where they were compared, and properly.

    brief   1 epoch, Adam at a constant rate, batches of 32 (CNNs) or 64, no augmentation
    proper  15 epochs, AdamW, warm-up and cosine, batches of 128, mirrored and shifted by at most one pixel

The last epoch counts; accuracy is on all 10,000 test images, which nothing else looks at. Weights go to ``runs/peers``,
figures to ``benchmarks/results/peer_networks.json``. Run again after an interruption: a network with weights is kept.
Several of these commands may run side by side.

    python benchmarks/train_peers.py [--networks max-pool avg-pool vit] [--trainings brief proper] [--seeds 0 1 2]
"""

from __future__ import annotations

import argparse
import itertools
import time
from typing import Any

import torch
from _common import conditions, keep, kept, load_images
from peer_networks import NETWORKS, TRAININGS, WEIGHTS, title, weights_file
from safetensors.torch import save_file
from torch import nn

from polarspike import data
from polarspike.common.files import replacing

EPOCHS = {"brief": 1, "proper": 15}
BATCH = {
    "brief": {"max-pool": 32, "avg-pool": 32, "vit": 64},
    "proper": {"max-pool": 128, "avg-pool": 128, "vit": 128},
}
RATE = {
    "brief": {"max-pool": 3e-3, "avg-pool": 3e-3, "vit": 1e-3},
    "proper": {"max-pool": 4e-3, "avg-pool": 4e-3, "vit": 2e-3},
}
AUGMENTATION = {"brief": data.Augmentation(), "proper": data.Augmentation(flip=True, shift=1)}


def accuracy(model: nn.Module, loader: Any) -> float:
    """Percentage of right answers."""
    model.eval()
    with torch.no_grad():
        right = torch.cat([model(images).argmax(dim=1) == labels for images, labels in loader])
    return 100 * float(right.double().mean())


def train(model: nn.Module, loader: Any, training: str, rate: float, seed: int) -> None:
    """Train in place by cross entropy; one seed per epoch fixes its order and augmentation."""
    epochs = EPOCHS[training]
    schedule: torch.optim.lr_scheduler.LRScheduler | None = None
    if training == "brief":
        optimizer: torch.optim.Optimizer = torch.optim.Adam(model.parameters(), lr=rate)
    else:
        optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.02)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * len(loader), pct_start=0.1)
    for epoch in range(epochs):
        torch.manual_seed(seed * 1000 + epoch)
        model.train()
        start, total = time.perf_counter(), 0.0
        for images, labels in loader:
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            if schedule is not None:
                schedule.step()
            total += loss.item()
        seconds = time.perf_counter() - start
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / len(loader):.4f}, {seconds:.0f} s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--trainings", nargs="*", default=list(TRAININGS), choices=TRAININGS)
    parser.add_argument("--seeds", nargs="*", type=int, default=[0])
    options = parser.parse_args()
    torch.set_num_threads(1)
    WEIGHTS.mkdir(parents=True, exist_ok=True)
    clothes = load_images("fashion-mnist")
    test = data.batches(clothes.test, 500, normalization=clothes.normalization)
    for seed, training, network in itertools.product(options.seeds, options.trainings, options.networks):
        name, path = title(network, training, seed), weights_file(network, training, seed)
        before = kept("peer_networks").get(name)
        if path.is_file() and before:
            print(f"{name}: kept, {before['accuracy']:.2f} %", flush=True)
            continue
        torch.manual_seed(seed)
        model = NETWORKS[network]()
        augmentation, rate = AUGMENTATION[training], RATE[training][network]
        loader = data.batches(clothes.train, BATCH[training][network], normalization=clothes.normalization, shuffle=True,
                              drop_last=True, augment=augmentation)  # fmt: skip
        print(f"{name}:", flush=True)
        start = time.perf_counter()
        train(model, loader, training, rate, seed)
        seconds = time.perf_counter() - start
        with replacing(path) as partial:
            save_file(model.state_dict(), partial)
        row = {
            "accuracy": accuracy(model, test),
            "test_images": len(clothes.test),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "epochs": EPOCHS[training],
            "batch": BATCH[training][network],
            "rate": rate,
            "augmentation": augmentation.to_dict(),
            "seconds": round(seconds, 1),
            "conditions": conditions(seed),
        }
        keep("peer_networks", {"results": kept("peer_networks") | {name: row}})
        print(f"{name}: {row['accuracy']:.2f} %, {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
