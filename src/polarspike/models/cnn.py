"""A small convolutional network for small grey images."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

from polarspike.models.initialization import initialize
from polarspike.models.layers import conv_norm_relu
from polarspike.models.registry import register, require_positive


class SmallCNN(nn.Module):
    """Four 3x3 convolutions with batch norm and ReLU, two max poolings, a mean over each quarter, a linear head.

    Channels w, 2w, 2w, 4w; resolution 1, 1/2, 1/2, 1/4. (N, C, H, W) -> (N, classes), any H and W from 1 up.
    The head sees the mean of each quarter of the image, not of all of it: what is where tells digits apart.
    """

    def __init__(self, in_channels: int, num_classes: int, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            OrderedDict(
                block1=conv_norm_relu(in_channels, width),  # (N, w, H, W)
                pool1=nn.MaxPool2d(2, ceil_mode=True),
                block2=conv_norm_relu(width, 2 * width),  # (N, 2w, H/2, W/2)
                block3=conv_norm_relu(2 * width, 2 * width),
                pool2=nn.MaxPool2d(2, ceil_mode=True),
                block4=conv_norm_relu(2 * width, 4 * width),  # (N, 4w, H/4, W/4)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(2)  # (N, 4w, 2, 2)
        self.flatten = nn.Flatten()
        self.head = nn.Linear(16 * width, num_classes)
        initialize(self)

    def forward(self, x: Tensor) -> Tensor:
        """Class scores (N, classes) of images (N, C, H, W)."""
        return self.head(self.flatten(self.pool(self.features(x))))  # type: ignore[no-any-return]


@register(image_size=8)
def cnn(*, num_classes: int, in_channels: int, width: int = 16) -> nn.Module:
    """Small convolutional network: four convolutions, two max poolings, for any input size.

    Args:
        num_classes: length of the output.
        in_channels: C of the input.
        width: channels of the first convolution; the others have 2, 2 and 4 times as many.
    """
    require_positive("cnn", width=width)
    return SmallCNN(in_channels, num_classes, width)
