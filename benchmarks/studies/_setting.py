"""Where studies take place: their images, and the float networks that every quantized one starts from.

    small   ``fashion-mnist-14``: averaged to 14x14 pixels, 30,000 training images, 10,000 other training images for
            validation (on which settings are chosen), the 10,000 test images; a minute or two for a run
    full    Fashion-MNIST as it is: 60,000 training and 10,000 test images

A float network ("parent") is trained once for each network, seed and setting, and kept under ``runs/studies``.
"""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from polarspike import data, models
from polarspike.common.modules import move_for_training
from polarspike.data import Augmentation, Normalization
from polarspike.data.fashion_mnist import halved
from polarspike.data.splits import Split
from polarspike.experiments.recipes import FASHION_MNIST
from polarspike.runs import RunDirectory
from polarspike.training import fit
from polarspike.training_spec import TrainSpec

sys.path.insert(0, str(Path(__file__).parents[1]))
from _common import load_images
from peer_networks import SmallViT

RUNS = Path(__file__).parents[2] / "runs" / "studies"
BATCH = 128


@dataclass(frozen=True)
class Setting:
    """Images of one size, cut into parts; ``validation`` is of the training images, or None."""

    name: str
    train: Split
    validation: Split | None
    test: Split
    normalization: Normalization
    augmentation: Augmentation
    device: str = "cpu"

    def training(self) -> Any:
        """Shuffled, augmented training batches."""
        return data.batches(
            self.train, BATCH, normalization=self.normalization, shuffle=True, augment=self.augmentation, drop_last=True
        )

    def batches(self, split: Split, images: int | None = None) -> Any:
        """Batches of a part, or of its first ``images``, on the setting's device."""
        chosen = split if images is None else split.subset(torch.arange(images))
        return _Moved(data.batches(chosen, 250, normalization=self.normalization), self.device)


@dataclass(frozen=True)
class _Moved:
    """A loader whose batches are on a device."""

    loader: Any
    device: str

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.loader:
            yield images.to(self.device), labels.to(self.device)


@functools.cache
def setting(name: str, device: str = "cpu") -> Setting:
    """One of the two settings above; its networks and batches are on ``device``."""
    whole = load_images("fashion-mnist")
    if name == "full":
        return Setting(name, whole.train, None, whole.test, whole.normalization, whole.augmentation, device)
    if name != "small":
        raise SystemExit(f"expected the setting 'small' or 'full', got {name!r}")
    small = load_images("fashion-mnist-14")
    others = whole.train.subset(torch.arange(30_000, 40_000))
    return Setting(
        name,
        small.train,
        Split(halved(others.images), others.labels),
        small.test,
        small.normalization,
        small.augmentation,
        device,
    )


#: The networks of the studies: a residual one with 7 sites, a plain one, and a Transformer.
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "resnet": lambda: models.create("resnet20", num_classes=10, in_channels=1, width=16, blocks=1),
    "plain": lambda: models.create("cnn", num_classes=10, in_channels=1, width=16),
    "vit": lambda: SmallViT(patch=2, size=14),
    "resnet9": lambda: models.create("resnet9", num_classes=10, in_channels=1, width=16),
    "resnet9-wide": lambda: models.create("resnet9", num_classes=10, in_channels=1, width=24),
    "resnet9-largest": lambda: models.create("resnet9", num_classes=10, in_channels=1, width=32),
    "recipe": lambda: models.create(FASHION_MNIST.model, num_classes=10, in_channels=1, width=FASHION_MNIST.width),
}


def fine_tuning(network: str, epochs: int, seed: int, **options: Any) -> TrainSpec:
    """How a network is trained in these studies; a Transformer needs another optimizer."""
    if network == "vit":
        plain: dict[str, Any] = {"optimizer": "adamw", "learning_rate": 1e-3, "weight_decay": 0.02}
    else:
        plain = {"learning_rate": 0.05}
    return TrainSpec(epochs=epochs, seed=seed, **({"warmup_epochs": 0.5} | plain | options))


def parent(network: str, seed: int, where: Setting, trained: int | TrainSpec) -> nn.Module:
    """The trained float network of one seed, from ``runs/studies`` or trained now; in evaluation mode.

    Its training is given, or its epochs at the usual rate.
    """
    torch.manual_seed(seed)
    model = move_for_training(NETWORKS[network](), where.device)
    if isinstance(trained, int):
        epochs = 2 * trained if network == "vit" else trained  # it learns slowly
        spec = fine_tuning(network, epochs, seed, learning_rate=3e-3 if network == "vit" else 0.2, step_rate=0.0)
    else:
        spec = dataclasses.replace(trained, seed=seed)
    path = RUNS / f"{where.name}-{network}-{seed}-{spec.epochs}"
    run = RunDirectory(path, resume=path.exists())
    fit(model, where.training(), spec, run=run, resume=True, progress=False)
    return model
