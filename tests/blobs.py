"""A small task, and what training makes of it."""

from __future__ import annotations

import random
import time
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from polarspike.training import loop as training
from polarspike.training_spec import TrainSpec

X = torch.randn(8, 6, generator=torch.Generator().manual_seed(1))
SPEC = TrainSpec(epochs=4, learning_rate=0.05, warmup_epochs=0.5, label_smoothing=0.1)


class Blobs(Dataset[tuple[Tensor, Tensor]]):
    """Three Gaussian classes, augmented by torch's, NumPy's and Python's global generators; may be slow or broken."""

    def __init__(self, pause_s: float = 0.0, stop_after: int | None = None) -> None:
        generator = torch.Generator().manual_seed(0)
        self.target = torch.arange(48) % 3
        self.points = 0.5 * torch.randn(48, 6, generator=generator) + 2 * nn.functional.one_hot(self.target, 6)
        self.pause_s, self.stop_after = pause_s, stop_after

    def __len__(self) -> int:
        return len(self.points)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.pause_s)
        if self.stop_after is not None:
            self.stop_after -= 1
            if self.stop_after < 0:
                raise KeyboardInterrupt
        noise = torch.randn(6) + random.random() + np.random.rand()
        return self.points[index] + 0.1 * noise, self.target[index]


def blobs(**options: Any) -> DataLoader[tuple[Tensor, Tensor]]:
    return DataLoader(Blobs(**options), batch_size=12, shuffle=True)


def network(seed: int = 0, width: int = 8) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(6, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.2), nn.Linear(width, 3)
        )


def equal(first: nn.Module, second: nn.Module) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def without_times(history: training.History) -> list[tuple[float | None, ...]]:
    return [(e.epoch, e.loss, e.learning_rate, e.train_accuracy, e.validation_accuracy) for e in history.epochs]
