"""ResNet-9: a wide, shallow residual network that learns small images fast."""

from __future__ import annotations

from torch import Tensor, nn

from polarspike.models.initialization import initialize
from polarspike.models.layers import conv_norm_relu
from polarspike.models.registry import register, require_positive
from polarspike.models.resnet import BasicBlock


class ResNet9(nn.Module):
    """Four 3x3 convolutions with batch norm, three max poolings, a residual block after the first and the last.

    (N, C, H, W) -> w -> 2w, pool, block -> 4w, pool -> 8w, pool, block -> average over pixels -> (N, classes); poolings
    round up, so any input size from 1 pixel up passes.

    Source: the layout of D. Page, "How to train your ResNet" (2018, DAWNBench), with the usual basic block.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.stem = conv_norm_relu(in_channels, width)
        self.layer1 = conv_norm_relu(width, 2 * width)
        self.pool1 = nn.MaxPool2d(2, ceil_mode=True)
        self.block1 = BasicBlock(2 * width, 2 * width, stride=1)
        self.layer2 = conv_norm_relu(2 * width, 4 * width)
        self.pool2 = nn.MaxPool2d(2, ceil_mode=True)
        self.layer3 = conv_norm_relu(4 * width, 8 * width)
        self.pool3 = nn.MaxPool2d(2, ceil_mode=True)
        self.block2 = BasicBlock(8 * width, 8 * width, stride=1)
        self.pool = nn.AdaptiveAvgPool2d(1)  # (N, 8w, 1, 1)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(8 * width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W)."""
        x = self.block1(self.pool1(self.layer1(self.stem(x))))  # (N, 2w, H/2, W/2)
        x = self.pool3(self.layer3(self.pool2(self.layer2(x))))  # (N, 8w, H/8, W/8)
        return self.head(self.flatten(self.pool(self.block2(x))))  # type: ignore[no-any-return]


@register(image_size=16)
def resnet9(*, num_classes: int, in_channels: int, width: int = 32) -> nn.Module:
    """ResNet-9: four convolutions, two residual blocks, three max poolings, for any input size.

    Args:
        num_classes: length of the output.
        in_channels: C of the input.
        width: channels of the first convolution; the others have 2, 4 and 8 times as many.
    """
    require_positive("resnet9", width=width)
    return ResNet9(in_channels, num_classes, width)
