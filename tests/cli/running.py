"""The command line on a tiny data set: what all its tests share."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import torch

import polarspike as ps
from polarspike.experiments import Recipe
from polarspike.specs import QuantSpec
from polarspike.training_spec import TrainSpec

ROOT = Path(__file__).parents[2]
RECIPES = ROOT / "recipes"
TINY = Recipe(
    data="digits",
    model="mlp",
    width=24,
    batch_size=64,
    ann=TrainSpec(epochs=2, warmup_epochs=0.5),
    quant=QuantSpec(negative=3, positive=3),
    qann=TrainSpec(epochs=1, learning_rate=0.02, warmup_epochs=0.0),
    timesteps=(1, 2),
    calibration_images=256,
    proof_images=64,
)
FLAGS = shlex.split(
    "--data digits --model mlp --width 24 --batch-size 64 --ann.epochs 2 --ann.warmup-epochs 0.5 --quant.negative 3 "
    "--quant.positive 3 --qann.epochs 1 --qann.learning-rate 0.02 --qann.warmup-epochs 0 --timesteps 1 2 "
    "--calibration-images 256 --proof-images 64"
)
Call = Callable[..., tuple[int, str, str]]


def in_one_line(text: str) -> str:
    """Without the frames and line breaks that a terminal's width asks for."""
    return re.sub(r"[\s│─╭╮╰╯]+", " ", text)


def another(tmp_path: Path, trained: Path, in_channels: int, classes: int) -> Path:
    """A spiking network of another kind, whose file says that it was made for ``photos``."""
    model = ps.models.create("cnn", num_classes=classes, in_channels=in_channels, width=2)
    x = torch.randn(4, in_channels, 8, 8)
    qann = ps.quantize(model, QuantSpec(), example=x)
    ps.calibrate(qann, [x])
    scaling = {"type": "Normalization", "version": 1, "mean": [0.5] * in_channels, "std": [0.5] * in_channels}
    qann.notes = {"data": "photos", "normalization": scaling, "classes": ["?"] * classes}
    path = tmp_path / f"other-{in_channels}-{classes}.safetensors"
    ps.save(ps.convert(qann), path)
    return path
