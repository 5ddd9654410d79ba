"""What is timed: a float network, the spiking network made of it, and that one in whole numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from polarspike import models
from polarspike.calibration import calibrate
from polarspike.conversion import convert
from polarspike.exporters.integer import integer_network
from polarspike.integer import IntegerNetwork
from polarspike.quantization import quantize
from polarspike.specs import QuantSpec
from polarspike.spiking import SpikingNetwork

#: Of the pictures, in units of a full-scale pixel.
MEAN, STD = 0.5, 0.25
_SHOWN = 16


@dataclass(frozen=True)
class Subject:
    """One network in three forms.

    Args:
        ann: the float network.
        snn: what it became.
        network: the first timestep of that in whole numbers.
        images: (N, C, H, W), which calibrated all of them.
    """

    ann: nn.Module
    snn: SpikingNetwork
    network: IntegerNetwork
    images: Tensor


def subject_of(ann: nn.Module, images: Tensor, spec: QuantSpec | None = None) -> Subject:
    """A float network in evaluation mode, with its spiking network; without training.

    Args:
        ann: takes images alone.
        images: as :func:`pictures` makes them.
        spec: the levels; the default ones if not given.
    """
    qann = quantize(ann, spec or QuantSpec(init="mse"), example=images[:2])
    calibrate(qann, [images])
    snn = convert(qann)
    channels = images.shape[1]
    snn.notes = {"normalization": {"mean": [MEAN] * channels, "std": [STD] * channels}}
    return Subject(ann, snn, integer_network(snn, images[:2], [images]), images)


def random_subject(
    model: str, *, width: int | None = None, image_size: int = 32, channels: int = 3, **options: object
) -> Subject:
    """A network of the registry with random weights, whose batch norms have seen pictures.

    Times do not depend on the weights, as every kernel here is dense; what it answers means nothing.

    Args:
        model: its name.
        width: of its layers.
        image_size: side of the square pictures.
        channels: of them.
        **options: others of its builder.

    Raises:
        SpecError: an unknown name or option, or a value out of range.
    """
    torch.manual_seed(0)
    if models.describe(model).needs_image_size:
        options["image_size"] = image_size
    if width is not None:
        options["width"] = width
    ann = models.create(model, num_classes=10, in_channels=channels, **options)
    images = pictures(_SHOWN, channels, image_size)
    return subject_of(settled(ann, images), images)


@torch.no_grad()
def settled(ann: nn.Module, images: Tensor) -> nn.Module:
    """The same network in evaluation mode, the statistics of its batch norms set to those of the images."""
    for module in ann.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.momentum = None  # a plain mean over batches
    ann.train()(images)
    return ann.eval()


def pictures(count: int, channels: int, size: int, seed: int = 0) -> Tensor:
    """Random pixels, smoothed so that neighbours are alike, as a normalized batch (count, C, size, size)."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, channels, size, size, generator=generator)
    smooth = nn.functional.avg_pool2d(noise, 3, 1, 1) * 1.5 + noise * 0.5
    pixels = (smooth * 0.2 + 0.5).clamp(0, 1).mul(255).round() / 255
    return (pixels - MEAN) / STD
