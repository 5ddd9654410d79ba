"""VGG-16 with batch norm and one linear layer as its head."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from polarspike.models.initialization import initialize
from polarspike.models.registry import register, require_positive

# Configuration D: channels of each stage in units of the first one, and its number of convolutions.
_STAGES_16 = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))


class VGG(nn.Module):
    """Stages of 3x3 convolutions with batch norm and ReLU, a 2x2 max pooling after each, a linear head.

    The poolings round up and the last features are averaged over their pixels, so any input size from 1 pixel up
    passes; one linear layer replaces the three of the original, as is usual for small images.

    Source: Simonyan and Zisserman 2015, arXiv 1409.1556, configuration D.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int, stages: tuple[tuple[int, int], ...]) -> None:
        super().__init__()
        self.stages = nn.Sequential()
        channels = in_channels
        for number, (factor, convolutions) in enumerate(stages, start=1):
            self.stages.add_module(f"stage{number}", _stage(channels, factor * width, convolutions))
            channels = factor * width
        self.pool = nn.AdaptiveAvgPool2d(1)  # (N, 8w, 1, 1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(channels, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W)."""
        return self.head(self.flatten(self.pool(self.stages(x))))  # type: ignore[no-any-return]


def _stage(inputs: int, outputs: int, convolutions: int) -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for index in range(1, convolutions + 1):
        source = inputs if index == 1 else outputs
        layers[f"conv{index}"] = nn.Conv2d(source, outputs, kernel_size=3, padding=1, bias=False)
        layers[f"norm{index}"] = nn.BatchNorm2d(outputs)
        layers[f"relu{index}"] = nn.ReLU()
    layers["pool"] = nn.MaxPool2d(2, ceil_mode=True)  # (N, outputs, ceil(H/2), ceil(W/2))
    return nn.Sequential(layers)


@register(image_size=16)
def vgg16(*, num_classes: int, in_channels: int, width: int = 64) -> nn.Module:
    """VGG-16 with batch norm, for any input size.

    Args:
        num_classes: length of the output.
        in_channels: C of the input.
        width: channels of the first stage; the stages have 1, 2, 4, 8 and 8 times as many.
    """
    require_positive("vgg16", width=width)
    return VGG(in_channels, num_classes, width, _STAGES_16)
